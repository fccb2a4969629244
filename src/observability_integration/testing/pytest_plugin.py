"""Fixtures for the tests of code that uses this library; pytest finds them where it is installed.

Nothing is imported before a fixture is asked for, and none is used unless a test asks.
"""

from __future__ import annotations

import importlib.util
from collections.abc import AsyncIterator, Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    import asyncio

    from .captured_telemetry import CapturedTelemetry
    from .faulty_provider import FaultyProvider


def _async_fixture() -> Callable[[Callable[..., Any]], Any]:
    # In its strict mode, pytest-asyncio runs only fixtures that are marked as its own. AnyIO's plugin runs any.
    if importlib.util.find_spec("pytest_asyncio") is None:
        return pytest.fixture
    import pytest_asyncio

    return pytest_asyncio.fixture


@_async_fixture()
async def faulty_provider() -> AsyncIterator[FaultyProvider]:
    """A `FaultyProvider` that serves, its own waits a hundredth of what the model names say.

    Needs a plugin that runs async tests: pytest-asyncio or AnyIO's.
    """
    from .faulty_provider import FaultyProvider

    async with FaultyProvider(time_scale=0.01) as provider:
        yield provider


@pytest.fixture
def captured_telemetry() -> Iterator[CapturedTelemetry]:
    """What this library measures during the test (see `capture_telemetry`)."""
    from .captured_telemetry import capture_telemetry

    with capture_telemetry() as captured:
        yield captured


@pytest.fixture
def fake_clock_runner() -> Iterator[asyncio.Runner]:
    """Runs coroutines on a `FakeClockLoop`: ``fake_clock_runner.run(scenario())``, in a test that is not async."""
    import asyncio

    from .clock import FakeClockLoop

    with asyncio.Runner(loop_factory=FakeClockLoop) as runner:
        yield runner


@pytest.fixture
def no_abandoned_work() -> Iterator[None]:
    """Fails the test when it leaves timed-out work running that was not running before (see `assert_no_abandoned`)."""
    from .abandoned import abandoned_work, assert_no_abandoned

    already = abandoned_work()
    yield
    assert_no_abandoned(already)
