"""Makes packages look as if they were not installed, so that the suite can prove the library runs without them.

`OBS_TEST_ABSENT=opentelemetry,redis python -m pytest -p tests.absent` hides both: every finder of the import system
stops seeing them, so Python itself raises the `ModuleNotFoundError`, and `importlib.util.find_spec` returns the `None`
of a package that was never installed. As a plugin this takes effect before any other plugin or conftest is imported.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

ABSENT = frozenset(name for name in os.environ.get("OBS_TEST_ABSENT", "").split(",") if name)


class _Blinkered:
    """A finder of the import system that does not see the absent packages."""

    def __init__(self, finder: Any) -> None:
        self._finder = finder

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name.partition(".")[0] in ABSENT:
            return None
        spec: ModuleSpec | None = self._finder.find_spec(name, path, target)
        return spec

    def __getattr__(self, name: str) -> Any:
        return getattr(self._finder, name)


if ABSENT:
    if too_late := sorted(ABSENT & {name.partition(".")[0] for name in sys.modules}):
        raise RuntimeError(f"{too_late} imported before it could be hidden: load this module with -p tests.absent")
    sys.meta_path[:] = map(_Blinkered, sys.meta_path)
