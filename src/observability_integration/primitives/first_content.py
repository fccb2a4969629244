"""One try at a stream that may still be replaced by another: what carries no content is held back until some does.

Two answers are never spliced, but until the first content nothing of an answer has been seen, so a fault up to there
may lead to another try. The role frame of the first try must not be seen either: it names a model and an id.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from typing import Any

from observability_integration.errors import PrimitiveTimeoutError, StreamInterruptedError
from observability_integration.resilience.faults import Fault, FaultKind
from observability_integration.telemetry.guard import note_fault

from .base import ChunkStream
from .chunks import is_content

_MOST_HELD = 256  # a provider that sends keep-alives for ever must not fill the memory: then they are let out

# Faults that break a stream off, whatever they are called by who reads the connection.
_BREAKS: frozenset[FaultKind] = frozenset(
    {"connection", "malformed", "overloaded", "rate_limited", "stream_cut", "timeout", "transient"}
)


class FirstContent:
    """Reads `stream`, holding back what comes before the first content.

    Attributes:
        shown: whether chunks were handed out, so that no other stream may take the place of this one.
        chunks: how many were.
    """

    __slots__ = ("_chunks", "_ended", "_held", "_stream", "chunks", "shown")

    def __init__(self, stream: ChunkStream) -> None:
        self._stream = stream
        self._chunks: AsyncIterator[Any] | None = None
        self._ended = False
        self._held: deque[Any] = deque()
        self.shown = False
        self.chunks = 0

    async def next(self) -> Any:
        """The next chunk; opens the stream at first.

        Raises:
            StopAsyncIteration: the stream has ended, and all of it was handed out.
        """
        if self._chunks is None:
            self._chunks = await self._stream.__aenter__()
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
        self.shown = len(self._held) >= _MOST_HELD or is_content(chunk)

    async def close(self) -> None:
        """Closes the stream, if it was opened; a second time does nothing."""
        opened, self._chunks = self._chunks, None
        if opened is not None:
            self._ended = True
            await self._stream.__aexit__(None, None, None)

    async def give_up(self, error: Exception) -> None:
        """Closes the stream because of its fault; another one, that of closing it, is of no interest any more."""
        opened, self._chunks = self._chunks, None
        if opened is not None:
            self._ended = True
            try:
                await self._stream.__aexit__(type(error), error, None)
            except Exception as closing:  # noqa: BLE001 - as said
                note_fault("stream.close", closing)


def broken_off(operation: str, chunks: int, fault: Fault, error: Exception) -> Exception:
    """What the reader of a stream is told when it ends with `error` after content: that it was interrupted.

    Errors that say so themselves, our own clocks, and those that are no breaking off (a content filter, a fault of the
    user's code) stay what they are.
    """
    if fault.kind not in _BREAKS or isinstance(error, StreamInterruptedError | PrimitiveTimeoutError):
        return error
    return StreamInterruptedError(operation, chunks, "cut")
