"""One run of a saga: what it has done so far, and how that is undone.

Undoing is the business of a task of its own, which no caller's cancellation reaches. It ends in bounded time, because
each compensation is cancelled when its time is over, and left behind if it ignores that.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Sequence
from typing import Any

from observability_integration.context import Deadline, WorkflowContext, reset_deadline, set_deadline
from observability_integration.errors import Cleanup, CompensationError, PrimitiveTimeoutError
from observability_integration.primitives.base import WorkflowPrimitive
from observability_integration.primitives.lifting import call_of
from observability_integration.resilience.bounded import run_bounded
from observability_integration.tasks import spawn, wait_done
from observability_integration.telemetry.tracing import spans
from observability_integration.telemetry.tracing.spans import NO_SPAN, OperationSpan

from .record import CompensationOutcome, SagaOutcome, SagaRecord

_GRACE_SECONDS = 1.0  # for a compensation to clean up when it is cancelled: our own choice


class BoundStep:
    """A step of a saga with what undoes it, and whether it may look at the context."""

    __slots__ = ("call", "name", "step", "takes_context", "undo", "undo_step")

    def __init__(
        self,
        name: str,
        step: WorkflowPrimitive[Any, Any],
        undo: WorkflowPrimitive[Any, Any] | None,
        takes_context: bool,
    ) -> None:
        self.name = name
        self.takes_context = takes_context
        self.step = step
        self.call = call_of(step)
        self.undo_step = undo
        self.undo = None if undo is None else call_of(undo)


# Where a run was begun: for compensations that are started from elsewhere (see `SagaRun.dropped`).
Origin = tuple[asyncio.AbstractEventLoop, contextvars.Context]


class SagaRun:
    """What one call has done.

    Args:
        record: what it is counted in.
        span: of the call.
        context: of the call; None if no step has looked at it.
        origin: taken in the task of the call, while its span was current.
        timeout_seconds: how long each compensation may take.
        undoable: the steps that are complete and can be undone, each with what it returned.
        step: the one under way.

    Attributes:
        step: the one under way.
        ended: whether it is complete, or being undone.
    """

    def __init__(
        self,
        record: SagaRecord,
        span: OperationSpan,
        context: WorkflowContext | None,
        origin: Origin,
        timeout_seconds: float,
        undoable: Sequence[tuple[BoundStep, Any]] = (),
        step: BoundStep | None = None,
    ) -> None:
        self.step = step
        self.ended = False
        self._record = record
        self._span = span
        self._context = context or WorkflowContext()
        self._loop, self._variables = origin
        self._timeout_seconds = timeout_seconds
        self._done = list(undoable)
        self._failures: list[tuple[str, BaseException]] = []
        self._counted = False

    def done(self, step: BoundStep, result: Any) -> None:
        """A step is complete."""
        if step.undo is not None:
            self._done.append((step, result))

    def completed(self) -> None:
        """All steps are."""
        self.ended = True
        self._count("completed")

    async def failed(self, error: BaseException) -> None:
        """Undoes what was done because `error` came; returns when that may go on to the caller.

        Raises:
            CompensationError: not all could be undone, and `error` is an `Exception`.
            CancelledError: the caller was cancelled meanwhile.
        """
        step = "" if self.step is None else self.step.name
        self._span.set_attribute("saga.failed_step", step)
        await self.undo(patient=not isinstance(error, asyncio.CancelledError))
        if self._failures and isinstance(error, Exception):
            raise CompensationError(self._record.operation, step, self._failures) from error

    async def undo(self, *, patient: bool) -> None:
        """Undoes what was done, the last step first.

        Args:
            patient: whether a caller that is cancelled meanwhile waits for it all the same; a second time it does not.

        Raises:
            CancelledError: the caller was cancelled meanwhile.
        """
        self.ended = True
        if not self._done:
            self._undone()
            return
        undoing = self._start()
        try:
            await wait_done(undoing, None)
        except asyncio.CancelledError:
            if patient:
                await self._outlast(undoing)
            if undoing.done():
                self._undone()
            else:
                self._record.left()
                self._span = NO_SPAN  # the caller ends it now
            raise
        self._undone()

    async def _outlast(self, undoing: asyncio.Task[None]) -> None:
        """Waits on in spite of a cancellation, which the caller goes on with; another one ends the wait."""
        try:
            await wait_done(undoing, None)
        except asyncio.CancelledError:
            return

    def dropped(self) -> None:
        """For a caller that was thrown away, in any thread, and can wait for nothing: undoes it if the loop goes on."""
        self.ended = True
        if not self._done:
            self._undone()
            return
        self._span = NO_SPAN
        try:
            self._loop.call_soon_threadsafe(self._start, context=self._variables)
        except RuntimeError:  # the loop is closed
            self._undone()

    def _start(self) -> asyncio.Task[None]:
        undoing = spawn(self._undo_all(), name=f"undo {self._record.operation}")
        undoing.add_done_callback(self._undone)  # also if it is cancelled before it begins
        return undoing

    async def _undo_all(self) -> None:
        while self._done:
            step, result = self._done[-1]
            error = await self._undo(step, result)
            self._done.pop()
            if error is not None:
                self._failures.append((step.name, error))

    def _undone(self, _: object = None) -> None:
        """All is undone that could be; what is left has nobody to undo it any more."""
        left = [step.name for step, _ in reversed(self._done)]
        if left:
            self._done = []
            self._record.cut_off(left)
            self._failures += [(name, asyncio.CancelledError()) for name in left]
        self._count("compensation_failed" if self._failures else "compensated")

    def _count(self, outcome: SagaOutcome) -> None:
        if not self._counted:
            self._counted = True
            self._record.ended(outcome, self._span)

    async def _undo(self, step: BoundStep, result: Any) -> BaseException | None:
        """Undoes one step; returns why it could not."""
        loop = asyncio.get_running_loop()
        limit, began = self._timeout_seconds, loop.time()
        deadline = Deadline(began + limit, f"compensation of {step.name}")
        context = self._context.child(step.name)
        context.state = self._context.state  # for a compensation to leave word for the next one, and for the caller
        context.deadline = deadline  # the run's own may have passed, which is why it is being undone
        token = set_deadline(deadline)
        try:
            task = loop.create_task(self._compensate(step, result, context), name=f"undo {step.name}")
        finally:
            reset_deadline(token)
        expired = await run_bounded(task, limit, _GRACE_SECONDS, self._record.abandoned)
        error: BaseException | None
        outcome: CompensationOutcome
        if expired is None:
            error = asyncio.CancelledError() if task.cancelled() else task.exception()
            late = isinstance(error, PrimitiveTimeoutError) and error.deadline is deadline
            outcome = "success" if error is None else "timeout" if late else "error"
        else:
            error = _late(deadline, limit, loop.time() - began, expired.cleanup)
            outcome = "timeout"
        self._record.compensated(step.name, outcome, error)
        return error

    async def _compensate(self, step: BoundStep, result: Any, context: WorkflowContext) -> None:
        span = spans.tracing.begin(f"compensate {step.name}", {})
        token = spans.tracing.activate(span)
        try:
            await step.undo(result, context)  # type: ignore[misc]
        except Exception as error:
            spans.tracing.mark_failed(span, error)
            raise
        finally:
            spans.tracing.deactivate(token)
            span.end()


def _late(deadline: Deadline, limit_seconds: float, elapsed_seconds: float, cleanup: Cleanup) -> PrimitiveTimeoutError:
    error = PrimitiveTimeoutError(
        deadline.operation, limit_seconds, elapsed_seconds, cleanup=cleanup, deadline=deadline
    )
    # The knob has another name here.
    error.args = (str(error).replace("raise timeout_seconds", "raise compensation_timeout_seconds"),)
    return error
