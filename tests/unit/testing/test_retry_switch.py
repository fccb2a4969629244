"""Retries in a test: as many as it wants, without a pause, and for nobody else in the process."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Iterator
from typing import Any

import pytest

from observability_integration.errors import ConfigurationError
from observability_integration.primitives.retry import RetryPrimitive, testing_mode
from observability_integration.primitives.retry.testing_mode import TestingMode
from observability_integration.resilience.backoff import Backoff
from observability_integration.testing import FakeClockLoop, set_testing

pytestmark = pytest.mark.once
LOOP_FACTORY = FakeClockLoop


class Refusing:
    """A target that is never there, and counts who asks."""

    def __init__(self) -> None:
        self.calls = 0

    async def __call__(self, _: str) -> str:
        self.calls += 1
        raise ConnectionResetError


def retrying(target: Refusing) -> RetryPrimitive[str, str]:
    return RetryPrimitive(target, max_attempts=3, backoff=Backoff(jitter="none"), budget=None)


@pytest.mark.parametrize(
    ("knobs", "calls", "seconds"),
    [
        ({}, 1, 0.0),
        ({"attempts": 2}, 2, 0.0),
        ({"attempts": 5}, 5, 0.0),
        ({"attempts": 5, "cap": True}, 3, 0.0),
        ({"attempts": 2, "cap": True}, 2, 0.0),
        ({"attempts": None}, 3, 0.0),
        ({"attempts": None, "wait": True}, 3, 1.5),
    ],
)
async def test_attempts_and_pauses(knobs: dict[str, Any], calls: int, seconds: float) -> None:
    """A test of what comes after the last attempt neither waits for it nor spells out how often that is."""
    target, loop = Refusing(), asyncio.get_running_loop()
    began = loop.time()
    with set_testing(**knobs), pytest.raises(ConnectionResetError):
        await retrying(target).execute("question")

    assert (calls, seconds) == (target.calls, loop.time() - began)


async def test_afterwards_retries_are_as_configured() -> None:
    """A switch that stayed would make the next tests pass for the wrong reason; an error in the block is no excuse."""
    with pytest.raises(KeyError), set_testing():
        raise KeyError
    target, loop = Refusing(), asyncio.get_running_loop()
    began = loop.time()
    with pytest.raises(ConnectionResetError):
        await retrying(target).execute("question")

    assert (3, 1.5) == (target.calls, loop.time() - began)


async def test_tests_at_the_same_time() -> None:
    """Two tests in one process, each with a switch of its own, and a third one that has none."""
    both_in = asyncio.Barrier(3)
    targets = [Refusing() for _ in range(3)]

    async def scenario(target: Refusing, attempts: int | None) -> None:
        if attempts is None:
            await both_in.wait()
            with pytest.raises(ConnectionResetError):
                await retrying(target).execute("question")
            return
        with set_testing(attempts=attempts):
            await both_in.wait()
            with pytest.raises(ConnectionResetError):
                await retrying(target).execute("question")

    await asyncio.gather(*(scenario(*each) for each in zip(targets, (1, 2, None), strict=True)))

    assert [1, 2, 3] == [target.calls for target in targets]


async def test_who_has_it() -> None:
    """Tasks and threads that the block begins, but not what was under way before it."""
    told = asyncio.Event()
    seen: dict[str, TestingMode | None] = {}

    async def look(name: str) -> None:
        await told.wait()
        seen[name] = testing_mode.active()

    before = asyncio.create_task(look("before"))
    await asyncio.sleep(0)
    with set_testing(attempts=2) as mode:
        within = asyncio.create_task(look("within"))
        seen["thread"] = await asyncio.to_thread(testing_mode.active)
    told.set()
    await asyncio.gather(before, within)

    assert {"before": None, "within": mode, "thread": mode} == seen
    assert testing_mode.active() is None


def test_blocks_inside_blocks() -> None:
    """The inner one decides alone, and the outer one is in force again after it."""
    with set_testing(attempts=2, wait=True) as outer:
        with set_testing(attempts=None) as inner:
            assert inner is testing_mode.active()
            assert not inner.wait
        assert outer is testing_mode.active()


async def test_cancelled_within_the_block() -> None:
    """The switch is the task's own, and the cancellation goes on."""

    async def scenario() -> None:
        try:
            with set_testing():
                await asyncio.Event().wait()
        finally:
            assert testing_mode.active() is None

    task = asyncio.create_task(scenario())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


def test_a_block_that_ends_in_another_context() -> None:
    """Some plugins run the two halves of a fixture in different contexts: that is no error, and leaves nothing on."""
    switch = set_testing()
    contextvars.copy_context().run(switch.__enter__)
    elsewhere = contextvars.copy_context()
    elsewhere.run(switch.__exit__, None, None, None)

    assert elsewhere.run(testing_mode.active) is None
    assert testing_mode.active() is None


@pytest.fixture
def impatient() -> Iterator[TestingMode]:
    with set_testing(attempts=2) as mode:
        yield mode


async def test_as_a_fixture(impatient: TestingMode) -> None:
    """A fixture that is not async holds for an async test."""
    assert impatient is testing_mode.active()


def test_impossible_attempts() -> None:
    """The knob is named, at once and not at the first failure, and nothing is switched on."""
    with pytest.raises(ConfigurationError, match=r"^attempts\b"):
        set_testing(attempts=0)
    assert testing_mode.active() is None


def test_one_block_each() -> None:
    """What was in force before a block is kept for one block."""
    switch = set_testing()
    with switch, pytest.raises(RuntimeError, match="one 'with'"):
        switch.__enter__()
    assert testing_mode.active() is None


def test_no_decorator() -> None:
    """As the decorator of an async function it would be over before that begins, and nobody would notice."""
    assert not callable(set_testing())
