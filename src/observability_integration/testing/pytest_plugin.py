"""Fixtures for the tests of code that uses this library; pytest loads them by the package's entry point.

The plugin imports the library at the first use of a fixture. No fixture is used automatically.
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
    # In strict mode, pytest-asyncio runs only its own fixtures. AnyIO's plugin runs any.
    if importlib.util.find_spec("pytest_asyncio") is None:
        return pytest.fixture
    import pytest_asyncio

    return pytest_asyncio.fixture


@_async_fixture()
async def faulty_provider() -> AsyncIterator[FaultyProvider]:
    """A running `FaultyProvider` with a `time_scale` of 0.01.

    Needs a plugin that runs async tests: pytest-asyncio or AnyIO's.
    """
    from .faulty_provider import FaultyProvider

    async with FaultyProvider(time_scale=0.01) as provider:
        yield provider


@pytest.fixture
def captured_telemetry() -> Iterator[CapturedTelemetry]:
    """The telemetry of this library during the test (see `capture_telemetry`)."""
    from .captured_telemetry import capture_telemetry

    with capture_telemetry() as captured:
        yield captured


@pytest.fixture
def fake_clock_runner() -> Iterator[asyncio.Runner]:
    """Runs coroutines on a `FakeClockLoop`: ``fake_clock_runner.run(scenario())``, in a synchronous test."""
    import asyncio

    from .clock import FakeClockLoop

    with asyncio.Runner(loop_factory=FakeClockLoop) as runner:
        yield runner


@pytest.fixture
def no_abandoned_work() -> Iterator[None]:
    """Fails a test that leaves abandoned work behind (see `assert_no_abandoned`); earlier work does not count."""
    from .abandoned import abandoned_work, assert_no_abandoned

    already = abandoned_work()
    yield
    assert_no_abandoned(already)
