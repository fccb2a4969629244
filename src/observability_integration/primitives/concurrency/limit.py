"""Limits concurrent calls in this process. Excess calls wait in a bounded queue.

One limit serves all event loops and threads. A lock, held for some microseconds at most, guards the numbers; a waiter
is woken in its own loop. A release never waits for the lock: the garbage collector may close a coroutine, which
releases its permit, while this very thread holds the lock. Such a release is deferred, and the holder of the lock
performs it afterwards.

Permits and waiters of a closed event loop no longer count. Closed loops are looked for once a second while calls wait
and several loops are in use. A loop that has stopped without being closed still counts: it may run again.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Protocol

from observability_integration.checks import check_at_least, check_count
from observability_integration.context import Deadline, current_deadline, earliest
from observability_integration.resilience.aimd import Aimd
from observability_integration.tasks import wait_done

from .permits import ConcurrencyPermit, Outcome, PermitRefused, Reason, Waiter, wake
from .queue import AdmissionQueue, Priority, tier_of
from .shares import LoopShare, LoopShares


class LimitWatcher(Protocol):
    """A callback for changes of a limit."""

    def limit_changed(self) -> None:
        """Called after each change; reads the limiter's `limit`. Must return at once and must not raise."""


class ConcurrencyLimit:
    """Limits concurrent calls. Excess calls wait in a queue of four tiers (see `Priority`), bounded in length and time.

    ==================================  ================================================================================
    moment                              what happens
    ==================================  ================================================================================
    a permit is free                    the call gets it at once, whatever its priority and the time left
    the queue is full                   the new call is refused (``queue_full``); but if a call of a lower tier waits,
                                        the youngest of the lowest tier is refused instead (``shed``)
    time is up                          refused (``queue_timeout``, ``deadline``); at once if there was no time
    cancelled while waiting             removed from the queue; a permit that was just given goes to the next waiter
    the limit falls below the calls     no waiter is admitted until enough calls have ended
    the limit rises                     as many waiters are admitted as there are permits now
    ==================================  ================================================================================

    Args:
        limit: concurrent calls, >= 1; an `Aimd`, for this limit alone, adapts it to the provider's load.
        max_queued: the most waiters, >= 0.
        max_wait_seconds: the longest wait, >= 0; None for as long as the deadline of a call allows.

    Raises:
        ConfigurationError: a knob out of its range.
    """

    def __init__(
        self,
        limit: int | Aimd,
        *,
        max_queued: int = 1000,
        max_wait_seconds: float | None = None,
    ) -> None:
        self._aimd = limit if isinstance(limit, Aimd) else None
        self._round = 0
        if isinstance(limit, Aimd):
            self._limit = limit.limit
            self._round = limit.round
        else:
            check_count("limit", limit)
            self._limit = limit
        check_count("max_queued", max_queued, 0)
        check_at_least("max_wait_seconds", max_wait_seconds, 0, optional=True)
        self._max_queued = max_queued
        self._max_wait_seconds = max_wait_seconds
        self._watchers: tuple[weakref.ref[LimitWatcher], ...] = ()
        self._lock = threading.Lock()
        # Only the holder of the lock reads and writes these. While the lock is free, calls wait only if all permits are
        # taken.
        self._in_flight = 0
        self._queue: AdmissionQueue[Waiter] = AdmissionQueue()
        self._shares = LoopShares()
        self._latest_share: LoopShare | None = None
        # Steps that could not be done because the lock was held (see `_run_deferred`).
        self._deferred: deque[Callable[[], bool]] = deque()

    @property
    def limit(self) -> int:
        """The limit of concurrent calls."""
        return self._limit

    @property
    def adapts(self) -> bool:
        """Whether the limit adapts to the outcomes of calls."""
        return self._aimd is not None

    @property
    def in_flight(self) -> int:
        """The number of calls that run now."""
        with self._lock:
            self._free_closed_loops()
            in_flight = self._in_flight
        self._run_deferred()
        return in_flight

    @property
    def queued(self) -> dict[Priority, int]:
        """The number of calls that wait now, by priority."""
        with self._lock:
            self._free_closed_loops()
            depths = self._queue.depths()
        self._run_deferred()
        return depths

    def set_limit(self, limit: int) -> None:
        """Sets the limit; an adaptive limit adapts from there.

        Raises:
            ConfigurationError: `limit` is less than 1, or outside the bounds of the adaptive limit.
        """
        if self._aimd is None:
            check_count("limit", limit)
        try:
            with self._lock:
                if self._aimd is not None:
                    self._aimd.move_to(limit)
                changed = self._change_limit(limit)
                self._admit_waiters()
        finally:
            self._run_deferred()
        if changed:
            self._notify_watchers()

    def watch(self, watcher: LimitWatcher) -> None:
        """Registers a watcher of changes, called in the thread that makes the change; referenced weakly."""
        with self._lock:
            alive = [watching for watching in self._watchers if watching() is not None]
            self._watchers = (*alive, weakref.ref(watcher))
        self._run_deferred()

    def try_acquire(self) -> ConcurrencyPermit | None:
        """Returns a permit if one is free; the caller releases it. Needs a running event loop."""
        loop = asyncio.get_running_loop()
        permit = None
        self._lock.acquire()  # at half the cost of a with statement
        try:
            if self._in_flight < self._limit or self._free_closed_loops():
                share = self._latest_share
                if share is None or share.loop is not loop:
                    share = self._share_of(loop)
                permit = ConcurrencyPermit(share, self._round)
                share.in_flight += 1
                self._in_flight += 1
        finally:
            self._lock.release()
        if self._deferred:
            self._run_deferred()
        return permit

    async def acquire(
        self,
        priority: Priority = "high",
        max_wait_seconds: float | None = None,
        deadline: Deadline | None = None,
    ) -> ConcurrencyPermit:
        """Returns a permit, waiting for one if necessary; the caller releases it.

        Args:
            priority: the tier to wait in.
            max_wait_seconds: the longest wait, >= 0; None for the limiter's own `max_wait_seconds`.
            deadline: a deadline in addition to the current one.

        Raises:
            PermitRefused: no permit became free in time, or the queue is full.
            ConfigurationError: an unknown priority, or a number of seconds below 0.
        """
        tier = tier_of(priority)
        return self.try_acquire() or await self._wait(tier, max_wait_seconds, deadline)

    async def _wait(self, tier: int, max_wait_seconds: float | None, deadline: Deadline | None) -> ConcurrencyPermit:
        limit_seconds, timeout_reason = self._time_limit(max_wait_seconds, deadline)
        if limit_seconds is not None and limit_seconds <= 0:
            raise PermitRefused(timeout_reason, 0.0)
        loop = asyncio.get_running_loop()
        began = loop.time()
        waiter = self._enqueue(loop, tier)
        if waiter.refusal is not None:
            raise PermitRefused(waiter.refusal, 0.0)
        if waiter.permit is not None:
            return waiter.permit
        try:
            await wait_done(waiter.woken, limit_seconds, waiter.woken)
        except BaseException:  # cancelled, or closed by the garbage collector
            self._deferred.append(partial(self._abandon, waiter))
            self._run_deferred()
            raise
        permit = waiter.permit or self._dequeue(waiter)
        if permit is None:
            raise PermitRefused(waiter.refusal or timeout_reason, loop.time() - began)
        return permit

    def _time_limit(self, max_wait_seconds: float | None, deadline: Deadline | None) -> tuple[float | None, Reason]:
        """Returns how long to wait, and the reason of the refusal after that."""
        if max_wait_seconds is None:
            max_wait_seconds = self._max_wait_seconds
        else:
            check_at_least("max_wait_seconds", max_wait_seconds, 0)
        nearest = earliest(current_deadline(), deadline)
        left = None if nearest is None else nearest.remaining()
        if left is not None and (max_wait_seconds is None or left <= max_wait_seconds):
            return left, "deadline"
        return max_wait_seconds, "queue_timeout"

    def _enqueue(self, loop: asyncio.AbstractEventLoop, tier: int) -> Waiter:
        with self._lock:
            share = self._share_of(loop)
            waiter = Waiter(share, tier)
            if self._in_flight < self._limit:  # another thread released one just now
                waiter.permit = self._grant(share)
            elif self._queue.size < self._max_queued:
                self._queue.push(waiter, tier)
            elif (victim := self._queue.shed_below(tier)) is not None:
                victim.refusal = "shed"
                wake(victim)
                self._queue.push(waiter, tier)
            else:
                waiter.refusal = "queue_full"
            if self._queue.size:
                self._shares.schedule_check(share)
        self._run_deferred()
        return waiter

    def _dequeue(self, waiter: Waiter) -> ConcurrencyPermit | None:
        """Removes a waiter whose time is up, or that was refused; returns its permit if one was given meanwhile."""
        with self._lock:
            self._queue.remove(waiter, waiter.tier)
        self._run_deferred()
        return waiter.permit

    def give_back(self, permit: ConcurrencyPermit, outcome: Outcome) -> None:
        """Implements `ConcurrencyPermit.release`."""
        changed = False
        if self._lock.acquire(False):
            try:
                share = permit.share
                # The common case, a fixed limit without waiters, costs no further call.
                if permit.held and self._aimd is None and not self._queue.size and not share.ended:
                    permit.held = False
                    share.in_flight -= 1
                    self._in_flight -= 1
                else:
                    changed = self._release(permit, outcome)
            finally:
                self._lock.release()
        else:
            self._deferred.append(partial(self._release, permit, outcome))
        if self._deferred:
            self._run_deferred()
        if changed:
            self._notify_watchers()

    def _run_deferred(self) -> None:
        """Does the steps that were deferred while the lock was held. Each holder of the lock calls this afterwards."""
        changed = False
        while self._deferred and self._lock.acquire(False):
            try:
                while self._deferred:
                    changed |= self._deferred.popleft()()
            finally:
                self._lock.release()
        if changed:
            self._notify_watchers()

    def _notify_watchers(self) -> None:
        for watching in self._watchers:
            watcher = watching()
            if watcher is not None:
                watcher.limit_changed()

    # The caller of the following methods holds the lock.

    def _grant(self, share: LoopShare) -> ConcurrencyPermit:
        permit = ConcurrencyPermit(share, self._round)
        share.in_flight += 1
        self._in_flight += 1
        return permit

    def _abandon(self, waiter: Waiter) -> bool:
        self._queue.remove(waiter, waiter.tier)
        return waiter.permit is not None and self._release(waiter.permit, "neutral")

    def _release(self, permit: ConcurrencyPermit, outcome: Outcome) -> bool:
        """Releases a permit; returns whether that changed the limit."""
        if not permit.held:
            return False
        permit.held = False
        share = permit.share
        if share.ended:
            return False
        changed = False
        if self._aimd is not None and outcome != "neutral":
            changed = self._adapt(self._aimd, outcome, permit.round)
        share.in_flight -= 1
        self._in_flight -= 1
        if self._queue.size:
            self._admit_waiters()
        return changed

    def _adapt(self, aimd: Aimd, outcome: Outcome, began: int) -> bool:
        if outcome == "success":
            aimd.success(self._in_flight, began)
        else:
            aimd.overload(began)
            self._round = aimd.round
        return self._change_limit(aimd.limit)

    def _change_limit(self, limit: int) -> bool:
        before, self._limit = self._limit, limit
        return before != limit

    def _admit_waiters(self) -> None:
        """Gives free permits to the next waiters."""
        while self._in_flight < self._limit:
            waiter = self._queue.pop(Waiter.is_waiting)
            if waiter is None:
                return
            waiter.permit = self._grant(waiter.share)
            if not wake(waiter):
                self._free(waiter.share)

    def _share_of(self, loop: asyncio.AbstractEventLoop) -> LoopShare:
        share = self._shares.by_loop.get(loop)
        if share is None:
            self._free_closed_loops()
            share = self._shares.add(self, loop, has_waiters=self._queue.size > 0)
        self._latest_share = share
        return share

    def _free_closed_loops(self) -> bool:
        """Frees the permits of closed loops; returns whether a permit is free."""
        closed = self._shares.closed()
        for share in closed:
            self._free(share)
        if closed:
            self._admit_waiters()
        return self._in_flight < self._limit

    def _free(self, share: LoopShare) -> None:
        self._in_flight -= self._shares.end(share)
        self._queue.drop(lambda waiter: waiter.share is share)

    # Called by an event loop, without the lock.

    def check_closed_loops(self, share: LoopShare) -> None:
        """Frees the permits of closed loops; called in the loop of `share`, and again while calls wait."""
        with self._lock:
            share.checks = False
            self._free_closed_loops()
            if self._queue.size:
                self._shares.schedule_check(share)
        self._run_deferred()
