"""Replays of recorded streams: at once, or with the pauses that the stream had."""

from __future__ import annotations

import asyncio
from typing import Any

from observability_integration.context import Deadline

from .broadcast import LATE
from .recording import Chunks, Recording


class Replay:
    """One reader's replay.

    Args:
        recording: the stream.
        chunks: hands out its chunks.
        pace: 0 for at once, 1 for with the pauses it had, 0.5 for half of them. A reader who thinks meanwhile is not
            held up any longer than that.
    """

    __slots__ = ("_chunks", "_due", "_loop", "_pace", "_position", "_recording")

    def __init__(self, recording: Recording, chunks: Chunks, pace: float) -> None:
        self._recording = recording
        self._chunks = chunks
        self._pace = pace
        self._position = 0
        self._loop = asyncio.get_running_loop()
        self._due = self._loop.time()

    async def next(self, deadline: Deadline | None) -> Any:
        """The next chunk, or `LATE`.

        Raises:
            StopAsyncIteration: there is none.
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
