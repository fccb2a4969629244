"""Streams within three limits: first chunk, idle, total.

The producer runs in one child task from its opening to its closing (the *pump*), which advances only when the reader
asks for a chunk. So the producer's context variables and cancel scopes stay in one task, a timeout never cancels the
reader, and a producer that ignores its cancellation can be abandoned.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any, cast

from observability_integration.context import WorkflowContext, bounded_by, reset_deadline, set_deadline
from observability_integration.errors import Cleanup, PrimitiveTimeoutError
from observability_integration.primitives.base import ChunkStream, WorkflowPrimitive
from observability_integration.primitives.pump import END, Rendezvous, run_pump
from observability_integration.resilience.bounded import Expired, cancel_bounded, wait_cancelled
from observability_integration.tasks import keep_alive, wait_done
from observability_integration.telemetry.tracing import spans
from observability_integration.telemetry.tracing.spans import NO_SPAN, OperationSpan

from .clocks import Alarm, Clocks, timeout_error
from .record import TimeoutRecord
from .stream_deadline import StreamDeadline


class TimeoutStream(ChunkStream):
    """The stream that `TimeoutPrimitive.stream` returns; see the module's docstring."""

    def __init__(
        self,
        step: WorkflowPrimitive[Any, Any],
        input_data: Any,
        context: WorkflowContext | None,
        record: TimeoutRecord,
        clocks: Clocks,
        grace_seconds: float | None,
    ) -> None:
        self._step = step
        self._input = input_data
        self._context = context
        self._record = record
        self._clocks = clocks
        self._grace = grace_seconds
        self._own: StreamDeadline | None = None
        self._span: OperationSpan = NO_SPAN
        self._pump_task: asyncio.Task[None] | None = None
        self._handover: Rendezvous | None = None
        self._waited = 0.0
        self._ended = True
        self.ran_out_before_content: PrimitiveTimeoutError | None = None

    async def __aenter__(self) -> AsyncIterator[Any]:
        self._begin_reading()
        loop = asyncio.get_running_loop()
        inherited = bounded_by(self._context)
        self._span = spans.tracing.begin(self._record.span_name, {"timeout.limit_seconds": self._clocks.total_seconds})
        self._ended = False
        if self._context is not None:
            spans.identify(self._span, self._context)
        self._clocks.inherited = inherited
        if inherited is not None and inherited.when <= loop.time():
            raise self._give_up(Alarm("deadline", 0.0, 0.0), "refused")
        self._handover = Rendezvous(loop)
        token = spans.tracing.activate(self._span)
        self._own = StreamDeadline(self._record.operation, self._clocks.total_seconds, inherited)
        deadline_token = set_deadline(self._own)
        try:
            source = self._step.stream(self._input, self._context)
            self._pump_task = keep_alive(
                loop.create_task(run_pump(source, self._handover), name=self._record.operation)
            )
        except Exception as error:
            self._fail(error)
            raise
        finally:
            reset_deadline(deadline_token)
            spans.tracing.deactivate(token)
        return self

    async def __anext__(self) -> Any:
        if self._ended or self._handover is None:
            self._check_open()
            raise StopAsyncIteration
        if self._reading:
            raise self._misuse("read")
        self._reading = True
        loop = self._handover.loop
        delivered = self._handover.ask()
        began = loop.time()
        alarm = self._clocks.next(began, self._waited)
        own = cast("StreamDeadline", self._own)
        own.begin_wait(began)
        try:
            if alarm.left_seconds > 0:
                await wait_done(delivered, alarm.left_seconds)
            expired = None if delivered.done() else await self._run_out()
        except asyncio.CancelledError:
            pump = self._take_pump()
            if pump is not None:
                pump.cancel()
                await wait_cancelled(pump, self._grace, self._record.abandoned)
            self._waited += loop.time() - began
            self._end_cancelled()
            raise
        finally:
            self._reading = False
            own.end_wait(loop.time())
        self._waited += loop.time() - began
        if expired is None:
            return self._received(delivered)
        self._record.cleaned_up(self._span, expired)
        raise self._give_up(alarm, expired.cleanup) from expired.error

    @property
    def waited_seconds(self) -> float:
        """Seconds for which the reader has waited for chunks."""
        return self._waited

    def _received(self, delivered: asyncio.Future[Any]) -> Any:
        if delivered.cancelled():
            self._end_cancelled()
            raise self._misuse("cut") if self._cut else asyncio.CancelledError
        error = delivered.exception()
        if error is not None:
            own = cast("StreamDeadline", self._own)
            if isinstance(error, PrimitiveTimeoutError) and error.deadline is own:
                # A primitive further in was the first to notice that the deadline has passed.
                inherited = self._clocks.inherited
                outer = inherited is not None and inherited.when <= own.when
                alarm = (
                    Alarm("deadline", self._waited, 0.0) if outer else Alarm("total", self._clocks.total_seconds, 0.0)
                )
                raise self._give_up(alarm, "clean") from error
            self._fail(error)
            raise error
        chunk = delivered.result()
        if chunk is END:
            self._ended = True
            self._record.succeeded(self._span, self._waited, self._clocks.total_seconds, late=False, blocked=False)
            raise StopAsyncIteration
        self._clocks.received(chunk, self._waited)
        return chunk

    def _take_pump(self) -> asyncio.Task[None] | None:
        """The pump if it still runs, for the one caller that stops it; None from then on."""
        if self._handover is not None:
            self._handover.leave()
        pump, self._pump_task = self._pump_task, None
        return None if pump is None or pump.done() else pump

    async def _run_out(self) -> Expired:
        pump = self._take_pump()
        if pump is None:
            return Expired("clean", 0.0)
        self._span.add_event("timeout.cancel_sent")
        return await cancel_bounded(pump, self._grace, self._record.abandoned)

    def _give_up(self, alarm: Alarm, cleanup: Cleanup) -> PrimitiveTimeoutError:
        self._ended = True
        clocks = self._clocks
        error = timeout_error(
            self._record.operation,
            alarm,
            self._waited,
            cleanup,
            deadline=clocks.inherited if alarm.kind == "deadline" else None,
            chunks=clocks.chunks,
        )
        self._record.timed_out(self._span, self._waited, alarm.limit_seconds, error)
        if alarm.kind != "deadline" and clocks.content_at is None:
            self.ran_out_before_content = error
        return error

    def _fail(self, error: BaseException) -> None:
        self._ended = True
        self._record.failed(self._span, self._waited, self._clocks.total_seconds, error)

    def _end_cancelled(self) -> None:
        self._ended = True
        self._record.cancelled(self._span, self._waited)

    async def __aexit__(self, exc_type: Any, exc: BaseException | None, tb: Any) -> None:
        self._closing()
        pump = self._take_pump()
        try:
            if pump is not None:
                closed = await cancel_bounded(pump, self._grace, self._record.abandoned)
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
