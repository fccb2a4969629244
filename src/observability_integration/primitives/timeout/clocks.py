"""The clocks of a call whose answer comes in chunks but is handed out whole: first chunk, idle, total."""

from __future__ import annotations

import asyncio
from typing import Any

from observability_integration.errors import Cleanup, PrimitiveTimeoutError, StreamStalledError, TimeoutKind
from observability_integration.primitives.base import WorkflowPrimitive
from observability_integration.primitives.chunks import is_content


class Clocks:
    """Which clock of a call fires next.

    Args:
        first_chunk_seconds: until the first content; None for no such limit.
        idle_seconds: between two chunks with content; None for no such limit.
    """

    __slots__ = ("_began", "_chunks", "_content_at", "_first", "_idle", "_loop", "_total")

    def __init__(self, first_chunk_seconds: float | None, idle_seconds: float | None) -> None:
        self._loop = asyncio.get_running_loop()
        self._first = first_chunk_seconds
        self._idle = idle_seconds
        self._content_at: float | None = None
        self._chunks = 0

    def begin(self, now: float, total_seconds: float) -> None:
        """Starts them, with a limit for the whole call."""
        self._began = now
        self._total = total_seconds

    async def read(self, step: WorkflowPrimitive[Any, Any], input_data: Any, context: Any) -> Any:
        """Streams from `step`, noting what comes in, and makes of it what its `execute` would return."""
        gathered: list[Any] = []
        async with step.stream(input_data, context) as chunks:
            async for chunk in chunks:
                self._chunks += 1
                gathered.append(chunk)
                if is_content(chunk):
                    self._content_at = self._loop.time()
        return step.gather(gathered)

    def left(self) -> float:
        """Seconds until one of them may fire; 0 or less when it has fired."""
        left = self._next()[0] - self._loop.time()
        # Content that comes meanwhile may set the idle clock to an earlier moment than the one for the first chunk.
        return left if self._idle is None else min(left, self._idle)

    def error(self, operation: str, elapsed_seconds: float, cleanup: Cleanup) -> PrimitiveTimeoutError | None:
        """The error for the clock that has fired; None where that is the one for the whole call."""
        _, kind, limit = self._next()
        if kind == "idle":
            return StreamStalledError(operation, limit, elapsed_seconds, chunks=self._chunks, cleanup=cleanup)
        if kind == "first_chunk":
            return PrimitiveTimeoutError(operation, limit, elapsed_seconds, kind=kind, cleanup=cleanup)
        return None

    def _next(self) -> tuple[float, TimeoutKind, float]:
        total = self._began + self._total
        kind: TimeoutKind = "first_chunk" if self._content_at is None else "idle"
        since = self._began if self._content_at is None else self._content_at
        limit = self._first if self._content_at is None else self._idle
        if limit is None or since + limit >= total:
            return total, "total", self._total
        return since + limit, kind, limit
