"""Replaces `time.monotonic` during a simulation."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class SimulatedClock:
    """A clock that shows the real time, or the time of the event loop that it follows."""

    def __init__(self) -> None:
        self._real = self._read = time.monotonic

    def __call__(self) -> float:
        """Returns seconds, which never decrease."""
        return self._read()

    @contextmanager
    def follow(self, loop: asyncio.AbstractEventLoop) -> Iterator[None]:
        """Shows the time of an event loop inside the block."""
        read: Callable[[], float] = loop.time
        self._read = read
        try:
            yield
        finally:
            self._read = self._real
