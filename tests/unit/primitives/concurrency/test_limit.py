"""Permits, the wait for them, and the ways in which one could get lost."""

from __future__ import annotations

import asyncio
import gc
import math
import threading
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import pytest

from observability_integration.context import Deadline, reset_deadline, set_deadline
from observability_integration.errors import ConfigurationError
from observability_integration.primitives.concurrency.limit import ConcurrencyLimit
from observability_integration.primitives.concurrency.permits import ConcurrencyPermit, PermitRefused, Reason
from observability_integration.primitives.concurrency.queue import Priority
from observability_integration.resilience.aimd import Aimd
from observability_integration.testing.clock import FakeClockLoop

LOOP_FACTORY = FakeClockLoop
pytestmark = pytest.mark.once


def now() -> float:
    return asyncio.get_running_loop().time()


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


def take(limiter: ConcurrencyLimit) -> ConcurrencyPermit:
    permit = limiter.try_acquire()
    assert permit is not None
    return permit


async def waiting(
    limiter: ConcurrencyLimit, priority: Priority = "high", **options: Any
) -> asyncio.Task[ConcurrencyPermit]:
    """Somebody who waits for a permit by now."""
    task = asyncio.create_task(limiter.acquire(priority, **options))
    await asyncio.sleep(0)
    return task


async def refusal(
    work: Coroutine[Any, Any, ConcurrencyPermit] | asyncio.Task[ConcurrencyPermit],
) -> tuple[Reason, float]:
    """Why there was no permit, and after how long."""
    with pytest.raises(PermitRefused) as caught:
        await work
    return caught.value.reason, caught.value.waited_seconds


def all_free(limiter: ConcurrencyLimit) -> bool:
    """Whether nothing was lost and nothing doubled."""
    permits = [limiter.try_acquire() for _ in range(limiter.limit + 1)]
    for permit in permits:
        if permit is not None:
            permit.release()
    return [permit is not None for permit in permits] == [True] * limiter.limit + [False]


class Watching:
    """Notes the limit whenever it is told of a change, and how many calls then run."""

    def __init__(self, limiter: ConcurrencyLimit) -> None:
        self.limiter = limiter
        self.seen: list[int] = []
        self.in_flight: list[int] = []
        limiter.watch(self)

    def limit_changed(self) -> None:
        self.seen.append(self.limiter.limit)
        self.in_flight.append(self.limiter.in_flight)


async def test_no_more_than_the_limit_at_once_and_in_order() -> None:
    """What it is for."""
    limiter = ConcurrencyLimit(2)
    order: list[int] = []
    most = 0

    async def call(number: int) -> None:
        nonlocal most
        permit = await limiter.acquire()
        order.append(number)
        most = max(most, limiter.in_flight)
        await asyncio.sleep(1.0)
        permit.release("success")

    await asyncio.gather(*map(call, range(7)))
    assert 2 == most
    assert list(range(7)) == order
    assert 4.0 == now()
    assert all_free(limiter)


async def test_the_higher_tier_goes_first_and_is_shown_apart() -> None:
    """Whoever came earlier waits, when something more important comes."""
    limiter = ConcurrencyLimit(1)
    permit = take(limiter)
    tiers: list[Priority] = ["best_effort", "low", "critical", "high"]
    tasks = [await waiting(limiter, tier) for tier in tiers]
    assert {"critical": 1, "high": 1, "low": 1, "best_effort": 1} == limiter.queued
    for expected in (2, 3, 1, 0):
        permit.release()
        permit = await tasks[expected]
        assert 1 == limiter.in_flight
    permit.release()
    assert 0 == sum(limiter.queued.values())


async def test_nobody_overtakes_who_waits() -> None:
    """A permit that is given back goes to the queue: who comes in that moment gets none, and waits behind."""
    limiter = ConcurrencyLimit(1)
    permit = take(limiter)
    task = await waiting(limiter, "best_effort")
    permit.release()
    assert limiter.try_acquire() is None
    (await task).release()
    assert all_free(limiter)


async def test_released_twice_is_released_once() -> None:
    """Clean-up code may run twice; that must not let another call in."""
    limiter = ConcurrencyLimit(2)
    first, second = take(limiter), take(limiter)
    assert first.held
    first.release()
    first.release()
    assert not first.held
    assert 1 == limiter.in_flight
    second.release()
    assert all_free(limiter)


async def test_waiting_has_an_end() -> None:
    """Its own limit or the limiter's, to the millisecond, and no place is kept for who has gone."""
    limiter = ConcurrencyLimit(1, max_wait_seconds=10.0)
    permit = take(limiter)
    assert ("queue_timeout", 10.0) == await refusal(limiter.acquire())
    assert ("queue_timeout", 2.5) == await refusal(limiter.acquire(max_wait_seconds=2.5))
    assert ("queue_timeout", 0.0) == await refusal(limiter.acquire(max_wait_seconds=0))
    assert 12.5 == now()
    assert 0 == sum(limiter.queued.values())
    permit.release()
    assert all_free(limiter)


@pytest.mark.parametrize(
    ("deadline_seconds", "max_wait_seconds", "expected"),
    [
        (3.0, None, ("deadline", 3.0)),
        (3.0, 5.0, ("deadline", 3.0)),
        (3.0, 3.0, ("deadline", 3.0)),
        (3.0, 2.0, ("queue_timeout", 2.0)),
        (0.0, 5.0, ("deadline", 0.0)),
        (-1.0, None, ("deadline", 0.0)),
    ],
)
async def test_the_deadline_bounds_the_wait(
    deadline_seconds: float, max_wait_seconds: float | None, expected: tuple[Reason, float]
) -> None:
    """Nobody waits for a permit that would come too late; the reason says which limit to raise."""
    limiter = ConcurrencyLimit(1)
    permit = take(limiter)
    for in_force, given in ((deadline_seconds, None), (60.0, deadline_seconds), (deadline_seconds, 60.0)):
        also = None if given is None else Deadline.after(given)
        token = set_deadline(Deadline.after(in_force))
        try:
            assert expected == await refusal(limiter.acquire(max_wait_seconds=max_wait_seconds, deadline=also))
        finally:
            reset_deadline(token)
    permit.release()
    assert all_free(limiter)


async def test_a_full_queue_refuses_who_comes() -> None:
    """At once, and whoever waits already keeps the place."""
    limiter = ConcurrencyLimit(1, max_queued=1)
    permit = take(limiter)
    task = await waiting(limiter)
    assert ("queue_full", 0.0) == await refusal(limiter.acquire())
    assert ("queue_full", 0.0) == await refusal(limiter.acquire("low"))
    permit.release()
    (await task).release()
    assert all_free(limiter)


async def test_a_full_queue_sheds_the_lowest_and_youngest_for_a_higher_tier() -> None:
    """Room for what matters more is made by what matters least and has waited least."""
    limiter = ConcurrencyLimit(1, max_queued=3)
    permit = take(limiter)
    low = await waiting(limiter, "low")
    elder, younger = await waiting(limiter, "best_effort"), await waiting(limiter, "best_effort")
    await asyncio.sleep(4.0)
    critical = await waiting(limiter, "critical")
    assert ("shed", 4.0) == await refusal(younger)
    assert {"critical": 1, "high": 0, "low": 1, "best_effort": 1} == limiter.queued
    for task in (critical, low, elder):
        permit.release()
        permit = await task
    permit.release()
    assert all_free(limiter)


async def test_who_has_no_time_sheds_nobody() -> None:
    """Refused before anything else: the place would be of no use."""
    limiter = ConcurrencyLimit(1, max_queued=1)
    permit = take(limiter)
    task = await waiting(limiter, "low")
    assert ("queue_timeout", 0.0) == await refusal(limiter.acquire("critical", max_wait_seconds=0.0))
    permit.release()
    (await task).release()
    assert all_free(limiter)


async def test_without_a_queue_nobody_waits() -> None:
    """`max_queued=0` is the way to shed all load above the limit."""
    limiter = ConcurrencyLimit(1, max_queued=0)
    permit = take(limiter)
    assert ("queue_full", 0.0) == await refusal(limiter.acquire("critical"))
    permit.release()
    assert all_free(limiter)


async def test_a_lowered_limit_admits_nobody_until_it_is_reached() -> None:
    """What runs goes on; the next one is let in when less than the new limit runs."""
    limiter = ConcurrencyLimit(4)
    permits = [take(limiter) for _ in range(4)]
    task = await waiting(limiter)
    limiter.set_limit(2)
    for left in (3, 2):
        permits.pop().release()
        await turns()
        assert (left, False) == (limiter.in_flight, task.done())
        assert limiter.try_acquire() is None
    permits.pop().release()
    assert 2 == limiter.in_flight
    for permit in (await task, *permits):
        permit.release()
    assert all_free(limiter)


async def test_a_raised_limit_lets_in_as_many_as_there_is_room_for() -> None:
    """They wait for nothing any more."""
    limiter = ConcurrencyLimit(1)
    permit = take(limiter)
    tasks = [await waiting(limiter) for _ in range(4)]
    limiter.set_limit(3)
    await turns()
    assert [True, True, False, False] == [task.done() for task in tasks]
    limiter.set_limit(5)
    for each in (permit, *[await task for task in tasks]):
        each.release()
    assert all_free(limiter)


async def test_an_adaptive_limit_follows_the_outcomes_and_tells_of_each_change() -> None:
    """Successes at full use raise it, overload lowers it, anything else changes nothing."""
    limiter = ConcurrencyLimit(Aimd(4, max_limit=8, clock=now))
    assert limiter.adapts
    watching = Watching(limiter)
    for _ in range(2):  # in each round of four ends, three see half of the limit in use or more
        permits = [take(limiter) for _ in range(4)]
        for permit in permits:
            permit.release("success")
    assert 5 == limiter.limit
    for _ in range(20):
        take(limiter).release("neutral")
    assert 5 == limiter.limit
    for permit in [take(limiter) for _ in range(5)]:
        permit.release("overload")
    assert 4 == limiter.limit
    await asyncio.sleep(1.0)
    take(limiter).release("overload")
    assert 3 == limiter.limit, "a call that began after the decrease, in the next window"
    limiter.set_limit(8)
    with pytest.raises(ConfigurationError, match="max_limit=8"):
        limiter.set_limit(9)
    assert [5, 4, 3, 8] == watching.seen
    assert all_free(limiter)


async def test_a_limit_raised_by_success_lets_one_more_in_than_ended() -> None:
    """The one who is let in by the new room must not wait for another to end."""
    limiter = ConcurrencyLimit(Aimd(1))
    permit = take(limiter)
    tasks = [await waiting(limiter) for _ in range(3)]
    permit.release("success")
    await turns()
    assert [True, True, False] == [task.done() for task in tasks]
    for task in tasks:
        (await task).release()
    assert all_free(limiter)


async def test_who_is_told_of_a_change_may_use_the_limit() -> None:
    """All who watch are told when the change is made and the lock is free, once for each; nobody lives for that."""
    limiter = ConcurrencyLimit(1)
    assert not limiter.adapts
    first, second = Watching(limiter), Watching(limiter)
    take(limiter)
    limiter.set_limit(3)
    limiter.set_limit(3)
    assert ([3], [1]) == (first.seen, first.in_flight)
    del first
    gc.collect()
    limiter.set_limit(4)
    third = Watching(limiter)
    limiter.set_limit(5)
    assert ([3, 4, 5], [5]) == (second.seen, third.seen)
    ConcurrencyLimit(1).set_limit(2)


@pytest.mark.parametrize("released_at", range(6))
@pytest.mark.parametrize("cancelled_at", range(6))
async def test_cancelled_in_any_tick_a_waiter_loses_no_permit(cancelled_at: int, released_at: int) -> None:
    """Before, with and after the permit: in whatever order these meet, the next one gets it."""
    limiter = ConcurrencyLimit(1)
    permit = take(limiter)
    first = asyncio.create_task(limiter.acquire())
    second = asyncio.create_task(limiter.acquire())
    for tick in range(6):
        if tick == cancelled_at:
            first.cancel()
        if tick == released_at:
            permit.release()
        await asyncio.sleep(0)
    try:
        (await first).release()
    except asyncio.CancelledError:
        assert first.cancelled()
    (await second).release()
    assert all_free(limiter)


@pytest.mark.parametrize("cancel_first", [True, False])
async def test_cancelled_in_the_tick_of_the_permit_hands_it_on(cancel_first: bool) -> None:
    """The cancellation stands, whichever of the two was first, and the next one has the permit a turn later."""
    limiter = ConcurrencyLimit(1)
    permit = take(limiter)
    first, second = await waiting(limiter), await waiting(limiter)
    steps: list[Callable[[], object]] = [first.cancel, permit.release]
    for step in steps if cancel_first else reversed(steps):
        step()
    await turns(3)
    assert first.cancelled()
    assert second.done()
    (await second).release()
    assert all_free(limiter)


@pytest.mark.parametrize("release_first", [True, False])
async def test_the_permit_and_the_end_of_the_wait_in_one_tick(release_first: bool) -> None:
    """Either it gets the permit, or the permit is free: never neither."""
    limiter = ConcurrencyLimit(1)
    permit = take(limiter)
    if release_first:
        asyncio.get_running_loop().call_later(2.0, permit.release)
    task = await waiting(limiter, max_wait_seconds=2.0)
    if not release_first:
        asyncio.get_running_loop().call_later(2.0, permit.release)
    if release_first:
        (await task).release()
    else:
        assert ("queue_timeout", 2.0) == await refusal(task)
    assert all_free(limiter)


async def test_a_waiter_that_is_thrown_away_leaves_the_queue() -> None:
    """A coroutine that is closed instead of cancelled, as on a garbage collection."""
    limiter = ConcurrencyLimit(1)
    permit = take(limiter)
    coroutine = limiter.acquire()
    coroutine.send(None)
    assert 1 == limiter.queued["high"]
    coroutine.close()
    assert 0 == limiter.queued["high"]
    permit.release()
    assert all_free(limiter)


async def test_what_is_given_back_inside_the_lock_is_not_lost() -> None:
    """A garbage collection may end a coroutine that holds a permit while this very thread holds the lock."""
    inside: list[Callable[[], object]] = []

    def clock() -> float:  # read inside the lock
        for step in inside:
            step()
        return now()

    limiter = ConcurrencyLimit(Aimd(4, clock=clock))
    watching = Watching(limiter)
    permits = [take(limiter) for _ in range(4)]
    task = await waiting(limiter)
    leaver = limiter.acquire()
    leaver.send(None)
    inside += [permits[1].release, permits[1].release, partial(permits[2].release, "success"), leaver.close]
    permits[0].release("overload")
    assert {"critical": 0, "high": 0, "low": 0, "best_effort": 0} == limiter.queued
    assert 2 == limiter.in_flight
    assert [3] == watching.seen
    permits[3].release()
    (await task).release()
    assert all_free(limiter)


async def test_a_change_made_late_is_told_too() -> None:
    """The outcome that could not be counted at once counts all the same."""
    limiter = ConcurrencyLimit(Aimd(2))
    watching = Watching(limiter)
    permits = [take(limiter) for _ in range(2)]
    with limiter._lock:
        permits[0].release("overload")
    assert [] == watching.seen
    permits[1].release()
    assert [1] == watching.seen
    assert all_free(limiter)


def test_what_is_given_back_while_somebody_asks_is_not_lost() -> None:
    """The same inside a look for a free permit, which this one is too late for."""
    inside: list[Callable[[], object]] = []

    class Loop(FakeClockLoop):
        def is_closed(self) -> bool:  # asked inside the lock
            while inside:
                inside.pop()()
            return super().is_closed()

    limiter = ConcurrencyLimit(1)

    async def scenario() -> None:
        inside.append(take(limiter).release)
        assert limiter.try_acquire() is None
        assert all_free(limiter)

    with asyncio.Runner(loop_factory=Loop) as runner:
        runner.run(scenario())


async def test_a_permit_from_a_collected_cycle_comes_back() -> None:
    """The same with a real collection: a suspended coroutine in a cycle, and its `finally`."""
    limiter = ConcurrencyLimit(1)

    async def call(me: list[Any]) -> None:
        permit = await limiter.acquire()
        try:
            await asyncio.Event().wait()
        finally:
            permit.release()
            me.clear()

    me: list[Any] = []
    me.append(call(me))
    me[0].send(None)
    del me
    assert limiter.try_acquire() is None
    with limiter._lock:
        gc.collect()
    limiter.set_limit(1)
    assert all_free(limiter)


async def test_a_permit_that_becomes_free_on_the_way_to_the_queue_is_taken() -> None:
    """Another thread may give one back between the first look and the second."""
    limiter = ConcurrencyLimit(1, max_queued=0)
    permit = take(limiter)
    look, looks = limiter.try_acquire, []

    def first_look() -> ConcurrencyPermit | None:
        looks.append(look())
        permit.release()
        return looks[0]

    limiter.try_acquire = first_look  # type: ignore[method-assign]
    (await limiter.acquire()).release()
    limiter.try_acquire = look  # type: ignore[method-assign]
    assert [None] == looks
    assert all_free(limiter)


def in_a_loop(work: Coroutine[Any, Any, Any]) -> Any:
    with asyncio.Runner(loop_factory=FakeClockLoop) as runner:
        return runner.run(work)


def test_one_limit_for_all_threads() -> None:
    """Each with a loop of its own: never more than the limit at once, and every waiter is woken."""
    limiter = ConcurrencyLimit(3)
    guard = threading.Lock()
    inside: list[int] = []
    most: list[int] = []

    async def call(number: int) -> None:
        permit = await limiter.acquire()
        with guard:
            inside.append(number)
            most.append(len(inside))
        await turns(3)
        with guard:
            inside.remove(number)
        permit.release("success")

    async def many(start: int) -> None:
        await asyncio.gather(*map(call, range(start, start + 50)))

    threads = [threading.Thread(target=asyncio.run, args=(many(100 * number),)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20.0)
    assert 200 == len(most)
    assert 3 == max(most)
    assert 0 == limiter.in_flight
    assert 0 == sum(limiter.queued.values())


def test_released_by_a_thread_without_a_loop() -> None:
    """As a finalizer may do; the waiter is woken in its own loop."""
    limiter = ConcurrencyLimit(1)

    async def scenario() -> None:
        permit = take(limiter)
        task = await waiting(limiter)
        thread = threading.Thread(target=permit.release)
        thread.start()
        (await task).release()
        thread.join()

    asyncio.run(scenario())
    assert 0 == limiter.in_flight


def abandon(limiter: ConcurrencyLimit, permits: int, waiters: int = 0) -> list[Any]:
    """Uses the limiter in a loop that is then closed without any cleaning up."""
    kept: list[Any] = []

    async def use() -> None:
        kept.extend(take(limiter) for _ in range(permits))
        for _ in range(waiters):
            kept.append(limiter.acquire())
            kept[-1].send(None)

    loop = FakeClockLoop()
    loop.run_until_complete(use())
    loop.close()
    return kept


def test_what_a_closed_loop_held_counts_no_longer() -> None:
    """Its permits and waiters would otherwise be gone for good; and giving them back late does nothing."""
    limiter = ConcurrencyLimit(2, max_queued=1)
    permit, _, waiter = abandon(limiter, 2, 1)
    assert 0 == limiter.in_flight
    assert 0 == sum(limiter.queued.values())

    async def scenario() -> None:
        mine = take(limiter)
        permit.release("overload")
        waiter.close()
        assert 1 == limiter.in_flight
        mine.release()
        assert all_free(limiter)

    in_a_loop(scenario())


def test_the_waiters_of_a_closed_loop_take_no_place() -> None:
    """Also while nothing is free, which is when places are wanted."""
    limiter = ConcurrencyLimit(1, max_queued=1)

    async def scenario() -> None:
        mine = take(limiter)
        (waiter,) = await asyncio.to_thread(abandon, limiter, 0, 1)
        assert 0 == sum(limiter.queued.values())
        task = await waiting(limiter)
        mine.release()
        (await task).release()
        waiter.close()
        assert all_free(limiter)

    in_a_loop(scenario())


def test_with_one_loop_nobody_looks_for_closed_ones() -> None:
    """Who waits without a limit sets no timer: a clock that jumps would run away."""
    timers: list[float] = []

    class Loop(FakeClockLoop):
        def call_at(self, when: float, *args: Any, **options: Any) -> asyncio.TimerHandle:
            timers.append(when)
            return super().call_at(when, *args, **options)

    limiter = ConcurrencyLimit(1)

    async def scenario() -> None:
        permit = take(limiter)
        task = await waiting(limiter)
        permit.release()
        (await task).release()

    with asyncio.Runner(loop_factory=Loop) as runner:
        runner.run(scenario())
        assert [] == timers


def test_who_comes_gets_what_a_closed_loop_held() -> None:
    """Also where nobody reads the numbers."""
    limiter = ConcurrencyLimit(1)
    permit, waiter = abandon(limiter, 1, 1)

    async def scenario() -> None:
        (await limiter.acquire(max_wait_seconds=0.0)).release()
        waiter.close()
        permit.release()
        assert all_free(limiter)

    in_a_loop(scenario())


def test_who_waits_gets_what_another_loop_held_when_it_is_closed() -> None:
    """Within a second, though nobody else comes who could notice."""
    limiter = ConcurrencyLimit(2)
    other = FakeClockLoop()
    kept: list[ConcurrencyPermit] = []

    async def hold() -> None:
        kept.extend((take(limiter), take(limiter)))

    async def scenario() -> None:
        await asyncio.to_thread(other.run_until_complete, hold())
        first, second = await waiting(limiter), await waiting(limiter)
        await asyncio.sleep(2.5)
        assert not first.done()
        other.close()
        began = now()
        (await first).release()
        assert now() - began <= 1.0
        (await second).release()
        await asyncio.sleep(2.5)
        assert all_free(limiter)

    in_a_loop(scenario())


def test_a_loop_that_comes_later_is_watched_too() -> None:
    """Whoever waited before there was another loop hears of its end all the same."""
    limiter = ConcurrencyLimit(1)
    other, third = FakeClockLoop(), FakeClockLoop()

    async def begin(priority: Priority) -> asyncio.Task[ConcurrencyPermit]:
        return await waiting(limiter, priority)

    async def scenario() -> None:
        mine = take(limiter)
        task = await waiting(limiter, "low")
        theirs = await asyncio.to_thread(other.run_until_complete, begin("critical"))
        await asyncio.to_thread(third.run_until_complete, begin("best_effort"))
        mine.release()
        await asyncio.to_thread(other.run_until_complete, theirs)
        await asyncio.sleep(3.5)
        assert not task.done()
        other.close()
        began = now()
        (await task).release()
        assert now() - began <= 1.0

    in_a_loop(scenario())
    assert 1 == limiter.in_flight, "the third loop is not closed, only stopped"
    third.run_until_complete(turns())
    third.close()
    assert 0 == limiter.in_flight


def test_a_permit_for_a_loop_closed_in_that_moment_goes_to_the_next() -> None:
    """It looks open, and is closed when it is to be told."""
    limiter = ConcurrencyLimit(1)
    other = FakeClockLoop()

    async def scenario() -> None:
        mine = take(limiter)
        coroutine = limiter.acquire("critical")

        async def begin_there() -> None:
            coroutine.send(None)

        await asyncio.to_thread(other.run_until_complete, begin_there())
        task = await waiting(limiter)
        other.close()
        other.is_closed = lambda: False  # type: ignore[method-assign]
        mine.release()
        (await task).release()
        coroutine.close()
        del other.is_closed
        assert all_free(limiter)

    in_a_loop(scenario())


def test_a_loop_with_nothing_under_way_is_forgotten() -> None:
    """A process that runs a loop for each request must not keep them all."""
    limiter = ConcurrencyLimit(2)
    loops = [FakeClockLoop() for _ in range(5)]

    async def use() -> None:
        (await limiter.acquire()).release()

    for loop in loops:
        loop.run_until_complete(use())
    assert {loops[-1]} == set(limiter._shares.by_loop)
    for loop in loops:
        loop.close()


async def test_a_wrong_argument_is_named() -> None:
    """A misspelt priority is noticed also while there is room."""
    limiter = ConcurrencyLimit(1)
    with pytest.raises(ConfigurationError, match="priority"):
        await limiter.acquire("urgent")  # type: ignore[arg-type]
    with pytest.raises(ConfigurationError, match="limit"):
        limiter.set_limit(0)
    permit = take(limiter)
    with pytest.raises(ConfigurationError, match="max_wait_seconds"):
        await limiter.acquire(max_wait_seconds=math.nan)
    permit.release()
    assert all_free(limiter)
