"""A shared ledger that can neither hold up nor fail a call.

A Redis that is refused, silent or broken costs one budget, once. From then on each process limits by itself, and a
probe in the background finds out when the ledger is back.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from observability_integration.redis_backend import Guard, Notice
from observability_integration.telemetry.tracing import spans

from .shared import Answer, LedgerUpdate, Limits, SharedLedger

_RETRY_SECONDS = 1.0
_RETRY_MAX_SECONDS = 30.0


class GuardedLedger:
    """A shared ledger under a `Guard`.

    Args:
        ledger: the ledger.
        name: of the limit, for logs and events.
        budget_seconds: how long an answer may take, > 0.
        on_error: called with the type of the error of each access that failed.
    """

    def __init__(
        self, ledger: SharedLedger, name: str, budget_seconds: float, on_error: Callable[[str], None] = lambda _: None
    ) -> None:
        self._ledger = ledger
        self._guard = Guard(
            Notice(
                name,
                lost="Rate limit '%s': shared limit out of use (%s); each process limits by itself until it is back",
                back="Rate limit '%s': shared limit back in use",
                event="rate_limit.backend",
            ),
            budget_seconds=budget_seconds,
            retry_seconds=_RETRY_SECONDS,
            retry_max_seconds=_RETRY_MAX_SECONDS,
            task_name="rate limit ledger",
            probe=self._probe,
            on_error=lambda error: on_error(spans.error_type(error)),
        )

    @property
    def in_use(self) -> bool:
        """Whether the ledger is asked."""
        return self._guard.in_use

    def look(self) -> bool:
        """Tells whether the ledger is asked; if not, and it is time, starts a probe in the background."""
        return self._guard.check()

    async def take(
        self, queue: str, limits: Limits, update: LedgerUpdate, calls: Sequence[tuple[float, float]]
    ) -> Answer | None:
        """See `SharedLedger.take`; None when the ledger is out of use, late, or fails."""
        return await self._guard.ask(lambda: self._ledger.take(queue, limits, update, calls))

    async def aclose(self) -> None:
        """Ends the probe and the ledger's own connections."""
        await self._guard.aclose()
        await self._ledger.aclose()

    async def _probe(self) -> None:
        await self._guard.within(self._ledger.take("probe", Limits(), LedgerUpdate(), ()))
