"""The streams of one cache: stored ones and those in flight.

A background task runs a stream without the deadline of any reader, so a reader that leaves or times out does not stop
the others. The stream is cancelled when the last reader has left. Only a stream that ended complete is stored.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from hashlib import blake2b
from typing import Any, NamedTuple
from weakref import WeakSet

from observability_integration.caching.engine import Engine
from observability_integration.caching.entry_options import entry_options
from observability_integration.caching.flights.waiting import begin_wait, current, end_wait, enter
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

_CLOSING_SECONDS = 5.0  # until a stream that has not closed is cancelled again: our choice


class StreamCall(NamedTuple):
    """A call that streams.

    Attributes:
        identify: returns the key and the tags.
        source: opens the stream; given whether it runs detached from the caller, without its deadline.
        refuses: returns why no answer to the request may be stored, or None.
        judge: given the answer, returns the tokens that a hit saves, and why the answer must not be stored, or None.
        context: context of the caller.
        cost_usd: USD that a hit saves.
    """

    identify: Callable[[], Awaitable[Identity]]
    source: Callable[[bool], ChunkStream]
    refuses: Callable[[], str | None]
    judge: Callable[[Any], tuple[int, str | None]]
    context: WorkflowContext | None
    cost_usd: float


def _cancellations(task: asyncio.Task[Any] | None) -> int:
    return 0 if task is None else task.cancelling()


def stream_digest(digest: bytes) -> bytes:
    """Returns the hash of the stream of an input, distinct from that of its whole answer."""
    return blake2b(digest + b"stream", digest_size=32).digest()


class StreamCache:
    """The streams of one cache.

    Args:
        operation: name for spans and errors.
        engine: looks streams up and stores them.
        record: counts the lookups.
        policy: bounds, and the pace of replays.
        chunks: copies the chunks to store.
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

    async def recall(
        self, digest: bytes, tags: Sequence[str], call: StreamCall, span: OperationSpan, started: float
    ) -> LookupResult | None:
        """Returns the entry in memory, if it is a recording that may be served at once."""
        lookup = self._lookup(digest, tags, call, span, started, None)
        served = self._engine.serve_from_memory(lookup) or await self._engine.serve_confirmed(lookup)
        return served if served is not None and isinstance(served.value, Recording) else None

    def replay(self, recording: Recording) -> Replay:
        """Returns a replay for one reader."""
        return Replay(recording, self._chunks, self._pace)

    def running(self, digest: bytes) -> Broadcast | None:
        """Returns the stream in flight in this event loop, unless it was invalidated since its start."""
        broadcast = self._running.get((asyncio.get_running_loop(), digest))
        if broadcast is None or broadcast.pump is None:
            return broadcast
        return broadcast if broadcast.pump is self._engine.flight_task(digest, broadcast.tags) else None

    def start(
        self, digest: bytes, tags: Sequence[str], call: StreamCall, span: OperationSpan, started: float
    ) -> Broadcast:
        """Looks the stream up in the shared store, and makes the call on a miss."""
        broadcast = self._new_broadcast(digest, span)
        lookup = self._lookup(digest, tags, call, span, started, broadcast)
        lookup.stream_started = broadcast.started
        waiting = begin_wait(broadcast.node)  # an eager task runs before its reader can wait for it
        try:
            task = spawn(self._run_lookup(broadcast, lookup), name="cached stream")
        finally:
            end_wait(waiting, broadcast.node)

        def cancel() -> None:
            broadcast.cancelled = True
            broadcast.fail(self._cancelled(broadcast))
            task.cancel()
            if broadcast.pump is not None and broadcast.pump is self._engine.flight_task(digest):
                self._engine.cancel_flight(digest, _CLOSING_SECONDS)
            elif broadcast.pump is not None:
                cancel_until_done(broadcast.pump, _CLOSING_SECONDS)
            elif self._engine.flight_task(digest) not in self._pumps:  # else it waits for another stream's call
                self._engine.cancel_flight(digest)

        broadcast.on_last_reader_left = cancel
        return broadcast

    def _new_broadcast(self, digest: bytes, span: OperationSpan) -> Broadcast:
        here = asyncio.get_running_loop(), digest

        def end() -> None:
            if self._running.get(here) is broadcast:
                del self._running[here]

        broadcast = self._running[here] = Broadcast(self._chunks, self._max_bytes, span, end)
        return broadcast

    def _lookup(
        self,
        digest: bytes,
        tags: Sequence[str],
        call: StreamCall,
        span: OperationSpan,
        started: float,
        broadcast: Broadcast | None,
    ) -> Lookup:
        async def compute(refreshing: bool) -> Recording | str:
            # A refresh has no readers at first; a reader that finds the old stream expired may join it.
            if not refreshing and broadcast is not None:
                return await self._pump(call, broadcast)
            refreshed = self._new_broadcast(digest, span)
            refreshed.node = current() or refreshed.node  # the flight in which this runs
            try:
                made = await self._pump(call, refreshed)
            except BaseException as error:
                # The readers who joined get this end too: without a chunk they look again, as other callers do.
                refreshed.look_again = refreshed.count == 0
                refreshed.fail(error if isinstance(error, Exception) else self._cancelled(refreshed))
                raise
            refreshed.finish()
            return made

        def judge(made: Any) -> tuple[int, str | None]:
            return (made.tokens, made.refusal) if isinstance(made, Recording) else (0, made)

        return Lookup(digest, compute, span, started, self.record.miss, tags, judge)

    async def _run_lookup(self, broadcast: Broadcast, lookup: Lookup) -> None:
        set_deadline(None)  # each reader applies its own deadline
        enter(broadcast.node)
        try:
            served = await self._engine.fetch_or_compute(lookup)
            if broadcast.settled or served.tier == "call":
                lookup.miss("expired")  # does nothing if the start of the call counted it
            elif isinstance(served.value, Recording):
                broadcast.serve(served)
            else:  # joined an equal call whose stream could not be recorded, or which waits for this one
                if served.tier == "reentrant":
                    self.record.bypass(lookup.span, served.tier)
                else:
                    lookup.miss("failed")
                await lookup.compute(False)
        except BaseException as error:
            if not broadcast.settled:  # else the stream runs on, or has failed its readers itself
                broadcast.fail(error if isinstance(error, Exception) else self._cancelled(broadcast))
            if not isinstance(error, Exception):
                raise
        if broadcast.pump is not None and broadcast.pump is not asyncio.current_task():
            await wait_done(broadcast.pump, None)
        broadcast.finish()  # after the store, so that a reader at the end finds the stream there

    async def _pump(self, call: StreamCall, broadcast: Broadcast) -> Recording | str:
        """Runs the stream; returns the recording, or the reason why there is none."""
        if broadcast.cancelled:
            raise asyncio.CancelledError
        if broadcast.pump is not None:  # cancelled from outside: readers must not get a second stream after the first
            raise self._cancelled(broadcast)
        broadcast.pump = asyncio.current_task()
        broadcast.tags = entry_options().tags
        self._pumps.add(broadcast.pump)
        ending, cancelled = StreamEnding(), _cancellations(broadcast.pump)
        try:
            async with call.source(True) as chunks:
                async for chunk in chunks:
                    self._note(ending, chunk)
                    if ending.is_complete:
                        self._finish_without_readers(broadcast)
                    await broadcast.push(chunk)
                    if not broadcast.wanted:
                        break
        except BaseException as error:
            if not isinstance(error, Exception):
                broadcast.fail(self._cancelled(broadcast))
            elif broadcast.count:  # else a stale stream may still be served
                broadcast.fail(error)
            raise
        if _cancellations(broadcast.pump) > cancelled and not ending.is_complete:
            broadcast.fail(self._cancelled(broadcast))  # a source that ends when it is cancelled has not told all
            raise asyncio.CancelledError
        self._finish_without_readers(broadcast)
        return broadcast.unrecorded_reason or self._recording(call, broadcast, ending)

    def _finish_without_readers(self, broadcast: Broadcast) -> None:
        """Lets the stream end without readers: the answer is complete, and only its store remains."""

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
        except Exception as error:  # noqa: BLE001 - a chunk that cannot be read must not fail the call
            note_fault("cache.chunk", error)

    def _recording(self, call: StreamCall, broadcast: Broadcast, ending: StreamEnding) -> Recording:
        try:
            tokens, refusal = call.judge(ending.answer(broadcast.recorded))
        except Exception as error:  # noqa: BLE001 - nor must an answer
            note_fault("cache.chunk", error)
            tokens, refusal = 0, "truncated"
        return broadcast.recording(tokens, "truncated" if ending.cut_off else refusal)
