"""Stands for `time.monotonic` while an hour is simulated."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class SimulatedClock:
    """Shows the real time, or the time of an event loop while it follows one."""

    def __init__(self) -> None:
        self._real = self._read = time.monotonic

    def __call__(self) -> float:
        """Seconds that only go forward."""
        return self._read()

    @contextmanager
    def follow(self, loop: asyncio.AbstractEventLoop) -> Iterator[None]:
        """Shows the time of a loop."""
        read: Callable[[], float] = loop.time
        self._read = read
        try:
            yield
        finally:
            self._read = self._real
