"""Replays of recorded streams: at once, or with the pauses of the original stream."""

from __future__ import annotations

import asyncio
from typing import Any

from observability_integration.context import Deadline

from .broadcast import LATE
from .recording import ChunkCodec, Recording


class Replay:
    """The replay of one reader.

    Args:
        recording: the recorded stream.
        chunks: restores its chunks.
        pace: factor for the pauses: 0 replays at once, 1 with the pauses of the original, 0.5 with half of each. The
            time that the reader spends between two chunks counts as part of the pause.
    """

    __slots__ = ("_chunks", "_due", "_loop", "_pace", "_position", "_recording")

    def __init__(self, recording: Recording, chunks: ChunkCodec, pace: float) -> None:
        self._recording = recording
        self._chunks = chunks
        self._pace = pace
        self._position = 0
        self._loop = asyncio.get_running_loop()
        self._due = self._loop.time()

    async def next(self, deadline: Deadline | None) -> Any:
        """Returns the next chunk, or `LATE` when the deadline passes first.

        Raises:
            StopAsyncIteration: all chunks have been read.
        """
        position = self._position
        if position == len(self._recording.chunks):
            raise StopAsyncIteration
        if self._pace:
            due = self._due + self._recording.pauses_ms[position] / 1000 * self._pace
            if deadline is not None and deadline.when < due:
                await _sleep(deadline.remaining())
                return LATE
            await _sleep(due - self._loop.time())
            self._due = due
        self._position += 1
        return self._chunks.restore(self._recording.chunks[position])


async def _sleep(seconds: float) -> None:
    if seconds > 0:
        await asyncio.sleep(seconds)
