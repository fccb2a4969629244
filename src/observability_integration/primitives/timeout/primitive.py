"""TimeoutPrimitive: returns control to the caller in time and reports what became of the work."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import math
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from typing import Any, Generic, Literal, TypedDict, TypeVar, cast, overload

from observability_integration.checks import check_at_least, check_choice, check_positive
from observability_integration.context import Deadline, WorkflowContext, bounded_by, set_deadline
from observability_integration.errors import ConfigurationError, PrimitiveTimeoutError
from observability_integration.primitives.base import ChunkStream, In, Out, Step, WorkflowPrimitive
from observability_integration.primitives.lifting import Call, call_of, lift
from observability_integration.resilience.bounded import Ending, Expired, run_bounded, wait_cancelled
from observability_integration.telemetry.tracing import spans
from observability_integration.telemetry.tracing.spans import OperationSpan

from .clocks import Clocks, WatchedRead, noticed_inside, timeout_error
from .plan import Plan
from .record import TimeoutRecord

T = TypeVar("T")
GraceMode = Literal["cleanup", "finish"]

TimeoutError = PrimitiveTimeoutError  # noqa: A001 - the name under which callers of the older interface import it

_MAX_OPERATIONS = 256  # beyond it the names are no names of operations; such calls count under the primitive's own
_NOT_GIVEN: Any = object()


class TimeoutStats(TypedDict):
    """What `TimeoutPrimitive.get_stats` returns; `timeout_rate` is failures / total, from 0 to 1."""

    operation: str
    successes: int
    failures: int
    total: int
    timeout_rate: float
    timeout_seconds: float
    grace_period_seconds: float | None


class TimeoutPrimitive(WorkflowPrimitive[In, Out], Generic[In, Out]):
    """Limits how long a call may take. Its two forms are told apart by their keywords.

    *Wrapper form*: ``TimeoutPrimitive(primitive, 30.0)`` and `execute`.

    *Model form*: ``TimeoutPrimitive(timeout_seconds=30.0, grace_period=5.0)`` and `execute_with_timeout`.

    The caller has control back after ``timeout_seconds + grace_period_seconds`` at the latest, plus the lag of the
    event loop. The work runs in a task of its own. The task is cancelled at the limit, waited for during the grace, and
    abandoned (and counted) if it is still running then. Work behind ``asyncio.shield``, or in tasks that the work
    starts, goes on unseen.

    Args:
        primitive: the work.
        timeout_seconds: the limit, > 0 and finite.
        grace_period_seconds: how long to wait for the cancelled work to clean up; 0 not at all, None for ever.
        operation_name: label of the metrics; by default the wrapped primitive's name.
        grace_mode: ``cleanup`` cancels at the limit; ``finish`` lets the work go on during the grace, counts a call
            that finishes then as a success with a warning, and cancels at the end of the grace.
        first_chunk_seconds: for streams, and for steps whose `execute` gathers one: limit from opening to the first
            content chunk.
        idle_seconds: for the same: limit between two content chunks.
        fallback: primitive or async callable to run with the same input after a timeout of this primitive; for
            streams, after one before the first content chunk. It has the rest of limit and grace, at least 50 ms; for
            another model, which needs its own time, use `FallbackPrimitive`.
        late_result: what to do with a value that the cancelled work returns: ``raise`` drops it, ``return`` uses it.
        grace_period: the model form's name for `grace_period_seconds`.

    A stream is always cancelled at its limit: `grace_mode` and `late_result` apply to `execute`.

    Raises:
        ConfigurationError: a limit that is not a finite number > 0, or keywords of both forms.
    """

    @overload
    def __init__(
        self,
        primitive: Step[In, Out],
        timeout_seconds: float,
        grace_period_seconds: float | None = 5.0,
        operation_name: str | None = None,
        *,
        grace_mode: GraceMode = "cleanup",
        first_chunk_seconds: float | None = None,
        idle_seconds: float | None = None,
        fallback: Step[In, Out] | None = None,
        late_result: Literal["raise", "return"] = "raise",
    ) -> None: ...

    @overload
    def __init__(
        self,
        *,
        timeout_seconds: float,
        grace_period: float | None = 5.0,
        operation_name: str | None = None,
        grace_mode: GraceMode = "cleanup",
        late_result: Literal["raise", "return"] = "raise",
    ) -> None: ...

    def __init__(
        self,
        primitive: Any = None,
        timeout_seconds: float = math.nan,
        grace_period_seconds: float | None = 5.0,
        operation_name: str | None = None,
        *,
        grace_mode: GraceMode = "cleanup",
        first_chunk_seconds: float | None = None,
        idle_seconds: float | None = None,
        fallback: Any = None,
        late_result: Literal["raise", "return"] = "raise",
        grace_period: float | None = _NOT_GIVEN,
    ) -> None:
        if primitive is not None and grace_period is not _NOT_GIVEN:
            raise ConfigurationError("grace_period belongs to the form without a primitive; use grace_period_seconds")
        if primitive is None and (fallback, first_chunk_seconds, idle_seconds) != (None, None, None):
            raise ConfigurationError("fallback, first_chunk_seconds and idle_seconds need a primitive to wrap")
        if grace_period is not _NOT_GIVEN:
            if grace_period_seconds != 5.0:
                raise ConfigurationError("grace_period and grace_period_seconds are the same; give one of them")
            grace_period_seconds = grace_period
        for knob, limit in (("first_chunk_seconds", first_chunk_seconds), ("idle_seconds", idle_seconds)):
            check_positive(knob, limit, optional=True)
        check_at_least("grace_period_seconds", grace_period_seconds, 0, optional=True)
        self._grace = grace_period_seconds
        check_choice("grace_mode", grace_mode, ("cleanup", "finish"))
        if grace_mode == "finish" and self._grace is None:
            raise ConfigurationError("grace_mode='finish' needs a grace period: without one the limit would never fire")
        check_choice("late_result", late_result, ("raise", "return"))
        self.first_chunk_seconds = first_chunk_seconds
        self.idle_seconds = idle_seconds
        self._keep_late = late_result == "return"
        self._step: WorkflowPrimitive[Any, Any] | None = None if primitive is None else lift(primitive)
        self._call = None if self._step is None else call_of(self._step)
        self._fallback: WorkflowPrimitive[Any, Any] | None = None if fallback is None else lift(fallback)
        clocked = first_chunk_seconds is not None or idle_seconds is not None
        self._watches = clocked and self._step is not None and self._step.execute_reads_stream
        self._finishes = grace_mode == "finish" and not self._watches
        self.timeout_seconds = timeout_seconds
        self._operation = operation_name or ("operation" if self._step is None else self._step.name)
        self._record = TimeoutRecord(self, self._operation)
        self._records = {self._operation: self._record}

    @property
    def name(self) -> str:
        """The operation's name."""
        return self._operation

    @property
    def timeout_seconds(self) -> float:
        """The limit, in seconds, > 0; a change holds for the calls that begin after it."""
        return self._plan.limit_seconds

    @timeout_seconds.setter
    def timeout_seconds(self, seconds: float) -> None:
        check_positive("timeout_seconds", seconds)
        finish = self._grace if self._finishes else None
        self._plan = Plan(seconds, seconds, self._grace) if finish is None else Plan(seconds, seconds + finish, 0.0)

    @property
    def grace_period_seconds(self) -> float | None:
        """How long cancelled work is waited for, in seconds; None without end."""
        return self._grace

    def steps(self) -> Sequence[tuple[str, WorkflowPrimitive[Any, Any]]]:
        """The wrapped primitive and the fallback."""
        inner = [] if self._step is None else [("", self._step)]
        return inner if self._fallback is None else [*inner, ("fallback", self._fallback)]

    def _label(self) -> str:
        return f"timeout {self._operation} ({self.timeout_seconds:g}s, grace {self._grace}s)"

    def get_stats(self) -> TimeoutStats:
        """Counts since construction, over all operations of this primitive."""
        successes = sum(record.successes for record in self._records.values())
        failures = sum(record.failures for record in self._records.values())
        total = successes + failures
        return {
            "operation": self._operation,
            "successes": successes,
            "failures": failures,
            "total": total,
            "timeout_rate": failures / total if total else 0.0,
            "timeout_seconds": self.timeout_seconds,
            "grace_period_seconds": self._grace,
        }

    @property
    def _total_successes(self) -> int:
        return self.get_stats()["successes"]

    @property
    def _total_failures(self) -> int:
        return self.get_stats()["failures"]

    async def execute(self, input_data: In, context: WorkflowContext | None = None) -> Out:
        """Runs the wrapped primitive within the limit.

        Raises:
            PrimitiveTimeoutError: the limit or an inherited deadline has passed.
            ConfigurationError: in the model form, which has `execute_with_timeout` instead.
        """
        if self._call is None:
            raise ConfigurationError("this TimeoutPrimitive wraps nothing; use execute_with_timeout(func)")
        return cast("Out", await self._bounded(self._call, input_data, context, self._record))

    async def execute_with_timeout(
        self, func: Callable[[], Awaitable[T]] | Awaitable[T], operation_name: str | None = None
    ) -> T:
        """Runs ``func()`` within the limit.

        Args:
            func: async callable without arguments, or an awaitable.
            operation_name: label of the metrics for this call.

        Raises:
            PrimitiveTimeoutError: the limit or an inherited deadline has passed.
            ConfigurationError: `func` returned no awaitable.
        """
        operation = operation_name or self._operation
        record = self._records.get(operation)
        if record is None and len(self._records) < _MAX_OPERATIONS:
            record = self._records[operation] = TimeoutRecord(self, operation)
        try:
            return cast("T", await self._bounded(_awaitable, func, None, record or self._record))
        finally:
            # A call that was refused never awaits it, of which Python would warn.
            if inspect.iscoroutine(func) and inspect.getcoroutinestate(func) == inspect.CORO_CREATED:
                func.close()

    def stream(self, input_data: In, context: WorkflowContext | None = None) -> ChunkStream:
        """Streams from the wrapped primitive within three limits: first chunk, idle and total.

        Their clocks run only while a chunk is waited for, so a slow reader never trips them.
        """
        from .stream import TimeoutStream
        from .substitute import SubstituteStream

        if self._step is None:
            raise ConfigurationError("this TimeoutPrimitive wraps nothing to stream from")
        bounded = TimeoutStream(self._step, input_data, context, self._record, self._clocks(), self._grace)
        fallback = self._fallback
        if fallback is None:
            return bounded
        return SubstituteStream(bounded, fallback, self._operation, self._whole_seconds, input_data, context)

    @property
    def _whole_seconds(self) -> float:
        """Limit and grace together, in which the fallback runs too; twice the limit if the grace has no end."""
        return self.timeout_seconds + (self.timeout_seconds if self._grace is None else self._grace)

    async def _bounded(
        self, call: Call, input_data: Any, context: WorkflowContext | None, record: TimeoutRecord
    ) -> Any:
        loop = asyncio.get_running_loop()
        began = loop.time()
        plan = self._plan_at(began, context)
        span = spans.tracing.begin(record.span_name, {"timeout.limit_seconds": plan.limit_seconds})
        if context is not None:
            spans.identify(span, context)
        if plan.limit_seconds <= 0:
            error = timeout_error(record.operation, plan.alarm, 0.0, "refused", deadline=plan.inherited)
            record.timed_out(span, 0.0, 0.0, error)
            raise error
        deadline = plan.inherited or Deadline(began + plan.cancel_seconds, record.operation)
        seconds, watched = plan.cancel_seconds, None
        if self._watches:
            watched = WatchedRead(cast("WorkflowPrimitive[Any, Any]", self._step), self._clocks(plan.inherited), began)
            call, seconds = watched.read, watched.left()
        ending = Ending(loop=loop)
        own = contextvars.copy_context()
        task = _start(loop, own, _run(call, input_data, context, ending), self._operation, span, deadline)
        # An empty context for both: without one each would copy the caller's. That of the task may be entered when they
        # are due (by work that runs the loop again), and a cancelled timer would keep what the work put into it.
        idle = contextvars.Context()
        timer = loop.call_later(seconds, ending, context=idle)
        task.add_done_callback(ending, context=idle)
        try:
            try:
                await ending
            except asyncio.CancelledError:
                task.cancel()
                await wait_cancelled(task, plan.grace_seconds, record.abandoned)
                raise
            finally:
                timer.cancel()
                task.remove_done_callback(ending)
            # Not done: the time is up, or a task factory has wrapped the work, which has ended, in steps of its own.
            overdue = None if task.done() else await self._overdue(task, timer, plan, watched, record, span)
        except asyncio.CancelledError:
            record.cancelled(span, loop.time() - began)
            raise
        elapsed = loop.time() - began
        expired = overdue or noticed_inside(task, deadline)
        if expired is None:
            blocked = plan.cancel_seconds == plan.limit_seconds
            record.settled(task, span, elapsed, plan.limit_seconds, blocked=blocked)
            return task.result()
        if self._keep_late and overdue is not None and overdue.cleanup == "late_result":
            record.succeeded(span, elapsed, plan.limit_seconds, late=True, blocked=False)
            return overdue.value
        # What a primitive further in notices is the deadline of the whole call, never the clock of a chunk.
        alarm, chunks = (
            (plan.alarm, 0) if watched is None or overdue is None else (watched.alarm, watched.clocks.chunks)
        )
        error = timeout_error(record.operation, alarm, elapsed, expired.cleanup, deadline=deadline, chunks=chunks)
        record.timed_out(span, elapsed, plan.limit_seconds, error)
        # An inherited deadline leaves no time for a fallback.
        if self._fallback is not None and alarm.kind != "deadline":
            from .substitute import Substitute

            left = self._whole_seconds - (loop.time() - began)
            return await Substitute(self._fallback, self._operation, left).execute(input_data, context, error)
        raise error from expired.error

    def _plan_at(self, now: float, context: WorkflowContext | None) -> Plan:
        inherited = bounded_by(context)
        if inherited is None or inherited.when - now >= self._plan.cancel_seconds:
            return self._plan
        return self._plan.until(inherited, inherited.when - now)

    def _clocks(self, inherited: Deadline | None = None) -> Clocks:
        return Clocks(self.timeout_seconds, self.first_chunk_seconds, self.idle_seconds, inherited)

    async def _overdue(
        self,
        task: asyncio.Task[Any],
        timer: asyncio.TimerHandle,
        plan: Plan,
        watched: WatchedRead | None,
        record: TimeoutRecord,
        span: OperationSpan,
    ) -> Expired | None:
        """Waits on while there is time left, then cancels."""
        left, more = timer.when() - task.get_loop().time(), None
        if watched is not None:
            left, more = watched.left(), watched.left
        expired = await run_bounded(
            task,
            left,
            plan.grace_seconds,
            record.abandoned,
            cancelling=lambda: span.add_event("timeout.cancel_sent"),
            more_seconds=more,
        )
        if expired is not None:
            record.cleaned_up(span, expired, kept=self._keep_late)
        return expired


def _start(
    loop: asyncio.AbstractEventLoop,
    own: contextvars.Context,
    work: Coroutine[Any, Any, Any],
    name: str,
    span: OperationSpan,
    deadline: Deadline,
) -> asyncio.Task[Any]:
    """Starts the task in its own context, so that the caller keeps its own span and deadline."""
    token = own.run(_enter, span, deadline)
    try:
        if type(loop).create_task is asyncio.BaseEventLoop.create_task and loop.get_task_factory() is None:
            return loop.create_task(work, name=name, context=own)
        return own.run(
            loop.create_task, work, name=name
        )  # a loop or task factory of the user's need not take a context
    finally:
        if token is not None:
            spans.tracing.deactivate(token)


def _enter(span: OperationSpan, deadline: Deadline) -> Any:
    set_deadline(deadline)
    token = spans.tracing.activate(span)
    # An application may keep the contexts of OpenTelemetry elsewhere than in context variables.
    return None if isinstance(token, contextvars.Token) else token


async def _run(call: Call, input_data: Any, context: WorkflowContext | None, ending: Ending) -> Any:
    try:
        return await call(input_data, context)
    finally:
        ending()


def _awaitable(func: Any, context: object) -> Awaitable[Any]:
    awaitable = func() if callable(func) else func
    if not inspect.isawaitable(awaitable):
        raise ConfigurationError("execute_with_timeout needs an async func; this one returned no awaitable")
    return awaitable


__all__ = ["GraceMode", "PrimitiveTimeoutError", "TimeoutError", "TimeoutPrimitive", "TimeoutStats"]
