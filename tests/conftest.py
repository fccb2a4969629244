"""What every test gets: skips for absent packages, private servers, and guards against leftovers and blocking calls."""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from blockbuster import BlockBuster
from pytest_asyncio import is_async_test

from observability_integration.telemetry.metrics import instruments
from observability_integration.telemetry.metrics.snapshot import snapshot
from tests.processes import RedisProcess

_PACKAGE_OF_MARKER = {"needs_otel": "opentelemetry", "needs_redis_package": "redis"}

# How long a thread that was told to stop may take to end, and how many turns of the loop a cancelled task may take.
_THREAD_END_SECONDS = 2.0
_TASK_END_TURNS = 100
_TASK_END_PAUSE_SECONDS = 0.02


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs a package that is not installed, or that tests/absent.py hides."""
    for marker, package in _PACKAGE_OF_MARKER.items():
        if importlib.util.find_spec(package) is None:
            skip = pytest.mark.skip(reason=f"the package {package} is absent")
            for item in items:
                if item.get_closest_marker(marker):
                    item.add_marker(skip)


def pytest_collection_finish() -> None:
    """Leave what collecting the tests has made out of every later garbage collection: hundreds of tests ask for one."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module", autouse=True)
def no_garbage_left_behind() -> Iterator[None]:
    """What a module leaves unclosed warns in its own last test; what lives on is left out of later collections.

    Else a collection takes longer the more the modules before have imported, and a third of the run goes into them.
    """
    gc.collect()  # what the last test before held until its very end
    gc.freeze()
    yield
    gc.collect()


@pytest.fixture(autouse=True)
def no_thread_left_behind() -> Iterator[None]:
    """Fail a test that leaves threads running: what they do happens in the tests after it."""
    before = set(threading.enumerate())
    yield
    left = [thread for thread in threading.enumerate() if thread not in before and not thread.daemon]
    for thread in left:
        thread.join(_THREAD_END_SECONDS)
    running = [thread.name for thread in left if thread.is_alive()]
    assert not running, f"threads left running: {running}"


@pytest.fixture(autouse=True)
def no_task_left_behind(request: pytest.FixtureRequest, no_thread_left_behind: None) -> None:
    """Fail an async test that leaves tasks pending.

    Asking for the other guard first puts the event loop, which this one starts and which owns a thread pool, inside it.
    """
    if is_async_test(request.node):
        request.getfixturevalue("_no_pending_task")


@pytest.fixture
async def _no_pending_task() -> AsyncIterator[None]:
    yield
    for turn in range(_TASK_END_TURNS):
        left = asyncio.all_tasks() - {asyncio.current_task()}
        if not left:
            return
        # At first without letting time pass; then as long as a client may take to close a connection that is cut.
        await asyncio.sleep(0 if turn < _TASK_END_TURNS // 2 else _TASK_END_PAUSE_SECONDS)
    pytest.fail(f"tasks left pending: {sorted(f'{task.get_name()}: {_waits_at(task)}' for task in left)}")


def _waits_at(task: asyncio.Task[Any]) -> str:
    """The coroutines that the task is inside of, outermost first."""
    inside = []
    awaited: Any = task.get_coro()
    while hasattr(awaited, "cr_await"):
        line = f":{awaited.cr_frame.f_lineno}" if awaited.cr_frame else ""
        inside.append(f"{awaited.__qualname__}{line}")
        awaited = awaited.cr_await
    return " > ".join(inside)


@pytest.fixture(autouse=True)
def no_blocking_calls(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail an async test in which the library makes a blocking call inside the event loop."""
    if not is_async_test(request.node):
        yield
        return
    detector = _detector()
    detector.activate()
    yield
    detector.deactivate()


@cache
def _detector() -> BlockBuster:
    detector = BlockBuster("observability_integration")
    for function in detector.functions.values():
        # An import reads files, and switching telemetry on or off reads entry points: each happens once in a process.
        function.can_block_in("<frozen importlib._bootstrap>", "_find_and_load")
        function.can_block_in(
            "observability_integration/apm_setup.py", {"initialize_observability", "shutdown_observability"}
        )
    return detector


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisProcess]:
    """A Redis for the whole run: use keys of your own, and do not stop it (`redis_process` may be stopped)."""
    yield from _running_redis(tmp_path_factory.mktemp("redis"))


@pytest.fixture
def redis_process(tmp_path: Path) -> Iterator[RedisProcess]:
    """A Redis for this test alone, which may pause, kill and restart it."""
    yield from _running_redis(tmp_path)


def _running_redis(directory: Path) -> Iterator[RedisProcess]:
    server = RedisProcess(directory)
    yield server
    server.kill()


@pytest.fixture
def metrics() -> Iterator[Callable[..., Any]]:
    """Counts from zero: `metrics("timeout.failures", operation="ask", kind="total")` is what stands there now.

    A histogram is shown as the number of its measurements; a series that is not there, as None.
    """
    profiles = instruments.switch.profiles
    instruments.start(exemplars=False, profiles=frozenset())

    def value(name: str, **labels: str) -> float | None:
        for spec, points in snapshot():
            for point in points:
                if (spec.name, dict(point.attributes)) == (name, labels):
                    return sum(point.counts) if point.counts else point.value
        return None

    yield value
    instruments.stop()
    instruments.switch.profiles = profiles
