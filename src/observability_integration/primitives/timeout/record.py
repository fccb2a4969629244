"""What a TimeoutPrimitive counts, logs and writes on its span, for one operation."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from observability_integration.errors import PrimitiveTimeoutError
from observability_integration.resilience.bounded import Expired, count_abandoned
from observability_integration.telemetry.catalogue.timeout import (
    TIMEOUT_CANCELLATIONS,
    TIMEOUT_CLEANUP,
    TIMEOUT_ERRORS,
    TIMEOUT_EXECUTION,
    TIMEOUT_FAILURES,
    TIMEOUT_LATE_RESULTS,
    TIMEOUT_SUCCESSES,
    TIMEOUT_UTILIZATION,
)
from observability_integration.telemetry.tracing import spans
from observability_integration.telemetry.tracing.spans import OperationSpan

logger = logging.getLogger("observability_integration")


class TimeoutRecord:
    """Outcomes of one operation.

    Each call ends in exactly one of `settled`, `timed_out` and `cancelled`; a stream in `succeeded` or `failed`
    instead of `settled`, because it is no single task.
    """

    def __init__(self, owner: object, operation: str) -> None:
        self.operation = operation
        self.span_name = f"timeout {operation}"
        self.successes = 0
        self.failures = 0
        self._warned_blocked = False
        self._successes = TIMEOUT_SUCCESSES.declare(owner, operation)
        self._failures = TIMEOUT_FAILURES.declare(owner, operation, "total")
        self._execution = TIMEOUT_EXECUTION.declare(owner, operation)
        self._utilization = TIMEOUT_UTILIZATION.declare(owner, operation)

    def settled(
        self,
        task: asyncio.Task[Any],
        span: OperationSpan,
        elapsed_seconds: float,
        limit_seconds: float,
        *,
        blocked: bool,
    ) -> None:
        """The work ended by itself: with a value, an error, or by cancelling itself."""
        if task.cancelled():
            self.cancelled(span, elapsed_seconds)
        elif (error := task.exception()) is not None:
            self.failed(span, elapsed_seconds, limit_seconds, error)
        else:
            late = elapsed_seconds > limit_seconds
            self.succeeded(span, elapsed_seconds, limit_seconds, late=late, blocked=blocked)

    def succeeded(
        self, span: OperationSpan, elapsed_seconds: float, limit_seconds: float, *, late: bool, blocked: bool
    ) -> None:
        """The work returned; `late` if after the limit, `blocked` if because the event loop was blocked then."""
        self.successes += 1
        self._successes.add()
        self._measure(span, elapsed_seconds, limit_seconds)
        span.set_attribute("outcome", "success")
        if late:
            self._late(span)
            self._warn_late(elapsed_seconds, limit_seconds, blocked)
        span.end()

    def failed(self, span: OperationSpan, elapsed_seconds: float, limit_seconds: float, error: BaseException) -> None:
        """The work raised an error of its own, in time."""
        TIMEOUT_ERRORS.series(self.operation, spans.error_type(error)).add()
        self._measure(span, elapsed_seconds, limit_seconds)
        span.set_attribute("outcome", "error")
        spans.tracing.mark_failed(span, error)
        span.end()

    def timed_out(
        self, span: OperationSpan, elapsed_seconds: float, limit_seconds: float, error: PrimitiveTimeoutError
    ) -> None:
        """A clock of this call fired."""
        self.failures += 1
        (self._failures if error.kind == "total" else TIMEOUT_FAILURES.series(self.operation, error.kind)).add()
        self._measure(span, elapsed_seconds, limit_seconds)
        span.set_attribute("outcome", "timeout")
        span.set_attribute("timeout.kind", error.kind)
        span.set_attribute("timeout.cleanup", error.cleanup)
        spans.tracing.mark_failed(span, error)
        span.end()

    def cancelled(self, span: OperationSpan, elapsed_seconds: float) -> None:
        """The caller, or the work itself, cancelled."""
        TIMEOUT_CANCELLATIONS.series(self.operation).add()
        self._execution.record(elapsed_seconds, span)
        span.set_attribute("outcome", "cancelled")
        span.end()

    def _measure(self, span: OperationSpan, elapsed_seconds: float, limit_seconds: float) -> None:
        self._execution.record(elapsed_seconds, span)
        if limit_seconds > 0:
            self._utilization.record(elapsed_seconds / limit_seconds, span)

    def cleaned_up(self, span: OperationSpan, expired: Expired, *, kept: bool = False) -> None:
        """The cancelled work ended or was abandoned; with `kept`, `succeeded` counts a late value."""
        TIMEOUT_CLEANUP.series(self.operation, expired.cleanup).record(expired.cleanup_seconds)
        if expired.cleanup == "late_result" and not kept:
            self._late(span)

    def _late(self, span: OperationSpan) -> None:
        TIMEOUT_LATE_RESULTS.series(self.operation).add()
        span.set_attribute("timeout.late", True)

    def _warn_late(self, elapsed_seconds: float, limit_seconds: float, blocked: bool) -> None:
        if not blocked:
            logger.warning(
                "Operation '%s' finished after its limit of %gs, within the grace (%.2fs)",
                self.operation,
                limit_seconds,
                elapsed_seconds,
            )
        elif not self._warned_blocked:
            self._warned_blocked = True
            logger.warning(
                "Operation '%s' returned %.2fs after it began, its limit being %gs: the event loop was blocked, so the "
                "limit could not fire; call blocking code in a thread (logged once)",
                self.operation,
                elapsed_seconds,
                limit_seconds,
            )

    def abandoned(self, task: asyncio.Future[Any]) -> None:
        """The work ignored its cancellation and is still running; `task` is done when it ends."""
        count_abandoned(self.operation, task)
