"""What breakers of several processes tell each other, and what a store must do for them."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Literal, NamedTuple, Protocol


class Verdict(NamedTuple):
    """What one process has found out about a target.

    Attributes:
        id: tells it from all others.
        open: whether the target is not to be called.
        left_seconds: of the pause; 0 or less when it is over.
        longest_seconds: the pause before it was cut at random, from which the next one grows.
        by_hand: whether a person has said so, who is not overruled by what was found out without knowing of it.
        after: the id of the last verdict that whoever says this one had heard of; not kept.
    """

    id: str
    open: bool
    left_seconds: float
    longest_seconds: float
    by_hand: bool = False
    after: str = ""


class Answer(NamedTuple):
    """What the store says.

    Attributes:
        verdict: the last one, if there is any.
        lease: who holds the lease on the probe: the one who asked, nobody, or another.
    """

    verdict: Verdict | None
    lease: Literal["mine", "free", "other"]


class Link(Protocol):
    """A way to the store, for one target and one event loop."""

    async def look(self, token: str, lease_seconds: float, claim: int) -> Answer:
        """The last verdict; takes or renews the lease as well, if `claim` is above that of whoever else has it.

        Args:
            token: who asks.
            lease_seconds: for how long.
            claim: how much it is wanted, 0 to 9; 0 for not at all.
        """
        ...

    async def say(self, token: str, verdict: Verdict, tail_seconds: float, *, keep: bool) -> Answer:
        """Puts a verdict in the place of the last one, and gives the lease back, if `token` holds it.

        One that was said by hand, and of which whoever says this one has not heard, stays as it is; but not for another
        one by hand, nor when its own time is over or, where it says ``closed``, for one that is said with `keep`.

        Args:
            token: who says it.
            verdict: what is said.
            tail_seconds: how long it is kept after its pause.
            keep: whether one that says ``open`` already, and whose pause is not over, stays as it is.
        """
        ...


class VerdictStore(Protocol):
    """Where verdicts are kept."""

    def link(self, target: str) -> AbstractAsyncContextManager[Link]:
        """A way to it, open for as long as the block lasts."""
        ...
