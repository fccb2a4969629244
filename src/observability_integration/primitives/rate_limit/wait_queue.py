"""Those who wait in one event loop for leave to call, and what they get in the end."""

from __future__ import annotations

import asyncio
import os
from collections import deque
from itertools import count, islice

from .buckets import Limit

_AT_ONCE = 64  # calls that are asked for in one round trip

_numbers = count()


class Refused(Exception):  # noqa: N818 - the primitive makes it an error
    """No leave to call; nothing was taken.

    Attributes:
        limit: what there is not enough of: ``requests``, ``tokens``, or ``provider``, which asked for a pause.
        retry_after_seconds: before which there will be no room; None if there never will.
        waited_seconds: how long it waited.
    """

    def __init__(self, limit: Limit, retry_after_seconds: float | None, waited_seconds: float) -> None:
        self.limit: Limit = limit
        self.retry_after_seconds = retry_after_seconds
        self.waited_seconds = waited_seconds
        super().__init__(limit)


class Reservation:
    """Leave to make one call, to be settled or cancelled when it has ended.

    Attributes:
        tokens: what was taken.
        began: when, in seconds on the event loop's clock.
        waited_seconds: how long it waited; 0 if it had to wait for no more than an answer.
        shared: whether it was taken from the shared ledger.
        held: whether it has been neither settled nor cancelled.
        taken: the sums of requests and tokens that were taken up to this one, it included.
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
    """One who waits: `turn` is done when there is a reservation, a refusal, or no time left."""

    __slots__ = ("gone", "refusal", "reservation", "since", "tokens", "turn", "until", "waits")

    def __init__(self, tokens: float, since: float, until: float, turn: asyncio.Future[None]) -> None:
        self.tokens = tokens
        self.since = since
        self.until = until
        self.turn = turn
        self.gone = False
        self.waits = False
        self.reservation: Reservation | None = None
        self.refusal: Refused | None = None


class Line:
    """Those who wait in one event loop, how many they are, and what tokens they need in all."""

    __slots__ = ("asking", "claims", "loop", "name", "size", "timer", "tokens", "waiters")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.name = f"{os.urandom(6).hex()}.{next(_numbers)}"
        self.waiters: deque[Waiter] = deque()
        self.size = 0
        self.tokens = 0.0
        self.timer: asyncio.TimerHandle | None = None
        self.asking: asyncio.Task[None] | None = None
        self.claims = False

    def join(self, waiter: Waiter) -> None:
        """Lets somebody wait behind the others."""
        waiter.waits = self.claims
        self.waiters.append(waiter)
        self.size += 1
        self.tokens += waiter.tokens

    def leave(self, waiter: Waiter) -> None:
        """Counts somebody no more. The place itself is cleared later: this may run in a garbage collection."""
        if not waiter.gone:
            waiter.gone = True
            self.size -= 1
            self.tokens -= waiter.tokens

    def hold(self) -> None:
        """There is not enough for the first, so all have to wait, and not only until they are asked for."""
        for waiter in reversed(self.waiters):
            if waiter.waits:
                break
            waiter.waits = True

    def first(self) -> list[Waiter]:
        """Those who are to be asked for next, in their order."""
        while self.waiters and self.waiters[0].gone:
            self.waiters.popleft()
        if not self.waiters:
            self.size, self.tokens = 0, 0.0
        return list(islice((waiter for waiter in self.waiters if not waiter.gone), _AT_ONCE))
