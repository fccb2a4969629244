"""What one event loop has of a concurrency limit: permits, and those who wait for one. Used by `concurrency_limit`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from observability_integration.tasks import announce

if TYPE_CHECKING:
    from .limit import ConcurrencyLimit

Outcome = Literal["success", "overload", "neutral"]
Reason = Literal["queue_full", "queue_timeout", "deadline", "shed"]


class Refused(Exception):  # noqa: N818 - the primitive makes it an error
    """No permit.

    Attributes:
        reason: ``queue_full``; ``queue_timeout`` or ``deadline``, whichever of the two limits was the nearer one, also
            when nothing was left of it to begin with; ``shed`` when it made room in the queue for a higher tier.
        waited_seconds: how long it waited in the queue.
    """

    def __init__(self, reason: Reason, waited_seconds: float) -> None:
        self.reason: Reason = reason
        self.waited_seconds = waited_seconds
        super().__init__(reason)


class Share:
    """What one event loop has of the limit.

    Attributes:
        in_flight: how many permits it holds.
        ended: whether it no longer counts, because its loop is closed.
        watches: whether it looks after other loops that may be closed.
    """

    __slots__ = ("ended", "in_flight", "limiter", "loop", "watches")

    def __init__(self, limiter: ConcurrencyLimit, loop: asyncio.AbstractEventLoop) -> None:
        self.limiter = limiter
        self.loop = loop
        self.in_flight = 0
        self.ended = False
        self.watches = False


class Permit:
    """Leave to make one call, to be released when it has ended.

    Attributes:
        held: whether it has not been released yet.
        began: the adaptive limit's `round` in which it was given.
        share: what it counts to.
    """

    __slots__ = ("began", "held", "share")

    def __init__(self, share: Share, began: int) -> None:
        self.share = share
        self.began = began
        self.held = True

    def release(self, outcome: Outcome = "neutral") -> None:
        """Gives it back, from any thread; a second time does nothing. Never waits and never raises.

        Args:
            outcome: what an adaptive limit learns from: ``success``, ``overload`` (see `aimd.OVERLOAD_FAULTS`), or
                ``neutral`` for what says nothing about the load.
        """
        self.share.limiter.give_back(self, outcome)


class Waiter:
    """One who waits.

    Attributes:
        turn: done when there is a permit, a refusal, or no time left.
        share: what a permit will count to.
        tier: the one to wait in.
        permit: what was given, if anything was.
        refusal: why nothing will be, if that is so.
    """

    __slots__ = ("permit", "refusal", "share", "tier", "turn")

    def __init__(self, share: Share, tier: int) -> None:
        self.turn: asyncio.Future[None] = share.loop.create_future()
        self.share = share
        self.tier = tier
        self.permit: Permit | None = None
        self.refusal: Reason | None = None

    def still_waits(self) -> bool:
        """Whether neither has come, and there is time."""
        return not self.turn.done()


def wake(waiter: Waiter) -> bool:
    """Ends the wait; False if there is nobody left to wake, because the loop is closed."""
    loop = waiter.share.loop
    try:
        here = asyncio.get_running_loop()
    except RuntimeError:
        here = None
    if loop is here:
        announce(waiter.turn)
        return True
    return call_in(loop, announce, waiter.turn)


def call_in(loop: asyncio.AbstractEventLoop, callback: Callable[..., object], *args: object) -> bool:
    """Calls it in another loop; False if that is closed."""
    try:
        loop.call_soon_threadsafe(callback, *args)
    except RuntimeError:
        return False
    return True
