"""Reads the result of a provider call as chunks, whatever its form."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable
from typing import Any

from observability_integration.errors import ConfigurationError

_SDKS = ("anthropic", "openai")  # packages whose streams have at least one event


class AnswerSource:
    """The chunks of one call.

    The call returns an async iterator, a context manager around one, or an awaitable of either or of a whole answer.

    Args:
        start: makes the call.

    Attributes:
        single_chunk: whether the call returned a whole answer, which is then the only chunk.
    """

    __slots__ = ("_chunks", "_manager", "_source", "_start", "single_chunk")

    def __init__(self, start: Callable[[], Any]) -> None:
        self._start = start
        self._manager: Any = None
        self._source: Any = None
        self._chunks: AsyncIterator[Any] | None = None
        self.single_chunk = False

    async def open(self) -> AsyncIterator[Any]:
        """Makes the call and returns its chunks.

        Raises:
            ConfigurationError: `start` is not async, or returned the stream of a synchronous client.
        """
        result = self._start()
        is_async = inspect.isawaitable(result)
        if is_async:
            result = await result
        if not hasattr(result, "__aiter__") and hasattr(result, "__aenter__") and hasattr(result, "__aexit__"):
            manager, result, is_async = result, await result.__aenter__(), True
            self._manager = manager
        if hasattr(result, "__aiter__"):
            self._source = result
            self._chunks = aiter(result)
        elif is_async and not hasattr(result, "__next__"):
            self.single_chunk = True
            self._chunks = _one(result)
        else:
            raise ConfigurationError("stream() needs a call that is async, and an async iterator; pass stream_call=")
        return self._chunks

    @property
    def may_be_empty(self) -> bool:
        """Whether an answer without any chunk may be whole. A stream of OpenAI's or Anthropic's SDK was cut then."""
        return type(self._source).__module__.partition(".")[0] not in _SDKS

    async def close(self) -> None:
        """Closes the chunks and their source; may be called again, and after `open` failed."""
        chunks, source, manager = self._chunks, self._source, self._manager
        self._chunks = self._source = self._manager = None
        try:
            await _close(chunks)
        finally:
            if manager is not None:
                await manager.__aexit__(None, None, None)
            # To close an iterator does not close its source: an SDK's stream holds a connection.
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
