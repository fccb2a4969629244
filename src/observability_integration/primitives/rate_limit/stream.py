"""How a rate limiter streams: it reserves when the stream is opened, and settles when it has ended."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from observability_integration.costs.usage import Usage, usage_of
from observability_integration.primitives.base import ChunkStream
from observability_integration.primitives.streams import ObservedStream, Outcome
from observability_integration.telemetry.guard import note_fault
from observability_integration.telemetry.tracing.spans import OperationSpan

from .wait_queue import Reservation


class RateLimitStream(ObservedStream):
    """The wrapped primitive's stream, under a reservation. Made by `RateLimitPrimitive.stream`.

    Args:
        begin: begins the span.
        admit: reserves, given the span.
        start: makes the wrapped stream.
        ended: settles: the reservation, tokens used (None if unknown), and the error it ended with.
    """

    def __init__(
        self,
        begin: Callable[[], OperationSpan],
        admit: Callable[[OperationSpan], Awaitable[Reservation]],
        start: Callable[[], ChunkStream],
        ended: Callable[[Reservation, int | None, BaseException | None], None],
    ) -> None:
        self._begin_span = begin
        self._admit = admit
        self._start = start
        self._ended = ended
        self._reservation: Reservation | None = None
        self._inner: ChunkStream | None = None
        self._chunks: Any = None
        self._usage = Usage()

    def _begin(self) -> OperationSpan:
        return self._begin_span()

    async def _open(self) -> None:
        self._reservation = await self._admit(self._span)
        inner = self._start()
        self._chunks = await inner.__aenter__()
        self._inner = inner

    async def _next(self) -> Any:
        chunk = await anext(self._chunks)
        if not isinstance(chunk, str | bytes):
            try:
                self._usage = self._usage.merged(usage_of(chunk))
            except Exception as error:  # noqa: BLE001 - reading an odd chunk must not fail the call
                note_fault("rate_limit.usage", error)
        return chunk

    async def _close(self) -> None:
        if self._inner is not None:
            await self._inner.__aexit__(None, None, None)

    def _record(self, outcome: Outcome, error: BaseException | None) -> None:
        if self._reservation is None:
            return
        # What was reported before the end is not yet all: a stream that was left keeps at least what was reserved.
        tokens = (self._usage.input_tokens or 0) + (self._usage.output_tokens or 0)
        if outcome != "success" and tokens < self._reservation.tokens:
            tokens = 0
        self._ended(self._reservation, tokens or None, error)
