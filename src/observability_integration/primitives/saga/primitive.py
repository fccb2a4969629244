"""SagaPrimitive: steps that belong together; when one fails, what the others have done is undone."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Any, Generic, cast

from observability_integration.checks import check_positive
from observability_integration.context import WorkflowContext
from observability_integration.errors import ConfigurationError
from observability_integration.primitives.base import ChunkStream, In, Out, Step, WorkflowPrimitive
from observability_integration.primitives.lifting import LambdaPrimitive, lift, takes_context
from observability_integration.telemetry.metrics.instruments import switch
from observability_integration.telemetry.tracing import spans
from observability_integration.telemetry.tracing.spans import OperationSpan

from .record import SagaRecord
from .run import BoundStep, Origin, SagaRun


@dataclass(frozen=True, slots=True)
class SagaStep:
    """A step of a saga.

    Attributes:
        action: primitive or async callable that does it; gets what the step before returned.
        compensation: primitive or async callable of ``(result)`` or ``(result, context)`` that undoes it; gets what
            `action` returned. None where there is nothing to undo. It should do no harm when it is run twice.
        name: in errors, spans and labels; by default the action's name. One that another step has gets a number.
    """

    action: Step[Any, Any]
    compensation: Step[Any, Any] | None = None
    name: str | None = None


class SagaPrimitive(WorkflowPrimitive[In, Out], Generic[In, Out]):
    """Runs steps one after another, each with the result of the one before; undoes them when one fails.

    ==========================================  ========================================================================
    all steps return                            the last one's result
    a step raises                               the compensations of the steps before it run, the last one's first; the
                                                error then passes unchanged
    compensations fail, or take too long        the others are tried all the same; then `CompensationError`, from the
                                                step's error
    the caller is cancelled                     the same compensations run; then `CancelledError` passes, whatever came
                                                of them
    cancelled once more while they run          at once; they go on without their caller
    a stream is left before its end             as if cancelled
    ==========================================  ========================================================================

    The step that failed, or was cancelled, has no result and is not compensated: whether it did anything, only it can
    tell. Where that matters, let the step before choose an id and undo by that id whatever was done under it.

    Compensations run one at a time in a task of their own, under a deadline of their own: neither a cancellation nor a
    deadline that has passed stops them. They get a copy of the context with the same ``state``. A process that ends
    takes with it what they have not done; for more than that, steps have to be kept in a store that outlives it.

    Args:
        steps: `SagaStep`, or a primitive or async callable where there is nothing to undo; at least one.
        compensation_timeout_seconds: how long each compensation may take, > 0; it is then cancelled, and has one second
            to clean up.
        operation_name: label of the metrics.

    Raises:
        ConfigurationError: no steps, or a limit that is not a finite number > 0.
    """

    def __init__(
        self,
        steps: Sequence[SagaStep | Step[Any, Any]],
        *,
        compensation_timeout_seconds: float = 30.0,
        operation_name: str = "saga",
    ) -> None:
        check_positive("compensation_timeout_seconds", compensation_timeout_seconds)
        self._steps = _bound(steps)
        if not self._steps:
            raise ConfigurationError("a saga needs at least one step")
        self.compensation_timeout_seconds = compensation_timeout_seconds
        self._operation = operation_name
        self._share_context = any(step.takes_context for step in self._steps)
        self._record = SagaRecord(operation_name, [step.name for step in self._steps if step.undo is not None])

    @property
    def name(self) -> str:
        """The operation's name."""
        return self._operation

    def steps(self) -> Sequence[tuple[str, WorkflowPrimitive[Any, Any]]]:
        """The steps by name, each with what undoes it."""
        parts: list[tuple[str, WorkflowPrimitive[Any, Any]]] = []
        for step in self._steps:
            parts.append((step.name, step.step))
            if step.undo_step is not None:
                parts.append((f"undo {step.name}", step.undo_step))
        return parts

    def _label(self) -> str:
        return f"saga {self._operation} ({len(self._steps)} steps)"

    async def execute(self, input_data: In, context: WorkflowContext | None = None) -> Out:
        """Runs the steps, or undoes them.

        Raises:
            CompensationError: a step failed, and not all that was done before could be undone.
        """
        if context is None and self._share_context:
            context = WorkflowContext()
        seen = switch.on or spans.tracing.enabled
        span = self._begin(context) if seen else spans.NO_SPAN
        token = spans.tracing.activate(span) if seen else None
        try:
            origin = asyncio.get_running_loop(), contextvars.copy_context()
            undoable: list[tuple[BoundStep, Any]] = []
            step = None
            try:
                value: Any = input_data
                for step in self._steps:
                    value = await step.call(value, context)
                    if step.undo is not None:
                        undoable.append((step, value))
            except BaseException as error:
                run = self._start(span, context, origin, undoable, step)
                if isinstance(error, GeneratorExit):
                    run.dropped()
                else:
                    await run.failed(error)
                raise
            if seen:
                self._record.ended("completed", span)
                span.set_attribute("outcome", "success")
            return cast("Out", value)
        except Exception as error:
            span.set_attribute("outcome", "error")
            if seen:
                spans.tracing.mark_failed(span, error)
            raise
        except BaseException:
            span.set_attribute("outcome", "cancelled")
            raise
        finally:
            if seen:
                spans.tracing.deactivate(token)
                span.end()

    def stream(self, input_data: In, context: WorkflowContext | None = None) -> ChunkStream:
        """Runs all steps but the last as it is opened, and streams from that one.

        The saga is complete when the stream has been read to its end.
        """
        from .stream import SagaStream

        given = WorkflowContext() if context is None else context
        return SagaStream(
            lambda: self._begin(given),
            lambda span: self._start(span, given, (asyncio.get_running_loop(), contextvars.copy_context())),
            self._steps,
            input_data,
            given,
        )

    def _start(
        self,
        span: OperationSpan,
        context: WorkflowContext | None,
        origin: Origin,
        undoable: Sequence[tuple[BoundStep, Any]] = (),
        step: BoundStep | None = None,
    ) -> SagaRun:
        return SagaRun(self._record, span, context, origin, self.compensation_timeout_seconds, undoable, step)

    def _begin(self, context: WorkflowContext | None) -> OperationSpan:
        span = spans.tracing.begin(self._record.span_name, {"saga.steps": len(self._steps)})
        if context is not None:
            spans.identify(span, context)
        return span


def _free_name(wanted: str, number: int, taken: Container[str]) -> str:
    name = wanted
    while name in taken:
        name, number = f"{wanted} {number}", number + 1
    return name


def _bound(steps: Sequence[SagaStep | Step[Any, Any]]) -> list[BoundStep]:
    bound: list[BoundStep] = []
    names: set[str] = set()
    for number, given in enumerate(steps, 1):
        step = given if isinstance(given, SagaStep) else SagaStep(given)
        action: WorkflowPrimitive[Any, Any] = lift(step.action)
        name = _free_name(step.name or action.name, number, names)
        names.add(name)
        undo: WorkflowPrimitive[Any, Any] | None = None if step.compensation is None else lift(step.compensation)
        # A plain function tells whether it wants the context; what was a primitive before may hand it on.
        plain = action is not step.action and isinstance(action, LambdaPrimitive)
        bound.append(BoundStep(name, action, undo, not plain or takes_context(cast("Any", step.action))))
    return bound
