"""Holds back the chunks of a stream until one has content, so that another attempt can still replace the stream.

Two answers are never spliced. Until the first content the reader has seen nothing, so a fault up to there may lead to
another attempt. The role chunk is held back too: it names the model and the id of the first attempt.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from typing import Any

from observability_integration.errors import PrimitiveTimeoutError, StreamInterruptedError
from observability_integration.resilience.faults import Fault, FaultKind
from observability_integration.telemetry.guard import note_fault

from .base import ChunkStream, as_error
from .chunks import is_content

_MAX_HELD = 256  # chunks; a provider that sends only keep-alives must not fill the memory

# Faults that cut a stream, whatever error the client library raises for them.
_CUTS: frozenset[FaultKind] = frozenset(
    {"connection", "malformed", "overloaded", "rate_limited", "stream_cut", "timeout", "transient"}
)


class FirstContent:
    """Reads `stream`, and holds back its chunks until one has content.

    Attributes:
        shown: whether the reader gets chunks, so that no other stream may replace this one.
        chunks: the number of chunks that the reader got.
    """

    __slots__ = ("_chunks", "_ended", "_held", "_stream", "chunks", "shown")

    def __init__(self, stream: ChunkStream) -> None:
        self._stream = stream
        self._chunks: AsyncIterator[Any] | None = None
        self._ended = False
        self._held: deque[Any] = deque()
        self.shown = False
        self.chunks = 0

    @property
    def begun(self) -> bool:
        """Whether a chunk has come, with content or without."""
        return self.shown or bool(self._held)

    async def next(self) -> Any:
        """Returns the next chunk; the first call opens the stream.

        Raises:
            StopAsyncIteration: the stream has ended, and the reader got all of it.
        """
        if self._chunks is None:
            try:
                self._chunks = await self._stream.__aenter__()
            except StopAsyncIteration as stop:
                raise as_error(stop) from stop
        while not self.shown and not self._ended:
            await self._hold(self._chunks)
        if self._held:
            chunk = self._held.popleft()
        elif self._ended:
            raise StopAsyncIteration
        else:
            chunk = await anext(self._chunks)
        self.chunks += 1
        return chunk

    async def _hold(self, chunks: AsyncIterator[Any]) -> None:
        try:
            chunk = await anext(chunks)
        except StopAsyncIteration:
            self._ended = True
            return
        self._held.append(chunk)
        self.shown = len(self._held) >= _MAX_HELD or is_content(chunk)

    async def close(self) -> None:
        """Closes the stream, if it is open."""
        opened, self._chunks = self._chunks, None
        if opened is not None:
            self._ended = True
            await self._stream.__aexit__(None, None, None)

    async def give_up(self, error: Exception) -> None:
        """Closes the stream after its fault, and only notes an error of the close."""
        opened, self._chunks = self._chunks, None
        if opened is not None:
            self._ended = True
            try:
                await self._stream.__aexit__(type(error), error, None)
            except Exception as closing:  # noqa: BLE001 - the caller handles the first error
                note_fault("stream.close", closing)


def broken_off(operation: str, chunks: int, fault: Fault, error: Exception) -> Exception:
    """Returns the error for the reader of a stream that ends with `error` after content: `StreamInterruptedError`.

    Other errors stay as they are: an interruption or a timeout of this library, and any that did not cut the stream (a
    content filter, a fault of the user's code).
    """
    if fault.kind not in _CUTS or isinstance(error, StreamInterruptedError | PrimitiveTimeoutError):
        return error
    return StreamInterruptedError(operation, chunks, "cut")
