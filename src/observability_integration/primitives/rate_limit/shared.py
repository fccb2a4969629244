"""What a ledger is asked that several processes share, and what it answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from .buckets import Verdict


class Terms(NamedTuple):
    """The limits, as one process knows them.

    Attributes:
        request_rate: requests that a second brings; 0 for no limit.
        request_capacity: requests that fit in.
        token_rate: tokens that a second brings; 0 for no limit.
        token_capacity: tokens that fit in.
    """

    request_rate: float = 0.0
    request_capacity: float = 0.0
    token_rate: float = 0.0
    token_capacity: float = 0.0


class News(NamedTuple):
    """What has happened since the last time.

    Attributes:
        requests: to be put back; negative is to be charged.
        tokens: to be put back; negative is to be charged.
        most_requests: what is left at the most; None if nobody said.
        most_tokens: what is left at the most; None if nobody said.
        closed_seconds: for how long the gate is to be closed.
    """

    requests: float = 0.0
    tokens: float = 0.0
    most_requests: float | None = None
    most_tokens: float | None = None
    closed_seconds: float = 0.0

    def and_then(self, later: News) -> News:
        """Both in one."""
        return News(
            self.requests + later.requests,
            self.tokens + later.tokens,
            _least(self.most_requests, later.most_requests),
            _least(self.most_tokens, later.most_tokens),
            max(self.closed_seconds, later.closed_seconds),
        )


def _least(first: float | None, second: float | None) -> float | None:
    return second if first is None else first if second is None else min(first, second)


class Answer(NamedTuple):
    """What a shared ledger says.

    Attributes:
        verdict: on the calls that were asked for.
        requests: left after them; None without a limit. Less than 0 is a debt.
        tokens: the same.
        closed_seconds: for how long the gate is closed yet.
    """

    verdict: Verdict
    requests: float | None
    tokens: float | None
    closed_seconds: float


class SharedLedger(Protocol):
    """A ledger that several processes share; what `Ledger` says of itself holds there too."""

    async def take(self, line: str, terms: Terms, news: News, calls: Sequence[tuple[float, float]]) -> Answer:
        """Takes in the news, then as many calls as there is enough for; claims what the next one needs.

        Args:
            line: who asks; one name for each line of each process.
            terms: the limits.
            news: what has happened.
            calls: of each the tokens, and for how many seconds it has waited. None withdraws the claim.
        """
        ...

    async def aclose(self) -> None:
        """Closes the connections that were opened for the running loop."""
        ...
