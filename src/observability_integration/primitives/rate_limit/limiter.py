"""Limits requests and tokens per minute: reserves them for a call, makes the call wait, or refuses it.

A call reserves one request and its estimated tokens, and settles the tokens that it used. Each event loop has a queue
of waiting calls, first come first served. The queues of one process draw on one `Ledger`, those of several processes on
a shared ledger. Only the queue's own loop changes a queue, and the ledger guards the numbers, so any number of loops
and threads may use one limiter.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections import deque
from collections.abc import Callable
from typing import Literal

from observability_integration.tasks import set_done, spawn, wait_done

from .buckets import TOLERANCE_SECONDS, Ledger, Verdict
from .guard import GuardedLedger
from .headers import ProviderLimits
from .learning import adapt
from .shared import Answer, LedgerUpdate, Limits
from .wait_queue import Reservation, ReservationRefused, Waiter, WaitQueue

WithoutBackend = Literal["local", "refuse"]

_ASK_AGAIN_SECONDS = 1.0  # other processes may have given back meanwhile
_MIN_WAIT_SECONDS = 0.25  # for the answer of a shared ledger, also for calls that cannot wait
_RETRY_AFTER_SECONDS = 1.0  # told to calls that are refused while a shared ledger is out of use


class RateLimit:
    """Limits requests and tokens per minute.

    ===================================  ===============================================================================
    call                                 what happens
    ===================================  ===============================================================================
    enough is left, and no call waits    it goes at once
    other calls wait, or too little      it waits behind them, for its longest wait at most
    it would have to wait longer         refused as soon as that is known, as a rule at once
    it needs more tokens than a minute   refused at once: it can never go
    cancelled while waiting              it has taken nothing, and delays no other call
    it used less than it reserved        the rest is put back, and may let others go earlier
    it used more                         the excess is charged, also as a debt
    ===================================  ===============================================================================

    Args:
        requests_per_minute: > 0, or None for no limit.
        tokens_per_minute: > 0, or None for no limit.
        burst_seconds: the seconds of allowance that may be saved up, >= 0.
        learn: whether limits that the provider states lower these, or set those that are not given.
        shared: a ledger that several processes share.
        without_backend: while the shared ledger is out of use, ``local`` limits this process by itself, ``refuse``
            refuses all calls.
    """

    def __init__(
        self,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        *,
        burst_seconds: float = 60.0,
        learn: bool = True,
        shared: GuardedLedger | None = None,
        without_backend: WithoutBackend = "local",
    ) -> None:
        self._given = (requests_per_minute, tokens_per_minute)
        self._ledger = Ledger(requests_per_minute, tokens_per_minute, burst_seconds)
        self._learns = learn
        self._shared = shared
        self._refuses = without_backend == "refuse"
        self._lock = threading.Lock()  # for changes to `_queues`, which is replaced, so reading needs no lock
        self._queues: dict[asyncio.AbstractEventLoop, WaitQueue] = {}
        self._latest_queue: WaitQueue | None = None
        self._updates: deque[LedgerUpdate] = deque()
        self._sending: asyncio.Task[None] | None = None
        self._was_away = False

    @property
    def limits(self) -> tuple[float | None, float | None]:
        """The current limits of requests and tokens per minute; None for no limit."""
        requests, tokens = self._ledger.requests, self._ledger.tokens
        return None if requests is None else requests.per_minute, None if tokens is None else tokens.per_minute

    @property
    def capacities(self) -> tuple[float | None, float | None]:
        """The requests and tokens that may be saved up; None for no limit."""
        requests, tokens = self._ledger.requests, self._ledger.tokens
        return None if requests is None else requests.capacity, None if tokens is None else tokens.capacity

    @property
    def counts_tokens(self) -> bool:
        """Whether there is a limit of tokens."""
        return self._ledger.tokens is not None

    def left(self) -> tuple[float | None, float | None]:
        """Returns what is left of requests and tokens, 0 or more; None without a limit. Needs a running event loop."""
        return self._ledger.left(asyncio.get_running_loop().time())

    @property
    def waiting(self) -> int:
        """The number of calls that wait now."""
        return sum(queue.size for queue in list(self._queues.values()))

    def try_reserve(self, tokens: float) -> Reservation | None:
        """Returns a reservation if no call waits and enough is left; never asks a shared ledger.

        Needs a running event loop.
        """
        now = asyncio.get_running_loop().time()
        if self._shared is not None:
            return None
        ledger = self._ledger
        bucket = ledger.tokens
        if bucket is not None and tokens > bucket.most:
            return None
        taken = ledger.take_one(tokens, now)  # None while a call waits, whose claim the ledger holds
        return None if taken is None else Reservation(tokens, now, 0.0, False, taken)

    async def reserve(self, tokens: float, max_wait_seconds: float) -> Reservation:
        """Returns a reservation, waiting for it if necessary; the caller settles or cancels it.

        Args:
            tokens: the estimated tokens of the call, >= 0.
            max_wait_seconds: the longest wait, >= 0. A shared ledger is asked also if it is 0.

        Raises:
            ReservationRefused: there is not enough in time, or the call needs more than the limit.
        """
        ready = self.try_reserve(tokens)
        if ready is not None:
            return ready
        bucket = self._ledger.tokens
        if bucket is not None and tokens > bucket.most:
            raise ReservationRefused("tokens", None, 0.0)
        loop = asyncio.get_running_loop()
        queue, now = self._queue_of(loop), loop.time()
        if self._shared is None:
            verdict = self._ledger.estimate(queue.size, queue.tokens, tokens, now)
            if verdict.wait_seconds > max_wait_seconds + TOLERANCE_SECONDS:
                raise ReservationRefused(verdict.limit, verdict.wait_seconds, 0.0)
        waiter = Waiter(tokens, now, now + max_wait_seconds, loop.create_future())
        queue.add(waiter)
        self._process(queue)
        try:
            min_wait = 0.0 if self._shared is None else _MIN_WAIT_SECONDS
            await wait_done(waiter.woken, max(max_wait_seconds, min_wait), waiter.woken)
            if not waiter.removed and queue.request is not None:  # the answer may have come, and is yet to be read
                await wait_done(queue.request, None)
        except BaseException:  # cancelled, or closed by the garbage collector
            self._abandon(queue, waiter)
            raise
        if waiter.reservation is not None:
            return waiter.reservation
        if waiter.refusal is None:
            self._abandon(queue, waiter)
            verdict = self._ledger.estimate(0, 0.0, tokens, loop.time())
            waiter.refusal = ReservationRefused(verdict.limit, verdict.wait_seconds, loop.time() - now)
        raise waiter.refusal

    def settle(self, reservation: Reservation, tokens: float | None) -> None:
        """Ends a reservation by the tokens used; None for those reserved. In any thread; only the first call counts."""
        if reservation.held:
            reservation.held = False
            if tokens is not None and tokens != reservation.tokens and self._ledger.tokens is not None:
                self._give_back(reservation, 0.0, reservation.tokens - tokens)

    def cancel(self, reservation: Reservation) -> None:
        """Puts back a reservation for which no call was made. In any thread; only the first call counts."""
        if reservation.held:
            reservation.held = False
            self._give_back(reservation, 1.0, reservation.tokens)

    def adapt(self, stated: ProviderLimits, reservation: Reservation | None = None) -> None:
        """Adapts to what the provider states about its limits. Needs a running event loop.

        Args:
            stated: what it states.
            reservation: of the call with the response; None for a response that came just now.
        """
        if not self._learns:
            return
        now = asyncio.get_running_loop().time()
        update = adapt(stated, self._ledger, self._given, reservation, now)
        if update.closed_seconds > 0:
            for queue in list(self._queues.values()):
                _call_soon_in(queue.loop, self._refuse_late, queue)
        if self._shared is not None and update != LedgerUpdate():
            self._send(update)

    async def aclose(self) -> None:
        """Closes the connections of the running loop to a shared ledger, after the requests under way."""
        if self._shared is None:
            return
        loop = asyncio.get_running_loop()
        await asyncio.sleep(0)  # updates that were noted are about to be sent
        queue = self._queues.get(loop)
        for task in (self._sending, None if queue is None else queue.request):
            if task is not None and task.get_loop() is loop:
                await wait_done(task, None)
        await self._shared.aclose()

    def _give_back(self, reservation: Reservation, requests: float, tokens: float) -> None:
        # In any thread, and in a garbage collection: nothing here waits for a lock.
        if reservation.shared and self._shared is not None and self._shared.in_use:
            self._send(LedgerUpdate(requests, tokens))
            return
        self._ledger.give_back(requests, tokens)
        for queue in list(self._queues.values()):
            if queue.waiters:
                _call_soon_in(queue.loop, self._process, queue)

    def _abandon(self, queue: WaitQueue, waiter: Waiter) -> None:
        queue.remove(waiter)
        if waiter.reservation is not None:
            self.cancel(waiter.reservation)
        _call_soon_in(queue.loop, self._process, queue)

    def _queue_of(self, loop: asyncio.AbstractEventLoop) -> WaitQueue:
        queue = self._queues.get(loop)
        if queue is None:
            with self._lock:
                kept = {used: other for used, other in self._queues.items() if not used.is_closed()}
                queue = kept[loop] = WaitQueue(loop)
                self._queues = kept
        self._latest_queue = queue
        return queue

    # The following methods run in the queue's own loop.

    def _process(self, queue: WaitQueue) -> None:
        """Admits the calls that may go, and schedules the next request to the ledger."""
        if queue.timer is not None:
            queue.timer.cancel()
            queue.timer = None
        if queue.request is not None:
            return
        batch = queue.next_batch()
        if self._shared is not None and not self._shared.look():
            self._was_away = True
        if self._shared is None:
            self._take_locally(queue, batch)
        elif self._shared.in_use:
            if batch or queue.has_claim:
                queue.request = spawn(self._take_shared(self._shared, queue, batch), name="rate limit")
        elif self._refuses:
            for waiter in list(queue.waiters):
                self._refuse(queue, waiter, Verdict(0, _RETRY_AFTER_SECONDS, "requests"))
        else:
            self._take_locally(queue, batch)
            if queue.has_claim:
                self._refuse_late(queue)

    def _take_locally(self, queue: WaitQueue, batch: list[Waiter]) -> None:
        if not batch and not queue.has_claim:
            return
        while True:
            calls = ((waiter.tokens, waiter.since) for waiter in batch)
            verdict = self._ledger.take(queue, calls, queue.loop.time())
            if not self._grant(queue, batch, verdict, shared=False) or not batch:
                return
            batch = queue.next_batch()

    async def _take_shared(self, shared: GuardedLedger, queue: WaitQueue, batch: list[Waiter]) -> None:
        now = queue.loop.time()
        try:
            answer = await self._exchange(shared, queue.name, [(each.tokens, now - each.since) for each in batch])
        finally:
            queue.request = None
        if answer is None:
            self._process(queue)  # the shared ledger is out of use now
        elif self._grant(queue, batch, answer.verdict, shared=True):
            if queue.next_batch():
                self._process(queue)
        else:
            self._refuse_late(queue, answer.verdict)

    def _grant(self, queue: WaitQueue, batch: list[Waiter], verdict: Verdict, *, shared: bool) -> bool:
        """Admits the granted calls of a batch. If one has to wait, schedules the next request and returns False."""
        now = queue.loop.time()
        for waiter in batch[: verdict.granted]:
            if shared:
                self._ledger.note_taken(waiter.tokens)
            waited = now - waiter.since if waiter.delayed else 0.0
            reservation = Reservation(waiter.tokens, now, waited, shared, self._ledger.taken)
            if waiter.removed:  # while the ledger was asked
                self.cancel(reservation)
            else:
                queue.remove(waiter)
                waiter.reservation = reservation
                set_done(waiter.woken)
        queue.has_claim = verdict.granted < len(batch)
        if queue.has_claim:
            queue.mark_delayed()
            queue.timer = queue.loop.call_later(min(verdict.wait_seconds, _ASK_AGAIN_SECONDS), self._process, queue)
        return not queue.has_claim

    def _refuse_late(self, queue: WaitQueue, first: Verdict | None = None) -> None:
        """Refuses the calls that cannot go in time."""
        now, ahead, tokens = queue.loop.time(), 0, 0.0
        for waiter in list(queue.waiters):
            if waiter.removed:
                continue
            verdict = self._ledger.estimate(ahead, tokens, waiter.tokens, now)
            if first is not None and first.wait_seconds > verdict.wait_seconds:
                verdict = first
            if now + verdict.wait_seconds > waiter.until + TOLERANCE_SECONDS:
                self._refuse(queue, waiter, verdict)
            else:
                ahead += 1
                tokens += waiter.tokens
        if not ahead:
            _call_soon_in(queue.loop, self._process, queue)  # withdraws the claim

    def _refuse(self, queue: WaitQueue, waiter: Waiter, verdict: Verdict) -> None:
        if not waiter.removed:
            queue.remove(waiter)
            waiter.refusal = ReservationRefused(verdict.limit, verdict.wait_seconds, queue.loop.time() - waiter.since)
            set_done(waiter.woken)

    # The following methods concern a shared ledger.

    def _send(self, update: LedgerUpdate) -> None:
        """Sends an update to the shared ledger soon, in the background."""
        self._updates.append(update)
        queue = self._latest_queue
        if queue is not None:
            _call_soon_in(queue.loop, self._start_sending)

    def _start_sending(self) -> None:
        sending = self._sending
        if self._updates and (sending is None or sending.done() or sending.get_loop().is_closed()):
            self._sending = spawn(self._send_all(), name="rate limit updates")

    async def _send_all(self) -> None:
        while self._updates and self._shared is not None:
            await self._exchange(self._shared, "updates", [])
        for queue in list(self._queues.values()):
            if queue.waiters:
                _call_soon_in(queue.loop, self._process, queue)

    async def _exchange(self, shared: GuardedLedger, queue: str, calls: list[tuple[float, float]]) -> Answer | None:
        update = LedgerUpdate()
        while self._updates:
            update = update.and_then(self._updates.popleft())
        if self._was_away:  # the ledger may have lost its state, and does not know what was used here
            update = update.and_then(LedgerUpdate(0.0, 0.0, *self.left()))
        requests, tokens = self._ledger.requests, self._ledger.tokens
        limits = Limits(
            *((0.0, 0.0) if requests is None else (requests.rate, requests.capacity)),
            *((0.0, 0.0) if tokens is None else (tokens.rate, tokens.capacity)),
        )
        answer = await shared.take(queue, limits, update, calls)
        if answer is None:
            self._ledger.give_back(update.requests, update.tokens)
        else:
            self._was_away = False
            # If the shared ledger goes out of use, the local one goes on from here.
            now = asyncio.get_running_loop().time()
            self._ledger.adopt(answer.requests, answer.tokens, answer.closed_seconds, now)
        return answer


def _call_soon_in(loop: asyncio.AbstractEventLoop, callback: Callable[..., object], *args: object) -> None:
    """Schedules a callback in a loop; does nothing if the loop is closed."""
    with contextlib.suppress(RuntimeError):
        loop.call_soon_threadsafe(callback, *args)
