"""The environments without OpenTelemetry or redis are worth their time only if the packages are out of reach there."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

_ROOT = Path(__file__).parents[2]


def _python(code: str, absent: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OBS_TEST_ABSENT": absent}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=_ROOT, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("module", ["yaml", "yaml.nodes"])
def test_hidden_package_behaves_as_if_never_installed(module: str) -> None:
    """The library tells an absent package by the error's type and name, so both must be those of the real thing."""
    code = f"""
import importlib.util, tests.absent
assert importlib.util.find_spec("yaml") is None
try:
    import {module}
except ModuleNotFoundError as error:
    print(error.name)
"""
    result = _python(code, "yaml")
    assert (0, "yaml\n") == (result.returncode, result.stdout), result.stderr


def test_hiding_too_late_is_an_error() -> None:
    """A package that was imported first would stay in use, and the environment would prove nothing."""
    result = _python("import yaml, tests.absent", "yaml")
    assert result.returncode != 0
    assert "['yaml'] imported before it could be hidden" in result.stderr
