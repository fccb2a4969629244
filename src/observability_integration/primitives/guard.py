"""The base of primitives that admit, delay, refuse or direct a call: `enter` decides, `leave` records the outcome.

A guard wraps one call (in a router, one of several). A subclass writes `enter` and `leave`, both plain functions. The
base supplies `execute`, `stream`, the span, its outcome and the path without telemetry.

============================  ==========================================================================================
moment                        what happens
============================  ==========================================================================================
the call arrives              a span begins, if tracing is on
`enter` returns a ticket      the call is made
`enter` returns a coroutine   the call waits for the ticket
`enter` raises                the call is refused: `leave` is not called
the call or stream ends       `leave` is called once, with the error and the ticket
============================  ==========================================================================================
"""

from __future__ import annotations

import time
from abc import abstractmethod
from asyncio import CancelledError
from collections.abc import AsyncIterator, Coroutine, Sequence
from types import CoroutineType
from typing import Any, ClassVar, Generic, TypeVar, cast

from observability_integration.context import WorkflowContext, deadline_var
from observability_integration.telemetry.metrics.instruments import switch
from observability_integration.telemetry.tracing import spans
from observability_integration.telemetry.tracing.spans import NO_SPAN, OperationSpan

from .base import ChunkStream, In, Out, WorkflowPrimitive, check_time_left
from .lifting import Call, call_of
from .streams import ObservedStream, Outcome

Ticket = TypeVar("Ticket")


class GuardPrimitive(WorkflowPrimitive[In, Out], Generic[In, Out, Ticket]):
    """Base of the primitives that admit, delay, refuse or direct a call.

    Args:
        step: the guarded primitive; None if the ticket holds it, as ``step`` and ``call``.
        span_name: the name of each call's span.

    Attributes:
        timed: whether `leave` needs the start time of the call.
        needs_context: whether `execute` makes a context for `enter` and the call if the caller gave none.
        observes_only: whether `began` and `leave` only feed telemetry, and are skipped while telemetry is off.
        refused_outcome: the span's attribute ``outcome`` if `enter` raises an error.
    """

    refused_outcome: ClassVar[str] = "error"
    observes_only: ClassVar[bool] = False
    timed: ClassVar[bool] = False
    needs_context = False

    def __init__(self, step: WorkflowPrimitive[In, Out] | None, span_name: str) -> None:
        self._step = step
        self._call: Call | None = None if step is None else call_of(step)
        self._span_name = span_name

    @abstractmethod
    def enter(
        self, span: OperationSpan, input_data: Any, context: WorkflowContext | None
    ) -> Ticket | Coroutine[Any, Any, Ticket]:
        """Admits the call: returns its ticket, or a coroutine of the ticket if the call has to wait.

        An `int` as ticket allocates no object.

        Args:
            span: of the call.
            input_data: of the call.
            context: of the call.

        Raises:
            Exception: the refusal, already counted.
        """

    @abstractmethod
    def leave(
        self,
        ticket: Ticket,
        span: OperationSpan,
        error: BaseException | None,
        began: float,
        answer: Any = None,
        seen: Any = None,
    ) -> None:
        """Records the outcome of an admitted call. Called once, possibly by a finaliser in any thread; never raises.

        Args:
            ticket: of the call.
            span: of the call.
            error: the error of the call; None for success; `GeneratorExit` if the reader left the stream early.
            began: the result of `began`; 0.0 if the guard is not `timed`.
            answer: the answer of a successful `execute`.
            seen: the last result of `see`; None if the stream had no chunks.
        """

    def see(self, seen: Any, chunk: Any) -> Any:
        """Folds a chunk of a stream into `seen`, which is None at first and goes to `leave` at the end."""
        return seen

    def began(self, context: WorkflowContext | None) -> float:
        """Returns the start time of the call, for `leave`; called only if the guard is `timed`."""
        return time.perf_counter()

    @property
    def execute_reads_stream(self) -> bool:
        """Whether `execute` of the guarded primitive only reads its stream."""
        return self._step is not None and self._step.execute_reads_stream

    def join_chunks(self, chunks: list[Any]) -> Any:
        """Joins the chunks as the guarded primitive does."""
        return super().join_chunks(chunks) if self._step is None else self._step.join_chunks(chunks)

    def steps(self) -> Sequence[tuple[str, WorkflowPrimitive[Any, Any]]]:
        """The guarded primitive."""
        return [] if self._step is None else [("", self._step)]

    async def execute(self, input_data: In, context: WorkflowContext | None = None) -> Out:
        """Makes the call, if the guard admits it.

        Raises:
            PrimitiveTimeoutError: the deadline has passed.
            Exception: the guard's refusal, or the call's own error, unchanged.
        """
        if deadline_var.get() is not None or context is not None:
            check_time_left(self, context)
        if context is None and self.needs_context:
            context = WorkflowContext()
        tracing = spans.tracing
        records = switch.on or tracing.enabled or not self.observes_only
        span, token = NO_SPAN, None
        if tracing.enabled:
            span = spans.begin(self._span_name, context)
            token = tracing.activate(span)
        ticket: Any = None
        began = 0.0
        outcome = "cancelled"
        try:
            entered = self.enter(span, input_data, context)
            ticket = await cast("Any", entered) if entered.__class__ is CoroutineType else entered
            if records and self.timed:
                began = self.began(context)
            result = await (self._call or ticket.call)(input_data, context)
        except BaseException as error:
            if records and ticket is not None:
                self.leave(ticket, span, error, began)
            if isinstance(error, Exception):
                outcome = self.refused_outcome if ticket is None else "error"
                tracing.mark_failed(span, error)
            raise
        else:
            if records:
                self.leave(ticket, span, None, began, result)
            outcome = "success"
            return cast("Out", result)
        finally:
            if span is not NO_SPAN:
                span.set_attribute("outcome", outcome)
                tracing.deactivate(token)
                span.end()

    def stream(self, input_data: In, context: WorkflowContext | None = None) -> ChunkStream:
        """Streams, if the guard admits it. A stream is one call, from its opening to its end."""
        return GuardStream(self, input_data, WorkflowContext() if context is None and self.needs_context else context)


class GuardStream(ObservedStream):
    """The stream of a guarded primitive. Made by `GuardPrimitive.stream`."""

    def __init__(self, guard: GuardPrimitive[Any, Any, Any], input_data: Any, context: WorkflowContext | None) -> None:
        super().__init__(guard.name, context)
        self._guard = guard
        self._input = input_data
        self._ticket: Any = None
        self._began = 0.0
        self._inner: ChunkStream | None = None
        self._chunks: AsyncIterator[Any] | None = None
        self._seen: Any = None

    def _begin(self) -> OperationSpan:
        return spans.begin(self._guard._span_name, self._context)  # pyright: ignore[reportPrivateUsage]

    async def _open(self) -> None:
        guard = self._guard
        entered = guard.enter(self._span, self._input, self._context)
        self._ticket = await cast("Any", entered) if entered.__class__ is CoroutineType else entered
        self._began = guard.began(self._context) if guard.timed else 0.0
        step = self._ticket.step if guard._step is None else guard._step  # pyright: ignore[reportPrivateUsage]
        inner = cast("ChunkStream", step.stream(self._input, self._context))
        self._chunks = await inner.__aenter__()
        self._inner = inner

    async def _next(self) -> Any:
        chunk = await anext(cast("AsyncIterator[Any]", self._chunks))
        self._seen = self._guard.see(self._seen, chunk)
        return chunk

    async def _close(self) -> None:
        if self._inner is not None:
            await self._inner.__aexit__(None, None, None)

    def _record(self, outcome: Outcome, error: BaseException | None) -> None:
        if self._ticket is None:
            return
        if outcome == "cancelled":
            error = CancelledError()
        elif outcome in ("closed", "abandoned"):
            error = GeneratorExit()
        self._guard.leave(self._ticket, self._span, error, self._began, seen=self._seen)
