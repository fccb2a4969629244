"""What becomes of a call that many callers in several processes want at the same time, and of its callers.

Each case runs on a Redis of its own, in processes of its own, once; what is counted is calls, commands and seconds.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from . import imports
from .checks import NotDoneError
from .servers import RedisServer, redis_is_here
from .stampede_contestants import AIOCACHE, ASYNC_LRU, CASHEWS, DOGPILE, OURS, Options

CONTESTANTS = (OURS, CASHEWS, AIOCACHE, DOGPILE, ASYNC_LRU)
PROCESSES, CALLERS = 4, 5
CAP_SECONDS = 25.0
MANY = 1000
_READY_SECONDS = 60.0

Report = Callable[[str], None]


class Durations(NamedTuple):
    """How long things take, in seconds.

    Attributes:
        work: the call.
        lease: shorter than `long_work`.
        long_work: the call that outlasts the lease.
        failing: the call that fails.
        cancelled: the call of which a caller is cancelled.
        paused: the call that is made while Redis is paused.
    """

    work: float
    lease: float
    long_work: float
    failing: float
    cancelled: float
    paused: float = 0.05


FULL = Durations(2.0, 1.0, 1.5, 0.3, 0.5)
QUICK = Durations(0.3, 0.3, 0.5, 0.2, 0.3)


class Seen(NamedTuple):
    """What was seen in one case.

    Attributes:
        calls: how often the call was made.
        commands: what Redis executed, inside of scripts too.
        seconds: of each caller that was answered, or told of the failure.
        added: the same without the call, where that was the caller's own.
        errors: how many callers got an error of which type.
        wanted: how many callers there were that could be answered.
        killed_at: when the process was killed that made the call, by the clock of `ended_at`; None if none was.
        ended_at: when the last caller was answered.
    """

    calls: int
    commands: int
    seconds: list[float]
    added: list[float]
    errors: dict[str, int]
    wanted: int
    killed_at: float | None
    ended_at: float

    @property
    def answered(self) -> int:
        """How many callers were answered or told of the failure before the cap."""
        return len(self.seconds)


class _Processes:
    """Workers, and what they say."""

    def __init__(self, workers: list[asyncio.subprocess.Process]) -> None:
        self._workers = workers
        self.said: asyncio.Queue[tuple[int, dict[str, Any]]] = asyncio.Queue()
        self._readers = [asyncio.create_task(self._read(worker)) for worker in workers]

    async def _read(self, worker: asyncio.subprocess.Process) -> None:
        assert worker.stdout is not None  # for the type checker
        async for line in worker.stdout:
            self.said.put_nowait((worker.pid, json.loads(line)))
        self.said.put_nowait((worker.pid, {"over": True}))

    async def ready(self) -> bool:
        """Waits until all are; False if the library is not installed."""
        for _ in self._workers:
            async with asyncio.timeout(_READY_SECONDS):
                _, said = await self.said.get()
            if "missing" in said:
                return False
            if "ready" not in said:
                raise NotDoneError("a process of the stampedes could not begin")
        return True

    def begin(self) -> None:
        """Lets them all begin."""
        for worker in self._workers:
            assert worker.stdin is not None  # for the type checker
            worker.stdin.write(b"\n")

    async def end(self) -> None:
        """Ends them, whatever they do."""
        for worker in self._workers:
            if worker.returncode is None:
                worker.kill()
        for worker in self._workers:
            await worker.wait()
        await asyncio.gather(*self._readers)


@asynccontextmanager
async def _processes(number: int, options: Options) -> AsyncIterator[_Processes]:
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.stampede_worker", json.dumps(options._asdict())]
    pipe = asyncio.subprocess.PIPE
    started = [
        await asyncio.create_subprocess_exec(
            *command, stdin=pipe, stdout=pipe, stderr=asyncio.subprocess.DEVNULL, env=imports.environment()
        )
        for _ in range(number)
    ]
    processes = _Processes(started)
    try:
        yield processes
    finally:
        await processes.end()


async def _see(number: int, options: Options, *, kill: bool = False, pause: bool = False) -> Seen | None:
    """Runs processes until all callers are answered, or the cap is reached; None if the library is not installed."""
    with RedisServer() as server:
        options = options._replace(port=server.port)
        async with _processes(number, options) as processes:
            if not await processes.ready():
                return None
            server.commands()
            if pause:
                server.pause()
            processes.begin()
            seen = await _watch(processes, number * options.callers, options, kill)
            return seen if pause else seen._replace(commands=sum(server.commands().values()))


async def _watch(processes: _Processes, wanted: int, options: Options, kill: bool) -> Seen:
    calls = 0
    callers: list[dict[str, Any]] = []
    killed: int | None = None
    killed_at, ended_at = None, time.monotonic()
    try:
        async with asyncio.timeout(CAP_SECONDS):
            while len(callers) < wanted:
                pid, said = await processes.said.get()
                if pid == killed:
                    continue
                calls += "call" in said
                if kill and killed is None and "call" in said:
                    await asyncio.sleep(options.work_seconds / 2)
                    killed, killed_at = pid, time.monotonic()
                    os.kill(pid, signal.SIGKILL)
                    wanted -= options.callers
                elif "seconds" in said:
                    callers.append(said)
                    ended_at = time.monotonic()
    except TimeoutError:
        pass
    kinds = [said["error"] for said in callers if "error" in said]
    if any(not said.get("answered", True) for said in callers):
        raise NotDoneError(f"{options.contestant} answered something else")
    return Seen(
        calls,
        0,
        [said["seconds"] for said in callers],
        [said["added"] for said in callers],
        {kind: kinds.count(kind) for kind in kinds},
        wanted,
        killed_at,
        ended_at,
    )


class Case(NamedTuple):
    """One case.

    Attributes:
        name: of the case.
        run: runs it with one contestant; see `Seen`.
        without: contestants that have no such thing.
    """

    name: str
    run: Callable[[str, Durations], Awaitable[Seen | None]]
    without: tuple[str, ...] = ()


ONE_CALL, KILLED, SHORT_LEASE, FAILING, MANY_FAILING, CANCELLED, PAUSED = (
    *("one call", "leader killed", "lease shorter than the call", "failing call"),
    *(f"failing call, {MANY} callers", "one caller cancelled", "Redis paused"),
)

CASES = (
    Case(ONE_CALL, lambda who, takes: _see(PROCESSES, Options(who, 0, takes.work, callers=CALLERS))),
    Case(
        KILLED,
        lambda who, takes: _see(PROCESSES, Options(who, 0, takes.work, callers=CALLERS), kill=True),
        (ASYNC_LRU,),
    ),
    Case(
        SHORT_LEASE,
        lambda who, takes: _see(PROCESSES, Options(who, 0, takes.long_work, takes.lease, callers=CALLERS)),
        (ASYNC_LRU,),
    ),
    Case(FAILING, lambda who, takes: _see(PROCESSES, Options(who, 0, takes.failing, fails=True, callers=CALLERS))),
    Case(
        MANY_FAILING,
        lambda who, takes: _see(PROCESSES, Options(who, 0, takes.failing, fails=True, callers=MANY // PROCESSES)),
        (CASHEWS, AIOCACHE, DOGPILE, ASYNC_LRU),  # 20 are enough to see what they do
    ),
    Case(
        CANCELLED,
        lambda who, takes: _see(1, Options(who, 0, takes.cancelled, locks=False, callers=CALLERS, cancelled=1)),
        (DOGPILE,),  # a thread cannot be cancelled
    ),
    Case(
        PAUSED,
        lambda who, takes: _see(1, Options(who, 0, takes.paused, locks=False, callers=4, in_turn=True), pause=True),
        (ASYNC_LRU,),
    ),
)


async def measure(durations: Durations, contestants: tuple[str, ...], report: Report) -> dict[str, dict[str, Any]]:
    """What was seen, by case and contestant: `Seen` as a dict, or None if the library is not installed.

    Empty without a Redis. A case that a contestant has nothing for is left out.
    """
    if not redis_is_here():
        report("stampedes: left out, redis-server or the redis package is not installed")
        return {}
    found: dict[str, dict[str, Any]] = {case.name: {} for case in CASES}
    for case in CASES:
        for contestant in contestants:
            if contestant not in case.without:
                report(f"{case.name}: {contestant}")
                seen = await case.run(contestant, durations)
                found[case.name][contestant] = None if seen is None else seen._asdict()
    return found
