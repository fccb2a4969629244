"""TimeoutPrimitive: gives the caller control back in time, and says truthfully what happened to the work."""

from __future__ import annotations

import asyncio
import builtins
import inspect
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Generic, Literal, TypedDict, TypeVar, cast, overload

from observability_integration.checks import check_at_least, check_choice, check_positive
from observability_integration.context import (
    Deadline,
    WorkflowContext,
    current_deadline,
    earliest,
    reset_deadline,
    set_deadline,
)
from observability_integration.errors import (
    Cleanup,
    ConfigurationError,
    DeadlineSource,
    PrimitiveTimeoutError,
    TimeoutKind,
)
from observability_integration.primitives.base import ChunkStream, In, Out, Step, WorkflowPrimitive
from observability_integration.primitives.lifting import call_of, lift
from observability_integration.resilience.bounded import Watch, run_bounded
from observability_integration.tasks import announce
from observability_integration.telemetry.tracing import spans
from observability_integration.telemetry.tracing.spans import OperationSpan

from .clocks import Clocks
from .record import TimeoutRecord

T = TypeVar("T")
GraceMode = Literal["cleanup", "finish"]

TimeoutError = PrimitiveTimeoutError  # noqa: A001 - the name under which callers of the older interface import it

_MAX_OPERATIONS = 256  # more names than that are not names of operations; the rest counts under the primitive's own
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
    """Bounds a call in time. Two forms, told apart by their keywords.

    *Wrapper form*: ``TimeoutPrimitive(primitive, 30.0)`` and `execute`.

    *Model form*: ``TimeoutPrimitive(timeout_seconds=30.0, grace_period=5.0)`` and `execute_with_timeout`.

    The caller has control back after ``timeout_seconds + grace_period_seconds`` at the latest, plus the lag of the
    event loop, whatever the work does: it runs in a task of its own, which is cancelled at the limit, waited for during
    the grace, and left behind (and counted) if it ignores that. What it hides behind ``asyncio.shield`` or starts as a
    task of its own goes on unseen.

    Args:
        primitive: what to bound.
        timeout_seconds: the limit, > 0 and finite.
        grace_period_seconds: how long to wait for the cancelled work to clean up; 0 not at all, None for ever.
        operation_name: label of the metrics; by default the wrapped primitive's name.
        grace_mode: ``cleanup`` cancels at the limit; ``finish`` lets the work go on during the grace, counts what
            finishes then as a success with a warning, and cancels at the end of it.
        first_chunk_seconds: for streams, and for steps whose `execute` gathers one: limit from opening to the first
            content chunk.
        idle_seconds: for the same: limit between two content chunks.
        fallback: primitive or async callable to run instead, with the same input, when our clock ran out; for streams,
            when it ran out before the first content chunk.
        late_result: what to do with a value that the cancelled work returns: ``raise`` drops it, ``return`` uses it.
        grace_period: the model form's name for `grace_period_seconds`.

    Streams are always cancelled at their limit: `grace_mode` and `late_result` are about `execute`.

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
        check_positive("timeout_seconds", timeout_seconds)
        for knob, limit in (("first_chunk_seconds", first_chunk_seconds), ("idle_seconds", idle_seconds)):
            check_positive(knob, limit, optional=True)
        check_at_least("grace_period_seconds", grace_period_seconds, 0, optional=True)
        self._grace = grace_period_seconds
        check_choice("grace_mode", grace_mode, ("cleanup", "finish"))
        if grace_mode == "finish" and self._grace is None:
            raise ConfigurationError("grace_mode='finish' needs a grace period: without one the limit would never fire")
        check_choice("late_result", late_result, ("raise", "return"))
        self.timeout_seconds = timeout_seconds
        self.first_chunk_seconds = first_chunk_seconds
        self.idle_seconds = idle_seconds
        self._finish = self._grace if grace_mode == "finish" and self._grace is not None else 0.0
        self._keep_late = late_result == "return"
        self._step: WorkflowPrimitive[Any, Any] | None = None if primitive is None else lift(primitive)
        self._call = None if self._step is None else call_of(self._step)
        self._fallback: WorkflowPrimitive[Any, Any] | None = None if fallback is None else lift(fallback)
        clocked = first_chunk_seconds is not None or idle_seconds is not None
        self._watches = clocked and self._step is not None and self._step.collects
        self._operation = operation_name or ("operation" if self._step is None else self._step.name)
        self._record = TimeoutRecord(self, self._operation)
        self._records = {self._operation: self._record}

    @property
    def name(self) -> str:
        """The operation's name."""
        return self._operation

    @property
    def grace_period_seconds(self) -> float | None:
        """How long cancelled work is waited for."""
        return self._grace

    def steps(self) -> Sequence[tuple[str, WorkflowPrimitive[Any, Any]]]:
        """What is bounded, and the fallback."""
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
            PrimitiveTimeoutError: our clock ran out, or nothing was left of an inherited deadline.
            ConfigurationError: in the model form, which has `execute_with_timeout` instead.
        """
        call = self._call
        if call is None:
            raise ConfigurationError("this TimeoutPrimitive wraps nothing; use execute_with_timeout(func)")
        fallback = self._fallback
        instead = None if fallback is None else lambda: fallback.execute(input_data, context)
        if self._watches:
            return cast("Out", await self._watched(input_data, context, instead))
        return cast("Out", await self._bounded(lambda: call(input_data, context), self._record, context, instead))

    async def _watched(
        self, input_data: In, context: WorkflowContext | None, instead: Callable[[], Awaitable[Any]] | None
    ) -> Any:
        step = cast("WorkflowPrimitive[Any, Any]", self._step)
        clocks = Clocks(self.first_chunk_seconds, self.idle_seconds)

        def start() -> Awaitable[Any]:
            return clocks.read(step, input_data, context)

        return await self._bounded(start, self._record, context, instead, clocks)

    async def execute_with_timeout(
        self, func: Callable[[], Awaitable[T]] | Awaitable[T], operation_name: str | None = None
    ) -> T:
        """Runs ``func()`` within the limit.

        Args:
            func: async callable without arguments, or an awaitable.
            operation_name: label of the metrics for this call.

        Raises:
            PrimitiveTimeoutError: our clock ran out, or nothing was left of an inherited deadline.
            ConfigurationError: `func` returned no awaitable.
        """
        operation = operation_name or self._operation
        record = self._records.get(operation)
        if record is None and len(self._records) < _MAX_OPERATIONS:
            record = self._records[operation] = TimeoutRecord(self, operation)

        def start() -> Awaitable[T]:
            awaitable = func() if callable(func) else func
            if not inspect.isawaitable(awaitable):
                raise ConfigurationError("execute_with_timeout needs an async func; this one returned no awaitable")
            return awaitable

        try:
            return cast("T", await self._bounded(start, record or self._record, None))
        finally:
            # When the call was refused: Python would warn that it was never awaited.
            if inspect.iscoroutine(func) and inspect.getcoroutinestate(func) == inspect.CORO_CREATED:
                func.close()

    def stream(self, input_data: In, context: WorkflowContext | None = None) -> ChunkStream:
        """Streams from the wrapped primitive under three clocks: first chunk, idle and total.

        They run only while the producer is being waited for, so a slow reader never trips them.
        """
        from .stream import FallbackStream, TimeoutStream

        if self._step is None:
            raise ConfigurationError("this TimeoutPrimitive wraps nothing to stream from")
        bounded = TimeoutStream(
            self._step,
            input_data,
            context,
            record=self._record,
            timeout_seconds=self.timeout_seconds,
            grace_seconds=self._grace,
            first_chunk_seconds=self.first_chunk_seconds,
            idle_seconds=self.idle_seconds,
        )
        fallback = self._fallback
        return bounded if fallback is None else FallbackStream(bounded, lambda: fallback.stream(input_data, context))

    async def _bounded(
        self,
        start: Callable[[], Awaitable[Any]],
        record: TimeoutRecord,
        context: WorkflowContext | None,
        instead: Callable[[], Awaitable[Any]] | None = None,
        clocks: Clocks | None = None,
    ) -> Any:
        loop = asyncio.get_running_loop()
        began = loop.time()
        finish = self._finish if clocks is None else 0.0
        limit, finish, inherited = self._limits(began, finish, context)
        more = None
        if clocks is not None:
            clocks.begin(began, limit)
            more = clocks.left
        span = spans.tracing.begin(record.span_name, {"timeout.limit_seconds": limit})
        if context is not None:
            spans.identify(span, context)
        if limit <= 0:
            error = PrimitiveTimeoutError(
                record.operation, 0.0, 0.0, kind="deadline", cleanup="refused", deadline_source="inherited",
                deadline=inherited,
            )  # fmt: skip
            record.timed_out(span, 0.0, 0.0, error)
            raise error
        deadline = inherited or Deadline(began + limit + finish, record.operation)
        ending = loop.create_future()
        task = self._start(loop, start, ending, span, deadline)
        grace = self._grace
        if self._finish > 0 and clocks is None:
            # What is left of limit and grace together, because the work has had its time to finish.
            grace = min(self._finish, self.timeout_seconds + self._finish - limit - finish)
        watch = Watch(lambda: span.add_event("timeout.cancel_sent"), record.abandoned)
        try:
            first = limit if more is None else more()
            expired = await run_bounded(
                task, first, grace, finish_seconds=finish, ending=ending, watch=watch, more_seconds=more
            )
        except asyncio.CancelledError:
            record.cancelled(span, loop.time() - began)
            raise
        elapsed = loop.time() - began
        cause: BaseException | None
        cleanup: Cleanup
        if expired is None:
            cause = None if task.cancelled() else task.exception()
            if not isinstance(cause, PrimitiveTimeoutError) or cause.deadline is not deadline:
                record.settled(task, span, elapsed, limit, blocked=finish == 0)
                return task.result()
            # A primitive further in was first to notice that the deadline had passed, which is ours.
            cleanup = "clean" if cause.cleanup == "refused" else cause.cleanup
        else:
            record.cleaned_up(expired)
            if expired.cleanup == "late_result" and self._keep_late:
                record.succeeded(span, elapsed, limit, late=True, blocked=False)
                return expired.value
            if expired.cleanup == "late_result":
                record.late(span)
            cleanup, cause = expired.cleanup, expired.error
        ours = None if expired is None or clocks is None else clocks.error(record.operation, elapsed, cleanup)
        if ours is None:
            kind: TimeoutKind = "total" if inherited is None else "deadline"
            source: DeadlineSource = "own" if inherited is None else "inherited"
            allowed = limit if inherited is None else limit + finish
            ours = PrimitiveTimeoutError(
                record.operation,
                allowed,
                elapsed,
                kind=kind,
                cleanup=cleanup,
                deadline_source=source,
                deadline=deadline,
            )
        record.timed_out(span, elapsed, limit, ours)
        # An inherited deadline leaves no time for a fallback.
        if instead is not None and (inherited is None or ours.deadline is None):
            return await instead()
        raise ours from cause

    def _limits(
        self, now: float, finish: float, context: WorkflowContext | None
    ) -> tuple[float, float, Deadline | None]:
        """The limit, the time to finish beyond it, and the deadline from further out if that one comes first."""
        inherited = current_deadline()
        if context is not None and context.deadline is not None:
            inherited = earliest(inherited, context.deadline)
        if inherited is None or inherited.when - now >= self.timeout_seconds + finish:
            return self.timeout_seconds, finish, None
        left = inherited.when - now
        limit = min(left, self.timeout_seconds)
        return limit, left - limit, inherited

    def _start(
        self,
        loop: asyncio.AbstractEventLoop,
        start: Callable[[], Awaitable[Any]],
        ending: asyncio.Future[None],
        span: OperationSpan,
        deadline: Deadline,
    ) -> asyncio.Task[Any]:
        # The task copies the context as it is made, so span and deadline need to be in force for that moment only.
        token = spans.tracing.activate(span)
        deadline_token = set_deadline(deadline)
        try:
            return loop.create_task(_run(start, ending), name=self._operation)
        finally:
            reset_deadline(deadline_token)
            spans.tracing.deactivate(token)


async def _run(start: Callable[[], Awaitable[Any]], ending: asyncio.Future[None]) -> Any:
    try:
        return await start()
    finally:
        announce(ending)


assert issubclass(TimeoutError, builtins.TimeoutError)  # noqa: S101 - what callers of the older interface catch

__all__ = ["GraceMode", "PrimitiveTimeoutError", "TimeoutError", "TimeoutPrimitive", "TimeoutStats"]
