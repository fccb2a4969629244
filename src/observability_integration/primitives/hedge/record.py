"""Metrics, log lines and span attributes of a `HedgePrimitive`."""

from __future__ import annotations

import asyncio
import logging
from typing import Any, Literal

from observability_integration import events
from observability_integration.resilience.bounded import count_abandoned
from observability_integration.telemetry.catalogue.resilience import (
    HEDGE_COST,
    HEDGE_DELAY,
    HEDGE_LAUNCHED,
    HEDGE_OPERATIONS,
    HEDGE_SUPPRESSED,
)
from observability_integration.telemetry.tracing import spans
from observability_integration.telemetry.tracing.spans import OperationSpan

logger = logging.getLogger("observability_integration")

SuppressionReason = Literal["warmup", "budget", "deadline"]
Role = Literal["primary", "hedge"]


class HedgeRecord:
    """Records outcomes. Each operation ends in exactly one of `succeeded`, `failed` and `cancelled`.

    Args:
        owner: the primitive.
        operation: label of the metrics.
        costs: USD of one call, by role.
    """

    def __init__(self, owner: object, operation: str, costs: dict[Role, float]) -> None:
        self.operation = operation
        self.span_name = f"hedge {operation}"
        self._costs = costs
        self._unhedged = HEDGE_OPERATIONS.declare(owner, operation, "unhedged")
        self._won = {
            "primary": HEDGE_OPERATIONS.declare(owner, operation, "primary_won"),
            "hedge": HEDGE_OPERATIONS.declare(owner, operation, "hedge_won"),
        }
        self._failed = HEDGE_OPERATIONS.declare(owner, operation, "failed")
        self._launched = HEDGE_LAUNCHED.declare(owner, operation)
        self._suppressed = {
            reason: HEDGE_SUPPRESSED.declare(owner, operation, reason) for reason in ("warmup", "budget", "deadline")
        }
        self._delay = HEDGE_DELAY.declare(owner, operation)
        self._winners_cost = HEDGE_COST.declare(owner, operation, "winner")
        self._losers_cost = HEDGE_COST.declare(owner, operation, "loser")

    def launched(self, span: OperationSpan, delay_seconds: float) -> None:
        """Records a hedge, made because the first call is slow."""
        self._launched.add()
        self._delay.record(delay_seconds, span)
        span.add_event("hedge.launched", {"hedge.delay_seconds": delay_seconds})

    def suppressed(self, span: OperationSpan, reason: SuppressionReason) -> None:
        """Records that a slow first call gets no hedge."""
        self._suppressed[reason].add()
        if reason != "warmup":
            span.add_event("hedge.suppressed", {"hedge.reason": reason})

    def won(self, span: OperationSpan, role: Role) -> None:
        """Records which of two calls answered first."""
        self._winners_cost.add(self._costs[role])
        span.set_attribute("hedge.winner", role)

    def stopped(self, role: Role) -> None:
        """Records a call whose answer is discarded; it is assumed to cost as much as a winner."""
        self._losers_cost.add(self._costs[role])

    def lost(self, span: OperationSpan, role: Role, error: BaseException | None) -> None:
        """Records a call that failed while the other was in flight; `error` is None for an answer without content."""
        kind = "empty" if error is None else spans.error_type(error)
        span.add_event("hedge.attempt_failed", {"hedge.attempt": role, "error.type": kind})

    def succeeded(self, span: OperationSpan, winner: Role | None) -> None:
        """Counts an answer; `winner` is None if no hedge was made."""
        (self._unhedged if winner is None else self._won[winner]).add()
        span.set_attribute("outcome", "success")

    def failed(self, span: OperationSpan) -> None:
        """Counts an operation without an answer."""
        self._failed.add()
        span.set_attribute("outcome", "error")

    def cancelled(self, span: OperationSpan) -> None:
        """Counts an operation whose caller was cancelled, or whose first call cancelled itself."""
        HEDGE_OPERATIONS.series(self.operation, "cancelled").add()
        span.set_attribute("outcome", "cancelled")

    def abandoned(self, task: asyncio.Future[Any]) -> None:
        """Counts a cancelled call that did not end within the grace, until `task` ends."""
        count_abandoned(self.operation, task)

    def exhausted(self) -> None:
        """Called once when the budget runs out, and not again until it is half full."""
        logger.warning("The hedge budget of '%s' is used up: slow calls get no second one", self.operation)
        events.emit("hedge.budget_exhausted", operation=self.operation)
