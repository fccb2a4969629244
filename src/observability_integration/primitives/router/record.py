"""A route of a RouterPrimitive and its metrics."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from observability_integration.primitives.base import WorkflowPrimitive
from observability_integration.primitives.lifting import call_of
from observability_integration.telemetry.catalogue.router import (
    ROUTER_COST_SAVINGS,
    ROUTER_DECISIONS,
    ROUTER_ERRORS,
    ROUTER_EXECUTION,
)
from observability_integration.telemetry.tracing import spans
from observability_integration.telemetry.tracing.spans import OperationSpan


class RouteRecord:
    """A route and its metrics.

    Args:
        owner: the router.
        name: of the route; a label.
        saving: USD that a call on this route saves.
        reasons: the reasons for a decision; each series starts at 0.
        step: the step of this route; None in the model form, where the caller brings a function.
    """

    __slots__ = ("_decisions", "_execution", "_savings", "call", "name", "saving", "step")

    def __init__(
        self,
        owner: object,
        name: str,
        saving: float,
        reasons: Sequence[str],
        step: WorkflowPrimitive[Any, Any] | None = None,
    ) -> None:
        self.name = name
        self.step = step
        self.call: Any = None if step is None else call_of(step)
        # Rounded to a ten-billionth of a dollar: 0.01 - 0.001 is 0.009, not 0.009000000000000001.
        self.saving = round(saving, 10)
        self._decisions = {reason: ROUTER_DECISIONS.declare(owner, name, reason) for reason in reasons}
        self._execution = ROUTER_EXECUTION.declare(owner, name)
        self._savings = ROUTER_COST_SAVINGS.declare(owner, name)

    def decided(self, span: OperationSpan, reason: str) -> None:
        """Counts a decision for this route, and sets it on the span."""
        self._decisions[reason].add()
        span.set_attribute("router.route", self.name)
        span.set_attribute("router.reason", reason)

    def ended(self, span: OperationSpan, started: float, error: BaseException | None) -> None:
        """Counts the end of a call on this route; `started` is a reading of ``time.perf_counter``."""
        self._execution.record(time.perf_counter() - started, span)
        if error is None:
            if self.saving > 0:
                self._savings.add(self.saving)
        elif isinstance(error, Exception):
            ROUTER_ERRORS.series(self.name, spans.error_type(error)).add()
