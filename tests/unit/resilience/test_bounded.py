"""What a scope that cancels in every turn of the loop, as AnyIO's do, makes of work that is cleaning up."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import pytest

from observability_integration.resilience.bounded import cancel_bounded, run_bounded, wait_cancelled
from observability_integration.testing import FakeClockLoop
from tests.scripted_work import Work, now

LOOP_FACTORY = FakeClockLoop
pytestmark = [pytest.mark.once, pytest.mark.promise("T4", "T5")]


async def _cancelled_in_every_turn(waits: Any) -> None:
    caller = asyncio.ensure_future(waits)
    await asyncio.sleep(1.0)
    while not caller.done():
        caller.cancel()
        await asyncio.sleep(0)


@pytest.mark.parametrize("ignores", [0, 9])
@pytest.mark.parametrize("wait", ["leave", "cancel", "run"])
async def test_abandoned_is_what_goes_on(wait: str, ignores: int) -> None:
    """Work that ends as soon as its clean-up is broken off was not left behind; what ignores that was, and is told."""
    left: list[asyncio.Future[Any]] = []
    work = Work(60.0, cleanup_seconds=5.0, ignores=ignores)
    task = asyncio.ensure_future(work())
    await asyncio.sleep(0)
    if wait == "leave":
        task.cancel()
    waits = {
        "leave": lambda: wait_cancelled(task, 5.0, left.append),
        "cancel": lambda: cancel_bounded(task, 5.0, left.append),
        "run": lambda: run_bounded(task, 60.0, 5.0, left.append),
    }
    await _cancelled_in_every_turn(waits[wait]())
    assert 1.0 == now()
    await asyncio.sleep(0)
    assert ([task] if ignores else []) == left
    assert bool(ignores) == (not task.done())
    with suppress(asyncio.CancelledError):
        await task


async def test_error_of_a_clean_up_that_is_broken_off(caplog: Any) -> None:
    """Nobody asks for it, so it is not asyncio's to log either."""

    async def fails() -> None:
        try:
            await asyncio.sleep(60.0)
        finally:
            raise ConnectionError

    task = asyncio.ensure_future(fails())
    await asyncio.sleep(0)
    left: list[asyncio.Future[Any]] = []
    await _cancelled_in_every_turn(wait_cancelled(task, 5.0, left.append))
    await asyncio.sleep(0)
    assert task.done()
    del task
    assert ([], []) == (left, caplog.records)
