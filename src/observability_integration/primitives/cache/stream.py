"""Streams from the cache: replays a stored stream, joins one in flight, or starts the call."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any, cast

from msgspec.structs import replace

from observability_integration.caching.codec import Unreadable
from observability_integration.caching.flights.waiting import current, waits_for_itself
from observability_integration.caching.lookup import LookupResult
from observability_integration.caching.streams.broadcast import LATE, Broadcast, Listener
from observability_integration.caching.streams.replay import Replay
from observability_integration.context import Deadline, bounded_by
from observability_integration.errors import PrimitiveTimeoutError, StreamInterruptedError
from observability_integration.primitives.base import ChunkStream, check_time_left
from observability_integration.primitives.streams import ObservedStream, Outcome
from observability_integration.tasks import wait_done
from observability_integration.telemetry.tracing import spans
from observability_integration.telemetry.tracing.spans import OperationSpan

from .identity import bypass_reason
from .streams import StreamCache, StreamCall, stream_digest


class CachedStream(ObservedStream):
    """The stream of one reader, looked up when it is opened. Made by `CachePrimitive.stream`.

    Args:
        streams: the streams of the cache.
        call: the call to look up.
    """

    def __init__(self, streams: StreamCache, call: StreamCall) -> None:
        super().__init__(streams.operation, call.context)
        self._streams = streams
        self._call = call
        self._deadline: Deadline | None = None
        self._opened = 0.0
        self._chunks = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._source: Replay | Listener | None = None
        self._listener: Listener | None = None
        self._inner: ChunkStream | None = None
        self._inner_chunks: AsyncIterator[Any] | None = None

    def _check_time(self) -> None:
        """Refuses nothing: a hit starts no work."""

    def _begin(self) -> OperationSpan:
        return spans.begin(self._streams.span_name, self._call.context)

    async def _open(self) -> None:
        streams, call = self._streams, self._call
        self._loop = asyncio.get_running_loop()
        self._opened = self._loop.time()
        self._deadline = bounded_by(call.context)
        started = time.perf_counter()
        try:
            identity = await call.identify()
        except Exception as error:  # noqa: BLE001 - the user's function must not fail the user's call
            await self._bypass(bypass_reason(error, streams.operation))
            return
        reason = call.refuses()
        if reason is not None:
            await self._bypass(reason)
            return
        digest, tags = stream_digest(identity.digest), identity.tags
        while await self._find(digest, tags, started):
            pass

    async def _find(self, digest: bytes, tags: Sequence[str], started: float) -> bool:
        """Finds the chunks: a recording, a stream in flight or a call; returns whether the reader has to look again."""
        streams, call, span = self._streams, self._call, self._span
        served = await streams.recall(digest, tags, call, span, started)
        if served is not None:
            self._replay(served, started)
            return False
        broadcast = streams.running(digest)
        if broadcast is not None and broadcast.unrecorded_reason is not None:
            await self._bypass("uncopyable")
            return False
        if broadcast is not None and waits_for_itself(broadcast.node, current()):
            await self._bypass("reentrant")
            return False
        leading = broadcast is None
        if leading:
            check_time_left(streams.operation, call.context)
        if broadcast is None:
            broadcast = streams.start(digest, tags, call, span, started)
        else:
            spans.tracing.link(span, broadcast.span)
        self._source = self._listener = broadcast.join()
        looked_seconds = time.perf_counter() - started
        try:
            await self._wait_for_start(broadcast)
            if broadcast.look_again:
                self._listener.leave()
                return True
        except Exception:
            span.set_attribute("cache.hit", False)
            if not leading:
                streams.record.miss("failed", looked_seconds, span)
            raise
        served = broadcast.stored
        if leading and served is None:
            span.set_attribute("cache.hit", False)
        elif leading and served is not None:
            self._replay(served, started)
        else:
            # The wait for the call is no part of the lookup.
            self._record_join(broadcast, served, time.perf_counter() - looked_seconds)
        return False

    async def _wait_for_start(self, broadcast: Broadcast) -> None:
        while not broadcast.settled:
            if not await broadcast.changed(self._deadline):
                raise self._timeout_error()
        if not broadcast.count and broadcast.error is not None and not broadcast.look_again:
            raise broadcast.error

    def _replay(self, served: LookupResult, started: float) -> None:
        self._source = self._streams.replay(served.value)
        self._streams.record.hit(self._span, started, self._call.cost_usd, served)

    def _record_join(self, broadcast: Broadcast, shared: LookupResult | None, started: float) -> None:
        if shared is None:
            age_seconds = time.monotonic() - broadcast.began
            served = LookupResult(None, "flight", "coalesced", age_seconds)
        else:
            self._source = self._streams.replay(shared.value)
            served = replace(shared, tier="flight", freshness="stale" if shared.freshness == "stale" else "coalesced")
        self._streams.record.hit(self._span, started, self._call.cost_usd, served)

    async def _bypass(self, reason: str) -> None:
        check_time_left(self._streams.operation, self._context)
        self._streams.record.bypass(self._span, reason)
        inner = self._call.source(False)
        self._inner_chunks = aiter(await inner.__aenter__())
        self._inner = inner

    async def _next(self) -> Any:
        if self._inner_chunks is not None:
            return await anext(self._inner_chunks)
        try:
            chunk = await cast("Replay | Listener", self._source).next(self._deadline)
        except Unreadable as error:
            raise StreamInterruptedError(self._streams.operation, self._chunks, "unreadable") from error.__cause__
        if chunk is LATE:
            raise self._timeout_error()
        self._chunks += 1
        return chunk

    def _timeout_error(self) -> PrimitiveTimeoutError:
        deadline, loop = cast("Deadline", self._deadline), cast("asyncio.AbstractEventLoop", self._loop)
        limit, elapsed = deadline.when - self._opened, loop.time() - self._opened
        return PrimitiveTimeoutError(
            self._streams.operation, limit, elapsed, kind="deadline", deadline_source="inherited", deadline=deadline
        )

    async def _close(self) -> None:
        listener = self._listener
        if listener is not None:
            listener.leave()
            pump = listener.cancelled_pump()
            if pump is not None:  # the last reader waits for the close, as long as its deadline allows
                await wait_done(pump, None if self._deadline is None else self._deadline.remaining())
        if self._inner is not None:
            await self._inner.__aexit__(None, None, None)

    def _record(self, outcome: Outcome, error: BaseException | None) -> None:
        listener, loop = self._listener, self._loop
        if listener is None or loop is None:
            return
        if outcome != "abandoned":
            listener.leave()
            return
        with contextlib.suppress(RuntimeError):  # the loop is closed, and the call ended with it
            loop.call_soon_threadsafe(listener.leave)  # a finaliser may run in any thread
