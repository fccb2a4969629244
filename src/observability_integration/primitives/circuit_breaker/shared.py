"""A breaker whose verdict is shared with other processes, through a store that no call ever waits for.

In each event loop one background task, the *sync task*, publishes what this breaker has found out and fetches what
others have. Where one process opens, the others open at their next fetch. When the pause is over, one process holds the
lease on the probe; a call finds out in memory whether it is this one. A store that fails, or has not answered for a
while, counts for nothing: then this process goes by its own verdict, and probes by itself.

The lease is taken a little before the pause is over, by a process that was called lately. Where no such process is, no
process holds it: then the first call probes, and its process takes the lease while the probe is out. Two such processes
may probe at once, if both are called within the second between two fetches.

A process that has been called just now takes the lease from one that waits for a call, and one whose probe is out takes
it from both. The new holder probes only when the old one must have seen that.

A verdict of another process is not published again, and one found here is not replaced by what was fetched before it.
A verdict set by hand replaces all that were found out without knowing of it, so a probe that is out cannot undo it.
Probes that a last target forces need no lease: one may be out in each process.
"""

from __future__ import annotations

import asyncio
import math
import os
import random as _random
import time
from collections.abc import Callable
from typing import NamedTuple

from observability_integration.redis_backend import Guard, Notice
from observability_integration.tasks import cancel_until_done, keep_alive, set_done, spawn_detached, wait_done

from .breaker import Breaker, BreakerPolicy, OnTransition, Refusal, State, Why
from .verdict import Answer, Link, Verdict, VerdictStore

_SYNC_SECONDS = 1.0  # between two exchanges with the store
_ANSWER_SECONDS = 0.5  # how long the store may take
_TRUST_SECONDS = 3.0  # after the last answer, for which the holder of the lease is left to probe
_LEASE_SECONDS = 4.0  # on the probe, renewed at each exchange; a process that was killed is replaced after so long
_SEEN_SECONDS = 1.1  # after which the last holder of the lease has fetched, and found that another has it now
_EARLY_SECONDS = 2.5  # before the end of a pause, when the lease is taken: two exchanges, so that all know the holder
_LATELY_SECONDS = 10.0  # after a call, for which the lease is held in the hope of another call
_BUSY_SECONDS = 2.0  # after a call, for which the next one is as good as there
_QUIET_SECONDS = 60.0  # without a call, after which the sync task ends
_QUIET_OPEN_SECONDS = 600.0  # the same while the breaker is not closed, when more could be missed
_RETRY_MAX_SECONDS = 10.0  # between two attempts to reach a store that fails; the first pause is `_SYNC_SECONDS`


class _Unpublished(NamedTuple):
    """A verdict that was found here and has yet to be published."""

    id: str
    open: bool
    keep: bool
    by_hand: bool


class _SyncTask:
    """The exchange with the store in one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.task: asyncio.Task[None] | None = None
        self.called = True  # since the last exchange
        self.called_at = loop.time()
        self._loop = loop
        self._woken: asyncio.Future[None] = loop.create_future()

    def wake(self) -> None:
        set_done(self._woken)

    async def rest(self, seconds: float) -> None:
        """Sleeps, or returns at once if it was woken since it last returned."""
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
        self._guard = Guard(
            Notice(
                target,
                lost="Circuit of '%s': the verdict is not shared (%s); "
                "this process goes by its own until the store is back",
                back="Circuit of '%s': the verdict is shared with other processes again",
                event="circuit_breaker.backend",
                label="target",
            ),
            budget_seconds=_ANSWER_SECONDS,
            retry_seconds=_SYNC_SECONDS,
            retry_max_seconds=_RETRY_MAX_SECONDS,
            task_name="circuit breaker store",
        )
        self._sync_tasks: dict[asyncio.AbstractEventLoop, _SyncTask] = {}
        self._token = f"{_random.getrandbits(64):016x}"
        self._closing = False
        self._answered_at = -math.inf
        self._leads_from = self._leads_until = -math.inf
        self._free = False
        self._seen = ""  # id of the last verdict that was published or fetched here
        self._unpublished: _Unpublished | None = None

    def enter(self, now: float | None = None, *, forced: bool = False) -> int | Refusal:
        """As `Breaker.enter`; starts the sync task of the running event loop if there is none."""
        self._start_sync()
        return super().enter(now, forced=forced)

    def force_open(self, seconds: float | None = None) -> None:
        """As `Breaker.force_open`, for all who share it."""
        super().force_open(seconds)
        self._start_sync()

    def reset(self) -> None:
        """As `Breaker.reset`, for all who share it."""
        super().reset()
        self._start_sync()

    async def aclose(self) -> None:
        """Publishes what is unpublished, if the store takes it in time, and ends the exchange; the breaker goes on."""
        self._closing = True
        sync_task = self._sync_tasks.get(asyncio.get_running_loop())
        if sync_task is None or sync_task.task is None:
            return
        sync_task.wake()
        if not await wait_done(sync_task.task, 2 * _ANSWER_SECONDS):
            cancel_until_done(sync_task.task)
            await wait_done(sync_task.task, 2 * _ANSWER_SECONDS)

    def _may_probe(self, now: float) -> bool:
        leads = self._leads_from <= now < self._leads_until
        return self._closing or leads or self._free or now - self._answered_at > _TRUST_SECONDS

    def _open(self, why: Why, since: float, now: float) -> None:
        super()._open(why, since, now)
        self._to_publish(True, why)

    def _close(self, why: Why) -> None:
        super()._close(why)
        self._to_publish(False, why)

    def _to_publish(self, opened: bool, why: Why) -> None:
        keep = why in ("failure_ratio", "consecutive_failures")
        self._unpublished = _Unpublished(f"{_random.getrandbits(64):016x}", opened, keep, why == "by_hand")

    def _change_state(self, state: State, why: Why) -> None:
        super()._change_state(state, why)
        try:
            sync_task = self._sync_tasks.get(asyncio.get_running_loop())
        except RuntimeError:
            return  # it is published at the next exchange in any loop
        if sync_task is not None:
            sync_task.wake()

    def _start_sync(self) -> None:
        if self._closing:
            return
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return
        sync_task = self._sync_tasks.get(loop)
        if sync_task is not None:
            sync_task.called = True
            return
        for ended in [known for known in list(self._sync_tasks) if known.is_closed()]:
            self._sync_tasks.pop(ended, None)
        sync_task = self._sync_tasks[loop] = _SyncTask(loop)
        work = self._run(loop, sync_task)
        try:
            sync_task.task = keep_alive(spawn_detached(loop, work, name="circuit breaker sync"))
        except Exception as error:  # noqa: BLE001 - a loop that takes no task of ours still makes its calls
            work.close()
            self._lost(error)

    async def _run(self, loop: asyncio.AbstractEventLoop, sync_task: _SyncTask) -> None:
        try:
            while True:
                try:
                    async with self._store.link(self.target) as link:
                        while True:
                            await self._exchange(link, sync_task)
                            if self._is_over(loop, sync_task):
                                return
                            await sync_task.rest(_SYNC_SECONDS * _random.uniform(0.8, 1.0))  # noqa: S311
                except Exception as error:  # noqa: BLE001 - whatever it is, each process goes on by itself
                    self._lost(error)
                if self._is_over(loop, sync_task):
                    return
                await sync_task.rest(self._guard.pause_left())
        finally:
            self._sync_tasks.pop(loop, None)

    def _is_over(self, loop: asyncio.AbstractEventLoop, sync_task: _SyncTask) -> bool:
        limit = _QUIET_SECONDS if self._state == "closed" else _QUIET_OPEN_SECONDS
        return self._closing or loop.time() - sync_task.called_at > limit

    async def _exchange(self, link: Link, sync_task: _SyncTask) -> None:
        """Publishes or fetches; fetches again for the lease, if only the first answer has shown a need of it."""
        loop = asyncio.get_running_loop()
        token = f"{self._token}.{os.getpid()}"  # not that of a process which was forked from this one
        if sync_task.called:
            sync_task.called = False
            sync_task.called_at = loop.time()
        idle_seconds = loop.time() - sync_task.called_at
        for _ in range(2):
            began = self._clock()
            unpublished = self._unpublished
            verdict = None if unpublished is None else self._verdict(unpublished, began)
            claim = self._claim(began, idle_seconds) if verdict is None else 0
            if verdict is None:
                work = link.fetch(token, _LEASE_SECONDS, claim)
            else:
                keep = unpublished is not None and unpublished.keep
                work = link.publish(token, verdict, self.policy.probe_seconds, keep=keep)
            answer = await self._guard.within(work)
            if claim and answer.lease == "mine":
                if self._leads_until < began:
                    self._leads_from = began if self._is_unclaimed(began) else began + _SEEN_SECONDS
                # The lease began in the store no sooner than the request was sent here.
                self._leads_until = began + _LEASE_SECONDS
            elif answer.lease != "mine":
                self._leads_until = -math.inf
            self._on_answer(answer, unpublished)
            if claim or not self._claim(self._clock(), idle_seconds):
                return

    def _claim(self, now: float, idle_seconds: float) -> int:
        """Returns how urgently the lease is wanted: 3 for a probe that is out, 2 called just now, 1 lately, else 0."""
        with self._lock:
            probing = self._probe is not None
            left = 0.0 if self._state == "half_open" else math.inf if self._state == "closed" else self._pause_left(now)
        self._catch_up()
        if probing:
            return 3
        if left > _EARLY_SECONDS or idle_seconds > _LATELY_SECONDS:
            return 0
        return 2 if idle_seconds <= _BUSY_SECONDS else 1

    def _is_unclaimed(self, now: float) -> bool:
        # While the pause lasts no process probes; so where none holds the lease, none has to see who takes it.
        with self._lock:
            paused = self._state == "open" and self._pause_left(now) > 0
        self._catch_up()
        return paused and self._free

    def _verdict(self, unpublished: _Unpublished, now: float) -> Verdict | None:
        with self._lock:
            # One that says closed is kept until all who opened before have probed by themselves.
            left = self._pause_left(now) if unpublished.open else self.policy.max_open_seconds
            longest = self._full_pause_seconds
        self._catch_up()
        if left + self.policy.probe_seconds <= 0:
            return None
        return Verdict(unpublished.id, unpublished.open, left, longest, unpublished.by_hand, self._seen)

    def _on_answer(self, answer: Answer, published: _Unpublished | None) -> None:
        now = self._clock()
        verdict = answer.verdict
        with self._lock:
            self._answered_at = now
            self._free = answer.lease == "free"
            if published is not None and self._unpublished is published:
                self._unpublished = None
                self._seen = published.id
            if verdict is not None and verdict.id != self._seen and self._unpublished is None:
                self._seen = verdict.id
                self._on_verdict(verdict, now)
        self._catch_up()
        self._guard.recover()

    def _on_verdict(self, verdict: Verdict, now: float) -> None:
        if not verdict.open:
            if self._state != "closed":
                super()._close("shared")
        elif self._probe is None or verdict.by_hand:  # else our own probe will tell, and is more recent
            policy = self.policy
            self._full_pause_seconds = min(
                policy.max_open_seconds, max(policy.least_open_seconds, verdict.longest_seconds)
            )
            self._paused_at, self._pause_seconds = now, max(0.0, verdict.left_seconds)
            self._early = False
            if self._state != "open":
                self._change_state("open", "shared")

    def _lost(self, error: Exception) -> None:
        self._answered_at = self._leads_until = -math.inf
        self._free = False
        if self._guard.in_use:
            self._guard.lose(error)
        else:
            self._guard.extend()
