"""The metrics, logs and span attributes of a RetryPrimitive."""

from __future__ import annotations

import logging
from typing import Literal

from observability_integration import events
from observability_integration.resilience.faults import Fault
from observability_integration.telemetry.catalogue.resilience import (
    RETRY_ATTEMPTS,
    RETRY_GAVE_UP,
    RETRY_OPERATIONS,
    RETRY_RETRIES,
    RETRY_WAIT,
)
from observability_integration.telemetry.tracing.spans import OperationSpan

logger = logging.getLogger("observability_integration")

GaveUp = Literal["attempts", "budget", "deadline", "retry_after", "not_retryable"]


class RetryRecord:
    """Records the calls of one operation; each ends in one of `succeeded`, `failed`, `cancelled` and `closed`.

    Counted are the attempts of the primitive. The retries that its client made by itself stand on the span.
    """

    def __init__(self, owner: object, operation: str) -> None:
        self.operation = operation
        self.span_name = f"retry {operation}"
        self._attempts = RETRY_ATTEMPTS.declare(owner, operation)
        self._succeeded_first = RETRY_OPERATIONS.declare(owner, operation, "successful_without_retry")
        self._succeeded_later = RETRY_OPERATIONS.declare(owner, operation, "successful_with_retry")
        self._failed_first = RETRY_OPERATIONS.declare(owner, operation, "failed_without_retry")
        self._failed_later = RETRY_OPERATIONS.declare(owner, operation, "failed_with_retry")
        self._wait = RETRY_WAIT.declare(owner, operation)
        self._warned = False

    def succeeded(self, span: OperationSpan, attempts: int, sdk_retries: int = 0) -> None:
        """Counts a call whose last attempt succeeded."""
        self._attempts.add(attempts)
        (self._succeeded_first if attempts == 1 else self._succeeded_later).add()
        self._end(span, attempts, sdk_retries, "success")

    def failed(self, span: OperationSpan, attempts: int, sdk_retries: int, reason: GaveUp) -> None:
        """Counts a call whose last attempt failed."""
        self._attempts.add(attempts)
        (self._failed_first if attempts == 1 else self._failed_later).add()
        RETRY_GAVE_UP.series(self.operation, reason).add()
        span.set_attribute("retry.gave_up", reason)
        self._end(span, attempts, sdk_retries, "error")

    def cancelled(self, span: OperationSpan, attempts: int, sdk_retries: int) -> None:
        """Counts a call that its caller cancelled."""
        self._attempts.add(attempts)
        RETRY_OPERATIONS.series(self.operation, "cancelled").add()
        self._end(span, attempts, sdk_retries, "cancelled")

    def closed(self, span: OperationSpan, attempts: int, sdk_retries: int, outcome: str) -> None:
        """Counts a stream that ended, or that its reader closed early: what was read counts as an answer."""
        self._attempts.add(attempts)
        (self._succeeded_first if attempts == 1 else self._succeeded_later).add()
        self._end(span, attempts, sdk_retries, outcome)

    def _end(self, span: OperationSpan, attempts: int, sdk_retries: int, outcome: str) -> None:
        span.set_attribute("retry.attempts", attempts)
        if sdk_retries:
            span.set_attribute("retry.sdk_retries", sdk_retries)
        span.set_attribute("outcome", outcome)

    def retrying(self, span: OperationSpan, fault: Fault, wait_seconds: float) -> None:
        """Counts a retry and its wait."""
        RETRY_RETRIES.series(self.operation, fault.kind).add()
        self._wait.record(wait_seconds, span)
        span.add_event("retry", {"retry.fault": fault.kind, "retry.wait_seconds": wait_seconds})

    def sdk_retried(self) -> None:
        """Warns once that the client inside makes retries of its own."""
        if not self._warned:
            self._warned = True
            logger.warning(
                "The client called by '%s' makes retries of its own, which use up its attempts and its retry budget: "
                "give it max_retries=0 (logged once)",
                self.operation,
            )

    def exhausted(self) -> None:
        """Logs that the budget ran out; called once, and not again until the budget is half full."""
        logger.warning("The retry budget of '%s' is used up: calls fail without further retries", self.operation)
        events.emit("retry.budget_exhausted", operation=self.operation)
