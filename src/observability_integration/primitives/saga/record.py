"""What a SagaPrimitive counts, logs and writes on its span."""

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
    """Outcomes of one saga.

    Args:
        operation: a label.
        undoable: names of the steps that have a compensation.
    """

    def __init__(self, operation: str, undoable: Sequence[str]) -> None:
        self.operation = operation
        self.span_name = f"saga {operation}"
        outcomes: tuple[SagaOutcome, ...] = get_args(SagaOutcome)
        self._operations = {outcome: SAGA_OPERATIONS.declare(self, operation, outcome) for outcome in outcomes}
        ways: tuple[CompensationOutcome, ...] = get_args(CompensationOutcome)
        self._compensations = {
            (step, outcome): SAGA_COMPENSATIONS.declare(self, operation, step, outcome)
            for step in undoable
            for outcome in ways
        }

    def ended(self, outcome: SagaOutcome, span: OperationSpan) -> None:
        """A saga came to its end, which is after its compensations."""
        self._operations[outcome].add()
        span.set_attribute("saga.outcome", outcome)

    def compensated(self, step: str, outcome: CompensationOutcome, error: BaseException | None) -> None:
        """A compensation ended, or ran out of time."""
        self._compensations[step, outcome].add()
        if error is not None:
            logger.warning(
                "Saga '%s' could not undo '%s': %s (%s)", self.operation, step, outcome, type(error).__name__
            )

    def abandoned(self, task: asyncio.Future[object]) -> None:
        """A compensation did not end when it was cancelled, and was left running."""
        count_abandoned(self.operation, task)

    def left(self) -> None:
        """The caller was cancelled a second time while the saga was being undone."""
        logger.warning("Saga '%s' is still being undone: its caller was cancelled again and has left", self.operation)

    def cut_off(self, steps: Sequence[str]) -> None:
        """What was to undo these steps was ended, or could not even begin."""
        logger.error("Saga '%s' was ended before it was undone; left as they are: %s", self.operation, ", ".join(steps))
