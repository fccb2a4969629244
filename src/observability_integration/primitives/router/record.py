"""One route of a RouterPrimitive: how it is called, and what is counted for it."""

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
    """A route and its counts.

    Args:
        owner: the router.
        name: of the route; a label.
        saving: USD that a call on this route saves.
        reasons: for which it can be chosen; each is shown from the start at 0.
        step: what runs on this route; None where the caller brings a function of their own.
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
        """Counts a decision for this route, and writes it on the span."""
        self._decisions[reason].add()
        span.set_attribute("router.route", self.name)
        span.set_attribute("router.reason", reason)

    def ended(self, span: OperationSpan, started: float, error: BaseException | None) -> None:
        """Counts how a call on this route ended; `started` is a reading of ``time.perf_counter``."""
        self._execution.record(time.perf_counter() - started, span)
        if error is None:
            if self.saving > 0:
                self._savings.add(self.saving)
        elif isinstance(error, Exception):
            ROUTER_ERRORS.series(self.name, spans.error_type(error)).add()
