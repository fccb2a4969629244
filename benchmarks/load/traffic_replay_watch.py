"""Watches the event loop and the memory of the process that it runs in."""

from __future__ import annotations

import asyncio
import os
import time
from bisect import bisect_left
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import NamedTuple

LAG_EVERY_SECONDS = 0.01
_MEMORY_EVERY_SECONDS = 0.1
_STATM = Path("/proc/self/statm")  # only Linux has it


class Look(NamedTuple):
    """One look at the event loop: when, how late it was, and how long the process was busy meanwhile; in seconds."""

    at: float
    late: float
    busy: float


class Watch:
    """Looks at both until `end` is called. To be made in a running event loop."""

    def __init__(self) -> None:
        self.looks: list[Look] = []
        self.memory: list[tuple[float, int]] = []
        """When, and how many bytes were resident."""
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._watch_lag()), loop.create_task(self._watch_memory())]

    async def end(self) -> None:
        """Looks no more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)

    async def _watch_lag(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due, busy_before = loop.time() + LAG_EVERY_SECONDS, time.process_time()
            await asyncio.sleep(LAG_EVERY_SECONDS)
            now = loop.time()
            self.looks.append(Look(now, now - due, time.process_time() - busy_before))

    async def _watch_memory(self) -> None:
        loop = asyncio.get_running_loop()
        while _STATM.exists():
            resident = int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            self.memory.append((loop.time(), resident))
            await asyncio.sleep(_MEMORY_EVERY_SECONDS)

    def late_within(self, since: float, until: float) -> float:
        """How late the event loop was in that time, in all, and at the first look after it."""
        first, last = bisect_left(self.looks, (since,)), bisect_left(self.looks, (until,))
        return sum(look.late for look in self.looks[first : last + 1])

    def quarters(self, since: float, until: float) -> tuple[float, float] | None:
        """Resident bytes in the second and in the last quarter of that time, half of it less; None if not looked at."""
        times = [since + (until - since) * quarter / 4 for quarter in range(1, 5)]
        second, _, last = ([size for at, size in self.memory if start <= at < end] for start, end in pairwise(times))
        return (median(second), median(last)) if second and last else None


def spread_ms(seconds: Sequence[float]) -> tuple[float, float, float]:
    """What half of them, all but a hundredth of them, and all of them do not exceed, in milliseconds; 0 of none."""
    ordered = sorted(seconds) or [0.0]
    half, most = ordered[len(ordered) // 2], ordered[len(ordered) * 99 // 100]
    return half * 1e3, most * 1e3, ordered[-1] * 1e3
