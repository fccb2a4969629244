"""The ledger that several processes share: what it is asked, and what it answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from .buckets import Verdict


class Limits(NamedTuple):
    """The limits, as one process knows them.

    Attributes:
        request_rate: requests allowed per second; 0 for no limit.
        request_capacity: requests that may be saved up.
        token_rate: tokens allowed per second; 0 for no limit.
        token_capacity: tokens that may be saved up.
    """

    request_rate: float = 0.0
    request_capacity: float = 0.0
    token_rate: float = 0.0
    token_capacity: float = 0.0


class LedgerUpdate(NamedTuple):
    """What has changed in one process since its last request to the ledger.

    Attributes:
        requests: to put back; negative to charge.
        tokens: to put back; negative to charge.
        most_requests: upper bound of the requests left; None if the provider has not stated one.
        most_tokens: upper bound of the tokens left; None if the provider has not stated one.
        closed_seconds: for how long no call may go.
    """

    requests: float = 0.0
    tokens: float = 0.0
    most_requests: float | None = None
    most_tokens: float | None = None
    closed_seconds: float = 0.0

    def and_then(self, later: LedgerUpdate) -> LedgerUpdate:
        """Returns both in one: the sums, the lower bounds and the longer pause."""
        return LedgerUpdate(
            self.requests + later.requests,
            self.tokens + later.tokens,
            _least(self.most_requests, later.most_requests),
            _least(self.most_tokens, later.most_tokens),
            max(self.closed_seconds, later.closed_seconds),
        )


def _least(first: float | None, second: float | None) -> float | None:
    return second if first is None else first if second is None else min(first, second)


class Answer(NamedTuple):
    """The answer of a shared ledger.

    Attributes:
        verdict: on the calls that were asked for.
        requests: left after them; None without a limit. Less than 0 is a debt.
        tokens: the same.
        closed_seconds: for how long no call may go.
    """

    verdict: Verdict
    requests: float | None
    tokens: float | None
    closed_seconds: float


class SharedLedger(Protocol):
    """A ledger that several processes share, with the rules of `buckets.Ledger`."""

    async def take(
        self, queue: str, limits: Limits, update: LedgerUpdate, calls: Sequence[tuple[float, float]]
    ) -> Answer:
        """Applies the update, takes as many calls as there is enough for, and claims what the next one needs.

        Args:
            queue: name of the queue of calls; each event loop of each process has one.
            limits: as this process knows them.
            update: what has changed.
            calls: of each the tokens, and for how many seconds it has waited. No calls withdraw the claim.
        """
        ...

    async def aclose(self) -> None:
        """Closes the connections that were opened for the running loop."""
        ...
