"""`SagaPrimitive`: runs steps in order; if one fails, runs the compensations of the steps before it."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Any, Generic, cast

from observability_integration.checks import check_positive
from observability_integration.context import WorkflowContext, deadline_var
from observability_integration.errors import ConfigurationError
from observability_integration.primitives.base import (
    ChunkStream,
    In,
    Out,
    Step,
    WorkflowPrimitive,
    check_time_left,
)
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
        action: primitive or async callable that runs the step; gets the result of the step before.
        compensation: primitive or async callable of ``(result)`` or ``(result, context)`` that undoes the step; gets
            the result of `action`. None if there is nothing to undo. It should be idempotent.
        name: the step's name in errors, spans and labels; by default the action's name. A duplicate gets a number.
    """

    action: Step[Any, Any]
    compensation: Step[Any, Any] | None = None
    name: str | None = None


class SagaPrimitive(WorkflowPrimitive[In, Out], Generic[In, Out]):
    """Runs steps in order, each with the result of the one before; undoes them if one fails.

    ==========================================  ========================================================================
    all steps return                            returns the last result
    a step raises                               the compensations of the steps before it run, in reverse order; the
                                                error then passes unchanged
    compensations fail, or take too long        the others still run; then raises `CompensationError` from the step's
                                                error
    the caller is cancelled                     the same compensations run; then `CancelledError` passes, even if they
                                                fail
    cancelled once more while they run          `CancelledError` passes at once; they run on without the caller
    a stream is left before its end             as if cancelled
    ==========================================  ========================================================================

    The step that failed, or was cancelled, has no result and is not compensated: only the step itself knows whether it
    had an effect. If that matters, let the step before choose an id, and its compensation undo all effects of that id.

    Compensations run one at a time in their own task, under their own deadline: neither a cancellation nor an expired
    deadline stops them. They get a copy of the context with the same ``state``. If the process ends, the remaining
    compensations are lost; to survive that, keep the steps in a durable store.

    Args:
        steps: `SagaStep`, or a primitive or async callable if there is nothing to undo; at least one.
        compensation_timeout_seconds: limit of each compensation, > 0; it is then cancelled, and has one second to clean
            up.
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
        self._steps = _bind(steps)
        if not self._steps:
            raise ConfigurationError("a saga needs at least one step")
        self.compensation_timeout_seconds = compensation_timeout_seconds
        self._operation = operation_name
        self._share_context = any(step.takes_context for step in self._steps)
        self._record = SagaRecord(operation_name, [step.name for step in self._steps if step.compensation is not None])

    @property
    def name(self) -> str:
        """The operation's name."""
        return self._operation

    def steps(self) -> Sequence[tuple[str, WorkflowPrimitive[Any, Any]]]:
        """The steps by name, each with its compensation."""
        parts: list[tuple[str, WorkflowPrimitive[Any, Any]]] = []
        for step in self._steps:
            parts.append((step.name, step.step))
            if step.compensation_step is not None:
                parts.append((f"undo {step.name}", step.compensation_step))
        return parts

    def _label(self) -> str:
        return f"saga {self._operation} ({len(self._steps)} steps)"

    async def execute(self, input_data: In, context: WorkflowContext | None = None) -> Out:
        """Runs the steps; undoes them if one fails.

        Raises:
            PrimitiveTimeoutError: the deadline has passed, before the first step or between two.
            CompensationError: a step failed, and a compensation of the steps before it failed or timed out.
        """
        timed = deadline_var.get() is not None or context is not None
        if timed:
            check_time_left(self, context)
        if context is None and self._share_context:
            context = WorkflowContext()
        observed = switch.on or spans.tracing.enabled
        span = self._begin(context) if observed else spans.NO_SPAN
        token = spans.tracing.activate(span) if observed else None
        try:
            origin = asyncio.get_running_loop(), contextvars.copy_context()
            completed: list[tuple[BoundStep, Any]] = []
            step = None
            try:
                value: Any = input_data
                for step in self._steps:
                    if timed:
                        check_time_left(step.name, context)
                    value = await step.call(value, context)
                    if step.compensation is not None:
                        completed.append((step, value))
            except BaseException as error:
                run = self._start_run(span, context, origin, completed, step)
                if isinstance(error, GeneratorExit):
                    run.abandon()
                else:
                    await run.fail(error)
                raise
            if observed:
                self._record.ended("completed", span)
                span.set_attribute("outcome", "success")
            return cast("Out", value)
        except Exception as error:
            span.set_attribute("outcome", "error")
            if observed:
                spans.tracing.mark_failed(span, error)
            raise
        except BaseException:
            span.set_attribute("outcome", "cancelled")
            raise
        finally:
            if observed:
                spans.tracing.deactivate(token)
                span.end()

    def stream(self, input_data: In, context: WorkflowContext | None = None) -> ChunkStream:
        """Runs all steps but the last when it is opened, and streams from the last.

        The saga is complete once the reader has reached the end of the stream.
        """
        from .stream import SagaStream

        given = WorkflowContext() if context is None else context
        return SagaStream(
            self._operation,
            lambda: self._begin(given),
            lambda span: self._start_run(span, given, (asyncio.get_running_loop(), contextvars.copy_context())),
            self._steps,
            input_data,
            given,
        )

    def _start_run(
        self,
        span: OperationSpan,
        context: WorkflowContext | None,
        origin: Origin,
        completed: Sequence[tuple[BoundStep, Any]] = (),
        step: BoundStep | None = None,
    ) -> SagaRun:
        return SagaRun(self._record, span, context, origin, self.compensation_timeout_seconds, completed, step)

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


def _bind(steps: Sequence[SagaStep | Step[Any, Any]]) -> list[BoundStep]:
    bound: list[BoundStep] = []
    names: set[str] = set()
    for number, given in enumerate(steps, 1):
        step = given if isinstance(given, SagaStep) else SagaStep(given)
        action: WorkflowPrimitive[Any, Any] = lift(step.action)
        name = _free_name(step.name or action.name, number, names)
        names.add(name)
        compensation: WorkflowPrimitive[Any, Any] | None = None
        if step.compensation is not None:
            compensation = lift(step.compensation)
        # A plain function shows whether it takes the context; a primitive may pass it on.
        plain = action is not step.action and isinstance(action, LambdaPrimitive)
        bound.append(BoundStep(name, action, compensation, not plain or takes_context(cast("Any", step.action))))
    return bound
