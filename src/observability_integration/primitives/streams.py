"""Base classes of streams, with one span and one outcome each.

The span of a stream begins when the stream is opened. It is current only while the reader waits for a chunk. It ends
exactly once: at the end of the stream, on an error, when the reader leaves early, or when the stream is
garbage-collected. It is never current across a ``yield``: OpenTelemetry would log "Failed to detach context".
"""

from __future__ import annotations

from abc import abstractmethod
from asyncio import CancelledError, Task, current_task
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Literal, cast

from observability_integration.resilience.faults import FaultKind
from observability_integration.resilience.faults.caller import mark_begun
from observability_integration.telemetry.tracing import spans
from observability_integration.telemetry.tracing.spans import NO_SPAN, OperationSpan

from .base import ChunkStream, as_error, check_time_left

Outcome = Literal["success", "error", "cancelled", "closed", "abandoned"]


@dataclass(frozen=True, slots=True)
class StreamRestart:
    """A marker in a stream: the reader discards the chunks before it, because the answer starts again.

    Sent only if the reader asked for it (``restart_streams``).

    Attributes:
        target: the name of the target whose answer follows.
        fault: the kind of fault that ended the previous answer.
        chunks: the number of chunks of the previous answer that the reader got.
    """

    target: str
    fault: FaultKind
    chunks: int


class OneChunk(ChunkStream):
    """A whole result as the only chunk."""

    def __init__(self, run: Callable[[], Awaitable[Any]]) -> None:
        self._run: Callable[[], Awaitable[Any]] | None = run

    async def __aenter__(self) -> AsyncIterator[Any]:
        self._begin_reading()
        return self

    async def __aexit__(self, exc_type: Any, exc: BaseException | None, tb: Any) -> None:
        self._phase, self._run = "closed", None  # a read under way still gets the whole result

    async def __anext__(self) -> Any:
        self._check_open()
        if self._reading:
            raise self._misuse("read")
        run, self._run = self._run, None
        if run is None:
            raise StopAsyncIteration
        self._reading = True
        try:
            return await run()
        except StopAsyncIteration as stop:
            raise as_error(stop) from stop
        finally:
            self._reading = False


class GeneratorStream(ChunkStream):
    """The chunks of an async generator. Closes the generator with the stream.

    Args:
        make: makes the generator; called when the stream is opened.
        name: of the primitive, for errors.
        context: of the call.
    """

    def __init__(self, make: Callable[[], AsyncGenerator[Any, None]], name: str, context: object) -> None:
        self._make = make
        self._name = name
        self._context = context

    async def __aenter__(self) -> AsyncIterator[Any]:
        check_time_left(self._name, self._context)
        self._begin_reading()
        self._generator = self._make()
        return self._generator

    def _iterator(self) -> AsyncIterator[Any]:
        return self._generator

    async def __aexit__(self, exc_type: Any, exc: BaseException | None, tb: Any) -> None:
        self._phase = "closed"
        await self._generator.aclose()


class ObservedStream(ChunkStream):
    """A stream with its own span, whose outcome is recorded once.

    Args:
        name: of the operation, for errors.
        context: of the call.
    """

    _span: OperationSpan = NO_SPAN
    _recorded = True

    def __init__(self, name: str, context: object) -> None:
        self._name = name
        self._context: Any = context

    @abstractmethod
    def _begin(self) -> OperationSpan:
        """Begins the span."""

    @abstractmethod
    async def _open(self) -> None:
        """Opens the source."""

    @abstractmethod
    async def _next(self) -> Any:
        """Returns the next chunk; raises StopAsyncIteration at the end."""

    @abstractmethod
    async def _close(self) -> None:
        """Closes the source; called once, also after `_open` failed."""

    @abstractmethod
    def _record(self, outcome: Outcome, error: BaseException | None) -> None:
        """Records the outcome; called once."""

    async def __aenter__(self) -> AsyncIterator[Any]:
        self._check_time()
        self._begin_reading()
        self._span = self._begin()
        self._recorded = False
        token = spans.tracing.activate(self._span)
        try:
            await self._open()
        except BaseException as caught:
            error = as_error(caught) if isinstance(caught, StopAsyncIteration) else caught
            self._phase = "closed"
            self._end_with_error(error)
            await self._close()
            if error is caught:
                raise
            raise error from caught
        finally:
            spans.tracing.deactivate(token)
        return self

    def _check_time(self) -> None:
        """Refuses to open the stream after the deadline."""
        check_time_left(self._name, self._context)

    async def __anext__(self) -> Any:
        if self._recorded:
            self._check_open()
            raise StopAsyncIteration
        if self._reading:
            raise self._misuse("read")
        self._reading = True
        token = spans.tracing.activate(self._span)
        try:
            return await self._next()
        except StopAsyncIteration:
            self._end("success", None)
            raise
        except BaseException as error:
            self._end_with_error(error)
            if self._cut and isinstance(error, CancelledError) and not cast("Task[Any]", current_task()).cancelling():
                raise self._misuse("cut") from error  # the producer was cancelled, not the reader
            raise
        finally:
            self._reading = False
            spans.tracing.deactivate(token)

    async def __aexit__(self, exc_type: Any, exc: BaseException | None, tb: Any) -> None:
        self._closing()
        token = spans.tracing.activate(self._span)
        try:
            await self._close()
        finally:
            spans.tracing.deactivate(token)
            self._end("closed", None)

    def _end_with_error(self, error: BaseException) -> None:
        if isinstance(error, Exception):
            self._end("error", error)
        elif isinstance(error, GeneratorExit):
            self._end("abandoned", None)
        else:
            self._end("cancelled", None)

    def _end(self, outcome: Outcome, error: BaseException | None) -> None:
        if self._recorded:
            return
        self._recorded = True
        self._record(outcome, error)
        if error is not None:
            spans.tracing.mark_failed(self._span, error)
        self._span.set_attribute("outcome", outcome)
        self._span.end()

    def __del__(self) -> None:
        if not self._recorded:
            self._end("abandoned", None)


class PassingStream(ObservedStream):
    """Passes on the chunks of another stream, under its own span.

    Args:
        name: of the operation, for errors.
        context: of the call.
        begin: begins the span.
        find_source: returns the other stream, given the span; called when this stream is opened.
    """

    def __init__(
        self,
        name: str,
        context: object,
        begin: Callable[[], OperationSpan],
        find_source: Callable[[OperationSpan], Awaitable[ChunkStream]],
    ) -> None:
        super().__init__(name, context)
        self._begin_span = begin
        self._find_source = find_source
        self._inner: ChunkStream | None = None
        self._chunks: AsyncIterator[Any] | None = None

    def _begin(self) -> OperationSpan:
        return self._begin_span()

    async def _open(self) -> None:
        inner = await self._find_source(self._span)
        self._chunks = await inner.__aenter__()
        self._inner = inner

    async def _next(self) -> Any:
        return await anext(cast("AsyncIterator[Any]", self._chunks))

    async def _close(self) -> None:
        if self._inner is not None:
            await self._inner.__aexit__(None, None, None)

    def _record(self, outcome: Outcome, error: BaseException | None) -> None:
        """Records nothing: the other stream counts its own outcome."""


async def collect(stream: ChunkStream) -> list[Any]:
    """Reads a stream to its end."""
    collected: list[Any] = []
    try:
        async with stream as chunks:
            async for chunk in chunks:
                collected.append(chunk)  # noqa: PERF401 - an error must show whether there were any
    except Exception as error:
        if collected:
            mark_begun(error)
        raise
    return collected
