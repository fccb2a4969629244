"""Streams under three clocks: first chunk, idle, total.

The producer runs in one child task from its opening to its closing (the *pump*), which advances only when the reader
asks for a chunk. So its context variables and cancel scopes stay in one task, the reader is never cancelled by our
clocks, and a producer that ignores its cancellation can be left behind.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from observability_integration.context import (
    Deadline,
    WorkflowContext,
    current_deadline,
    earliest,
    reset_deadline,
    set_deadline,
)
from observability_integration.errors import Cleanup, DeadlineSource, PrimitiveTimeoutError, TimeoutKind
from observability_integration.resilience.bounded import Expired, Watch, run_bounded
from observability_integration.tasks import own, wait_done
from observability_integration.telemetry import spans
from observability_integration.telemetry.spans import NO_SPAN, OperationSpan

from .base import ChunkStream, WorkflowPrimitive
from .streams import is_content
from .timeout_record import TimeoutRecord

_END = object()


class _Handover:
    """One-place exchange between pump and reader. Holds neither of them, so that a dropped stream can be collected."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self._wanted: asyncio.Future[None] = loop.create_future()
        self._delivered: asyncio.Future[Any] = loop.create_future()
        self._delivered.cancel()
        self._error: BaseException | None = None

    def ask(self) -> asyncio.Future[Any]:
        """Reader: asks for the next chunk."""
        self._delivered = self.loop.create_future()
        if self._error is not None:
            self.fail(self._error)
        elif not self._wanted.done():
            self._wanted.set_result(None)
        return self._delivered

    async def asked(self) -> None:
        """Pump: waits until a chunk is wanted."""
        await self._wanted
        self._wanted = self.loop.create_future()

    def deliver(self, chunk: Any) -> None:
        """Pump: hands over."""
        if not self._delivered.done():
            self._delivered.set_result(chunk)

    def fail(self, error: BaseException) -> None:
        """Pump: hands over an error, now or when the reader next asks."""
        self._error = error
        if self._delivered.done():
            return
        if isinstance(error, asyncio.CancelledError):
            self._delivered.cancel()
        else:
            self._delivered.set_exception(error)
            self._delivered.exception()  # marks it as retrieved: the reader may have left


async def _pump(source: ChunkStream, handover: _Handover) -> None:
    try:
        async with source as chunks:
            iterator = aiter(chunks)
            while True:
                await handover.asked()
                try:
                    chunk = await anext(iterator)
                except StopAsyncIteration:
                    break
                handover.deliver(chunk)
        handover.deliver(_END)
    except BaseException as error:
        handover.fail(error)
        if not isinstance(error, Exception):
            raise


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
        self._span: OperationSpan = NO_SPAN
        self._pump_task: asyncio.Task[None] | None = None
        self._handover: _Handover | None = None
        self._waited = 0.0
        self._since_content = 0.0
        self._content_seen = False
        self._ended = True

    async def __aenter__(self) -> AsyncIterator[Any]:
        loop = asyncio.get_running_loop()
        inherited = current_deadline()
        if self._context is not None:
            inherited = earliest(inherited, self._context.deadline)
        self._inherited = inherited
        self._span = spans.tracing.begin(self._record.span_name, {"timeout.limit_seconds": self._total})
        self._ended = False
        if inherited is not None and inherited.when <= loop.time():
            raise self._give_up("deadline", 0.0, "refused")
        self._handover = _Handover(loop)
        token = spans.tracing.activate(self._span)
        # Not our own limit: it stands still while a slow reader thinks, which a moment on the clock cannot.
        deadline_token = set_deadline(inherited)
        try:
            source = self._step.stream(self._input, self._context)
            self._pump_task = own(loop.create_task(_pump(source, self._handover), name=self._record.operation))
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
        try:
            done = await wait_done(delivered, left) if left > 0 else delivered.done()
        except asyncio.CancelledError:
            self._waited += loop.time() - began
            await self._stop()
            self._end_cancelled()
            raise
        waited = loop.time() - began
        self._waited += waited
        self._since_content += waited
        if not done:
            expired = await self._stop()
            raise self._give_up(kind, limit, expired.cleanup if expired is not None else "clean")
        return self._received(delivered)

    def _received(self, delivered: asyncio.Future[Any]) -> Any:
        if delivered.cancelled():
            self._end_cancelled()
            raise asyncio.CancelledError
        error = delivered.exception()
        if error is not None:
            self._ended = True
            self._record.failed(self._span, self._waited, self._total, error)
            raise error
        chunk = delivered.result()
        if chunk is _END:
            self._ended = True
            self._record.succeeded(self._span, self._waited, self._total, late=False, blocked=False)
            raise StopAsyncIteration
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

    async def _stop(self) -> Expired | None:
        """Cancels the pump and waits for it, as the grace allows."""
        if self._pump_task is None or self._pump_task.done():
            return None
        watch = Watch(lambda: self._span.add_event("timeout.cancel_sent"), self._record.abandoned)
        return await run_bounded(self._pump_task, 0.0, self._grace, watch=watch)

    def _give_up(self, kind: TimeoutKind, limit: float, cleanup: Cleanup) -> PrimitiveTimeoutError:
        self._ended = True
        source: DeadlineSource = "inherited" if kind == "deadline" else "own"
        error = PrimitiveTimeoutError(
            self._record.operation,
            limit,
            self._waited,
            kind=kind,
            cleanup=cleanup,
            deadline_source=source,
            deadline=self._inherited,
        )
        self._record.timed_out(self._span, self._waited, limit, error)
        return error

    def _end_cancelled(self) -> None:
        if not self._ended:
            self._ended = True
            self._record.cancelled(self._span, self._waited)

    async def __aexit__(self, exc_type: Any, exc: BaseException | None, tb: Any) -> None:
        try:
            await self._stop()
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
        pump = self._pump_task
        if pump is not None and not pump.done() and not pump.get_loop().is_closed():
            pump.get_loop().call_soon_threadsafe(pump.cancel)
