"""What callers get while a provider fails in sixteen ways and another one stands by.

Each contestant is one process with two providers of its own behind real sockets; all of them run at the same time, and
within each all the faults: they wait, they do not compute.
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
    """A process, and what it says."""

    def __init__(self, name: str, process: asyncio.subprocess.Process) -> None:
        self.name = name
        self.process = process

    async def says(self) -> dict[str, Any]:
        """The next thing.

        Raises:
            NotDoneError: if there is none.
        """
        assert self.process.stdout is not None  # for the type checker
        line = await self.process.stdout.readline()
        if not line:
            raise NotDoneError(f"{self.name} broke off at the wall of faults")
        said: dict[str, Any] = json.loads(line)
        return said

    async def ready(self) -> bool:
        """Waits until it is; False if its library is not installed."""
        return "ready" in await self.says()

    def begin(self) -> None:
        """Lets it begin."""
        assert self.process.stdin is not None  # for the type checker
        self.process.stdin.write(b"\n")

    async def seen(self) -> dict[str, Any]:
        """What was seen of it, by the code of the fault."""
        said = [await self.says() for _ in FAULTS]
        by_code = {one["code"]: one["seen"] for one in said}
        return {fault.code: by_code[fault.code] for fault in FAULTS}


async def measure(scale: float, contestants: Sequence[str], report: Report) -> dict[str, Any]:
    """What was seen, by contestant and code of the fault: `Seen` as a dict, or None if the library is not installed.

    Args:
        scale: of all waits and limits; 1 is real time, in which the wall takes two minutes.
        contestants: who is to be looked at.
        report: is told of progress.

    Raises:
        NotDoneError: a contestant broke off, or did not answer where nothing was wrong.
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
        return await _see(running, scale, report)
    except TimeoutError as error:
        raise NotDoneError("the wall of faults took longer than it can") from error
    finally:
        for contestant in running:
            if contestant.process.returncode is None:
                contestant.process.kill()
        for contestant in running:
            await contestant.process.wait()


async def _see(running: Sequence[_Contestant], scale: float, report: Report) -> dict[str, Any]:
    async with asyncio.timeout(_READY_SECONDS):
        here = [contestant for contestant in running if await contestant.ready()]
    report(f"wall of faults: {', '.join(contestant.name for contestant in here)}")
    # All are loaded now, and none takes the processor from another that counts seconds.
    for contestant in here:
        contestant.begin()
    async with asyncio.timeout((CAP_SECONDS + max(fault.asked_at[-1] for fault in FAULTS)) * scale + _BEYOND_SECONDS):
        seen = await asyncio.gather(*(contestant.seen() for contestant in here))
    found: dict[str, Any] = {contestant.name: None for contestant in running}
    return found | {contestant.name: of for contestant, of in zip(here, seen, strict=True)}
