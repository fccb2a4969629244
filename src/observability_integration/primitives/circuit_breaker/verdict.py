"""The verdict that breakers of several processes share, and what a store must do for it."""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from typing import Literal, NamedTuple, Protocol


class Verdict(NamedTuple):
    """What one process has found out about a target.

    Attributes:
        id: distinguishes it from all others.
        open: whether the target is not to be called.
        left_seconds: of the pause; 0 or less when it is over.
        longest_seconds: the pause before jitter, from which the next one grows.
        by_hand: whether an operator has set it. Verdicts that were found out without knowing of it do not replace it.
        after: id of the last verdict that the publisher had seen; not stored.
    """

    id: str
    open: bool
    left_seconds: float
    longest_seconds: float
    by_hand: bool = False
    after: str = ""


class Answer(NamedTuple):
    """The answer of the store.

    Attributes:
        verdict: the last one, if there is any.
        lease: who holds the lease on the probe: this process, no process, or another.
    """

    verdict: Verdict | None
    lease: Literal["mine", "free", "other"]


class Link(Protocol):
    """A connection to the store, for one target and one event loop."""

    async def fetch(self, token: str, lease_seconds: float, claim: int) -> Answer:
        """Returns the last verdict; takes or renews the lease as well, if `claim` exceeds that of its holder.

        Args:
            token: of this process.
            lease_seconds: how long the lease lasts.
            claim: how urgently this process wants the lease, 0 to 9; 0 for not at all.
        """
        ...

    async def publish(self, token: str, verdict: Verdict, tail_seconds: float, *, keep: bool) -> Answer:
        """Replaces the last verdict, and gives the lease back if `token` holds it.

        A verdict set by hand that the publisher has not seen stays; but it gives way to another one set by hand, when
        its own pause is over and, if it says ``closed``, to one that is published with `keep`.

        Args:
            token: of this process.
            verdict: the new verdict.
            tail_seconds: how long it is kept after its pause.
            keep: whether a verdict stays that says ``open`` and whose pause is not over.
        """
        ...


class VerdictStore(Protocol):
    """Where verdicts are kept."""

    def link(self, target: str) -> AbstractAsyncContextManager[Link]:
        """Opens a link, which lasts as long as the block."""
        ...
