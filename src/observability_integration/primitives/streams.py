"""Streams of chunks: how they are opened, read, observed and closed.

The span of a stream is begun when the stream is opened, is current only while the producer is being waited for, and is
ended exactly once: at the end, on an error, when the reader leaves early, or when the stream is garbage-collected. It
is never held current across a ``yield``; doing so is what makes OpenTelemetry log "Failed to detach context".
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, Literal, cast

from observability_integration.telemetry import spans
from observability_integration.telemetry.spans import NO_SPAN, OperationSpan

from .base import ChunkStream

Outcome = Literal["success", "error", "cancelled", "closed", "abandoned"]


class OneChunk(ChunkStream):
    """A result that comes in one piece."""

    def __init__(self, run: Callable[[], Awaitable[Any]]) -> None:
        self._run: Callable[[], Awaitable[Any]] | None = run

    async def __aenter__(self) -> AsyncIterator[Any]:
        return self

    async def __aexit__(self, exc_type: Any, exc: BaseException | None, tb: Any) -> None:
        self._run = None

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        run, self._run = self._run, None
        if run is None:
            raise StopAsyncIteration
        return await run()


class GeneratorStream(ChunkStream):
    """The chunks of an async generator, which is closed with the stream."""

    def __init__(self, make: Callable[[], AsyncGenerator[Any, None]]) -> None:
        self._make = make
        self._generator: AsyncGenerator[Any, None] | None = None

    async def __aenter__(self) -> AsyncIterator[Any]:
        self._generator = self._make()
        return self._generator

    async def __aexit__(self, exc_type: Any, exc: BaseException | None, tb: Any) -> None:
        if self._generator is not None:
            await self._generator.aclose()


class ObservedStream(ChunkStream):
    """A stream with a span of its own and one record of its outcome."""

    _span: OperationSpan = NO_SPAN
    _recorded = True

    @abstractmethod
    def _begin(self) -> OperationSpan:
        """Begins the span."""

    @abstractmethod
    async def _open(self) -> None:
        """Opens what is underneath."""

    @abstractmethod
    async def _next(self) -> Any:
        """The next chunk; StopAsyncIteration at the end."""

    @abstractmethod
    async def _close(self) -> None:
        """Closes what is underneath; called once, also after a failure to open."""

    @abstractmethod
    def _record(self, outcome: Outcome, error: BaseException | None) -> None:
        """Counts how it ended; called once."""

    async def __aenter__(self) -> AsyncIterator[Any]:
        self._span = self._begin()
        self._recorded = False
        token = spans.tracing.activate(self._span)
        try:
            await self._open()
        except BaseException as error:
            self._settle_error(error)
            await self._close()
            raise
        finally:
            spans.tracing.deactivate(token)
        return self

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        if self._recorded:
            raise StopAsyncIteration
        token = spans.tracing.activate(self._span)
        try:
            return await self._next()
        except StopAsyncIteration:
            self._settle("success", None)
            raise
        except BaseException as error:
            self._settle_error(error)
            raise
        finally:
            spans.tracing.deactivate(token)

    async def __aexit__(self, exc_type: Any, exc: BaseException | None, tb: Any) -> None:
        token = spans.tracing.activate(self._span)
        try:
            await self._close()
        finally:
            spans.tracing.deactivate(token)
            self._settle("closed", None)

    def _settle_error(self, error: BaseException) -> None:
        if isinstance(error, Exception):
            self._settle("error", error)
        elif isinstance(error, GeneratorExit):
            self._settle("abandoned", None)
        else:
            self._settle("cancelled", None)

    def _settle(self, outcome: Outcome, error: BaseException | None) -> None:
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
            self._settle("abandoned", None)


async def collect(stream: ChunkStream) -> Any:
    """Reads a stream to its end: joined when every chunk is text, else a list."""
    async with stream as chunks:
        gathered = [chunk async for chunk in chunks]
    return "".join(cast("list[str]", gathered)) if all(isinstance(chunk, str) for chunk in gathered) else gathered


def _field(value: Any, name: str) -> Any:
    if isinstance(value, Mapping):
        return cast("Mapping[str, Any]", value).get(name)
    return getattr(value, name, None)


def is_content(chunk: Any) -> bool:
    """Whether a chunk carries part of the answer, as opposed to a keep-alive, a role or a usage report.

    Understands text, OpenAI chat chunks, OpenAI response events and Anthropic message events, as objects or dicts;
    any other non-empty chunk counts as content.
    """
    if chunk is None or chunk == "" or chunk == b"":
        return False
    if isinstance(chunk, str | bytes):
        return True
    choices = _field(chunk, "choices")
    if isinstance(choices, Sequence):
        deltas = [_field(choice, "delta") for choice in cast("Sequence[Any]", choices)]
        parts = ("content", "reasoning_content", "refusal", "tool_calls", "function_call", "audio")
        return any(_field(delta, part) for delta in deltas if delta is not None for part in parts)
    kind = _field(chunk, "type")
    if isinstance(kind, str):
        if kind.startswith(("content_block_", "message_")) or kind == "ping":
            return kind == "content_block_delta"
        if kind.startswith("response."):
            return kind.endswith(".delta")
    return True
