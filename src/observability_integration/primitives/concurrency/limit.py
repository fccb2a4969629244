"""How many calls run at once in this process, and who waits for how long until there is room.

One limit for all event loops and threads. A lock, held for some microseconds at the most, guards its numbers; whoever
waits is woken in the loop where the waiting is done. Giving back never waits for the lock: a coroutine may be thrown
away, and give its permit back, in a garbage collection that runs while this very thread holds it. Then it is noted, and
done by the holder.

What a closed event loop still held or waited for no longer counts. While somebody waits and other loops are in use,
this is looked into once a second. A loop that has stopped without being closed counts: it may be run again.
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

from .permits import Outcome, Permit, Reason, Refused, Share, Waiter, call_in, wake
from .queue import AdmissionQueue, Priority, tier_of

_WATCH_SECONDS = 1.0  # how long a permit that a closed loop held may keep the others waiting


class LimitWatcher(Protocol):
    """Who wants to know when a limit changes."""

    def limit_changed(self) -> None:
        """Told after each change; what holds is the limiter's `limit`. Must return at once and must not raise."""


class ConcurrencyLimit:
    """Lets so many calls run at once; more wait, in four tiers (see `admission_queue`), and not too many nor too long.

    ==================================  ================================================================================
    a permit is free                    it is given at once, whatever the priority, and whatever time is left
    the queue is full                   who comes is refused (``queue_full``), unless somebody of a lower tier waits:
                                        then the youngest of the lowest tier is (``shed``)
    time is up                          refused (``queue_timeout``, ``deadline``); at once when there was none
    cancelled while waiting             gone from the queue; a permit that had just been given goes to the next one
    the limit falls below what is used  nobody is let in until enough calls have ended
    the limit rises                     as many are let in as there is room for now
    ==================================  ================================================================================

    Args:
        limit: calls at once, >= 1; an `Aimd`, for this limit alone, adapts it to what the other side bears.
        max_queued: how many may wait, >= 0.
        max_wait_seconds: how long each may wait, >= 0; None for as long as its deadline allows.

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
        # Read and written by the holder of the lock alone. While it is free, nobody waits unless all permits are taken.
        self._in_flight = 0
        self._queue: AdmissionQueue[Waiter] = AdmissionQueue()
        self._shares: dict[asyncio.AbstractEventLoop, Share] = {}
        self._latest: Share | None = None
        # What could not be done because somebody held the lock (see `_settle`).
        self._steps: deque[Callable[[], bool]] = deque()

    @property
    def limit(self) -> int:
        """How many calls may run at once."""
        return self._limit

    @property
    def adapts(self) -> bool:
        """Whether the limit learns from how calls end."""
        return self._aimd is not None

    @property
    def in_flight(self) -> int:
        """How many run now."""
        with self._lock:
            self._bury_closed()
            in_flight = self._in_flight
        self._settle()
        return in_flight

    @property
    def queued(self) -> dict[Priority, int]:
        """How many wait now, by tier."""
        with self._lock:
            self._bury_closed()
            depths = self._queue.depths()
        self._settle()
        return depths

    def set_limit(self, limit: int) -> None:
        """Changes the limit; an adaptive one goes on from there.

        Raises:
            ConfigurationError: it is less than 1, or outside the bounds of the adaptive limit.
        """
        if self._aimd is None:
            check_count("limit", limit)
        try:
            with self._lock:
                if self._aimd is not None:
                    self._aimd.move_to(limit)
                changed = self._change_to(limit)
                self._hand_out()
        finally:
            self._settle()
        if changed:
            self._tell()

    def watch(self, watcher: LimitWatcher) -> None:
        """Tells `watcher` of every change from now on, in whatever thread makes it; does not keep it alive."""
        with self._lock:
            alive = [watching for watching in self._watchers if watching() is not None]
            self._watchers = (*alive, weakref.ref(watcher))
        self._settle()

    def try_acquire(self) -> Permit | None:
        """A permit if one is free, to be released in the end. Needs a running event loop."""
        loop = asyncio.get_running_loop()
        permit = None
        self._lock.acquire()  # at half the cost of a with statement
        try:
            if self._in_flight < self._limit or self._bury_closed():
                share = self._latest
                if share is None or share.loop is not loop:
                    share = self._share_of(loop)
                permit = Permit(share, self._round)
                share.in_flight += 1
                self._in_flight += 1
        finally:
            self._lock.release()
        if self._steps:
            self._settle()
        return permit

    async def acquire(
        self,
        priority: Priority = "high",
        max_wait_seconds: float | None = None,
        deadline: Deadline | None = None,
    ) -> Permit:
        """A permit, to be released in the end; waits for one if need be.

        Args:
            priority: the tier to wait in.
            max_wait_seconds: for how long at the most, >= 0; None for the limiter's own `max_wait_seconds`.
            deadline: one to obey in addition to the one in force.

        Raises:
            Refused: there is none in time, or no place in the queue.
            ConfigurationError: an unknown priority, or no number of seconds.
        """
        tier = tier_of(priority)
        return self.try_acquire() or await self._wait(tier, max_wait_seconds, deadline)

    async def _wait(self, tier: int, max_wait_seconds: float | None, deadline: Deadline | None) -> Permit:
        limit_seconds, too_late = self._patience(max_wait_seconds, deadline)
        if limit_seconds is not None and limit_seconds <= 0:
            raise Refused(too_late, 0.0)
        loop = asyncio.get_running_loop()
        began = loop.time()
        waiter = self._enter(loop, tier)
        if waiter.refusal is not None:
            raise Refused(waiter.refusal, 0.0)
        if waiter.permit is not None:
            return waiter.permit
        try:
            await wait_done(waiter.turn, limit_seconds, waiter.turn)
        except BaseException:  # cancelled, or thrown away: in a garbage collection perhaps
            self._steps.append(partial(self._leave, waiter))
            self._settle()
            raise
        permit = waiter.permit or self._give_up(waiter)
        if permit is None:
            raise Refused(waiter.refusal or too_late, loop.time() - began)
        return permit

    def _patience(self, max_wait_seconds: float | None, deadline: Deadline | None) -> tuple[float | None, Reason]:
        """How long to wait, and what it is called when that is over."""
        if max_wait_seconds is None:
            max_wait_seconds = self._max_wait_seconds
        else:
            check_at_least("max_wait_seconds", max_wait_seconds, 0)
        nearest = earliest(current_deadline(), deadline)
        left = None if nearest is None else nearest.remaining()
        if left is not None and (max_wait_seconds is None or left <= max_wait_seconds):
            return left, "deadline"
        return max_wait_seconds, "queue_timeout"

    def _enter(self, loop: asyncio.AbstractEventLoop, tier: int) -> Waiter:
        with self._lock:
            share = self._share_of(loop)
            waiter = Waiter(share, tier)
            if self._in_flight < self._limit:  # another thread gave one back just now
                waiter.permit = self._grant(share)
            elif self._queue.size < self._max_queued:
                self._queue.push(waiter, tier)
            elif (victim := self._queue.shed_below(tier)) is not None:
                victim.refusal = "shed"
                wake(victim)
                self._queue.push(waiter, tier)
            else:
                waiter.refusal = "queue_full"
            self._watch_if_needed(share)
        self._settle()
        return waiter

    def _give_up(self, waiter: Waiter) -> Permit | None:
        """Takes a waiter without time, or one that was refused, out of the queue; returns the permit if one came."""
        with self._lock:
            self._queue.remove(waiter, waiter.tier)
        self._settle()
        return waiter.permit

    def give_back(self, permit: Permit, outcome: Outcome) -> None:
        """What `Permit.release` does."""
        changed = False
        if self._lock.acquire(False):
            try:
                share = permit.share
                # A fixed limit for which nobody waits is most of them, so it costs no further call.
                if permit.held and self._aimd is None and not self._queue.size and not share.ended:
                    permit.held = False
                    share.in_flight -= 1
                    self._in_flight -= 1
                else:
                    changed = self._end(permit, outcome)
            finally:
                self._lock.release()
        else:
            self._steps.append(partial(self._end, permit, outcome))
        if self._steps:
            self._settle()
        if changed:
            self._tell()

    def _settle(self) -> None:
        """Does what could not be done while the lock was held. Whoever held it calls this afterwards."""
        changed = False
        while self._steps and self._lock.acquire(False):
            try:
                while self._steps:
                    changed |= self._steps.popleft()()
            finally:
                self._lock.release()
        if changed:
            self._tell()

    def _tell(self) -> None:
        for watching in self._watchers:
            watcher = watching()
            if watcher is not None:
                watcher.limit_changed()

    # What follows is called by the holder of the lock.

    def _grant(self, share: Share) -> Permit:
        permit = Permit(share, self._round)
        share.in_flight += 1
        self._in_flight += 1
        return permit

    def _leave(self, waiter: Waiter) -> bool:
        self._queue.remove(waiter, waiter.tier)
        return waiter.permit is not None and self._end(waiter.permit, "neutral")

    def _end(self, permit: Permit, outcome: Outcome) -> bool:
        """Ends what the permit was for; says whether the limit has changed by that."""
        if not permit.held:
            return False
        permit.held = False
        share = permit.share
        if share.ended:
            return False
        changed = False
        if self._aimd is not None and outcome != "neutral":
            changed = self._learn(self._aimd, outcome, permit.began)
        share.in_flight -= 1
        self._in_flight -= 1
        if self._queue.size:
            self._hand_out()
        return changed

    def _learn(self, aimd: Aimd, outcome: Outcome, began: int) -> bool:
        if outcome == "success":
            aimd.success(self._in_flight, began)
        else:
            aimd.overload(began)
            self._round = aimd.round
        return self._change_to(aimd.limit)

    def _change_to(self, limit: int) -> bool:
        before, self._limit = self._limit, limit
        return before != limit

    def _hand_out(self) -> None:
        """Lets in those whose turn it is, as long as there is room."""
        while self._in_flight < self._limit:
            waiter = self._queue.pop(Waiter.still_waits)
            if waiter is None:
                return
            waiter.permit = self._grant(waiter.share)
            if not wake(waiter):
                self._bury(waiter.share)

    def _share_of(self, loop: asyncio.AbstractEventLoop) -> Share:
        share = self._shares.get(loop)
        if share is None:
            self._bury_closed()
            if self._queue.size:
                for other in self._shares.values():
                    if not other.watches:
                        other.watches = call_in(other.loop, self._watch, other)
            else:  # a loop that has nothing under way is forgotten, or it could never be collected
                self._shares = {used: share for used, share in self._shares.items() if share.in_flight}
            share = self._shares[loop] = Share(self, loop)
        self._latest = share
        return share

    def _bury_closed(self) -> bool:
        """Stops counting what closed loops had; says whether a permit is free."""
        closed = [share for loop, share in self._shares.items() if loop.is_closed()]
        for share in closed:
            self._bury(share)
        if closed:
            self._hand_out()
        return self._in_flight < self._limit

    def _bury(self, share: Share) -> None:
        share.ended = True
        self._in_flight -= share.in_flight
        share.in_flight = 0
        self._shares.pop(share.loop, None)
        self._queue.drop(lambda waiter: waiter.share is share)

    def _watch_if_needed(self, share: Share) -> None:
        if self._queue.size and len(self._shares) > 1 and not share.watches:
            share.watches = True
            share.loop.call_later(_WATCH_SECONDS, self._watch, share)

    def _watch(self, share: Share) -> None:
        """In the share's own loop, not holding the lock."""
        with self._lock:
            share.watches = False
            self._bury_closed()
            self._watch_if_needed(share)
        self._settle()
