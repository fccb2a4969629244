"""The fixtures that users get, in a pytest of their own that has little else."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.scripts import run_script

pytestmark = pytest.mark.once

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "testing.md").read_text()
SHOWN = re.findall(r'^```python test="skip" run="pytest"\n(.*?)^```$', PAGE, re.MULTILINE | re.DOTALL)

TESTS = """
import asyncio

import pytest
from observability_integration.errors import PrimitiveTimeoutError
from observability_integration.primitives import TimeoutPrimitive


async def hang(_):
    await asyncio.Event().wait()


async def stubborn(_):
    while True:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            if over:
                raise


over = []


@pytest.mark.asyncio
async def test_provider(faulty_provider):
    reader, writer = await asyncio.open_connection("127.0.0.1", int(faulty_provider.base_url[:-3].rsplit(":")[-1]))
    body = b'{"model": "faulty-slow-first-token-1", "messages": [{"role": "user", "content": "?"}]}'
    head = b"POST /v1/chat/completions HTTP/1.1\\r\\nHost: a\\r\\nConnection: close\\r\\nContent-Length: %d\\r\\n\\r\\n"
    writer.write(head % len(body) + body)
    assert (await reader.read()).startswith(b"HTTP/1.1 200 OK")
    writer.close()
    await writer.wait_closed()
    assert faulty_provider.attempts("faulty-slow-first-token-1") == 1


def test_clock_and_telemetry(fake_clock_runner, captured_telemetry, no_abandoned_work):
    with pytest.raises(PrimitiveTimeoutError):
        fake_clock_runner.run(TimeoutPrimitive(hang, 3600.0, operation_name="ask").execute("q"))
    assert fake_clock_runner.get_loop().time() >= 3600.0
    assert captured_telemetry.value("timeout.failures", operation="ask") == 1


@pytest.fixture
def work_ends():
    yield
    over.append(True)


def test_abandoned(fake_clock_runner, work_ends, no_abandoned_work):
    with pytest.raises(PrimitiveTimeoutError):
        fake_clock_runner.run(TimeoutPrimitive(stubborn, 1.0, operation_name="dig").execute("q"))


def test_what_was_there_before(no_abandoned_work):
    pass
"""


ANYIO_TESTS = """
import pytest


@pytest.mark.anyio
@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_provider(faulty_provider, anyio_backend):
    assert faulty_provider.base_url.endswith("/v1")


def test_the_others(fake_clock_runner, captured_telemetry, no_abandoned_work):
    assert captured_telemetry.value("timeout.failures", operation="ask") is None
"""


def run_pytest(directory: Path, tests: str, *plugins: str, **environment: str) -> str:
    """What pytest says of the tests in a project of their own."""
    (directory / "test_it.py").write_text(tests)
    options = [option for plugin in (*plugins, "no:cacheprovider") for option in ("-p", plugin)]
    finished = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rA", "-W", "error", *options, str(directory)],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        cwd=directory,
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
    )
    return finished.stdout + finished.stderr


def test_fixtures(tmp_path: Path) -> None:
    """A project that names no plugin has them all, with warnings as errors; only the test that leaves work fails.

    The tests that the documentation shows are part of that project.
    """
    pytest.importorskip("openai")
    for number, shown in enumerate(SHOWN):
        (tmp_path / f"test_shown_{number}.py").write_text(shown)
    (tmp_path / "pytest.ini").write_text("[pytest]\nasyncio_default_fixture_loop_scope = function\n")
    said = run_pytest(tmp_path, TESTS)

    assert len(SHOWN) == 3
    assert "7 passed, 1 error" in said, said
    assert "timed-out work is still running: dig (1)" in said


def test_without_pytest_asyncio(tmp_path: Path) -> None:
    """AnyIO's plugin does as well; and where plugins are not looked for, ours goes by the name of the package."""
    pytest.importorskip("anyio")
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    environment = {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "OBS_TEST_ABSENT": "pytest_asyncio"}
    plugins = "tests.absent", "anyio", "observability_integration.testing.pytest_plugin"
    said = run_pytest(tmp_path, ANYIO_TESTS, *plugins, **environment)

    assert "2 passed" in said, said


def test_the_table_of_fixtures_is_complete() -> None:
    """Whoever reads the page knows of each fixture, and finds no other."""
    from observability_integration.testing import pytest_plugin

    there = {name for name, value in vars(pytest_plugin).items() if "FixtureFunctionDefinition" in type(value).__name__}
    assert there == set(re.findall(r"^\| `(\w+)` \| .* \| \[below\]", PAGE, re.MULTILINE))


def test_this_run_has_it_too(pytestconfig: pytest.Config) -> None:
    """Nothing in this suite asks for the plugin: a second registration would be an error in every run."""
    plugin = pytestconfig.pluginmanager.get_plugin("observability_integration.testing.pytest_plugin")

    assert "observability_integration.testing.pytest_plugin" == plugin.__name__


def test_the_plugin_is_light() -> None:
    """pytest loads it in every run of whoever has installed this library: it brings nothing along but pytest."""
    run_script(
        """
        import sys
        import pytest
        before = set(sys.modules)
        import observability_integration.testing.pytest_plugin
        new = {name for name in set(sys.modules) - before if not name.startswith(("asyncio", "_asyncio"))}
        ours = {name for name in new if name.startswith("observability_integration")}
        expected = ["", ".testing", ".testing.pytest_plugin"]
        assert ours == {f"observability_integration{name}" for name in expected}, ours
        assert not new & {"opentelemetry", "redis", "openai", "rich", "msgspec"}, new
        """
    )


def test_public_names() -> None:
    """Every public name can be had, and a wrong one fails as usual."""
    from observability_integration import testing

    assert all(getattr(testing, name).__name__ == name for name in testing.__all__)
    assert set(testing.__all__) <= set(dir(testing))
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = testing.Nothing


def test_only_the_provider_needs_h11() -> None:
    """The other tools, and the names of the faults, do without; who asks for the provider is told what to install."""
    run_script(
        """
        import sys
        import pytest
        sys.modules["h11"] = None
        from observability_integration import testing
        from observability_integration.errors import MissingDependencyError
        assert [getattr(testing, name) for name in testing.__all__ if name != "FaultyProvider"]
        assert testing.fault_of("faulty-cut-at-5").model == "faulty-cut-at-5"
        with pytest.raises(MissingDependencyError, match="pip install 'observability-integration.testing.'"):
            testing.FaultyProvider
        """
    )
