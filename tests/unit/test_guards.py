"""The guards in tests/conftest.py protect every test of the suite; here they are shown to catch what they are for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.once, pytest.mark.unmeasured]

_ROOT = Path(__file__).parents[2]

_OFFENDERS = """
import asyncio, gc, socket, threading, time
from pathlib import Path
import observability_integration

release = threading.Event()

def test_leaves_a_thread(monkeypatch):
    monkeypatch.setattr("tests.conftest._THREAD_END_SECONDS", 0.0)
    threading.Thread(target=release.wait, name="left-thread").start()

def test_goes_on():
    release.set()

async def test_leaves_a_task():
    asyncio.create_task(asyncio.Event().wait(), name="left-task")

async def test_task_that_is_ending_is_not_left():
    asyncio.create_task(asyncio.Event().wait()).cancel()

async def test_thread_pool_of_the_loop_is_not_left():
    await asyncio.to_thread(time.sleep, 0)

async def test_library_blocks():
    inside = str(Path(observability_integration.__file__).with_name("blocking.py"))
    exec(compile("import time; time.sleep(0)", inside, "exec"), {})

async def test_test_blocks():
    time.sleep(0)

def test_leaves_a_socket_in_a_cycle():
    gc.disable()  # until the module is over, and this is its last test
    cycle = [socket.socket()]
    cycle.append(cycle)
"""


def test_guards_catch_threads_tasks_garbage_and_blocking_calls(tmp_path: Path) -> None:
    """Four offenders must be told by name, and their harmless neighbours must pass."""
    offenders = tmp_path / "test_offenders.py"
    offenders.write_text(_OFFENDERS)
    options = [
        "-p",
        "tests.conftest",
        "-c",
        str(_ROOT / "pyproject.toml"),
        "--rootdir",
        str(tmp_path),
        "-p",
        "no:cacheprovider",
    ]
    result = subprocess.run(
        [sys.executable, "-m", "pytest", *options, str(offenders)],
        cwd=_ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert "1 failed, 7 passed, 3 errors" in result.stdout, result.stdout
    assert "threads left running: ['left-thread']" in result.stdout
    assert "tasks left pending: ['left-task: Event.wait:" in result.stdout
    assert "Blocking call to time.sleep" in result.stdout
    assert "ERROR at teardown of test_leaves_a_socket_in_a_cycle" in result.stdout
