"""Runs every contestant under sixteen faults of the primary provider, with a fallback provider available.

Each contestant is a process with two providers of its own behind real sockets. All contestants run at the same time,
and so do all faults within each, because they mostly wait.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks import workers
from benchmarks.checks import NotDoneError

from .contestants import LITELLM, OPENAI, OURS, STAMINA, TENACITY
from .faults import CAP_SECONDS, FAULTS

CONTESTANTS = (OURS, OPENAI, LITELLM, TENACITY, STAMINA)
FULL_SCALE, QUICK_SCALE = 1.0, 0.05
_READY_SECONDS = 90.0
_BEYOND_SECONDS = 30.0

Report = Callable[[str], None]


class _Contestant:
    """The process of a contestant, and its messages."""

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        self.name = name
        self.process = process

    async def read_message(self) -> dict[str, Any]:
        """Reads the next message.

        Raises:
            NotDoneError: the process ended.
        """
        assert self.process.stdout is not None  # for the type checker
        line = await self.process.stdout.readline()
        if not line:
            raise NotDoneError(f"{self.name} ended before all faults were run")
        said: dict[str, Any] = json.loads(line)
        return said

    async def ready(self) -> bool:
        """Waits until the process is ready; returns False if its library is not installed."""
        return "ready" in await self.read_message()

    def begin(self) -> None:
        """Starts the faults."""
        assert self.process.stdin is not None  # for the type checker
        self.process.stdin.write(b"\n")

    async def results(self) -> dict[str, Any]:
        """Reads the results, by code of the fault."""
        said = [await self.read_message() for _ in FAULTS]
        by_code = {one["code"]: one["seen"] for one in said}
        return {fault.code: by_code[fault.code] for fault in FAULTS}


async def measure(scale: float, contestants: Sequence[str], report: Report) -> dict[str, Any]:
    """Runs all faults; returns a `FaultResult` as a dict by contestant and code, None for a missing library.

    Args:
        scale: of all waits and limits; at 1, real time, the faults take two minutes.
        contestants: to run.
        report: called with progress.

    Raises:
        NotDoneError: a contestant ended early, or did not answer without a fault.
    """
    command = sys.executable, "-W", "ignore", "-m", "benchmarks.failover.worker"
    pipe = asyncio.subprocess.PIPE
    running: list[_Contestant] = []
    try:
        for name in contestants:
            process = await asyncio.create_subprocess_exec(
                *command,
                name,
                str(scale),
                stdin=pipe,
                stdout=pipe,
                stderr=asyncio.subprocess.DEVNULL,
                env=workers.environment(),
            )
            running.append(_Contestant(name, process))
        return await _run(running, scale, report)
    except TimeoutError as error:
        raise NotDoneError("the faults took longer than all their limits") from error
    finally:
        for contestant in running:
            if contestant.process.returncode is None:
                contestant.process.kill()
        for contestant in running:
            await contestant.process.wait()


async def _run(running: Sequence[_Contestant], scale: float, report: Report) -> dict[str, Any]:
    async with asyncio.timeout(_READY_SECONDS):
        here = [contestant for contestant in running if await contestant.ready()]
    report(f"faults: {', '.join(contestant.name for contestant in here)}")
    # All have loaded their libraries, so that loading does not slow down another contestant.
    for contestant in here:
        contestant.begin()
    async with asyncio.timeout((CAP_SECONDS + max(fault.asked_at[-1] for fault in FAULTS)) * scale + _BEYOND_SECONDS):
        seen = await asyncio.gather(*(contestant.results() for contestant in here))
    found: dict[str, Any] = {contestant.name: None for contestant in running}
    return found | {contestant.name: of for contestant, of in zip(here, seen, strict=True)}
