"""What the package shows, and what importing it does not drag in."""

from __future__ import annotations

import subprocess
import sys
from types import ModuleType

import pytest

import observability_integration
from observability_integration import primitives, propagation, resilience, testing, web

pytestmark = pytest.mark.each_environment

_IMPORTED_THIRD_PARTIES = """
import sys
before = set(sys.modules)
from {module} import *
new = {{name.partition(".")[0] for name in set(sys.modules) - before}}
print(*sorted(new - sys.stdlib_module_names - {{"observability_integration"}}))
"""


_FACES = [observability_integration, primitives, propagation, resilience, testing, web]


@pytest.mark.parametrize("face", _FACES, ids=lambda face: face.__name__)
def test_all_is_sorted_and_importable(face: ModuleType) -> None:
    """Names outside `__all__` are free to change, so `__all__` must be complete, readable and true."""
    constants_first = sorted(face.__all__, key=lambda name: (not name.isupper(), not name[0].isupper(), name))
    assert constants_first == face.__all__ or sorted(face.__all__) == face.__all__
    for name in face.__all__:
        value = getattr(face, name)
        assert not isinstance(value, ModuleType), f"{name} is hidden by a module of the same name"


@pytest.mark.parametrize(
    "face", [observability_integration, primitives, resilience, testing], ids=lambda face: face.__name__
)
def test_unknown_name_is_an_attribute_error(face: ModuleType) -> None:
    """The lazy lookup must not hide a misspelt name behind another kind of error."""
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = face.no_such_name


@pytest.mark.parametrize(
    ("module", "allowed"),
    # typing_extensions is loaded by msgspec where it finds it.
    [
        ("observability_integration.context", ""),
        ("observability_integration.primitives", "msgspec typing_extensions"),
        ("observability_integration.propagation", "msgspec typing_extensions"),
        ("observability_integration.web", "msgspec typing_extensions"),
    ],
)
def test_import_is_light(module: str, allowed: str) -> None:
    """An application that never switches telemetry on or uses Redis must not pay for their import."""
    code = _IMPORTED_THIRD_PARTIES.format(module=module)
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(result.stdout.split()) <= set(allowed.split())
