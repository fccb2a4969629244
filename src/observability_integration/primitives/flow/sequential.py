"""`SequentialPrimitive`: runs steps in order; each gets the result of the step before."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic, cast

from observability_integration.context import WorkflowContext
from observability_integration.errors import ConfigurationError
from observability_integration.primitives.base import ChunkStream, In, Out, WorkflowPrimitive, check_time_left
from observability_integration.primitives.lifting import lift
from observability_integration.primitives.streams import PassingStream
from observability_integration.telemetry.tracing import spans
from observability_integration.telemetry.tracing.spans import OperationSpan


class SequentialPrimitive(WorkflowPrimitive[In, Out], Generic[In, Out]):
    """Runs steps in order; ``a >> b`` makes one. Sequences inside a sequence are flattened.

    Args:
        steps: primitives or async callables, at least one.

    Raises:
        ConfigurationError: no steps.
    """

    def __init__(self, steps: Sequence[Any]) -> None:
        self._steps: list[WorkflowPrimitive[Any, Any]] = []
        for step in steps:
            lifted: WorkflowPrimitive[Any, Any] = lift(step)
            nested = isinstance(step, SequentialPrimitive)
            self._steps += [inner for _, inner in lifted.steps()] if nested else [lifted]
        if not self._steps:
            raise ConfigurationError("a sequence needs at least one step")

    @property
    def name(self) -> str:
        """``sequence``."""
        return "sequence"

    def steps(self) -> Sequence[tuple[str, WorkflowPrimitive[Any, Any]]]:
        """The steps, numbered from 1."""
        return [(str(number), step) for number, step in enumerate(self._steps, 1)]

    def _begin(self) -> OperationSpan:
        return spans.tracing.begin("sequence", {"sequence.steps": len(self._steps)})

    async def execute(self, input_data: In, context: WorkflowContext | None = None) -> Out:
        """Runs the steps. The first error ends the sequence and passes through.

        Raises:
            PrimitiveTimeoutError: the deadline has passed, before the first step or between two.
        """
        check_time_left(self, context)
        context = WorkflowContext() if context is None else context
        span = self._begin()
        token = spans.tracing.activate(span)
        try:
            value: Any = input_data
            for step in self._steps:
                value = await step.execute(value, context)
            return cast("Out", value)
        except Exception as error:
            spans.tracing.mark_failed(span, error)
            raise
        finally:
            spans.tracing.deactivate(token)
            span.end()

    def stream(self, input_data: In, context: WorkflowContext | None = None) -> ChunkStream:
        """Runs all steps but the last, and streams from the last."""
        context = WorkflowContext() if context is None else context

        async def source(_: OperationSpan) -> ChunkStream:
            *before, last = self._steps
            value: Any = input_data
            for step in before:
                value = await step.execute(value, context)
            return last.stream(value, context)

        return PassingStream(self.name, context, self._begin, source)
