"""What the package shows, and what importing it does not drag in."""

from __future__ import annotations

import subprocess
import sys

import pytest

import observability_integration

_IMPORTED_THIRD_PARTIES = """
import sys
before = set(sys.modules)
import {module}
new = {{name.partition(".")[0] for name in set(sys.modules) - before}}
print(*sorted(new - sys.stdlib_module_names - {{"observability_integration"}}))
"""


def test_all_is_sorted_and_importable() -> None:
    """Names outside `__all__` are free to change, so `__all__` must be complete, readable and true."""
    assert sorted(observability_integration.__all__) == observability_integration.__all__
    for name in observability_integration.__all__:
        assert getattr(observability_integration, name) is not None


def test_unknown_name_is_an_attribute_error() -> None:
    """The lazy lookup must not hide a misspelt name behind another kind of error."""
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = observability_integration.no_such_name


@pytest.mark.parametrize(
    ("module", "allowed"),
    # typing_extensions is loaded by msgspec where it finds it.
    [("observability_integration", ""), ("observability_integration.primitives", "msgspec typing_extensions")],
)
def test_import_is_light(module: str, allowed: str) -> None:
    """An application that never switches telemetry on or uses Redis must not pay for their import."""
    code = _IMPORTED_THIRD_PARTIES.format(module=module)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(result.stdout.split()) <= set(allowed.split())
