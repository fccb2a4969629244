"""What a call to a provider returns, read as chunks whatever it is."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable
from typing import Any

from observability_integration.errors import ConfigurationError


class AnswerSource:
    """An async iterator of chunks, what awaits one, a context manager around one, or an answer in one piece.

    Args:
        start: makes the call.

    Attributes:
        in_one_piece: whether the answer came in one piece, which is the only chunk then.
    """

    __slots__ = ("_chunks", "_manager", "_source", "_start", "in_one_piece")

    def __init__(self, start: Callable[[], Any]) -> None:
        self._start = start
        self._manager: Any = None
        self._source: Any = None
        self._chunks: AsyncIterator[Any] | None = None
        self.in_one_piece = False

    async def open(self) -> AsyncIterator[Any]:
        """Makes the call.

        Raises:
            ConfigurationError: `start` is not async, or returned the stream of a client that is not.
        """
        made = self._start()
        is_async = inspect.isawaitable(made)
        if is_async:
            made = await made
        if not hasattr(made, "__aiter__") and hasattr(made, "__aenter__") and hasattr(made, "__aexit__"):
            manager, made, is_async = made, await made.__aenter__(), True
            self._manager = manager
        if hasattr(made, "__aiter__"):
            self._source = made
            self._chunks = aiter(made)
        elif is_async and not hasattr(made, "__next__"):
            self.in_one_piece = True
            self._chunks = _one(made)
        else:
            raise ConfigurationError("stream() needs a call that is async, and an async iterator; pass stream_call=")
        return self._chunks

    async def close(self) -> None:
        """Closes all of it; may be called again, and after `open` failed."""
        chunks, source, manager = self._chunks, self._source, self._manager
        self._chunks = self._source = self._manager = None
        try:
            await _close(chunks)
        finally:
            if manager is not None:
                await manager.__aexit__(None, None, None)
            # Closing an iterator does not close what it reads from: an SDK's stream holds a connection.
            elif source is not chunks:
                await _close(source)


async def _one(answer: Any) -> AsyncIterator[Any]:
    yield answer


async def _close(part: Any) -> None:
    close = getattr(part, "aclose", None) or getattr(part, "close", None)
    if close is not None:
        closing = close()
        if inspect.isawaitable(closing):
            await closing
