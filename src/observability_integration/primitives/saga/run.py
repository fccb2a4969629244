"""One run of a saga: the completed steps, and their compensation.

Compensations run in their own task, which a cancellation of the caller does not reach. The task ends in bounded time:
each compensation is cancelled at its timeout, and abandoned if it ignores that.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from observability_integration.context import (
    Deadline,
    WorkflowContext,
    child_of,
    reset_deadline,
    set_deadline,
    with_deadline,
)
from observability_integration.errors import Cleanup, CompensationError, PrimitiveTimeoutError
from observability_integration.primitives.base import WorkflowPrimitive
from observability_integration.primitives.lifting import call_of
from observability_integration.resilience.bounded import run_bounded
from observability_integration.tasks import spawn, wait_done
from observability_integration.telemetry.tracing import spans
from observability_integration.telemetry.tracing.spans import NO_SPAN, OperationSpan

from .record import CompensationOutcome, SagaOutcome, SagaRecord

_GRACE_SECONDS = 1.0  # time for a cancelled compensation to clean up: our choice


class BoundStep:
    """A step of a saga, its compensation, and whether the step takes the context."""

    __slots__ = ("call", "compensation", "compensation_step", "name", "step", "takes_context")

    def __init__(
        self,
        name: str,
        step: WorkflowPrimitive[Any, Any],
        compensation: WorkflowPrimitive[Any, Any] | None,
        takes_context: bool,
    ) -> None:
        self.name = name
        self.takes_context = takes_context
        self.step = step
        self.call = call_of(step)
        self.compensation_step = compensation
        self.compensation = None if compensation is None else call_of(compensation)


# Where a run began, for compensations that a finaliser starts from elsewhere (see `SagaRun.abandon`).
Origin = tuple[asyncio.AbstractEventLoop, contextvars.Context]


class SagaRun:
    """The state of one call.

    Args:
        record: counts the outcomes.
        span: span of the call.
        context: context of the call; None if no step takes it.
        origin: taken in the task of the call, while its span was current.
        timeout_seconds: limit of each compensation.
        completed: the completed steps with a compensation, each with its result.
        step: the running step.

    Attributes:
        step: the running step.
        ended: whether the saga is complete, or its compensation has started.
    """

    def __init__(
        self,
        record: SagaRecord,
        span: OperationSpan,
        context: WorkflowContext | None,
        origin: Origin,
        timeout_seconds: float,
        completed: Sequence[tuple[BoundStep, Any]] = (),
        step: BoundStep | None = None,
    ) -> None:
        self.step = step
        self.ended = False
        self._record = record
        self._span = span
        self._context = WorkflowContext() if context is None else context
        self._loop, self._variables = origin
        self._timeout_seconds = timeout_seconds
        self._completed = list(completed)
        self._failures: list[tuple[str, BaseException]] = []
        self._counted = False

    def complete_step(self, step: BoundStep, result: Any) -> None:
        """Notes the result of a completed step, for its compensation."""
        if step.compensation is not None:
            self._completed.append((step, result))

    def complete(self) -> None:
        """Ends the saga: all steps are complete."""
        self.ended = True
        self._count("completed")

    async def fail(self, error: BaseException) -> None:
        """Runs the compensations because the running step raised `error`, which the caller then re-raises.

        Raises:
            CompensationError: a compensation failed or timed out, and `error` is an `Exception`.
            CancelledError: the caller was cancelled meanwhile.
        """
        step = "" if self.step is None else self.step.name
        self._span.set_attribute("saga.failed_step", step)
        await self.compensate(outlasts_cancellation=not isinstance(error, asyncio.CancelledError))
        if self._failures and isinstance(error, Exception):
            raise CompensationError(self._record.operation, step, self._failures) from error

    async def compensate(self, *, outlasts_cancellation: bool) -> None:
        """Runs the compensations of the completed steps, the last step first.

        Args:
            outlasts_cancellation: whether the caller still waits for their end after a first cancellation.

        Raises:
            CancelledError: the caller was cancelled meanwhile.
        """
        self.ended = True
        if not self._completed:
            self._finish()
            return
        compensating = self._start()
        try:
            await wait_done(compensating, None)
        except asyncio.CancelledError:
            if outlasts_cancellation:
                with suppress(asyncio.CancelledError):  # of a second cancellation; the first one is raised
                    await wait_done(compensating, None)
            if compensating.done():
                self._finish()
            else:
                self._record.caller_left()
                self._span = NO_SPAN  # the caller ends its span now
            raise
        self._finish()

    def abandon(self) -> None:
        """Starts the compensations without a wait, if the loop still runs; for a finaliser in any thread."""
        self.ended = True
        if not self._completed:
            self._finish()
            return
        self._span = NO_SPAN
        try:
            self._loop.call_soon_threadsafe(self._start, context=self._variables)
        except RuntimeError:  # the loop is closed
            self._finish()

    def _start(self) -> asyncio.Task[None]:
        compensating = spawn(self._compensate_all(), name=f"undo {self._record.operation}")
        compensating.add_done_callback(self._finish)  # also runs if the task is cancelled before it starts
        return compensating

    async def _compensate_all(self) -> None:
        while self._completed:
            step, result = self._completed[-1]
            error = await self._compensate(step, result)
            self._completed.pop()
            if error is not None:
                self._failures.append((step.name, error))

    def _finish(self, _: object = None) -> None:
        """Counts the outcome. Steps that are not compensated by now never will be, and count as failures."""
        remaining = [step.name for step, _ in reversed(self._completed)]
        if remaining:
            self._completed = []
            self._record.not_compensated(remaining)
            self._failures += [(name, asyncio.CancelledError()) for name in remaining]
        self._count("compensation_failed" if self._failures else "compensated")

    def _count(self, outcome: SagaOutcome) -> None:
        if not self._counted:
            self._counted = True
            self._record.ended(outcome, self._span)

    async def _compensate(self, step: BoundStep, result: Any) -> BaseException | None:
        """Runs the compensation of one step; returns its error or None."""
        loop = asyncio.get_running_loop()
        limit, began = self._timeout_seconds, loop.time()
        deadline = Deadline(began + limit, f"compensation of {step.name}")
        context = child_of(self._context, step.name)
        # The run's own deadline may have expired, and so caused the failure.
        if context is self._context:
            context = with_deadline(context, deadline)
        else:
            context.deadline = deadline
            context.state = self._context.state  # so that compensations can pass data to the next one and to the caller
        token = set_deadline(deadline)
        try:
            task = loop.create_task(self._call_compensation(step, result, context), name=f"undo {step.name}")
        finally:
            reset_deadline(token)
        expired = await run_bounded(task, limit, _GRACE_SECONDS, self._record.abandoned)
        error: BaseException | None
        outcome: CompensationOutcome
        if expired is None:
            error = asyncio.CancelledError() if task.cancelled() else task.exception()
            expired_inside = isinstance(error, PrimitiveTimeoutError) and error.deadline is deadline
            outcome = "success" if error is None else "timeout" if expired_inside else "error"
        else:
            error = _timeout_error(deadline, limit, loop.time() - began, expired.cleanup)
            outcome = "timeout"
        self._record.compensated(step.name, outcome, error)
        return error

    async def _call_compensation(self, step: BoundStep, result: Any, context: WorkflowContext) -> None:
        span = spans.tracing.begin(f"compensate {step.name}", {})
        token = spans.tracing.activate(span)
        try:
            await step.compensation(result, context)  # type: ignore[misc]
        except Exception as error:
            spans.tracing.mark_failed(span, error)
            raise
        finally:
            spans.tracing.deactivate(token)
            span.end()


def _timeout_error(
    deadline: Deadline, limit_seconds: float, elapsed_seconds: float, cleanup: Cleanup
) -> PrimitiveTimeoutError:
    error = PrimitiveTimeoutError(
        deadline.operation, limit_seconds, elapsed_seconds, cleanup=cleanup, deadline=deadline
    )
    # The keyword has another name in a saga.
    error.args = (str(error).replace("raise timeout_seconds", "raise compensation_timeout_seconds"),)
    return error
