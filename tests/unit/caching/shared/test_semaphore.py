"""A gate keeps a burst of lookups from opening hundreds of connections; a lost place would be the store's end."""

from __future__ import annotations

import asyncio
import contextlib
import random
from typing import Any

import pytest

from observability_integration.caching.shared.semaphore import ConcurrencyGate
from observability_integration.testing.clock import FakeClockLoop

pytestmark = pytest.mark.once

LOOP_FACTORY = FakeClockLoop


async def test_no_more_than_the_limit_at_once_and_in_order() -> None:
    """Those who wait get their turn in the order in which they came."""
    gate = ConcurrencyGate(2)
    inside = most = 0
    order: list[int] = []

    async def use(number: int) -> None:
        nonlocal inside, most
        assert await gate.enter(60.0)
        inside += 1
        most = max(most, inside)
        order.append(number)
        await asyncio.sleep(1.0)
        inside -= 1
        gate.leave()

    await asyncio.gather(*map(use, range(7)))
    assert 2 == most
    assert list(range(7)) == order
    assert 4.0 == asyncio.get_running_loop().time()


async def test_waiting_ends_when_the_time_is_up() -> None:
    """A lookup must not queue for ever; one that gave up takes no turn."""
    gate = ConcurrencyGate(1)
    assert await gate.enter(1.0)
    assert not await gate.enter(1.0)
    assert 1.0 == asyncio.get_running_loop().time()
    gate.leave()
    assert await gate.enter(0.0)


async def test_a_waiter_cancelled_as_its_turn_comes_passes_it_on() -> None:
    """A place given to an access that has left would be lost for ever."""
    gate = ConcurrencyGate(1)
    assert await gate.enter(1.0)
    waiter = asyncio.create_task(gate.enter(60.0))
    await asyncio.sleep(0)
    gate.leave()
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    assert await gate.enter(0.0)


async def test_a_waiter_cancelled_before_its_turn_is_passed_over() -> None:
    """The turn goes to the next one who still waits."""
    gate = ConcurrencyGate(1)
    assert await gate.enter(1.0)
    first, second = asyncio.create_task(gate.enter(60.0)), asyncio.create_task(gate.enter(60.0))
    await asyncio.sleep(0)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    gate.leave()
    assert await second


@pytest.mark.parametrize("seed", range(20))
async def test_no_place_is_lost_whichever_access_leaves_when(seed: int) -> None:
    """Any mix of waits, time-outs and cancellations: in the end all places are free again."""
    chance = random.Random(seed)
    gate = ConcurrencyGate(3)

    async def use() -> None:
        if await gate.enter(chance.uniform(0, 2)):
            try:
                await asyncio.sleep(chance.uniform(0, 1))
            finally:
                gate.leave()

    tasks: list[asyncio.Task[Any]] = []
    for _ in range(60):
        tasks.append(asyncio.create_task(use()))
        await asyncio.sleep(chance.uniform(0, 0.2))
        chance.choice(tasks).cancel()
    for task in tasks:
        with contextlib.suppress(asyncio.CancelledError):
            await task
    assert [True, True, True, False] == [await gate.enter(0.0) for _ in range(4)]


async def test_widening_lets_those_in_who_wait() -> None:
    """As many as there is room for now, passing over those who have left, and the others later."""
    gate = ConcurrencyGate(1)
    assert await gate.enter(0.0)
    waiters = [asyncio.create_task(gate.enter(60.0)) for _ in range(4)]
    await asyncio.sleep(0)
    waiters[0].cancel()
    await asyncio.sleep(0)
    gate.widen(3)
    for _ in range(3):
        await asyncio.sleep(0)
    assert [True, True, True, False] == [waiter.done() for waiter in waiters]
    assert not await gate.enter(0.0)
    gate.leave()
    assert await waiters[3]
    for _ in range(3):
        gate.leave()
    gate.widen(4)
    assert [True] * 4 + [False] == [await gate.enter(0.0) for _ in range(5)]


def test_each_loop_has_its_own_places() -> None:
    """A waiter of one loop cannot be woken from another, and a loop that ended must not keep gate for ever."""
    gate = ConcurrencyGate(1)

    async def take_and_leave() -> bool:
        return await gate.enter(0.0)

    async def take_and_give_back() -> bool:
        taken = await gate.enter(0.0)
        gate.leave()
        return taken

    assert asyncio.run(take_and_leave())
    assert asyncio.run(take_and_give_back())
    assert asyncio.run(take_and_give_back())
