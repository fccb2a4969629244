"""Who goes, who waits and who is refused, in which order and after how long."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Coroutine
from typing import Any

import pytest

from observability_integration.primitives.rate_limit.headers import LimitState, ProviderLimits
from observability_integration.primitives.rate_limit.learning import LONGEST_GATE_SECONDS
from observability_integration.primitives.rate_limit.limiter import RateLimit
from observability_integration.primitives.rate_limit.wait_queue import Reservation, ReservationRefused
from observability_integration.testing.clock import FakeClockLoop

LOOP_FACTORY = FakeClockLoop
pytestmark = pytest.mark.once


def now() -> float:
    return asyncio.get_running_loop().time()


async def turns(count: int = 5) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def refusal(work: Coroutine[Any, Any, Reservation]) -> tuple[str, float | None, float]:
    """Why, when to come back, and after how long."""
    with pytest.raises(ReservationRefused) as caught:
        await work
    return caught.value.limit, caught.value.retry_after_seconds, caught.value.waited_seconds


async def test_goes_at_once_while_there_is_enough_then_at_the_rate() -> None:
    """Sixty a minute is one a second once the burst is used."""
    limit = RateLimit(60, burst_seconds=3.0)
    waited = [(await limit.reserve(0, 60.0)).waited_seconds for _ in range(6)]
    assert [0, 0, 0, 1, 1, 1] == pytest.approx(waited)
    assert 3.0 == pytest.approx(now())


async def test_first_come_first_served_also_past_the_small() -> None:
    """A large call is not passed by small ones that came after it, though there would be room for them."""
    limit = RateLimit(None, 60, burst_seconds=60.0)
    await limit.reserve(60, 0)
    went = []

    async def ask(name: str, tokens: float) -> None:
        await limit.reserve(tokens, 1000.0)
        went.append((name, now()))

    await asyncio.gather(ask("large", 50), ask("small", 1), ask("other", 9), ask("last", 1))
    assert ["large", "small", "other", "last"] == [name for name, _ in went]
    assert [50, 51, 60, 61] == pytest.approx([when for _, when in went])
    assert 0 == limit.waiting


async def test_a_thousand_callers() -> None:
    """Each goes in its turn, none is lost, and the last one at the time that the rate says."""
    limit = RateLimit(600, burst_seconds=10.0)
    went: list[tuple[int, float]] = []

    async def ask(number: int) -> None:
        await limit.reserve(0, 1000.0)
        went.append((number, now()))

    await asyncio.gather(*map(ask, range(1000)))
    assert list(range(1000)) == [number for number, _ in went]
    assert (1000 - 100) / 10 == pytest.approx(went[-1][1])
    assert 0 == limit.left()[0]


async def test_refused_at_once_when_the_wait_would_be_too_long() -> None:
    """Waiting in vain helps nobody; who is refused is told when there would be room, and has taken nothing."""
    limit = RateLimit(60, 600, burst_seconds=1.0)
    await limit.reserve(10, 0)
    assert ("requests", 1.0, 0.0) == pytest.approx(await refusal(limit.reserve(0, 0.9)))
    waiter = asyncio.create_task(limit.reserve(10, 10.0))
    await turns()
    assert ("requests", 2.0, 0.0) == pytest.approx(await refusal(limit.reserve(0, 1.9)))
    assert 0.0 == now()
    assert 1.0 == pytest.approx((await waiter).waited_seconds)
    assert (0, 0) == pytest.approx(limit.left())


async def test_what_can_never_fit_is_refused_at_once_and_for_good() -> None:
    """More tokens than a whole minute has: no wait would help, and the provider would refuse it, too."""
    limit = RateLimit(None, 600, burst_seconds=0.0)
    assert ("tokens", None, 0.0) == await refusal(limit.reserve(601, 1e9))
    assert 600 == (await limit.reserve(600, 0)).tokens
    roomy = RateLimit(None, 600, burst_seconds=120.0)
    assert 1200 == (await roomy.reserve(1200, 0)).tokens


async def test_what_is_left_over_lets_others_go_earlier() -> None:
    """An estimate that was too high must not slow down those who wait."""
    limit = RateLimit(None, 600)
    first = await limit.reserve(600, 0)
    second = asyncio.create_task(limit.reserve(500, 60.0))
    await asyncio.sleep(10.0)
    limit.settle(first, 100)
    assert 10.0 == pytest.approx((await second).waited_seconds)
    limit.settle(first, 0)  # the second time says nothing
    assert 100 == pytest.approx(limit.left()[1])


async def test_what_was_used_above_the_estimate_is_a_debt() -> None:
    """The provider counts what was used, whatever was expected."""
    limit = RateLimit(None, 600)
    limit.settle(await limit.reserve(0, 0), 900)
    assert ("tokens", 30.1, 0.0) == pytest.approx(await refusal(limit.reserve(1, 30.0)))


async def test_a_call_that_was_not_made_costs_nothing() -> None:
    """Neither its request nor its tokens; and it is put back once, however often that is asked for."""
    limit = RateLimit(60, 600)
    reservation = await limit.reserve(500, 0)
    limit.cancel(reservation)
    limit.cancel(reservation)
    limit.settle(reservation, 600)
    assert (60, 600) == limit.left()


@pytest.mark.parametrize("place", [0, 1, 2])
async def test_who_is_cancelled_while_waiting_keeps_nobody_waiting(place: int) -> None:
    """First, in the middle or last: the others move up, in their order."""
    limit = RateLimit(60, burst_seconds=0.0)
    await limit.reserve(0, 0)
    tasks = [asyncio.create_task(limit.reserve(0, 60.0)) for _ in range(3)]
    await turns()
    tasks[place].cancel()
    with pytest.raises(asyncio.CancelledError):
        await tasks.pop(place)
    assert [1.0, 2.0] == pytest.approx([(await task).waited_seconds for task in tasks])
    assert 0 == limit.waiting


async def test_cancelled_in_the_turn_in_which_it_may_go() -> None:
    """What it had just been given is put back, and the next one has it."""
    limit = RateLimit(60, burst_seconds=0.0)
    reservation = await limit.reserve(0, 0)
    first, second = (asyncio.create_task(limit.reserve(0, 60.0)) for _ in range(2))
    await turns()
    limit.cancel(reservation)
    await asyncio.sleep(0)  # now the first has it, and does not know yet
    first.cancel()
    assert 0.0 == (await second).waited_seconds - now()
    assert first.cancelled()
    assert 0 == now()


async def test_cancelled_at_every_turn() -> None:
    """Whenever one of three is cancelled, the other two go, and what there is adds up in the end."""
    for turn in range(12):
        limit = RateLimit(60, burst_seconds=1.0)
        began = now()
        tasks = [asyncio.create_task(limit.reserve(0, 60.0)) for _ in range(3)]
        await turns(turn)
        tasks[1].cancel()
        done = await asyncio.gather(*tasks, return_exceptions=True)
        went = [each for each in done if isinstance(each, Reservation)]
        assert 2 == len(went)
        for each in went:
            limit.cancel(each)
        assert 1 == limit.left()[0]
        assert 2.0 >= now() - began


async def test_thrown_away_while_waiting() -> None:
    """A coroutine that nobody finishes is closed in a garbage collection, and must not hold up the others."""
    limit = RateLimit(60, burst_seconds=0.0)
    await limit.reserve(0, 0)
    lost = limit.reserve(0, 60.0)
    lost.send(None)
    waiting = asyncio.create_task(limit.reserve(0, 60.0))
    await turns()
    assert 2 == limit.waiting
    del lost
    gc.collect()
    assert 1.0 == pytest.approx((await waiting).waited_seconds)


async def test_time_runs_out_while_waiting() -> None:
    """Somebody's debt made it longer than it seemed at first: refused at the time that was given, with what is left."""
    limit = RateLimit(None, 600, burst_seconds=1.0)
    first = await limit.reserve(10, 0)
    waiting = asyncio.create_task(refusal(limit.reserve(10, 5.0)))
    await turns()
    limit.settle(first, 110)
    assert ("tokens", 6.0, 5.0) == pytest.approx(await waiting)
    assert 0 == limit.waiting


async def test_a_pause_turns_away_who_cannot_wait_so_long_and_keeps_the_others() -> None:
    """A 429 that says when to come back is true for all calls, also for those that wait already."""
    limit = RateLimit(60, burst_seconds=0.0)
    await limit.reserve(0, 0)
    short = asyncio.create_task(refusal(limit.reserve(0, 10.0)))
    patient = asyncio.create_task(limit.reserve(0, 60.0))
    await turns()
    limit.adapt(ProviderLimits(limited=True, retry_after_seconds=20.0))
    assert ("provider", 20.0, 0.0) == pytest.approx(await short)
    assert ("provider", 20.0, 0.0) == pytest.approx(await refusal(limit.reserve(0, 5.0)))
    assert 20.0 == pytest.approx((await patient).waited_seconds)


async def test_after_a_429_there_is_no_burst() -> None:
    """What was saved up here, the provider has not: all at once would only be refused again."""
    limit = RateLimit(60, 6000)
    limit.adapt(ProviderLimits(limited=True))
    assert (0, 0) == limit.left()
    limit.adapt(ProviderLimits(limited=True, retry_after_seconds=1e6))
    assert ("provider", LONGEST_GATE_SECONDS) == pytest.approx((await refusal(limit.reserve(0, 5.0)))[:2])


async def test_what_the_provider_has_left_lowers_what_is_left_here() -> None:
    """Others may use the same key. More than there is here changes nothing: it may be old news."""
    limit = RateLimit(60, 6000)
    limit.adapt(ProviderLimits(LimitState(remaining=10), LimitState(remaining=1e9)))
    assert (10, 6000) == limit.left()
    reservation = await limit.reserve(0, 0)
    for _ in range(3):
        await limit.reserve(0, 0)
    await asyncio.sleep(2.0)
    # It said so when the call arrived: since then two came back and three were taken.
    limit.adapt(ProviderLimits(LimitState(remaining=5)), reservation)
    assert 4 == pytest.approx(limit.left()[0])


async def test_limits_are_learned_and_never_raised_above_those_given() -> None:
    """The provider's word sets what was not given, and lowers what was; what is no minute's limit is none."""
    limit = RateLimit(None, 600)
    limit.adapt(ProviderLimits(LimitState(limit=100), LimitState(limit=1000)))
    assert (100, 600) == limit.limits
    limit.adapt(ProviderLimits(LimitState(limit=120), LimitState(limit=300)))
    assert (120, 300) == limit.limits
    limit.adapt(ProviderLimits(LimitState(limit=14400, remaining=14370, reset_seconds=179.56)))
    assert (None, 300) == limit.limits
    stubborn = RateLimit(None, 600, learn=False)
    stubborn.adapt(ProviderLimits(LimitState(limit=1, remaining=0), limited=True, retry_after_seconds=9.0))
    assert ((None, 600), (None, 600)) == (stubborn.limits, stubborn.left())


async def test_nothing_left_of_a_day_pauses_until_one_has_come_back() -> None:
    """A limit of a day is no rate to follow, but what is used up is used up."""
    limit = RateLimit(60)
    limit.adapt(ProviderLimits(LimitState(limit=200, remaining=0, reset_seconds=86400.0)))
    assert ("provider", 432.0) == pytest.approx((await refusal(limit.reserve(0, 1.0)))[:2])


def test_two_loops_at_once_share_the_limit() -> None:
    """Both wait in their own loops, nobody's wake-up is lost, and together they take what there is."""
    limit = RateLimit(60_000, burst_seconds=0.0)
    went: list[float] = []

    def run() -> None:
        async def ask() -> None:
            for _ in range(50):
                await limit.reserve(0, 10.0)
                went.append(now())

        async def main() -> None:
            await asyncio.gather(ask(), ask())

        asyncio.run(main())

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 200 == len(went)
    assert 199 / 1000 <= max(went) - min(went) + 1e-3


def test_a_loop_after_another_goes_on_where_that_one_ended() -> None:
    """A script that calls ``asyncio.run`` twice has one limit, and the first loop can be collected."""
    limit = RateLimit(60, burst_seconds=2.0)

    async def take() -> tuple[float | None, float | None]:
        await limit.reserve(0, 0)
        return limit.left()

    assert 1 == pytest.approx(asyncio.run(take())[0], abs=0.2)
    assert 0 == pytest.approx(asyncio.run(take())[0], abs=0.4)
    gc.collect()
    assert not [each for each in gc.get_objects() if isinstance(each, FakeClockLoop) and not each.is_closed()]
