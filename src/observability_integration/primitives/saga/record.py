"""Metrics, log lines and span attributes of a `SagaPrimitive`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Literal, get_args

from observability_integration.resilience.bounded import count_abandoned
from observability_integration.telemetry.catalogue.resilience import SAGA_COMPENSATIONS, SAGA_OPERATIONS
from observability_integration.telemetry.tracing.spans import OperationSpan

logger = logging.getLogger("observability_integration")

SagaOutcome = Literal["completed", "compensated", "compensation_failed"]
CompensationOutcome = Literal["success", "error", "timeout"]


class SagaRecord:
    """Records the outcomes of one saga.

    Args:
        operation: label of the metrics.
        compensated_steps: names of the steps that have a compensation.
    """

    def __init__(self, operation: str, compensated_steps: Sequence[str]) -> None:
        self.operation = operation
        self.span_name = f"saga {operation}"
        outcomes: tuple[SagaOutcome, ...] = get_args(SagaOutcome)
        self._operations = {outcome: SAGA_OPERATIONS.declare(self, operation, outcome) for outcome in outcomes}
        compensation_outcomes: tuple[CompensationOutcome, ...] = get_args(CompensationOutcome)
        self._compensations = {
            (step, outcome): SAGA_COMPENSATIONS.declare(self, operation, step, outcome)
            for step in compensated_steps
            for outcome in compensation_outcomes
        }

    def ended(self, outcome: SagaOutcome, span: OperationSpan) -> None:
        """Counts the outcome of a saga, after its compensations."""
        self._operations[outcome].add()
        span.set_attribute("saga.outcome", outcome)

    def compensated(self, step: str, outcome: CompensationOutcome, error: BaseException | None) -> None:
        """Counts the outcome of a compensation, and logs its error."""
        self._compensations[step, outcome].add()
        if error is not None:
            logger.warning(
                "Saga '%s' could not undo '%s': %s (%s)", self.operation, step, outcome, type(error).__name__
            )

    def abandoned(self, task: asyncio.Future[object]) -> None:
        """Counts a cancelled compensation that did not end within the grace."""
        count_abandoned(self.operation, task)

    def caller_left(self) -> None:
        """Logs that the caller was cancelled a second time while compensations ran."""
        logger.warning("Saga '%s' is still being undone: its caller was cancelled again and has left", self.operation)

    def not_compensated(self, steps: Sequence[str]) -> None:
        """Logs the steps whose compensations were cancelled, or could not start."""
        logger.error("Saga '%s' was ended before it was undone; left as they are: %s", self.operation, ", ".join(steps))
