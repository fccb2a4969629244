"""The calls of one event loop that wait for a rate limit, and their results: a reservation or a refusal."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from itertools import count, islice

from .buckets import Limit

_BATCH = 64  # calls in one request to the ledger

_numbers = count()


class ReservationRefused(Exception):  # noqa: N818 - the primitive makes it an error
    """The limit refused the call; nothing was taken.

    Attributes:
        limit: what is short: ``requests``, ``tokens``, or ``provider``, which asked for a pause.
        retry_after_seconds: the time after which the call may go; None if it needs more than the limit.
        waited_seconds: how long the call waited.
    """

    def __init__(self, limit: Limit, retry_after_seconds: float | None, waited_seconds: float) -> None:
        self.limit: Limit = limit
        self.retry_after_seconds = retry_after_seconds
        self.waited_seconds = waited_seconds
        super().__init__(limit)


class Reservation:
    """One request and its tokens, reserved for a call; to be settled or cancelled after the call.

    Attributes:
        tokens: the reserved tokens.
        began: time of the reservation, in seconds on the event loop's clock.
        waited_seconds: how long the call waited; 0 if it waited only for an answer of the ledger.
        shared: whether it was taken from the shared ledger.
        held: whether it has been neither settled nor cancelled.
        taken: the sums of requests and tokens that were taken so far, this reservation included.
    """

    __slots__ = ("began", "held", "shared", "taken", "tokens", "waited_seconds")

    def __init__(
        self, tokens: float, began: float, waited_seconds: float, shared: bool, taken: tuple[float, float]
    ) -> None:
        self.tokens = tokens
        self.began = began
        self.waited_seconds = waited_seconds
        self.shared = shared
        self.taken = taken
        self.held = True


class Waiter:
    """A call that waits.

    Attributes:
        tokens: the tokens that it needs.
        since: when it came, in seconds on the event loop's clock.
        until: when its time is up, on the same clock.
        woken: done when there is a reservation, a refusal, or no time left.
        removed: whether it no longer waits.
        delayed: whether it had to wait for the limit, and not only for an answer of the ledger.
        reservation: the reservation, if there is one.
        refusal: the refusal, if it was refused.
    """

    __slots__ = ("delayed", "refusal", "removed", "reservation", "since", "tokens", "until", "woken")

    def __init__(self, tokens: float, since: float, until: float, woken: asyncio.Future[None]) -> None:
        self.tokens = tokens
        self.since = since
        self.until = until
        self.woken = woken
        self.removed = False
        self.delayed = False
        self.reservation: Reservation | None = None
        self.refusal: ReservationRefused | None = None


class WaitQueue:
    """The waiting calls of one event loop, first come first served.

    Attributes:
        loop: the event loop.
        name: tells the queue from those of other loops and processes.
        waiters: the waiting calls in their order, and removed ones that are yet to be cleared.
        size: the number of waiting calls.
        tokens: the tokens that they need in all.
        timer: asks the ledger again.
        request: the request to the shared ledger that is under way.
        has_claim: whether the ledger holds a claim for the first call.
    """

    __slots__ = ("has_claim", "loop", "name", "request", "size", "timer", "tokens", "waiters")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.name = f"{os.urandom(6).hex()}.{next(_numbers)}"
        self.waiters: deque[Waiter] = deque()
        self.size = 0
        self.tokens = 0.0
        self.timer: asyncio.TimerHandle | None = None
        self.request: asyncio.Task[None] | None = None
        self.has_claim = False

    def add(self, waiter: Waiter) -> None:
        """Adds a call at the end."""
        waiter.delayed = self.has_claim
        self.waiters.append(waiter)
        self.size += 1
        self.tokens += waiter.tokens

    def remove(self, waiter: Waiter) -> None:
        """Stops counting a call. `next_batch` clears its place: this may run in a garbage collection."""
        if not waiter.removed:
            waiter.removed = True
            self.size -= 1
            self.tokens -= waiter.tokens

    def mark_delayed(self) -> None:
        """Marks all calls as delayed: there is not enough for the first."""
        for waiter in reversed(self.waiters):
            if waiter.delayed:
                break
            waiter.delayed = True

    def next_batch(self) -> list[Waiter]:
        """Returns the calls to request next, in their order."""
        while self.waiters and self.waiters[0].removed:
            self.waiters.popleft()
        if not self.waiters:
            self.size, self.tokens = 0, 0.0
        return list(islice((waiter for waiter in self.waiters if not waiter.removed), _BATCH))
