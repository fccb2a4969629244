"""Samples the lag of the event loop and the memory of this process."""

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


class LagSample(NamedTuple):
    """A sample of the event loop, in seconds: its time, the lag, and the processor time of the interval."""

    at: float
    late: float
    busy: float


class ProcessMonitor:
    """Samples until `end` is called. Must be created in a running event loop."""

    def __init__(self) -> None:
        self.lag_samples: list[LagSample] = []
        self.memory: list[tuple[float, int]] = []
        """Times and resident bytes."""
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._sample_lag()), loop.create_task(self._sample_memory())]

    async def end(self) -> None:
        """Stops sampling."""
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)

    async def _sample_lag(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due, busy_before = loop.time() + LAG_EVERY_SECONDS, time.process_time()
            await asyncio.sleep(LAG_EVERY_SECONDS)
            now = loop.time()
            self.lag_samples.append(LagSample(now, now - due, time.process_time() - busy_before))

    async def _sample_memory(self) -> None:
        loop = asyncio.get_running_loop()
        while _STATM.exists():
            resident = int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            self.memory.append((loop.time(), resident))
            await asyncio.sleep(_MEMORY_EVERY_SECONDS)

    def lag_within(self, since: float, until: float) -> float:
        """Returns the total lag of the event loop in the interval, the first sample after it included."""
        first, last = bisect_left(self.lag_samples, (since,)), bisect_left(self.lag_samples, (until,))
        return sum(sample.late for sample in self.lag_samples[first : last + 1])

    def memory_by_quarter(self, since: float, until: float) -> tuple[float, float] | None:
        """Returns median resident bytes in the second and in the last quarter of the interval; None without samples."""
        times = [since + (until - since) * quarter / 4 for quarter in range(1, 5)]
        second, _, last = ([size for at, size in self.memory if start <= at < end] for start, end in pairwise(times))
        return (median(second), median(last)) if second and last else None


def spread_ms(seconds: Sequence[float]) -> tuple[float, float, float]:
    """Returns median, 99th percentile and maximum in milliseconds; zeros for no values."""
    ordered = sorted(seconds) or [0.0]
    half, most = ordered[len(ordered) // 2], ordered[len(ordered) * 99 // 100]
    return half * 1e3, most * 1e3, ordered[-1] * 1e3
