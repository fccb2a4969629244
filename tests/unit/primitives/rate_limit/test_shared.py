"""A limit that several processes share: what they owe each other, and what happens while nobody can be asked."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import pytest

from observability_integration import events
from observability_integration.primitives.rate_limit.buckets import Ledger
from observability_integration.primitives.rate_limit.guard import GuardedLedger
from observability_integration.primitives.rate_limit.headers import LimitState, ProviderLimits
from observability_integration.primitives.rate_limit.limiter import RateLimit, WithoutBackend
from observability_integration.primitives.rate_limit.shared import Answer, LedgerUpdate, Limits
from observability_integration.primitives.rate_limit.wait_queue import ReservationRefused
from observability_integration.testing.clock import FakeClockLoop

LOOP_FACTORY = FakeClockLoop
pytestmark = pytest.mark.once

BUDGET = 0.05


def now() -> float:
    return asyncio.get_running_loop().time()


class Remote:
    """A ledger elsewhere that answers after a while, or in other ways."""

    def __init__(self, requests: float | None = 60, tokens: float | None = None, burst_seconds: float = 60.0) -> None:
        self.ledger = Ledger(requests, tokens, burst_seconds)
        self.seconds = 0.001
        self.hops = 1
        self.error: Exception | None = None
        self.asked: list[tuple[LedgerUpdate, int]] = []
        self.closed = 0

    async def take(self, line: str, terms: Limits, news: LedgerUpdate, calls: Sequence[tuple[float, float]]) -> Answer:
        for _ in range(self.hops):
            await asyncio.sleep(self.seconds)
        if self.error is not None:
            raise self.error
        self.asked.append((news, len(calls)))
        self.ledger.give_back(news.requests, news.tokens)
        self.ledger.lower(news.most_requests, news.most_tokens, now())
        self.ledger.close_until(now() + news.closed_seconds)
        verdict = self.ledger.take(line, [(tokens, now() - waited) for tokens, waited in calls], now())
        return Answer(verdict, *self.ledger.left(now()), self.ledger.closed_seconds(now()))

    async def aclose(self) -> None:
        self.closed += 1


def process(
    remote: Remote, without: WithoutBackend = "local", on_error: Callable[[str], None] = lambda _: None
) -> RateLimit:
    """A process that asks it."""
    guarded = GuardedLedger(remote, "ask", BUDGET, on_error)
    requests, tokens = remote.ledger.requests, remote.ledger.tokens
    return RateLimit(
        None if requests is None else requests.per_minute,
        None if tokens is None else tokens.per_minute,
        shared=guarded,
        without_backend=without,
    )


async def test_processes_share_what_there_is_in_the_order_of_arrival() -> None:
    """Sixty at once between them, then one a second, to whoever came first."""
    remote = Remote()
    first, second = process(remote), process(remote)
    await asyncio.gather(*(each.reserve(0, 0) for each in (first, second) for _ in range(30)))
    assert 0 == pytest.approx(remote.ledger.left(now())[0], abs=0.1)
    went: list[str] = []

    async def ask(name: str, limit: RateLimit) -> None:
        await limit.reserve(0, 60.0)
        went.append(name)

    tasks = []
    for number in range(6):
        tasks.append(asyncio.create_task(ask(f"{number}", (first, second)[number % 2])))
        await asyncio.sleep(0.01)
    await asyncio.gather(*tasks)
    assert list("012345") == went
    assert 6.0 == pytest.approx(now(), abs=0.2)


async def test_many_callers_are_asked_for_together() -> None:
    """A thousand callers at once must not mean a thousand round trips, one after the other."""
    remote = Remote(requests=10_000)
    limit = process(remote)
    done = await asyncio.gather(*(limit.reserve(0, 0) for _ in range(1000)))
    assert {0.0} == {each.waited_seconds for each in done}
    assert 20 >= len(remote.asked)
    assert 1000 == sum(count for _, count in remote.asked)


async def test_settlements_arrive_without_anybody_waiting() -> None:
    """Together, in one more round trip; and whoever waits may go."""
    remote = Remote(None, 600)
    limit, other = process(remote), process(remote)
    reservations = [await limit.reserve(200, 0) for _ in range(3)]
    waiting = asyncio.create_task(limit.reserve(300, 60.0))
    elsewhere = asyncio.create_task(other.reserve(100, 60.0))
    await asyncio.sleep(0.01)
    began, asked = now(), len(remote.asked)
    for reservation in reservations:
        limit.settle(reservation, 50)
    assert began == now()
    assert 0.1 > (await waiting).waited_seconds
    assert 1.1 > (await elsewhere).waited_seconds  # who asks again once a second
    assert 450 == sum(news.tokens for news, _ in remote.asked[asked:])
    assert 1 == sum(bool(news.tokens) for news, _ in remote.asked[asked:])


async def test_refused_at_once_by_what_the_ledger_says() -> None:
    """It alone knows what others have used; and the claim of who is gone is withdrawn."""
    remote = Remote(burst_seconds=0.0)
    limit, other = process(remote), process(remote)
    await limit.reserve(0, 0)
    began = now()
    with pytest.raises(ReservationRefused) as caught:
        await other.reserve(0, 0.5)
    assert ("requests", True) == (caught.value.limit, 0.9 < (caught.value.retry_after_seconds or 0) <= 1.0)
    assert 0.01 > now() - began
    await asyncio.sleep(1.0)
    assert 0.0 == (await limit.reserve(0, 0)).waited_seconds


async def test_cancelled_while_the_ledger_is_asked() -> None:
    """What it grants to nobody is put back."""
    remote = Remote()
    limit = process(remote)
    remote.seconds = 0.02
    task = asyncio.create_task(limit.reserve(0, 60.0))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0.1)
    assert 60 == remote.ledger.left(now())[0]
    assert 0 == limit.waiting


async def test_what_one_learns_all_know() -> None:
    """A 429 in one process is a pause for every process."""
    remote = Remote()
    limit, other = process(remote), process(remote)
    limit.adapt(ProviderLimits(LimitState(remaining=0), limited=True, retry_after_seconds=30.0))
    with pytest.raises(ReservationRefused):
        await limit.reserve(0, 5.0)
    await asyncio.sleep(0.1)
    with pytest.raises(ReservationRefused) as caught:
        await other.reserve(0, 5.0)
    assert "provider" == caught.value.limit
    assert 29.0 < (await other.reserve(0, 60.0)).waited_seconds <= 30.0


@pytest.mark.parametrize("how", ["silent", "refused"])
async def test_a_ledger_at_fault_costs_one_budget_and_fails_no_call(how: str, caplog: pytest.LogCaptureFixture) -> None:
    """From then on the process limits by itself, from where the shared limit stood, until the ledger is back."""
    remote = Remote()
    errors: list[str] = []
    told: list[str] = []
    unsubscribe = events.subscribe(lambda event: told.append(event.name), "rate_limit.")
    limit = process(remote, on_error=errors.append)
    for _ in range(50):
        await limit.reserve(0, 0)
    if how == "silent":
        remote.seconds = 1e9
    else:
        remote.error = ConnectionRefusedError()
    began = now()
    await asyncio.gather(*(limit.reserve(0, 0) for _ in range(10)))
    assert now() - began <= BUDGET + 0.01
    with pytest.raises(ReservationRefused):
        await limit.reserve(0, 0)
    assert now() - began <= BUDGET + 0.01
    assert [{"silent": "TimeoutError", "refused": "ConnectionRefusedError"}[how]] == errors
    # Away for a while, and used here meanwhile; it comes back and has forgotten everything.
    for _ in range(30):
        await limit.reserve(0, 60.0)
    remote.ledger = Ledger(60, None, 60.0)
    remote.seconds, remote.error = 0.001, None
    asked = len(remote.asked)
    for _ in range(60):
        await limit.reserve(0, 60.0)
    assert asked < len(remote.asked)
    assert 3 > (remote.ledger.left(now())[0] or 0)
    unsubscribe()
    assert ["rate_limit.backend.degraded", "rate_limit.backend.recovered"] == told
    assert 2 == len([record for record in caplog.records if record.levelname == "WARNING"])


async def test_a_loop_that_was_held_up_is_no_fault_of_the_ledgers() -> None:
    """Else any slow piece of code in a service would put its shared limit out of use."""
    remote = Remote()
    remote.hops = 3
    errors: list[str] = []
    limit = process(remote, on_error=errors.append)
    task = asyncio.create_task(limit.reserve(0, 0))
    for _ in range(3):
        await asyncio.sleep(0)
    loop = asyncio.get_running_loop()
    assert isinstance(loop, FakeClockLoop)
    loop.advance(1.0)
    assert (await task).shared
    assert [] == errors


async def test_many_accesses_that_fail_at_once_are_one_turn_of_events(caplog: pytest.LogCaptureFixture) -> None:
    """One line in the log, however many were under way; and it goes on without a listener."""
    remote = Remote()
    guarded = GuardedLedger(remote, "ask", BUDGET)
    remote.error = ConnectionRefusedError()
    answers = await asyncio.gather(*(guarded.take("a", Limits(), LedgerUpdate(), ()) for _ in range(5)))
    assert ([None] * 5, 1, False) == (answers, len(caplog.records), guarded.in_use)
    assert await guarded.take("a", Limits(), LedgerUpdate(), ()) is None
    assert not guarded.look()


async def test_without_the_ledger_all_may_be_refused() -> None:
    """For those to whom the limit of all processes matters more than the call."""
    remote = Remote()
    remote.error = ConnectionRefusedError()
    limit = process(remote, "refuse")
    with pytest.raises(ReservationRefused) as caught:
        await limit.reserve(0, 60.0)
    assert ("requests", 1.0) == (caught.value.limit, caught.value.retry_after_seconds)
    remote.error = None
    await asyncio.sleep(1.0)
    with pytest.raises(ReservationRefused):
        await limit.reserve(0, 60.0)
    await asyncio.sleep(0.1)
    assert 0.0 == (await limit.reserve(0, 60.0)).waited_seconds


async def test_closing_ends_the_probe_and_the_ledger() -> None:
    """Nothing is left that looks for a ledger which nobody wants any more."""
    remote = Remote()
    limit = process(remote)
    remote.seconds = 1e9
    await limit.reserve(0, 0)
    await asyncio.sleep(2.0)
    await limit.reserve(0, 0)  # a probe is under way now
    await limit.aclose()
    assert 1 == remote.closed
    assert {asyncio.current_task()} == {task for task in asyncio.all_tasks() if task.get_name() != "rate limit ledger"}
    remote.seconds = 0.0
    await limit.reserve(0, 0)


def test_news_in_one() -> None:
    """What comes together is told together: sums, and the lowest and longest that was said."""
    first, later = LedgerUpdate(1, 2, None, 5, 3), LedgerUpdate(-3, 4, 7, 6, 1)
    assert LedgerUpdate(-2, 6, 7, 5, 3) == first.and_then(later)
    assert first == LedgerUpdate().and_then(first)
