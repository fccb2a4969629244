"""The metrics and span attributes of a ConcurrencyLimitPrimitive."""

from __future__ import annotations

from typing import get_args

from observability_integration.telemetry.catalogue.resilience import (
    CONCURRENCY_IN_FLIGHT,
    CONCURRENCY_LIMIT,
    CONCURRENCY_QUEUE_WAIT,
    CONCURRENCY_QUEUED,
    CONCURRENCY_REFUSALS,
)
from observability_integration.telemetry.tracing.spans import OperationSpan

from .limit import ConcurrencyLimit
from .permits import Reason
from .queue import Priority


class Tier:
    """The metrics of the waiters of one priority.

    Args:
        record: of the operation; the series are exported as long as it lives.
        priority: a label.
    """

    def __init__(self, record: ConcurrencyRecord, priority: Priority) -> None:
        labels = record.operation, priority
        self.priority: Priority = priority
        self.queued = CONCURRENCY_QUEUED.declare(record, *labels)
        self._wait = CONCURRENCY_QUEUE_WAIT.declare(record, *labels)
        reasons: tuple[Reason, ...] = get_args(Reason)
        self._refusals = {reason: CONCURRENCY_REFUSALS.declare(record, *labels, reason) for reason in reasons}

    def admitted(self, span: OperationSpan, waited_seconds: float) -> None:
        """Records a waiter that got a permit."""
        self._wait.record(waited_seconds, span)
        span.set_attribute("concurrency.priority", self.priority)
        span.set_attribute("concurrency.waited_seconds", waited_seconds)

    def refused(self, span: OperationSpan, reason: Reason, waited_seconds: float) -> None:
        """Records a call that got no permit."""
        self._refusals[reason].add()
        span.set_attribute("concurrency.priority", self.priority)
        span.set_attribute("concurrency.waited_seconds", waited_seconds)
        span.set_attribute("concurrency.reason", reason)


class ConcurrencyRecord:
    """The metrics of one operation.

    Attributes:
        in_flight: the number of the operation's calls that hold a permit.
    """

    def __init__(self, operation: str, limiter: ConcurrencyLimit, priority: Priority) -> None:
        self.operation = operation
        self.span_name = f"concurrency {operation}"
        self.in_flight = CONCURRENCY_IN_FLIGHT.declare(self, operation)
        self._limiter = limiter
        self._limit = CONCURRENCY_LIMIT.declare(self, operation)
        # The series of another priority appear with its first waiter: most operations use one priority.
        self._tiers: dict[Priority, Tier] = {priority: Tier(self, priority)}
        limiter.watch(self)
        self.limit_changed()

    def limit_changed(self) -> None:
        """Exports the current limit."""
        self._limit.set(self._limiter.limit)

    def tier(self, priority: Priority) -> Tier:
        """Returns the metrics of a priority."""
        tier = self._tiers.get(priority)
        if tier is None:
            tier = self._tiers[priority] = Tier(self, priority)
        return tier
