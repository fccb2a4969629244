"""The parts of a concurrency limit that each event loop uses, and the detection of closed loops."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol

_CHECK_SECONDS = 1.0  # how long a permit that a closed loop held may block the waiters of other loops


class SharedLimit(Protocol):
    """The limit that permits return to: a `ConcurrencyLimit`."""

    def give_back(self, permit: Any, outcome: Any, /) -> None:
        """Takes a permit back."""

    def check_closed_loops(self, share: LoopShare, /) -> None:
        """Takes back the permits of event loops that were closed."""


class LoopShare:
    """The permits and waiters of one event loop.

    Attributes:
        limiter: the limit.
        loop: the event loop.
        in_flight: permits that are held.
        ended: whether the loop was closed, so that the share no longer counts.
        checks: whether a check for closed loops is scheduled in this loop.
    """

    __slots__ = ("checks", "ended", "in_flight", "limiter", "loop")

    def __init__(self, limiter: SharedLimit, loop: asyncio.AbstractEventLoop) -> None:
        self.limiter = limiter
        self.loop = loop
        self.in_flight = 0
        self.ended = False
        self.checks = False


class LoopShares:
    """The shares of all event loops in one limit. The caller holds the lock of the limit.

    Attributes:
        by_loop: the share of each loop.
    """

    __slots__ = ("by_loop",)

    def __init__(self) -> None:
        self.by_loop: dict[asyncio.AbstractEventLoop, LoopShare] = {}

    def add(self, limiter: SharedLimit, loop: asyncio.AbstractEventLoop, *, has_waiters: bool) -> LoopShare:
        """Creates the share of a loop; `has_waiters` says whether calls wait for the limit in any loop."""
        if has_waiters:
            # With a second loop, a waiter may depend on a loop that is closed.
            for other in self.by_loop.values():
                if not other.checks:
                    other.checks = call_in(other.loop, limiter.check_closed_loops, other)
        else:  # a loop without permits is forgotten, else it could never be collected
            self.by_loop = {used: share for used, share in self.by_loop.items() if share.in_flight}
        share = self.by_loop[loop] = LoopShare(limiter, loop)
        return share

    def closed(self) -> list[LoopShare]:
        """The shares of loops that were closed."""
        return [share for loop, share in self.by_loop.items() if loop.is_closed()]

    def end(self, share: LoopShare) -> int:
        """Removes the share of a closed loop; returns how many permits it held."""
        share.ended = True
        in_flight, share.in_flight = share.in_flight, 0
        self.by_loop.pop(share.loop, None)
        return in_flight

    def schedule_check(self, share: LoopShare) -> None:
        """Schedules a check for closed loops in the loop of `share`, if there are other loops."""
        if len(self.by_loop) > 1 and not share.checks:
            share.checks = True
            share.loop.call_later(_CHECK_SECONDS, share.limiter.check_closed_loops, share)


def call_in(loop: asyncio.AbstractEventLoop, callback: Callable[..., object], *args: object) -> bool:
    """Schedules a callback in another loop; False if that loop is closed."""
    try:
        loop.call_soon_threadsafe(callback, *args)
    except RuntimeError:
        return False
    return True
