"""One running stream for many readers: each gets every chunk from the first one on, at a pace of its own.

The stream runs ahead of its readers as long as it is being recorded: what they have not read yet is kept anyway, and
the producer is not held up by a reader who thinks, nor are the other readers. A stream that turns out to be too large
to be recorded is not kept any more, and nobody can join it; it then waits for the slowest of its readers.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

from observability_integration.caching.codec import Uncopyable
from observability_integration.caching.lookup import Served
from observability_integration.context import Deadline
from observability_integration.tasks import wait_done

from .recording import Chunks, KeptChunk, Recorder, Recording

LATE: Final[Any] = object()  # the reader's time was up before there was a chunk

_MAX_AHEAD = 64  # chunks that a stream which is not recorded may be ahead of its slowest reader
_TAKEN: Final[Any] = object()


class _Slot:
    # The first reader to come by takes the chunk itself, the others get what was kept of it.
    __slots__ = ("chunk", "kept")

    def __init__(self, chunk: Any, kept: KeptChunk | None) -> None:
        self.chunk = chunk
        self.kept = kept


class Listener:
    """One reader's place in a broadcast. Made by `Broadcast.join`.

    Attributes:
        position: how many chunks it has had.
    """

    __slots__ = ("_broadcast", "position")

    def __init__(self, broadcast: Broadcast) -> None:
        self._broadcast = broadcast
        self.position = 0

    async def next(self, deadline: Deadline | None) -> Any:
        """The next chunk, or `LATE`; the error of the stream when all that came before it has been had.

        Raises:
            StopAsyncIteration: the stream has ended.
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
        """Wants no more chunks."""
        self._broadcast.leave(self)

    def left_alone(self) -> asyncio.Task[Any] | None:
        """What is being cancelled because nobody wants any more chunks."""
        return self._broadcast.pump if self._broadcast.deserted else None


class Broadcast:
    """A stream under way, in one event loop.

    Args:
        chunks: keeps the chunks.
        max_bytes: a stream that is larger is not recorded.
        span: of the reader who started it, for the others to link to.
        on_end: called when it ends.

    Attributes:
        on_deserted: called when its last reader has left before that.
        deserted: whether it is being cancelled for that.
        pump: the task that runs it, once it does.
        tags: of its entry, as far as they are known.
        begun: done when there is a first chunk, or never will be.
        count: chunks so far.
        ended: nothing more will come.
        error: how it failed.
        served: what was found instead of making the call; there are no chunks then.
        began: when, by the monotonic clock.
    """

    def __init__(self, chunks: Chunks, max_bytes: int, span: Any, on_end: Callable[[], None]) -> None:
        self.span = span
        self.on_deserted: Callable[[], None] | None = None
        self.deserted = False
        self.pump: asyncio.Task[Any] | None = None
        self.tags: Sequence[str] = ()
        self.count = 0
        self.ended = False
        self.error: BaseException | None = None
        self.served: Served | None = None
        self.began = time.monotonic()
        self._loop = asyncio.get_running_loop()
        self.begun: asyncio.Future[None] = self._loop.create_future()
        self._chunks = chunks
        self._recorder = Recorder(chunks, max_bytes)
        self._slots: list[_Slot] = []
        self._dropped = 0
        self._listeners: set[Listener] = set()
        self._change: asyncio.Future[None] | None = None  # the next chunk, or the end
        self._room: asyncio.Future[None] | None = None
        self._on_end = on_end

    # For the one who runs it ----------------------------------------------------------------------------------------

    async def push(self, chunk: Any) -> None:
        """Gives all readers one more chunk; waits for the slowest of them if the stream is not recorded."""
        kept = self._recorder.record(chunk, self._loop.time())
        if self.ended:
            return
        if kept is None and len(self._listeners) > 1:
            with contextlib.suppress(Uncopyable):  # all have the same one then: better than none
                kept = self._chunks.keep(chunk)
        self._slots.append(_Slot(chunk, kept))
        self.count += 1
        self._tell()
        while self._recorder.lost is not None and self._listeners and self._ahead() > _MAX_AHEAD:
            self._room = self._loop.create_future()
            await self._room

    def finish(self) -> None:
        """The stream has ended as it should."""
        self._end()

    def fail(self, error: BaseException) -> None:
        """The stream has failed; who has had all chunks until then is told."""
        if not self.ended:
            self.error = error
            self._end()

    def serve(self, served: Served) -> None:
        """A recording was found, for each reader to replay; of no effect once there is a chunk of the stream itself."""
        if not self.settled:
            self.served = served
            self._end()

    def _end(self) -> None:
        if not self.ended:
            self.ended = True
            self._tell()
            self._on_end()

    @property
    def settled(self) -> bool:
        """Whether it is known what this is: a stream that has begun, a recording, or a failure."""
        return self.begun.done()

    @property
    def lost(self) -> str | None:
        """Why the stream is not recorded, or None."""
        return self._recorder.lost

    @property
    def wanted(self) -> bool:
        """Whether there is any use in going on."""
        return self._recorder.lost is None or (bool(self._listeners) and not self.ended)

    def recorded(self) -> list[Any]:
        """Copies of the chunks, unless `lost`."""
        return list(self._recorder)

    def recording(self, tokens: int, refusal: str | None) -> Recording:
        """The recording, once the stream has ended."""
        return self._recorder.recording(tokens, refusal)

    # For readers ----------------------------------------------------------------------------------------------------

    def join(self) -> Listener:
        """A place at the beginning; not to be had when the stream is `lost`."""
        listener = Listener(self)
        self._listeners.add(listener)
        return listener

    async def changed(self, deadline: Deadline | None) -> bool:
        """Waits for the next chunk or the end; False if there is none before the deadline."""
        if self._change is None:
            self._change = self._loop.create_future()
        return await wait_done(self._change, None if deadline is None else deadline.remaining())

    def take(self, listener: Listener) -> Any:
        """The chunk at the listener's position, which moves on."""
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
        """See `Listener.leave`; may be called again."""
        if listener not in self._listeners:
            return
        self._listeners.discard(listener)
        self._trim()
        if not self._listeners and not self.ended and self.on_deserted is not None:
            self.on_deserted()

    def _ahead(self) -> int:
        return self.count - min(listener.position for listener in self._listeners)

    def _trim(self) -> None:
        if self._recorder.lost is None:
            return
        read = self.count - self._ahead() if self._listeners else self.count
        del self._slots[: read - self._dropped]
        self._dropped = read
        if self._room is not None and not self._room.done():
            self._room.set_result(None)

    def _tell(self) -> None:
        if not self.begun.done():
            self.begun.set_result(None)
        change, self._change = self._change, None
        if change is not None:
            change.set_result(None)
