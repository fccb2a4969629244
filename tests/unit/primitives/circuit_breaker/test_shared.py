"""Breakers of several processes that go by one verdict, and what each does when the others cannot be heard."""

from __future__ import annotations

import asyncio
import gc
import logging
import random
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import pytest

from observability_integration import events
from observability_integration.primitives.circuit_breaker.breaker import Breaker, BreakerPolicy, Permit, Refusal
from observability_integration.primitives.circuit_breaker.shared import SharedBreaker, _Unpublished
from observability_integration.primitives.circuit_breaker.verdict import Answer, Verdict
from observability_integration.testing import FakeClockLoop

pytestmark = pytest.mark.once

LOOP_FACTORY = FakeClockLoop

POLICY = BreakerPolicy(jitter=0.0)


class _Store:
    """Keeps verdicts as the real one does, on the loop's clock, and fails as it is told."""

    def __init__(self) -> None:
        self.said: Verdict | None = None
        self.ends_at = self.tail = 0.0
        self.holder = ""
        self.held_until = 0.0
        self.claim = 0
        self.fault: Callable[[], Awaitable[Any]] | None = None
        self.asked = 0
        self.links = 0
        self.opened = 0
        self.leaving_seconds = 0.0

    @asynccontextmanager
    async def link(self, target: str) -> AsyncIterator[_Store]:
        self.links += 1
        self.opened += 1
        try:
            yield self
        finally:
            try:
                await asyncio.sleep(self.leaving_seconds)
            finally:
                self.links -= 1

    async def fetch(self, token: str, lease_seconds: float, claim: int) -> Answer:
        await self._asked()
        now = asyncio.get_running_loop().time()
        if claim > 0 and (self._holder(now) in ("", token) or claim > self.claim):
            self.holder, self.claim, self.held_until = token, claim, now + lease_seconds
        return self._answer(token, now)

    async def publish(self, token: str, verdict: Verdict, tail_seconds: float, *, keep: bool) -> Answer:
        await self._asked()
        now = asyncio.get_running_loop().time()
        if self.holder == token:
            self.holder = ""
        if not self._stays(verdict, keep, now):
            self.said = verdict._replace(after="")
            self.ends_at, self.tail = now + verdict.left_seconds, tail_seconds
        return self._answer(token, now)

    def _stays(self, verdict: Verdict, keep: bool, now: float) -> bool:
        said = self.said
        if said is None or verdict.by_hand or now >= self.ends_at:
            return False
        return said.open if keep else said.by_hand and said.id != verdict.after

    async def _asked(self) -> None:
        self.asked += 1
        await asyncio.sleep(0.001)
        if self.fault is not None:
            await self.fault()

    def _holder(self, now: float) -> str:
        return self.holder if now < self.held_until else ""

    def _answer(self, token: str, now: float) -> Answer:
        holder = self._holder(now)
        verdict = None
        if self.said is not None and now < self.ends_at + self.tail:
            verdict = self.said._replace(left_seconds=self.ends_at - now)
        return Answer(verdict, "free" if not holder else "mine" if holder == token else "other")


async def refused() -> None:
    raise ConnectionError("connection refused")


async def silent() -> None:
    await asyncio.Event().wait()


async def stubborn() -> None:
    try:
        await asyncio.Event().wait()
    except asyncio.CancelledError:
        await asyncio.Event().wait()


@pytest.fixture
async def store() -> AsyncIterator[_Store]:
    """A store that must have been left in the end."""
    store = _Store()
    yield store
    assert 0 == store.links


@pytest.fixture
async def breakers(store: _Store) -> AsyncIterator[Callable[..., SharedBreaker]]:
    """Makes breakers as if each was in a process of its own; all are closed at the end."""
    made: list[SharedBreaker] = []

    def make(policy: BreakerPolicy = POLICY, target: str = "t") -> SharedBreaker:
        loop = asyncio.get_running_loop()
        made.append(SharedBreaker(target, store, policy, clock=loop.time))
        return made[-1]

    yield make
    for breaker in made:
        await breaker.aclose()


def permit(breaker: Breaker) -> Permit:
    answer = breaker.admit()
    assert isinstance(answer, Permit), answer
    return answer


def fail(breaker: Breaker, times: int = 3) -> None:
    for _ in range(times):
        permit(breaker).failure()


def opened_by_the_first(breakers: Callable[..., SharedBreaker]) -> tuple[SharedBreaker, SharedBreaker]:
    """Two that both have calls, of which the first has found out that the target is down."""
    first, second = breakers(), breakers()
    permit(second).success()
    fail(first)
    return first, second


async def probing(breaker: Breaker) -> Permit:
    """Asks until it may probe; returns the permit of the probe."""
    while "half_open" != breaker.state:
        granted = breaker.admit()
        await asyncio.sleep(0.1)
    assert isinstance(granted, Permit)
    return granted


async def asks(breaker: Breaker, seconds: float, every: float = 0.5) -> list[Permit]:
    """Asks again and again for a while, and returns what was granted, without saying how it went."""
    loop = asyncio.get_running_loop()
    ends_at = loop.time() + seconds
    granted = []
    while loop.time() < ends_at:
        answer = breaker.admit()
        if isinstance(answer, Permit):
            granted.append(answer)
        await asyncio.sleep(every)
    return granted


async def test_where_one_opens_the_others_follow(breakers: Callable[..., SharedBreaker]) -> None:
    """Within a second or so, without a failure of their own, for as long, and for the same pause after the next one."""
    first, second = breakers(), breakers()
    permit(second).success()
    turns: list[Any] = []
    second.watch(lambda *turn: turns.append(turn))
    fail(first)
    await asyncio.sleep(1.1)
    assert "open" == second.state
    assert [("closed", "open", "shared")] == turns
    ours, theirs = first.admit(), second.admit()
    assert isinstance(ours, Refusal)
    assert isinstance(theirs, Refusal)
    assert ours.retry_after_seconds == pytest.approx(theirs.retry_after_seconds, abs=0.01)


async def test_one_probes_for_all_and_all_close(breakers: Callable[..., SharedBreaker]) -> None:
    """Of three processes that are all called when the pause is over, one is let through, however long that takes."""
    group = [breakers() for _ in range(3)]
    for breaker in group:
        permit(breaker).success()
    fail(group[0])
    granted = await asyncio.gather(*(asks(breaker, 40.0) for breaker in group[1:]), asks(group[0], 40.0))
    out = [each for granted_here in granted for each in granted_here if each.probe]
    assert 1 == len(out)
    assert 2 == sum(breaker.state == "open" for breaker in group)
    out[0].success()
    await asyncio.gather(*(asks(breaker, 1.2) for breaker in group))
    assert ["closed"] * 3 == [breaker.state for breaker in group]


async def test_a_probe_that_fails_fails_for_all(breakers: Callable[..., SharedBreaker]) -> None:
    """The next pause is the longer one everywhere, and whoever probes next lets it grow from there."""
    first, second = group = [breakers(BreakerPolicy(jitter=0.0, max_open_seconds=100.0)) for _ in range(2)]
    permit(second).success()
    fail(first)
    for pause, prober in ((31.5, first), (47.25, second)):
        await asyncio.sleep(first._pause_seconds - 3.0)
        granted: list[Permit] = []
        while not granted:
            granted = await asks(prober, 0.2, 0.2)
        granted[0].failure()
        await asyncio.sleep(1.1)
        for breaker in group:
            answer = breaker.admit()
            assert isinstance(answer, Refusal)
            assert pause - 2.5 < answer.retry_after_seconds <= pause


async def test_a_prober_that_was_killed_is_replaced(breakers: Callable[..., SharedBreaker], store: _Store) -> None:
    """Its lease is not renewed, so another may probe within seconds, not when its probe would be given up."""
    first, second = opened_by_the_first(breakers)
    await asyncio.sleep(18.0)
    await probing(first)
    (sync_task,) = first._sync_tasks.values()
    assert sync_task.task is not None
    sync_task.task.cancel()
    killed_at = asyncio.get_running_loop().time()
    await probing(second)
    assert asyncio.get_running_loop().time() - killed_at < 7.0
    first._closing = True


async def test_a_slow_probe_keeps_its_lease(breakers: Callable[..., SharedBreaker]) -> None:
    """A call may take half a minute; the lease is renewed meanwhile though nobody asks here."""
    first, second = opened_by_the_first(breakers)
    await asyncio.sleep(18.5)
    await probing(first)
    assert [] == await asks(second, 30.0)


async def test_who_is_called_rarely_probes_too(breakers: Callable[..., SharedBreaker]) -> None:
    """At the first call after the pause: a lease that nobody takes in advance must not be waited for for ever."""
    breaker = breakers()
    fail(breaker)
    await asyncio.sleep(40.0)
    assert permit(breaker).probe


async def test_a_lease_is_not_held_for_one_who_does_not_come(breakers: Callable[..., SharedBreaker]) -> None:
    """Who was called lately takes it in advance, and loses it when no call comes."""
    first, second = opened_by_the_first(breakers)
    await asks(first, 20.0)
    probes = await asks(second, 20.0)
    assert probes
    assert probes[0].probe
    assert "open" == first.state


@pytest.mark.parametrize("every_seconds", [9.0, 9.9, 15.0])
async def test_a_busy_process_does_not_wait_for_an_idle_one(
    every_seconds: float, breakers: Callable[..., SharedBreaker]
) -> None:
    """When the pause is over, the lease is not held for a call that may come some seconds later, or not."""
    idle, busy = breakers(), breakers()
    permit(idle).success()
    fail(busy)  # 21 s from here
    began = asyncio.get_running_loop().time()
    calls = asyncio.ensure_future(asks(idle, 60.0, every_seconds))
    while not isinstance(busy.admit(), Permit):
        await asyncio.sleep(0.1)
    assert asyncio.get_running_loop().time() - began < 21.0 + 3.5
    calls.cancel()
    await asyncio.wait([calls])


async def test_a_short_pause_is_as_short_as_without_others(breakers: Callable[..., SharedBreaker]) -> None:
    """While it lasts nobody probes, so a lease that nobody has is as good as seen by all."""
    breaker = breakers(BreakerPolicy(open_seconds=0.5, busy_open_seconds=0.5, jitter=0.0))
    fail(breaker)
    await asyncio.sleep(0.51)
    assert permit(breaker).probe


@pytest.mark.parametrize("called_again", [False, True])
async def test_who_has_taken_the_lease_waits_until_the_other_has_seen_it(
    called_again: bool, breakers: Callable[..., SharedBreaker]
) -> None:
    """The other may have been called just then: its probe is out, and it takes the lease back."""
    idle, busy = breakers(), breakers()
    permit(busy).success()
    fail(idle)
    await asyncio.sleep(17.0)
    assert isinstance(idle.admit(), Refusal)
    await asyncio.sleep(5.0)  # the pause is over, and no call comes
    assert idle._leads_until > 22.0
    while busy._leads_until < 0:
        assert isinstance(busy.admit(), Refusal)
        await asyncio.sleep(0.01)
    if called_again:
        assert permit(idle).probe
        assert [] == await asks(busy, 10.0, 0.1)
    else:
        probes = await asks(busy, 1.2, 0.05)
        assert [True] == [each.probe for each in probes]
        assert isinstance(idle.admit(), Refusal)


async def test_one_that_is_alone_is_not_refused_for_its_own_lease() -> None:
    """It is called every 4 s, so the lease that it took in advance may run out between two of its calls."""
    loop = asyncio.get_running_loop()
    for shift in range(20):
        breaker = SharedBreaker("t", _Store(), POLICY, clock=loop.time)
        fail(breaker)
        over_at = loop.time() + 21.0
        await asyncio.sleep(14.0 + 0.2 * shift)
        while loop.time() < over_at:
            assert isinstance(breaker.admit(), Refusal)
            await asyncio.sleep(4.0)
        assert permit(breaker).probe
        await breaker.aclose()


async def test_both_open_at_once_and_have_one_pause(breakers: Callable[..., SharedBreaker]) -> None:
    """The one who says so first; the other takes that over instead of beginning anew."""
    first, second = breakers(), breakers()
    fail(first)
    await asyncio.sleep(0.3)
    fail(second)
    await asyncio.sleep(0.1)
    ours, theirs = first.admit(), second.admit()
    assert isinstance(ours, Refusal)
    assert isinstance(theirs, Refusal)
    assert ours.retry_after_seconds == pytest.approx(theirs.retry_after_seconds, abs=0.05)


async def test_one_that_comes_new_learns_of_it(breakers: Callable[..., SharedBreaker]) -> None:
    """At its first call, which is let through, and not after three failures of its own."""
    fail(breakers())
    await asyncio.sleep(5.0)
    for ask in (SharedBreaker.admit, SharedBreaker.force_probe):
        late = breakers()
        assert isinstance(ask(late), Permit)
        await asyncio.sleep(0.01)
        assert "open" == late.state


async def test_by_hand_is_for_all(breakers: Callable[..., SharedBreaker]) -> None:
    """An operator has one process to tell, whatever was found out before."""
    first, second = breakers(), breakers()
    permit(first).success()
    permit(second).success()
    first.force_open(300.0)
    await asyncio.sleep(1.1)
    answer = second.admit()
    assert isinstance(answer, Refusal)
    assert answer.retry_after_seconds > 298
    second.reset()
    await asyncio.sleep(1.1)
    assert "closed" == first.state == second.state


async def test_a_forced_probe_needs_no_lease(breakers: Callable[..., SharedBreaker]) -> None:
    """It is the last target that is left, in each process; and what it finds is for all."""
    first, second = opened_by_the_first(breakers)
    await asyncio.sleep(1.1)
    probes = [breaker.force_probe() for breaker in (first, second)]
    assert all(isinstance(probe, Permit) for probe in probes)
    probes[0].failure()  # type: ignore[union-attr]
    await asyncio.sleep(1.1)
    assert ["open", "half_open"] == [first.state, second.state]
    probes[1].success()  # type: ignore[union-attr]
    await asyncio.sleep(1.1)
    assert "closed" == first.state == second.state


async def test_a_probe_of_our_own_is_not_overruled_by_a_verdict(
    breakers: Callable[..., SharedBreaker], store: _Store
) -> None:
    """It is more recent than what others have said: it closes for all, and is believed."""
    first, second = opened_by_the_first(breakers)
    await asyncio.sleep(1.1)
    probe = second.force_probe()
    assert isinstance(probe, Permit)
    await store.publish("a third one", Verdict("found out", True, 100.0, 21.0), 60.0, keep=False)
    await asyncio.sleep(1.1)
    assert "half_open" == second.state
    probe.success()
    await asyncio.sleep(1.1)
    assert "closed" == first.state


async def test_by_hand_goes_before_a_probe_elsewhere(breakers: Callable[..., SharedBreaker]) -> None:
    """Who opens a circuit for an hour must not find it closed a second later, by a call that began before."""
    first, second = opened_by_the_first(breakers)
    await asyncio.sleep(1.1)
    probe = second.force_probe()
    assert isinstance(probe, Permit)
    first.force_open(3600.0)
    await asyncio.sleep(1.1)
    assert "open" == second.state
    probe.success()
    await asyncio.sleep(1.1)
    assert "open" == first.state == second.state
    later = second.force_probe()  # who knows that it was opened by hand, and has no other target
    assert isinstance(later, Permit)
    later.success()
    await asyncio.sleep(1.1)
    assert "closed" == first.state == second.state


@pytest.mark.parametrize("opens", [True, False])
async def test_by_hand_goes_before_what_was_found_out_meanwhile(
    opens: bool, breakers: Callable[..., SharedBreaker]
) -> None:
    """A probe may end before its process has looked: what it says then is not taken, and it follows."""
    first, second = opened_by_the_first(breakers)
    await asyncio.sleep(30.0)
    probe = permit(second)
    assert probe.probe
    await asyncio.sleep(1.1)
    if opens:
        first.force_open(3600.0)
    else:
        first.reset()
    await asyncio.sleep(0.01)
    assert "half_open" == second.state  # it has not looked yet
    if opens:
        probe.success()
    else:
        probe.failure()
    await asyncio.sleep(1.1)
    assert ["open" if opens else "closed"] * 2 == [first.state, second.state]


async def test_what_comes_after_a_word_by_hand_is_heard(breakers: Callable[..., SharedBreaker], store: _Store) -> None:
    """Closed by hand, and down again: it opens for all. And a word by hand replaces any other."""
    first, second = breakers(), breakers()
    first.reset()
    await asyncio.sleep(0.1)
    fail(second)  # one that has not heard of it
    await asyncio.sleep(1.1)
    assert "open" == first.state == second.state
    for breaker, wanted in ((first, "open"), (second, "closed"), (first, "open"), (second, "closed")):
        if wanted == "open":
            breaker.force_open(100.0)
        else:
            breaker.reset()
        await asyncio.sleep(0.01)
    await asyncio.sleep(1.1)
    assert "closed" == first.state == second.state


async def test_closed_elsewhere_while_our_probe_is_out(breakers: Callable[..., SharedBreaker]) -> None:
    """It closes, and the word of the probe is not listened to any more."""
    first, second = opened_by_the_first(breakers)
    await asyncio.sleep(1.1)
    probe = second.force_probe()
    assert isinstance(probe, Permit)
    first.reset()
    await asyncio.sleep(1.1)
    assert "closed" == second.state
    probe.failure()
    assert ("closed", (0, 0, 0, False)) == (second.state, second.counts())


@pytest.mark.parametrize("fault", [refused, silent, stubborn])
async def test_without_the_store_each_goes_by_itself(
    breakers: Callable[..., SharedBreaker],
    store: _Store,
    fault: Callable[[], Awaitable[Any]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It opens and probes as a lone one does; when the store is back all hear of it. Two lines, two events each."""
    told: list[str] = []
    unsubscribe = events.subscribe(lambda event: told.append(event.name), "circuit_breaker.backend")
    store.fault = fault
    first, second = breakers(), breakers()
    with caplog.at_level(logging.WARNING):
        permit(second).success()
        fail(first)
        granted = await asks(first, 30.0)
        assert [True] == [each.probe for each in granted]
        granted[0].failure()
        assert "closed" == second.state
        store.fault = None
        await asyncio.gather(asks(first, 15.0), asks(second, 15.0))
    assert "open" == second.state
    assert ["circuit_breaker.backend.degraded"] * 2 + ["circuit_breaker.backend.recovered"] * 2 == sorted(told)
    assert 4 == len([record for record in caplog.records if "t" in record.args])  # type: ignore[operator]
    unsubscribe()


async def test_what_is_found_out_meanwhile_is_told_later(breakers: Callable[..., SharedBreaker], store: _Store) -> None:
    """With what is left of its pause by then; if it is over for long, not at all."""
    store.fault = refused
    first = breakers()
    fail(first)
    await asyncio.sleep(5.0)
    store.fault = None
    await asks(first, 10.0)
    assert store.said is not None
    assert store.ends_at == pytest.approx(21.0, abs=0.01)
    store.fault, store.said = refused, None
    first.force_open(1.0)
    await asyncio.sleep(100.0)
    store.fault = None
    await asyncio.sleep(15.0)
    assert store.said is None


async def test_answers_that_come_too_late_are_none(breakers: Callable[..., SharedBreaker], store: _Store) -> None:
    """What was read before we opened must not close us again."""
    first = breakers()
    first.reset()
    await asyncio.sleep(0.1)
    assert store.said is not None

    async def slow() -> None:
        await asyncio.sleep(0.3)

    second = breakers()
    store.fault = slow
    permit(second)
    await asyncio.sleep(0.1)
    fail(second)
    await asyncio.sleep(0.3)
    assert "open" == second.state
    await asyncio.sleep(1.0)
    assert "open" == second.state
    assert store.said[1]


async def test_nobody_looks_where_nobody_calls(breakers: Callable[..., SharedBreaker], store: _Store) -> None:
    """A process that has nothing to ask leaves the store in peace, and is back with its next call."""
    breaker = breakers()
    permit(breaker).success()
    await asyncio.sleep(62.0)
    asked = store.asked
    assert 50 < asked < 80
    await asyncio.sleep(1000.0)
    assert (asked, 0) == (store.asked, store.links)
    permit(breaker).success()
    await asyncio.sleep(0.1)
    assert 1 == store.links


async def test_an_open_one_is_looked_after_for_longer(breakers: Callable[..., SharedBreaker], store: _Store) -> None:
    """So that it is the one probe that finds the target well again, not one of every process."""
    breaker = breakers()
    breaker.force_open(3600.0)
    permits = await asks(breaker, 1.0)
    await asyncio.sleep(300.0)
    assert ([], 1) == (permits, store.links)
    await asyncio.sleep(400.0)
    assert 0 == store.links


async def test_closing_says_what_is_to_be_said(breakers: Callable[..., SharedBreaker], store: _Store) -> None:
    """A process that ends as it finds out that a target is down has found that out for all."""
    breaker = breakers()
    permit(breaker).success()
    await asyncio.sleep(0.1)
    fail(breaker)
    await breaker.aclose()
    assert store.said is not None
    assert store.said[1]
    assert asyncio.get_running_loop().time() < 0.15


async def test_closing_wakes_the_one_who_looks(breakers: Callable[..., SharedBreaker], store: _Store) -> None:
    """Nobody waits for the time of the next look."""
    breaker = breakers()
    permit(breaker).success()
    await asyncio.sleep(0.2)
    await breaker.aclose()
    assert asyncio.get_running_loop().time() < 0.25
    assert 0 == store.links


async def test_a_loop_that_was_held_up_is_no_fault_of_the_store(
    breakers: Callable[..., SharedBreaker], store: _Store, caplog: pytest.LogCaptureFixture
) -> None:
    """Code that blocks has the limit pass while the answer lies there unread."""

    async def blocked() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, FakeClockLoop)
        loop.advance(2.0)
        await asyncio.sleep(0.1)

    store.fault = blocked
    permit(breakers())
    await asyncio.sleep(4.0)
    assert "" == caplog.text


@pytest.mark.parametrize("fault", [silent, stubborn])
async def test_closing_takes_no_longer_than_a_second(
    breakers: Callable[..., SharedBreaker], store: _Store, fault: Callable[[], Awaitable[Any]]
) -> None:
    """Whatever the store does; a second time it does nothing, and a call after that goes by the local verdict."""
    store.fault = fault
    breaker = breakers()
    permit(breaker).success()
    await asyncio.sleep(0.1)
    began = asyncio.get_running_loop().time()
    await breaker.aclose()
    await breaker.aclose()
    assert asyncio.get_running_loop().time() - began <= 1.1
    fail(breaker)
    await asyncio.sleep(21.0)
    assert permit(breaker).probe
    assert 0 == len(breaker._sync_tasks)


async def test_closing_does_not_wait_for_a_connection_that_does_not_close(
    breakers: Callable[..., SharedBreaker], store: _Store
) -> None:
    """It is left after a second."""
    store.leaving_seconds = 100.0
    breaker = breakers()
    permit(breaker).success()
    await asyncio.sleep(0.1)
    await breaker.aclose()
    assert asyncio.get_running_loop().time() < 1.2


async def test_a_probe_that_is_given_back_is_anybodys(breakers: Callable[..., SharedBreaker]) -> None:
    """Whoever is called next probes; the one that had it asks for the lease anew."""
    first, second = opened_by_the_first(breakers)
    await asyncio.sleep(19.0)
    (await probing(first)).ignore()
    await asyncio.sleep(16.0)
    assert "half_open" == first.state
    assert [True] == [each.probe for each in await asks(second, 3.0)]
    assert isinstance(first.admit(), Refusal)


async def test_others_are_not_waited_for_when_they_cannot_be_heard(
    breakers: Callable[..., SharedBreaker], store: _Store
) -> None:
    """One that probes may have found out long ago: as soon as the store fails, each probes by itself."""
    first, second = opened_by_the_first(breakers)
    await asyncio.sleep(19.0)
    await probing(first)
    assert [] == await asks(second, 2.0)
    store.fault = refused
    await asyncio.sleep(1.1)
    assert permit(second).probe


async def test_no_call_waits_for_the_store(breakers: Callable[..., SharedBreaker], store: _Store) -> None:
    """Asking and telling are plain functions; what they leave to the sync_task is one task, however many they are."""
    store.fault = silent
    breaker = breakers()
    before = len(asyncio.all_tasks())
    for _ in range(1000):
        permit(breaker).success()
    await asyncio.sleep(0.1)
    assert len(asyncio.all_tasks()) - before <= 2
    assert 1 == store.asked


@contextmanager
def tasks_made_by(factory: Callable[..., Any]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    loop.set_task_factory(factory)
    yield
    loop.set_task_factory(None)


async def test_a_task_factory_may_take_no_context(breakers: Callable[..., SharedBreaker], store: _Store) -> None:
    """asyncio lets a factory take two arguments only; verdicts are exchanged all the same."""
    with tasks_made_by(lambda loop, work: asyncio.Task(work, loop=loop)):
        fail(breakers())
        await asyncio.sleep(0.1)
    assert store.said is not None


async def test_a_loop_that_takes_no_tasks_is_as_good_as_none(
    breakers: Callable[..., SharedBreaker], store: _Store, caplog: pytest.LogCaptureFixture
) -> None:
    """What goes wrong with the exchange never reaches the call; it is said once."""

    def refuse(loop: Any, work: Any, **_: Any) -> Any:
        raise LookupError

    breaker = breakers()
    with tasks_made_by(refuse):
        fail(breaker)
        breaker.reset()
        assert permit(breaker)
    await breaker.aclose()
    assert (0, 1) == (store.asked, caplog.text.count("is not shared (LookupError)"))


@pytest.mark.parametrize("holds", [SharedBreaker._claim, SharedBreaker._verdict])
def test_a_word_that_comes_while_the_courier_holds_the_lock(holds: Callable[..., Any]) -> None:
    """It is heard when the sync_task lets go, not when somebody calls next."""

    class Interrupted(SharedBreaker):
        ends: Permit | None = None

        def _pause_left(self, now: float) -> float:
            ends, self.ends = self.ends, None
            if ends is not None:
                ends.failure()  # as a finaliser may
            return super()._pause_left(now)

    breaker = Interrupted("t", _Store(), POLICY, clock=lambda: 0.0)
    fail(breaker)
    breaker.ends = breaker.force_probe()  # type: ignore[assignment]
    breaker._state = "open"
    holds(breaker, _Unpublished("id", True, False, False) if holds is SharedBreaker._verdict else 0.0, 0.0)
    assert not breaker._pending_outcomes
    assert not breaker.counts().probing


def test_outside_of_a_loop_it_is_a_plain_one() -> None:
    """There is nobody who could exchange anything."""
    breaker = SharedBreaker("t", _Store(), POLICY)
    fail(breaker)
    assert "open" == breaker.state
    breaker.reset()
    assert permit(breaker)


def test_a_loop_that_ends_ends_the_exchange() -> None:
    """Also in the middle of one, with a store that does not answer; and nothing is complained of."""
    store = _Store()
    store.fault = silent
    breaker = SharedBreaker("t", store, POLICY)
    complaints: list[Any] = []

    async def job() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
        permit(breaker).success()
        await asyncio.sleep(0.1)

    with asyncio.Runner(loop_factory=FakeClockLoop) as runner:
        runner.run(job())
    gc.collect()
    assert (0, []) == (store.links, complaints)


def test_a_loop_that_is_closed_in_the_middle_is_let_go_of() -> None:
    """Without the care that `asyncio.run` takes; by the next loop, with its tasks, and nothing is complained of."""
    breaker = SharedBreaker("t", _Store(), POLICY)
    loops = []
    for _ in range(3):
        loop = FakeClockLoop()
        loops.append(weakref.ref(loop))
        loop.run_until_complete(asks(breaker, 0.1))
        loop.close()
        del loop
    with asyncio.Runner(loop_factory=FakeClockLoop) as runner:
        runner.run(asks(breaker, 0.1))
    gc.collect()
    assert [None] * 3 == [loop() for loop in loops]


def test_it_serves_several_loops_in_turn() -> None:
    """A script that runs a loop for each of its jobs; what is left of those that ended is let go of."""
    store = _Store()
    breaker = SharedBreaker("t", store, POLICY)

    async def job() -> None:
        permit(breaker).success()
        await asyncio.sleep(0.1)

    for _ in range(3):
        with asyncio.Runner(loop_factory=FakeClockLoop) as runner:
            runner.run(job())
    assert (3, 0, 0) == (store.opened, store.links, len(breaker._sync_tasks))

    loop = FakeClockLoop()
    loop.run_until_complete(job())
    sync_task = breaker._sync_tasks[loop]
    assert sync_task.task is not None
    sync_task.task.cancel()
    loop.close()
    with asyncio.Runner(loop_factory=FakeClockLoop) as runner:
        runner.run(job())
    assert 0 == len(breaker._sync_tasks)


class _Outages:
    """A target that is down now and then, and a crowd in several processes who call it."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.down = False
        self.probes = 0
        self.most_probes = 0
        self.asked_while_down = 0

    async def weather(self) -> None:
        for _ in range(4):
            await asyncio.sleep(self.random.uniform(1.0, 30.0))
            self.down = True
            await asyncio.sleep(self.random.uniform(1.0, 90.0))
            self.down = False
            await asyncio.sleep(40.0)

    async def call(self, breaker: SharedBreaker, mishap: float) -> None:
        answer = breaker.admit()
        if isinstance(answer, Refusal):
            return
        self.probes += answer.probe
        self.most_probes = max(self.most_probes, self.probes)
        self.asked_while_down += self.down
        try:
            await asyncio.sleep(self.random.choice([0.0, 0.3, 8.0]))
            if self.random.random() < mishap:
                answer.ignore()
            elif self.down:
                answer.failure()
            else:
                answer.success()
        finally:
            self.probes -= answer.probe

    async def crowd(self, breaker: SharedBreaker, every: float) -> None:
        while True:
            await self.call(breaker, 0.2)
            await asyncio.sleep(every * self.random.uniform(0.5, 1.5))


@pytest.mark.parametrize("seed", range(4))
async def test_in_any_weather_there_is_one_probe_and_an_end(seed: int, breakers: Callable[..., SharedBreaker]) -> None:
    """Outages, slow calls, cancelled ones, much traffic and little: one probe for all, and in the end all close."""
    outages = _Outages(seed)
    group = [breakers(BreakerPolicy()) for _ in range(4)]
    crowds = [
        asyncio.ensure_future(outages.crowd(breaker, every))
        for breaker, every in zip(group, (0.1, 0.3, 1.0, 4.0), strict=True)
    ]
    await outages.weather()
    assert ["closed"] * 4 == [breaker.state for breaker in group]
    assert outages.most_probes <= 1
    for crowd in crowds:
        crowd.cancel()
    await asyncio.wait(crowds)
