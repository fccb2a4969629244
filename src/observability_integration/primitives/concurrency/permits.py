"""Permits of a concurrency limit, the calls that wait for one, and the refusal."""

from __future__ import annotations

import asyncio
from typing import Literal

from observability_integration.tasks import set_done

from .shares import LoopShare, call_in

Outcome = Literal["success", "overload", "neutral"]
Reason = Literal["queue_full", "queue_timeout", "deadline", "shed"]


class PermitRefused(Exception):  # noqa: N818 - the primitive makes it an error
    """The limit gave no permit.

    Attributes:
        reason: ``queue_full``; ``queue_timeout`` or ``deadline``, whichever of the two times was the shorter, also when
            it was 0 to begin with; ``shed`` when the waiter made room in the queue for a higher tier.
        waited_seconds: the time in the queue.
    """

    def __init__(self, reason: Reason, waited_seconds: float) -> None:
        self.reason: Reason = reason
        self.waited_seconds = waited_seconds
        super().__init__(reason)


class ConcurrencyPermit:
    """The permit of one call, to be released when the call has ended.

    Attributes:
        held: whether it has not been released.
        round: the `Aimd.round` in which it was given.
        share: the share of the event loop that it counts to.
    """

    __slots__ = ("held", "round", "share")

    def __init__(self, share: LoopShare, aimd_round: int) -> None:
        self.share = share
        self.round = aimd_round
        self.held = True

    def release(self, outcome: Outcome = "neutral") -> None:
        """Releases the permit, from any thread; a second release does nothing. Never waits and never raises.

        Args:
            outcome: adapts an adaptive limit: ``success``, ``overload`` (see `aimd.OVERLOAD_FAULTS`), or ``neutral``
                for an outcome that says nothing about the load.
        """
        self.share.limiter.give_back(self, outcome)


class Waiter:
    """A call that waits for a permit.

    Attributes:
        woken: done when there is a permit, a refusal, or no time left.
        share: the share that a permit will count to.
        tier: the tier of the queue.
        permit: the permit, if one was given.
        refusal: the reason of a refusal, if it was refused.
    """

    __slots__ = ("permit", "refusal", "share", "tier", "woken")

    def __init__(self, share: LoopShare, tier: int) -> None:
        self.woken: asyncio.Future[None] = share.loop.create_future()
        self.share = share
        self.tier = tier
        self.permit: ConcurrencyPermit | None = None
        self.refusal: Reason | None = None

    def is_waiting(self) -> bool:
        """Whether there is neither a permit nor a refusal yet, and time is left."""
        return not self.woken.done()


def wake(waiter: Waiter) -> bool:
    """Ends the wait, from any thread; False if the waiter's loop is closed."""
    loop = waiter.share.loop
    try:
        here = asyncio.get_running_loop()
    except RuntimeError:
        here = None
    if loop is here:
        set_done(waiter.woken)
        return True
    return call_in(loop, set_done, waiter.woken)
