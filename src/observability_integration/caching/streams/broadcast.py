"""One running stream for many readers: each gets every chunk from the first on, at its own pace.

While the stream is recorded it runs ahead of its readers, as its chunks are kept anyway: a slow reader delays neither
the producer nor the other readers. A stream that becomes too large to record keeps no more chunks and takes no more
readers; from then on it waits for its slowest reader.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from observability_integration.caching.codec import Uncopyable
from observability_integration.caching.flights.waiting import CallNode, begin_wait, end_wait
from observability_integration.caching.lookup import LookupResult
from observability_integration.context import Deadline
from observability_integration.tasks import wait_done

from .recording import ChunkCodec, Recorder, Recording, StoredChunk

LATE: Final[Any] = object()  # the reader's deadline passed before the next chunk

_MAX_AHEAD = 64  # chunks by which an unrecorded stream may be ahead of its slowest reader
_TAKEN: Final[Any] = object()


class _Slot:
    # The first reader takes the chunk itself, the others get copies of the kept one.
    __slots__ = ("chunk", "kept")

    def __init__(self, chunk: Any, kept: StoredChunk | None) -> None:
        self.chunk = chunk
        self.kept = kept


class Listener:
    """One reader of a broadcast. Made by `Broadcast.join`.

    Attributes:
        position: number of chunks read.
    """

    __slots__ = ("_broadcast", "position", "waiting")

    def __init__(self, broadcast: Broadcast) -> None:
        self._broadcast = broadcast
        self.position = 0
        self.waiting = begin_wait(broadcast.node)

    async def next(self, deadline: Deadline | None) -> Any:
        """Returns the next chunk, or `LATE` when the deadline passes first.

        Raises:
            StopAsyncIteration: the stream has ended.
            BaseException: the stream has failed, and this reader has had all its chunks.
        """
        broadcast = self._broadcast
        while broadcast.count == self.position:
            if broadcast.ended:
                if broadcast.error is not None:
                    raise broadcast.error
                raise StopAsyncIteration
            if not await broadcast.changed(deadline):
                return LATE
        return broadcast.take(self)

    def leave(self) -> None:
        """Removes this reader; may be called again."""
        self._broadcast.leave(self)

    def cancelled_pump(self) -> asyncio.Task[Any] | None:
        """The task of the stream, if it is being cancelled because the last reader has left."""
        return self._broadcast.pump if self._broadcast.cancelled else None


class Broadcast:
    """A running stream in one event loop.

    Args:
        chunks: stores and restores the chunks.
        max_bytes: a larger stream is not recorded.
        span: span of the first reader, for the others to link to.
        on_end: called when the stream ends.

    Attributes:
        on_last_reader_left: called when the last reader leaves before the end.
        cancelled: whether the stream is being cancelled because the last reader has left.
        pump: the task that runs the stream; None until it starts.
        tags: tags of the entry, as far as they are known.
        started: done when the first chunk arrives, a recording is found, or the stream ends.
        count: number of chunks so far.
        ended: whether the stream has ended.
        error: the error of a failed stream.
        look_again: whether the readers have to look again, because a refresh in the background failed without a chunk.
        stored: a recording that was found in place of the call; there are no chunks then.
        began: when the stream began, by the monotonic clock.
        node: the call, among those that wait for each other.
    """

    def __init__(self, chunks: ChunkCodec, max_bytes: int, span: Any, on_end: Callable[[], None]) -> None:
        self.span = span
        self.on_last_reader_left: Callable[[], None] | None = None
        self.cancelled = False
        self.pump: asyncio.Task[Any] | None = None
        self.tags: Sequence[str] = ()
        self.count = 0
        self.ended = False
        self.error: BaseException | None = None
        self.look_again = False
        self.stored: LookupResult | None = None
        self.began = time.monotonic()
        self.node = CallNode()
        self._loop = asyncio.get_running_loop()
        self.started: asyncio.Future[None] = self._loop.create_future()
        self._chunks = chunks
        self._recorder = Recorder(chunks, max_bytes)
        self._slots: list[_Slot] = []
        self._dropped = 0
        self._listeners: set[Listener] = set()
        self._change: asyncio.Future[None] | None = None  # the next chunk, or the end
        self._room: asyncio.Future[None] | None = None
        self._on_end = on_end

    # For the producer -----------------------------------------------------------------------------------------------

    async def push(self, chunk: Any) -> None:
        """Passes one more chunk to all readers; waits for the slowest of them if the stream is not recorded."""
        kept = self._recorder.record(chunk, self._loop.time())
        if self.ended:
            return
        if kept is None and len(self._listeners) > 1:
            with contextlib.suppress(Uncopyable):  # then all readers share one chunk
                kept = self._chunks.keep(chunk)
        self._slots.append(_Slot(chunk, kept))
        self.count += 1
        self._notify()
        while self._recorder.unrecorded_reason is not None and self._listeners and self._ahead() > _MAX_AHEAD:
            self._room = self._loop.create_future()
            await self._room

    def finish(self) -> None:
        """Ends the stream."""
        self._end()

    def fail(self, error: BaseException) -> None:
        """Ends the stream with an error, which each reader gets after the chunks so far."""
        if not self.ended:
            self.error = error
            self._end()

    def serve(self, stored: LookupResult) -> None:
        """Ends the stream with a recording for each reader to replay; without effect after the first chunk."""
        if not self.settled:
            self.stored = stored
            self._end()

    def _end(self) -> None:
        if not self.ended:
            self.ended = True
            self._notify()
            self._on_end()

    @property
    def settled(self) -> bool:
        """Whether the stream has started, ended or failed, or a recording was found."""
        return self.started.done()

    @property
    def unrecorded_reason(self) -> str | None:
        """Why the stream is not recorded, or None."""
        return self._recorder.unrecorded_reason

    @property
    def wanted(self) -> bool:
        """Whether to go on: the stream is recorded, or has readers."""
        return self._recorder.unrecorded_reason is None or (bool(self._listeners) and not self.ended)

    def recorded(self) -> list[Any]:
        """Copies of the chunks so far; empty if the stream is not recorded."""
        return list(self._recorder)

    def recording(self, tokens: int, refusal: str | None) -> Recording:
        """The recording of the ended stream."""
        return self._recorder.recording(tokens, refusal)

    # For readers ----------------------------------------------------------------------------------------------------

    def join(self) -> Listener:
        """Adds a reader, from the first chunk on. Must not be called when the stream is not recorded."""
        listener = Listener(self)
        self._listeners.add(listener)
        return listener

    async def changed(self, deadline: Deadline | None) -> bool:
        """Waits for the next chunk or the end; False if the deadline passes first."""
        if self._change is None:
            self._change = self._loop.create_future()
        return await wait_done(self._change, None if deadline is None else deadline.remaining())

    def take(self, listener: Listener) -> Any:
        """Returns the chunk at the listener's position, and advances the position."""
        slot = self._slots[listener.position - self._dropped]
        listener.position += 1
        chunk = slot.chunk
        if slot.kept is not None:
            slot.chunk = _TAKEN
            if chunk is _TAKEN:
                chunk = self._chunks.restore(slot.kept)
        self._trim()
        return chunk

    def leave(self, listener: Listener) -> None:
        """See `Listener.leave`."""
        if listener not in self._listeners:
            return
        self._listeners.discard(listener)
        end_wait(listener.waiting, self.node)
        self._trim()
        if not self._listeners and not self.ended and self.on_last_reader_left is not None:
            self.on_last_reader_left()

    def _ahead(self) -> int:
        return self.count - min(listener.position for listener in self._listeners)

    def _trim(self) -> None:
        if self._recorder.unrecorded_reason is None:
            return
        read = self.count - self._ahead() if self._listeners else self.count
        del self._slots[: read - self._dropped]
        self._dropped = read
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    def _notify(self) -> None:
        if not self.started.done():
            self.started.set_result(None)
        change, self._change = self._change, None
        if change is not None:
            change.set_result(None)
