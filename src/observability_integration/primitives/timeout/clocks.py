"""The clocks of a timeout: which one fires next, and the error that names it."""

from __future__ import annotations

import asyncio
from typing import Any, NamedTuple

from observability_integration.context import Deadline
from observability_integration.errors import (
    Cleanup,
    DeadlineSource,
    PrimitiveTimeoutError,
    StreamStalledError,
    TimeoutKind,
)
from observability_integration.primitives.base import WorkflowPrimitive
from observability_integration.primitives.chunks import is_content
from observability_integration.resilience.bounded import Expired
from observability_integration.resilience.faults.caller import mark_begun


class Alarm(NamedTuple):
    """The clock that fires next, unless content comes first.

    Attributes:
        kind: which clock it is.
        limit_seconds: what it is set to.
        left_seconds: time until it fires; 0 or less when it has fired.
    """

    kind: TimeoutKind
    limit_seconds: float
    left_seconds: float


class Clocks:
    """The clocks of one answer in chunks: total, first chunk, idle, and a deadline from further out.

    The first three run only while a chunk is waited for; the caller adds up those seconds.

    Args:
        first_chunk_seconds: until the first content; None for no such limit.

    Attributes:
        total_seconds: limit of all waiting.
        idle_seconds: between two chunks with content; None for no such limit.
        inherited: the deadline from further out, if any.
        chunks: how many have come.
        content_at: seconds waited when the latest content came; None before the first.
    """

    __slots__ = ("_first", "chunks", "content_at", "idle_seconds", "inherited", "total_seconds")

    def __init__(
        self,
        total_seconds: float,
        first_chunk_seconds: float | None,
        idle_seconds: float | None,
        inherited: Deadline | None = None,
    ) -> None:
        self.total_seconds = total_seconds
        self._first = first_chunk_seconds
        self.idle_seconds = idle_seconds
        self.chunks = 0
        self.content_at: float | None = None
        self.inherited = inherited

    def received(self, chunk: Any, waited_seconds: float) -> None:
        """Counts a chunk; one with content restarts the idle clock."""
        self.chunks += 1
        if is_content(chunk):
            self.content_at = waited_seconds

    def next(self, now: float, waited_seconds: float) -> Alarm:
        """The clock that fires first, the total among equals; `now` is on the event loop's clock."""
        kind: TimeoutKind
        kind, limit, left = "total", self.total_seconds, self.total_seconds - waited_seconds
        since = self.content_at
        own = self._first if since is None else self.idle_seconds
        if own is not None and (own_left := own + (since or 0.0) - waited_seconds) < left:
            kind, limit, left = "first_chunk" if since is None else "idle", own, own_left
        if self.inherited is not None and self.inherited.when - now < left:
            left = self.inherited.when - now
            kind, limit = "deadline", left + waited_seconds
        return Alarm(kind, limit, left)


class WatchedRead:
    """Reads a stream to its end for `execute`, so that the clocks of a stream bound the whole answer too.

    Args:
        step: what streams.
        clocks: of the answer.
        began: when the call began, on the event loop's clock.

    Attributes:
        alarm: the clock that `left` was about.
    """

    __slots__ = ("_began", "_loop", "_step", "alarm", "clocks")
    alarm: Alarm

    def __init__(self, step: WorkflowPrimitive[Any, Any], clocks: Clocks, began: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._step = step
        self._began = began
        self.clocks = clocks

    async def read(self, input_data: Any, context: Any) -> Any:
        """Returns what the step's `execute` would."""
        gathered: list[Any] = []
        received, time = self.clocks.received, self._loop.time
        try:
            async with self._step.stream(input_data, context) as chunks:
                async for chunk in chunks:
                    gathered.append(chunk)
                    received(chunk, time() - self._began)
        except Exception as error:
            if gathered:
                mark_begun(error)
            raise
        return self._step.join_chunks(gathered)

    def left(self) -> float:
        """Seconds until a clock may fire; 0 or less when one has fired."""
        now = self._loop.time()
        self.alarm = self.clocks.next(now, now - self._began)
        left, idle = self.alarm.left_seconds, self.clocks.idle_seconds
        # Content that comes meanwhile may set the idle clock to an earlier moment than the one for the first chunk.
        return left if idle is None else min(left, idle)


def timeout_error(
    operation: str,
    alarm: Alarm,
    elapsed_seconds: float,
    cleanup: Cleanup,
    *,
    deadline: Deadline | None = None,
    chunks: int = 0,
) -> PrimitiveTimeoutError:
    """The error for a clock that has fired.

    Args:
        operation: name of the operation.
        alarm: the clock.
        elapsed_seconds: since the call began; for a stream, spent waiting for chunks.
        cleanup: what became of the work.
        deadline: the one that bound the work, to be named by the error if it is what has passed.
        chunks: how many came before a stall.
    """
    kind, limit, _ = alarm
    if kind == "idle":
        return StreamStalledError(operation, limit, elapsed_seconds, chunks=chunks, cleanup=cleanup)
    source: DeadlineSource = "inherited" if kind == "deadline" else "own"
    passed = None if kind == "first_chunk" else deadline
    return PrimitiveTimeoutError(
        operation, limit, elapsed_seconds, kind=kind, cleanup=cleanup, deadline_source=source, deadline=passed
    )


def noticed_inside(task: asyncio.Task[Any], deadline: Deadline) -> Expired | None:
    """How work ended in which another primitive was the first to notice that `deadline` has passed."""
    error = None if task.cancelled() else task.exception()
    if not isinstance(error, PrimitiveTimeoutError) or error.deadline is not deadline:
        return None
    return Expired("clean" if error.cleanup == "refused" else error.cleanup, 0.0, error)
