"""What a FallbackPrimitive counts, logs and writes on its span."""

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

# Answers in a row by another target than before, from which on it is one: a single fault is no turn of events.
_IN_A_ROW = 3

Failed = Literal["exhausted", "fault", "deadline"]


class FallbackRecord:
    """Outcomes of one operation.

    Attributes:
        tracks_primary: whether an answer of the first target matters, because another one serves or gave the last one.
    """

    def __init__(self, owner: object, operation: str, targets: Sequence[str]) -> None:
        self.operation = operation
        self.span_name = f"fallback {operation}"
        self._targets = tuple(targets)
        self._served = [FALLBACK_SERVED.declare(owner, operation, target) for target in targets]
        self._exhausted = FALLBACK_FAILED.declare(owner, operation, "exhausted")
        self.tracks_primary = False
        self._serving = 0
        self._by_another = 0

    def served(self, span: OperationSpan, index: int, fault: FaultKind | None) -> None:
        """The target of this number gave the answer; `fault` is the one that led away from the target before it."""
        self._served[index].add()
        span.set_attribute("fallback.target", self._targets[index])
        span.set_attribute("outcome", "success")
        if index == self._serving:
            self._by_another = 0
        else:
            self._by_another += 1
            if self._by_another >= _IN_A_ROW:
                self._changed(index, fault)
        self.tracks_primary = self._serving > 0 or self._by_another > 0

    def _changed(self, index: int, fault: FaultKind | None) -> None:
        self._by_another = 0
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
        """The target of this number failed, and another one is asked."""
        FALLBACK_FAILOVERS.series(self.operation, self._targets[index], fault).add()
        span.add_event("fallback.failover", {"fallback.target": self._targets[index], "fallback.fault": fault})

    def restarted(self, span: OperationSpan) -> None:
        """A stream was begun anew though its reader had seen content."""
        FALLBACK_RESTARTS.series(self.operation).add()
        span.set_attribute("fallback.restarted", True)

    def failed(self, span: OperationSpan, reason: Failed) -> None:
        """There is no answer."""
        (self._exhausted if reason == "exhausted" else FALLBACK_FAILED.series(self.operation, reason)).add()
        span.set_attribute("fallback.failed", reason)
        span.set_attribute("outcome", "error")

    def cancelled(self, span: OperationSpan) -> None:
        """The caller went away, which is counted by what it went away from."""
        span.set_attribute("outcome", "cancelled")
