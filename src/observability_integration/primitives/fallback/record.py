"""The metrics, logs and span attributes of a FallbackPrimitive."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Literal

from observability_integration import events
from observability_integration.resilience.faults import FaultKind
from observability_integration.telemetry.catalogue.resilience import (
    FALLBACK_FAILED,
    FALLBACK_FAILOVERS,
    FALLBACK_RESTARTS,
    FALLBACK_SERVED,
)
from observability_integration.telemetry.tracing.spans import OperationSpan

logger = logging.getLogger("observability_integration")

# Consecutive answers by another target that make a failover worth a log line: a single fault does not.
_CONSECUTIVE = 3

Failed = Literal["exhausted", "fault", "deadline"]


class FallbackRecord:
    """Records the calls of one operation.

    Attributes:
        tracks_primary: whether answers of the first target must be recorded, because another target serves now or gave
            the last answer.
    """

    def __init__(self, owner: object, operation: str, targets: Sequence[str]) -> None:
        self.operation = operation
        self.span_name = f"fallback {operation}"
        self._targets = tuple(targets)
        self._served = [FALLBACK_SERVED.declare(owner, operation, target) for target in targets]
        self._exhausted = FALLBACK_FAILED.declare(owner, operation, "exhausted")
        self.tracks_primary = False
        self._serving = 0
        self._others_in_a_row = 0

    def served(self, span: OperationSpan, index: int, fault: FaultKind | None) -> None:
        """Counts an answer of the target with this index; `fault` is the failure of the target before it."""
        self._served[index].add()
        span.set_attribute("fallback.target", self._targets[index])
        span.set_attribute("outcome", "success")
        if index == self._serving:
            self._others_in_a_row = 0
        else:
            self._others_in_a_row += 1
            if self._others_in_a_row >= _CONSECUTIVE:
                self._target_changed(index, fault)
        self.tracks_primary = self._serving > 0 or self._others_in_a_row > 0

    def _target_changed(self, index: int, fault: FaultKind | None) -> None:
        self._others_in_a_row = 0
        before, self._serving = self._targets[self._serving], index
        now = self._targets[index]
        logger.warning("'%s' is now served by '%s' instead of '%s' (%s)", self.operation, now, before, fault or "back")
        events.emit(
            "fallback.failed_over" if index else "fallback.returned",
            operation=self.operation,
            served_by=now,
            instead_of=before,
            fault=fault or "",
        )

    def failed_over(self, span: OperationSpan, index: int, fault: FaultKind) -> None:
        """Counts a failover away from the target with this index."""
        FALLBACK_FAILOVERS.series(self.operation, self._targets[index], fault).add()
        span.add_event("fallback.failover", {"fallback.target": self._targets[index], "fallback.fault": fault})

    def restarted(self, span: OperationSpan) -> None:
        """Counts a stream that started again after its reader had seen content."""
        FALLBACK_RESTARTS.series(self.operation).add()
        span.set_attribute("fallback.restarted", True)

    def failed(self, span: OperationSpan, reason: Failed) -> None:
        """Counts a call without an answer."""
        (self._exhausted if reason == "exhausted" else FALLBACK_FAILED.series(self.operation, reason)).add()
        span.set_attribute("fallback.failed", reason)
        span.set_attribute("outcome", "error")

    def cancelled(self, span: OperationSpan) -> None:
        """Marks the span of a cancelled call, which the primitive inside counts."""
        span.set_attribute("outcome", "cancelled")
