"""What a RetryPrimitive counts, logs and writes on its span."""

from __future__ import annotations

import logging
from typing import Literal

from observability_integration import events
from observability_integration.resilience.faults import Fault
from observability_integration.resilience.faults.shapes import sdk_retries_of
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
    """Outcomes of one operation. Each call ends in exactly one of `succeeded`, `failed`, `cancelled` and `closed`."""

    def __init__(self, owner: object, operation: str) -> None:
        self.operation = operation
        self.span_name = f"retry {operation}"
        self._attempts = RETRY_ATTEMPTS.declare(owner, operation)
        self._at_once = RETRY_OPERATIONS.declare(owner, operation, "successful_without_retry")
        self._after_all = RETRY_OPERATIONS.declare(owner, operation, "successful_with_retry")
        self._refused = RETRY_OPERATIONS.declare(owner, operation, "failed_without_retry")
        self._in_vain = RETRY_OPERATIONS.declare(owner, operation, "failed_with_retry")
        self._wait = RETRY_WAIT.declare(owner, operation)
        self._warned = False

    def succeeded(self, span: OperationSpan, attempts: int) -> None:
        """The last attempt gave an answer."""
        self._attempts.add(attempts)
        (self._at_once if attempts == 1 else self._after_all).add()
        self._end(span, attempts, "success")

    def failed(self, span: OperationSpan, attempts: int, reason: GaveUp) -> None:
        """The last attempt failed, and there will be no other."""
        self._attempts.add(attempts)
        (self._refused if attempts == 1 else self._in_vain).add()
        RETRY_GAVE_UP.series(self.operation, reason).add()
        span.set_attribute("retry.gave_up", reason)
        self._end(span, attempts, "error")

    def cancelled(self, span: OperationSpan, attempts: int) -> None:
        """The caller went away."""
        self._attempts.add(attempts)
        RETRY_OPERATIONS.series(self.operation, "cancelled").add()
        self._end(span, attempts, "cancelled")

    def closed(self, span: OperationSpan, attempts: int, outcome: str) -> None:
        """The reader of a stream left before its end: what it had seen was an answer."""
        self._attempts.add(attempts)
        (self._at_once if attempts == 1 else self._after_all).add()
        self._end(span, attempts, outcome)

    def _end(self, span: OperationSpan, attempts: int, outcome: str) -> None:
        span.set_attribute("retry.attempts", attempts)
        span.set_attribute("outcome", outcome)

    def retrying(self, span: OperationSpan, fault: Fault, wait_seconds: float) -> None:
        """Another attempt will be made after a wait."""
        RETRY_RETRIES.series(self.operation, fault.kind).add()
        self._wait.record(wait_seconds, span)
        span.add_event("retry", {"retry.fault": fault.kind, "retry.wait_seconds": wait_seconds})

    def note(self, error: BaseException) -> None:
        """Looks whether a client inside has made retries of its own, which multiply with ours."""
        if not self._warned and sdk_retries_of(error) > 0:
            self._warned = True
            logger.warning(
                "The client called by '%s' makes retries of its own, which multiply with these: give it max_retries=0 "
                "(logged once)",
                self.operation,
            )

    def exhausted(self) -> None:
        """The budget was asked for more than it has, for the first time since it was half full."""
        logger.warning("The retry budget of '%s' is used up: calls fail without further retries", self.operation)
        events.emit("retry.budget_exhausted", operation=self.operation)
