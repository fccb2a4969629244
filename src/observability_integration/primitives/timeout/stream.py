"""Streams under three clocks: first chunk, idle, total.

The producer runs in one child task from its opening to its closing (the *pump*), which advances only when the reader
asks for a chunk. So its context variables and cancel scopes stay in one task, the reader is never cancelled by our
clocks, and a producer that ignores its cancellation can be left behind.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

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
    DeadlineSource,
    PrimitiveTimeoutError,
    StreamStalledError,
    TimeoutKind,
)
from observability_integration.primitives.base import ChunkStream, WorkflowPrimitive
from observability_integration.primitives.chunks import is_content
from observability_integration.primitives.pump import END, Rendezvous, run_pump
from observability_integration.resilience.bounded import Expired, Watch, cancel_bounded, leave_bounded
from observability_integration.tasks import own, wait_done
from observability_integration.telemetry.tracing import spans
from observability_integration.telemetry.tracing.spans import NO_SPAN, OperationSpan

from .record import TimeoutRecord
from .stream_deadline import StreamDeadline


class TimeoutStream(ChunkStream):
    """See the module's docstring. Made by `TimeoutPrimitive.stream`."""

    def __init__(
        self,
        step: WorkflowPrimitive[Any, Any],
        input_data: Any,
        context: WorkflowContext | None,
        *,
        record: TimeoutRecord,
        timeout_seconds: float,
        grace_seconds: float | None,
        first_chunk_seconds: float | None,
        idle_seconds: float | None,
    ) -> None:
        self._step = step
        self._input = input_data
        self._context = context
        self._record = record
        self._total = timeout_seconds
        self._grace = grace_seconds
        self._first = first_chunk_seconds
        self._idle = idle_seconds
        self._inherited: Deadline | None = None
        self._own: StreamDeadline | None = None
        self._span: OperationSpan = NO_SPAN
        self._pump_task: asyncio.Task[None] | None = None
        self._handover: Rendezvous | None = None
        self._waited = 0.0
        self._since_content = 0.0
        self._chunks = 0
        self._content_seen = False
        self._ended = True
        self.ran_out_before_content: PrimitiveTimeoutError | None = None

    async def __aenter__(self) -> AsyncIterator[Any]:
        loop = asyncio.get_running_loop()
        inherited = current_deadline()
        self._span = spans.tracing.begin(self._record.span_name, {"timeout.limit_seconds": self._total})
        self._ended = False
        if self._context is not None:
            spans.identify(self._span, self._context)
            inherited = earliest(inherited, self._context.deadline)
        self._inherited = inherited
        if inherited is not None and inherited.when <= loop.time():
            raise self._give_up("deadline", 0.0, "refused")
        self._handover = Rendezvous(loop)
        token = spans.tracing.activate(self._span)
        self._own = StreamDeadline(self._record.operation, self._total, inherited)
        deadline_token = set_deadline(self._own)
        try:
            source = self._step.stream(self._input, self._context)
            self._pump_task = own(loop.create_task(run_pump(source, self._handover), name=self._record.operation))
        except Exception as error:
            self._fail(error)
            raise
        finally:
            reset_deadline(deadline_token)
            spans.tracing.deactivate(token)
        return self

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        if self._ended or self._handover is None:
            raise StopAsyncIteration
        loop = self._handover.loop
        delivered = self._handover.ask()
        began = loop.time()
        kind, limit, left = self._nearest(began)
        own = cast("StreamDeadline", self._own)
        own.begin_wait(began)
        try:
            if left > 0:
                await wait_done(delivered, left)
            expired = None if delivered.done() else await self._run_out()
        except asyncio.CancelledError:
            pump = self._take_pump()
            if pump is not None:
                pump.cancel()
                await leave_bounded(pump, self._grace, self._watch())
            self._waited += loop.time() - began
            self._end_cancelled()
            raise
        finally:
            own.end_wait(loop.time())
        waited = loop.time() - began
        self._waited += waited
        self._since_content += waited
        if expired is None:
            return self._received(delivered)
        self._record.cleaned_up(expired)
        if expired.cleanup == "late_result":
            self._record.late(self._span)
        raise self._give_up(kind, limit, expired.cleanup) from expired.error

    def _received(self, delivered: asyncio.Future[Any]) -> Any:
        if delivered.cancelled():
            self._end_cancelled()
            raise asyncio.CancelledError
        error = delivered.exception()
        if error is not None:
            own = cast("StreamDeadline", self._own)
            if isinstance(error, PrimitiveTimeoutError) and error.deadline is own:
                # A primitive further in was first to notice that the deadline had passed: ours, or everybody's.
                if self._inherited is not None and self._inherited.when <= own.when:
                    raise self._give_up("deadline", self._waited, "clean") from error
                raise self._give_up("total", self._total, "clean") from error
            self._fail(error)
            raise error
        chunk = delivered.result()
        if chunk is END:
            self._ended = True
            self._record.succeeded(self._span, self._waited, self._total, late=False, blocked=False)
            raise StopAsyncIteration
        self._chunks += 1
        if is_content(chunk):
            self._content_seen = True
            self._since_content = 0.0
        return chunk

    def _nearest(self, now: float) -> tuple[TimeoutKind, float, float]:
        """Which clock fires next: its kind, its limit, and the seconds left on it."""
        clocks: list[tuple[float, TimeoutKind, float]] = [(self._total - self._waited, "total", self._total)]
        if self._content_seen and self._idle is not None:
            clocks.append((self._idle - self._since_content, "idle", self._idle))
        if not self._content_seen and self._first is not None:
            clocks.append((self._first - self._since_content, "first_chunk", self._first))
        if self._inherited is not None:
            clocks.append((self._inherited.when - now, "deadline", self._inherited.when - now + self._waited))
        left, kind, limit = min(clocks, key=lambda clock: clock[0])
        return kind, limit, left

    def _watch(self) -> Watch:
        return Watch(lambda: self._span.add_event("timeout.cancel_sent"), self._record.abandoned)

    def _take_pump(self) -> asyncio.Task[None] | None:
        """The pump, if it still runs; it is stopped once, and then it is nobody's business any more."""
        if self._handover is not None:
            self._handover.leave()
        pump, self._pump_task = self._pump_task, None
        return None if pump is None or pump.done() else pump

    async def _run_out(self) -> Expired:
        pump = self._take_pump()
        if pump is None:
            return Expired("clean", 0.0)
        watch = self._watch()
        watch.cancelling()
        return await cancel_bounded(pump, self._grace, watch)

    def _give_up(self, kind: TimeoutKind, limit: float, cleanup: Cleanup) -> PrimitiveTimeoutError:
        self._ended = True
        operation, waited = self._record.operation, self._waited
        error: PrimitiveTimeoutError
        if kind == "idle":
            error = StreamStalledError(operation, limit, waited, chunks=self._chunks, cleanup=cleanup)
        else:
            source: DeadlineSource = "inherited" if kind == "deadline" else "own"
            deadline = self._inherited if kind == "deadline" else None
            error = PrimitiveTimeoutError(
                operation, limit, waited, kind=kind, cleanup=cleanup, deadline_source=source, deadline=deadline
            )
        self._record.timed_out(self._span, waited, limit, error)
        if kind != "deadline" and not self._content_seen:
            self.ran_out_before_content = error
        return error

    def _fail(self, error: BaseException) -> None:
        self._ended = True
        self._record.failed(self._span, self._waited, self._total, error)

    def _end_cancelled(self) -> None:
        self._ended = True
        self._record.cancelled(self._span, self._waited)

    async def __aexit__(self, exc_type: Any, exc: BaseException | None, tb: Any) -> None:
        pump = self._take_pump()
        try:
            if pump is not None:
                closed = await cancel_bounded(pump, self._grace, self._watch())
                if closed.error is not None:
                    self._fail(closed.error)
                    raise closed.error
        finally:
            if not self._ended:
                self._ended = True
                self._span.set_attribute("outcome", "closed")
                self._span.end()

    def __del__(self) -> None:
        if not self._ended:
            self._ended = True
            self._span.set_attribute("outcome", "abandoned")
            self._span.end()
        pump = self._take_pump()
        if pump is not None and not pump.get_loop().is_closed():
            pump.get_loop().call_soon_threadsafe(pump.cancel)


class FallbackStream(ChunkStream):
    """Turns to another stream when the time of the first ran out before its first content.

    Later than that it does not: two answers are never spliced.
    """

    def __init__(self, first: TimeoutStream, fallback: Callable[[], ChunkStream]) -> None:
        self._first = first
        self._fallback = fallback
        self._current: ChunkStream = first
        self._chunks: AsyncIterator[Any] = first

    async def __aenter__(self) -> AsyncIterator[Any]:
        await self._first.__aenter__()
        return self

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        try:
            return await anext(self._chunks)
        except PrimitiveTimeoutError as error:
            if error is not self._first.ran_out_before_content:
                raise
        fallback = self._fallback()
        self._chunks = await fallback.__aenter__()
        self._current = fallback
        return await anext(self._chunks)

    async def __aexit__(self, exc_type: Any, exc: BaseException | None, tb: Any) -> None:
        await self._current.__aexit__(exc_type, exc, tb)
