"""The streams of one cache: those that are kept, and those that are under way.

A stream is run by a task that no reader owns, without any reader's deadline: a reader who breaks off, or whose time is
up, leaves alone. When the last one has left, the stream is cancelled. Only a stream that ended whole is kept.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from hashlib import blake2b
from typing import Any, NamedTuple
from weakref import WeakSet

from observability_integration.caching.engine import Engine
from observability_integration.caching.entry_options import entry_options
from observability_integration.caching.lookup import Lookup, LookupResult
from observability_integration.caching.policy import CachePolicy
from observability_integration.caching.streams.broadcast import Broadcast
from observability_integration.caching.streams.recording import ChunkCodec, Recording
from observability_integration.caching.streams.replay import Replay
from observability_integration.context import WorkflowContext, set_deadline
from observability_integration.errors import StreamInterruptedError
from observability_integration.primitives.base import ChunkStream
from observability_integration.tasks import cancel_until_done, spawn, wait_done
from observability_integration.telemetry.guard import note_fault
from observability_integration.telemetry.tracing.spans import OperationSpan

from .identity import Identity
from .record import CacheRecord
from .stream_ending import StreamEnding

_CLOSING_SECONDS = 5.0  # that a stream has to close before it is cancelled again, should it have lost the first time


class StreamCall(NamedTuple):
    """What a cache is asked to stream.

    Attributes:
        identify: under which key, and with which tags.
        source: opens the stream that is cached; told whether it belongs to no caller, so that no deadline applies.
        refuses: why nothing that is asked for may be kept, or None.
        judge: given the answer, the tokens that a hit on it saves, and why it must not be kept, or None.
        context: of the caller.
        cost_usd: that a hit saves.
    """

    identify: Callable[[], Awaitable[Identity]]
    source: Callable[[bool], ChunkStream]
    refuses: Callable[[], str | None]
    judge: Callable[[Any], tuple[int, str | None]]
    context: WorkflowContext | None
    cost_usd: float


def stream_digest(digest: bytes) -> bytes:
    """The hash under which the stream of an input stands, apart from its answer in one piece."""
    return blake2b(digest + b"stream", digest_size=32).digest()


class StreamCache:
    """The streams of one cache.

    Args:
        operation: name for spans and errors.
        engine: looks them up and keeps them.
        record: counts them.
        policy: bounds, and how they are replayed.
        chunks: keeps their chunks.
    """

    def __init__(
        self, operation: str, engine: Engine, record: CacheRecord, policy: CachePolicy, chunks: ChunkCodec
    ) -> None:
        self.operation = operation
        self.span_name = f"cache {operation}"
        self.record = record
        self._engine = engine
        self._chunks = chunks
        self._max_bytes = policy.max_value_bytes
        self._pace = policy.stream_replay_pace
        self._linger_seconds = policy.background_seconds
        self._running: dict[tuple[asyncio.AbstractEventLoop, bytes], Broadcast] = {}
        self._pumps: WeakSet[asyncio.Task[Any] | None] = WeakSet()

    def recall(
        self, digest: bytes, tags: Sequence[str], call: StreamCall, span: OperationSpan, started: float
    ) -> LookupResult | None:
        """What memory has, if it is a recording."""
        served = self._engine.serve_from_memory(self._ask(digest, tags, call, span, started, None))
        return served if served is not None and isinstance(served.value, Recording) else None

    def replay(self, recording: Recording) -> Replay:
        """A replay for one reader."""
        return Replay(recording, self._chunks, self._pace)

    def running(self, digest: bytes) -> Broadcast | None:
        """The stream that is under way in this event loop, unless it was invalidated meanwhile."""
        broadcast = self._running.get((asyncio.get_running_loop(), digest))
        if broadcast is None or broadcast.pump is None:
            return broadcast
        return broadcast if broadcast.pump is self._engine.flight_task(digest, broadcast.tags) else None

    def start(
        self, digest: bytes, tags: Sequence[str], call: StreamCall, span: OperationSpan, started: float
    ) -> Broadcast:
        """Looks the stream up in the shared store, and makes the call if it is not there."""
        broadcast = self._announce(digest, span)
        lookup = self._ask(digest, tags, call, span, started, broadcast)
        lookup.stream_started = broadcast.started
        task = spawn(self._obtain(broadcast, lookup), name="cached stream")

        def desert() -> None:
            broadcast.cancelled = True
            broadcast.fail(self._cancelled(broadcast))
            task.cancel()
            if broadcast.pump is not None:
                cancel_until_done(broadcast.pump, _CLOSING_SECONDS)
            elif self._engine.flight_task(digest) not in self._pumps:  # else others read what this one waited for
                self._engine.cancel_flight(digest)

        broadcast.on_last_reader_left = desert
        return broadcast

    def _announce(self, digest: bytes, span: OperationSpan) -> Broadcast:
        here = asyncio.get_running_loop(), digest

        def end() -> None:
            if self._running.get(here) is broadcast:
                del self._running[here]

        broadcast = self._running[here] = Broadcast(self._chunks, self._max_bytes, span, end)
        return broadcast

    def _ask(
        self,
        digest: bytes,
        tags: Sequence[str],
        call: StreamCall,
        span: OperationSpan,
        started: float,
        broadcast: Broadcast | None,
    ) -> Lookup:
        async def compute(refreshing: bool) -> Recording | str:
            # A refresh has no readers at first, but whoever finds the old stream expired may join it.
            if not refreshing and broadcast is not None:
                return await self._pump(call, broadcast)
            refreshed = self._announce(digest, span)
            try:
                return await self._pump(call, refreshed)
            finally:
                refreshed.finish()

        def judge(made: Any) -> tuple[int, str | None]:
            return (made.tokens, made.refusal) if isinstance(made, Recording) else (0, made)

        return Lookup(digest, compute, span, started, self.record.miss, tags, judge)

    async def _obtain(self, broadcast: Broadcast, lookup: Lookup) -> None:
        set_deadline(None)  # each reader minds its own
        try:
            served = await self._engine.fetch_or_compute(lookup)
            if broadcast.settled or served.tier == "call":
                lookup.miss("expired")  # unless it was counted when the call began
            elif isinstance(served.value, Recording):
                broadcast.serve(served)
            else:  # it joined an equal call, whose stream could not be recorded
                lookup.miss("failed")
                await lookup.compute(False)
        except BaseException as error:
            if not broadcast.settled:  # else the stream goes on, or has told its readers itself
                broadcast.fail(error if isinstance(error, Exception) else self._cancelled(broadcast))
            if not isinstance(error, Exception):
                raise
        if broadcast.pump is not None and broadcast.pump is not asyncio.current_task():
            await wait_done(broadcast.pump, None)
        broadcast.finish()  # now that it is kept: who has read to the end finds it wherever it looks

    async def _pump(self, call: StreamCall, broadcast: Broadcast) -> Recording | str:
        """Runs the stream; returns the recording, or why there is none."""
        if broadcast.cancelled:
            raise asyncio.CancelledError
        if broadcast.pump is not None:  # that one was cancelled from elsewhere; no second stream follows upon the first
            raise self._cancelled(broadcast)
        broadcast.pump = asyncio.current_task()
        broadcast.tags = entry_options().tags
        self._pumps.add(broadcast.pump)
        ending = StreamEnding()
        try:
            async with call.source(True) as chunks:
                async for chunk in chunks:
                    self._note(ending, chunk)
                    if ending.is_whole:
                        self._outlive_readers(broadcast)
                    await broadcast.push(chunk)
                    if not broadcast.wanted:
                        break
        except BaseException as error:
            if not isinstance(error, Exception):
                broadcast.fail(self._cancelled(broadcast))
            elif broadcast.count:  # else there may be something else to serve
                broadcast.fail(error)
            raise
        self._outlive_readers(broadcast)
        return broadcast.unrecorded_reason or self._judged(call, broadcast, ending)

    def _outlive_readers(self, broadcast: Broadcast) -> None:
        """The answer is whole: who leaves now has all of it, and what is left to be done is to keep it."""

        def linger() -> None:
            pump = broadcast.pump
            if pump is not None and not pump.done():
                timer = pump.get_loop().call_later(self._linger_seconds, cancel_until_done, pump)
                pump.add_done_callback(lambda _: timer.cancel())

        if broadcast.on_last_reader_left is not None:
            broadcast.on_last_reader_left = linger

    def _cancelled(self, broadcast: Broadcast) -> StreamInterruptedError:
        return StreamInterruptedError(self.operation, broadcast.count, "cancelled")

    def _note(self, ending: StreamEnding, chunk: Any) -> None:
        try:
            ending.note(chunk)
        except Exception as error:  # noqa: BLE001 - reading an odd chunk must not fail the call
            note_fault("cache.chunk", error)

    def _judged(self, call: StreamCall, broadcast: Broadcast, ending: StreamEnding) -> Recording:
        try:
            tokens, refusal = call.judge(ending.answer(broadcast.recorded))
        except Exception as error:  # noqa: BLE001 - nor must judging the answer
            note_fault("cache.chunk", error)
            tokens, refusal = 0, "truncated"
        return broadcast.recording(tokens, "truncated" if ending.cut_off else refusal)
