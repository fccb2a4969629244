"""A breaker whose verdict is shared with other processes, through a store that no call ever waits for.

In each event loop one background task, the *courier*, says what this breaker has found out and looks what others have.
Where one process opens, the others do so as soon as they look; and when the pause is over, one of them all holds the
lease on the probe, which a call finds in its hand or not. A store that fails, or has not been heard of for a while, is
as good as none: then this process goes by its own verdict, and probes by itself.

The lease is taken a little before the pause is over, by who was called lately. A process that is called more rarely
than that finds nobody who holds it, goes ahead, and takes it while its probe is out: else nobody would ever probe. Two
of those may probe at once, if both are called within the second that it takes to see what others do.

The lease is for who is called: a process that has been called just now takes it from one that waits for a call, and one
whose probe is out takes it from both. Whoever has got it uses it only when the other must have seen that.

A verdict that comes from elsewhere is not said again, and one found here is not overruled by what was read before it.
What is said by hand goes before all that was found out without knowing of it, so no probe that is out can undo it.
Probes that a last target forces need no lease: they may be out in several processes, one in each.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import random as _random
import time
from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple, TypeVar

from observability_integration import events
from observability_integration.tasks import announce, begin_apart, cancel_until_done, own, wait_done
from observability_integration.telemetry.tracing import spans

from .breaker import Breaker, BreakerPolicy, OnTransition, Refusal, State, Why
from .verdict import Answer, Link, Verdict, VerdictStore

T = TypeVar("T")
logger = logging.getLogger("observability_integration")

_LOOK_SECONDS = 1.0  # between two looks at what others have found out
_ANSWER_SECONDS = 0.5  # how long the store may take
_LATE = 1.2  # a timer that fires so many times too late shows that the loop could not run
_TRUST_SECONDS = 3.0  # after the last answer, in which others are believed to wait for the one who leads
_LEASE_SECONDS = 4.0  # on the probe, renewed at each look; after so long another takes the place of one that was killed
_SEEN_SECONDS = 1.1  # after which whoever held the lease has looked, and found that another has it now
_EARLY_SECONDS = 2.5  # before the end of a pause, when the lease is taken: two looks, so that all know who has it
_LATELY_SECONDS = 10.0  # after a call, in which another one is waited for with the lease in hand
_BUSY_SECONDS = 2.0  # after a call, in which the next one is as good as there
_QUIET_SECONDS = 60.0  # without a call, after which nobody looks any more
_QUIET_OPEN_SECONDS = 600.0  # the same while it is not closed, when there is more to be missed
_RETRY_MAX_SECONDS = 10.0  # between two attempts to reach a store that fails; the first comes after a look's time


class _News(NamedTuple):
    id: str
    open: bool
    keep: bool
    by_hand: bool


class _Courier:
    """The exchange in one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.task: asyncio.Task[None] | None = None
        self.asked = True
        self.asked_at = loop.time()
        self._loop = loop
        self._woken: asyncio.Future[None] = loop.create_future()

    def wake(self) -> None:
        announce(self._woken)

    async def rest(self, seconds: float) -> None:
        """Sleeps, until it is woken at the latest; what woke it before it went to sleep counts."""
        await wait_done(self._woken, seconds)
        if self._woken.done():
            self._woken = self._loop.create_future()


class SharedBreaker(Breaker):
    """A breaker that other processes share.

    Args:
        target: name of the target; breakers of the same name on the same store share the verdict.
        store: where verdicts are kept.
        policy: when it opens, and for how long; better the same in all processes.
        on_transition: as for `Breaker`. A change that came from elsewhere has the reason ``shared``.
        clock: as for `Breaker`.
        random: as for `Breaker`.
    """

    def __init__(
        self,
        target: str,
        store: VerdictStore,
        policy: BreakerPolicy | None = None,
        *,
        on_transition: OnTransition | None = None,
        clock: Callable[[], float] = time.monotonic,
        random: Callable[[], float] = _random.random,
    ) -> None:
        super().__init__(policy, on_transition=on_transition, clock=clock, random=random)
        self.target = target
        self._store = store
        self._couriers: dict[asyncio.AbstractEventLoop, _Courier] = {}
        self._token = f"{_random.getrandbits(64):016x}"
        self._closing = False
        self._away = False
        self._heard_at = -math.inf
        self._leads_from = self._leads_until = -math.inf
        self._free = False
        self._known = ""
        self._news: _News | None = None

    def enter(self, now: float | None = None, *, forced: bool = False) -> int | Refusal:
        """As `Breaker.enter`; sees to it that verdicts are exchanged in the running event loop."""
        self._see_to_courier()
        return super().enter(now, forced=forced)

    def force_open(self, seconds: float | None = None) -> None:
        """As `Breaker.force_open`, for all who share it."""
        super().force_open(seconds)
        self._see_to_courier()

    def reset(self) -> None:
        """As `Breaker.reset`, for all who share it."""
        super().reset()
        self._see_to_courier()

    async def aclose(self) -> None:
        """Says what is yet to be said, if the store takes it in time, and ends the exchange; the breaker goes on."""
        self._closing = True
        courier = self._couriers.get(asyncio.get_running_loop())
        if courier is None or courier.task is None:
            return
        courier.wake()
        if not await wait_done(courier.task, 2 * _ANSWER_SECONDS):
            cancel_until_done(courier.task)
            await wait_done(courier.task, 2 * _ANSWER_SECONDS)

    def _may_probe(self, now: float) -> bool:
        leads = self._leads_from <= now < self._leads_until
        return self._closing or leads or self._free or now - self._heard_at > _TRUST_SECONDS

    def _open(self, why: Why, since: float, now: float) -> None:
        super()._open(why, since, now)
        self._announce(True, why)

    def _close(self, why: Why) -> None:
        super()._close(why)
        self._announce(False, why)

    def _announce(self, opened: bool, why: Why) -> None:
        keep = why in ("failure_ratio", "consecutive_failures")
        self._news = _News(f"{_random.getrandbits(64):016x}", opened, keep, why == "by_hand")

    def _turn(self, state: State, why: Why) -> None:
        super()._turn(state, why)
        try:
            courier = self._couriers.get(asyncio.get_running_loop())
        except RuntimeError:
            return  # it is told at the next look of whoever looks
        if courier is not None:
            courier.wake()

    def _see_to_courier(self) -> None:
        if self._closing:
            return
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return
        courier = self._couriers.get(loop)
        if courier is not None:
            courier.asked = True
            return
        for ended in [known for known in list(self._couriers) if known.is_closed()]:
            self._couriers.pop(ended, None)
        courier = self._couriers[loop] = _Courier(loop)
        work = self._run(loop, courier)
        try:
            courier.task = own(begin_apart(loop, work, name="circuit breaker courier"))
        except Exception as error:  # noqa: BLE001 - a loop that takes no task of ours still makes its calls
            work.close()
            self._lost(error)

    async def _run(self, loop: asyncio.AbstractEventLoop, courier: _Courier) -> None:
        failures = 0
        try:
            while True:
                try:
                    async with self._store.link(self.target) as link:
                        while True:
                            await self._exchange(link, courier)
                            failures = 0
                            if self._may_go(loop, courier):
                                return
                            await courier.rest(_LOOK_SECONDS * _random.uniform(0.8, 1.0))  # noqa: S311
                except Exception as error:  # noqa: BLE001 - whatever it is, each process goes on by itself
                    self._lost(error)
                    failures += 1
                if self._may_go(loop, courier):
                    return
                pause = min(_RETRY_MAX_SECONDS, _LOOK_SECONDS * 2 ** min(failures - 1, 16))
                # Half to full: processes that lost the store together must not return to it together.
                await courier.rest(pause * _random.uniform(0.5, 1.0))  # noqa: S311
        finally:
            self._couriers.pop(loop, None)

    def _may_go(self, loop: asyncio.AbstractEventLoop, courier: _Courier) -> bool:
        limit = _QUIET_SECONDS if self._state == "closed" else _QUIET_OPEN_SECONDS
        return self._closing or loop.time() - courier.asked_at > limit

    async def _exchange(self, link: Link, courier: _Courier) -> None:
        """Says what there is to say, or looks; and looks again for the lease, if only that has shown a need of it."""
        loop = asyncio.get_running_loop()
        token = f"{self._token}.{os.getpid()}"  # not that of a process which was forked from this one
        if courier.asked:
            courier.asked = False
            courier.asked_at = loop.time()
        idle_seconds = loop.time() - courier.asked_at
        for _ in range(2):
            began = self._clock()
            news = self._news
            verdict = None if news is None else self._verdict(news, began)
            claim = self._claim(began, idle_seconds) if verdict is None else 0
            if verdict is None:
                answer = await _in_time(link.look(token, _LEASE_SECONDS, claim))
            else:
                keep = news is not None and news.keep
                answer = await _in_time(link.say(token, verdict, self.policy.probe_seconds, keep=keep))
            if claim and answer.lease == "mine":
                if self._leads_until < began:
                    self._leads_from = began if self._is_unclaimed(began) else began + _SEEN_SECONDS
                # It began in the store no sooner than the question was asked here.
                self._leads_until = began + _LEASE_SECONDS
            elif answer.lease != "mine":
                self._leads_until = -math.inf
            self._heard(answer, news)
            if claim or not self._claim(self._clock(), idle_seconds):
                return

    def _claim(self, now: float, idle_seconds: float) -> int:
        """How much the lease is wanted: 3 for a probe that is out, 2 where one is called now, 1 lately, else 0."""
        with self._lock:
            probing = self._probe is not None
            left = 0.0 if self._state == "half_open" else math.inf if self._state == "closed" else self._left(now)
        self._catch_up()
        if probing:
            return 3
        if left > _EARLY_SECONDS or idle_seconds > _LATELY_SECONDS:
            return 0
        return 2 if idle_seconds <= _BUSY_SECONDS else 1

    def _is_unclaimed(self, now: float) -> bool:
        # While the pause lasts nobody probes; so where nobody has the lease, nobody has to see who takes it.
        with self._lock:
            paused = self._state == "open" and self._left(now) > 0
        self._catch_up()
        return paused and self._free

    def _verdict(self, news: _News, now: float) -> Verdict | None:
        with self._lock:
            # One that says closed is kept until all who opened before have probed by themselves.
            left = self._left(now) if news.open else self.policy.max_open_seconds
            longest = self._longest
        self._catch_up()
        if left + self.policy.probe_seconds <= 0:
            return None
        return Verdict(news.id, news.open, left, longest, news.by_hand, self._known)

    def _heard(self, answer: Answer, news: _News | None) -> None:
        now = self._clock()
        verdict = answer.verdict
        with self._lock:
            self._heard_at = now
            self._free = answer.lease == "free"
            if news is not None and self._news is news:
                self._news = None
                self._known = news.id
            if verdict is not None and verdict.id != self._known and self._news is None:
                self._known = verdict.id
                self._follow(verdict, now)
        self._catch_up()
        if self._away:
            self._away = False
            logger.warning("Circuit of '%s': the verdict is shared with other processes again", self.target)
            events.emit("circuit_breaker.backend.recovered", target=self.target)

    def _follow(self, verdict: Verdict, now: float) -> None:
        if not verdict.open:
            if self._state != "closed":
                super()._close("shared")
        elif self._probe is None or verdict.by_hand:  # else our own probe will tell, and is more recent
            policy = self.policy
            self._longest = min(policy.max_open_seconds, max(policy.least_open_seconds, verdict.longest_seconds))
            self._paused_at, self._pause_seconds = now, max(0.0, verdict.left_seconds)
            self._early = False
            if self._state != "open":
                self._turn("open", "shared")

    def _lost(self, error: Exception) -> None:
        self._heard_at = self._leads_until = -math.inf
        self._free = False
        if self._away:
            return
        self._away = True
        kind = spans.error_type(error)
        logger.warning(
            "Circuit of '%s': the verdict is not shared (%s); this process goes by its own until the store is back",
            self.target,
            kind,
        )
        events.emit("circuit_breaker.backend.degraded", target=self.target, error_type=kind)


async def _in_time(work: Coroutine[Any, Any, T]) -> T:
    # A task of its own: a client that is slow to notice a cancellation must not hold the courier up.
    loop = asyncio.get_running_loop()
    began = loop.time()
    task = own(loop.create_task(work, name="circuit breaker store"))
    try:
        ended = await wait_done(task, _ANSWER_SECONDS)
        if not ended and loop.time() - began > _LATE * _ANSWER_SECONDS:
            # The loop itself was held up: the answer may have come long ago, and only waits to be read.
            ended = await wait_done(task, _ANSWER_SECONDS)
    except asyncio.CancelledError:
        cancel_until_done(task)
        raise
    if not ended or task.cancelled():
        cancel_until_done(task)
        raise TimeoutError
    return task.result()
