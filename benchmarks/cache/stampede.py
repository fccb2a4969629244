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
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, NamedTuple

from benchmarks import workers
from benchmarks.checks import NotDoneError
from benchmarks.servers import RedisServer, redis_is_here

from .stampede_contestants import AIOCACHE, ASYNC_LRU, CASHEWS, DOGPILE, OURS, Options

CONTESTANTS = (OURS, CASHEWS, AIOCACHE, DOGPILE, ASYNC_LRU)
CALLERS = 5
CAP_SECONDS = 25.0
_READY_SECONDS = 60.0

Report = Callable[[str], None]


class Scale(NamedTuple):
    """How many there are, and how long things take, in seconds.

    Attributes:
        processes: processes of `CALLERS` callers each.
        many: callers of the call that fails for many, in all; 0 leaves that out.
        work: the call.
        lease: of ours where the process that makes the call is killed; None for what it has by default.
        short_lease: shorter than `long_work`.
        long_work: the call that outlasts the lease.
        failing: the call that fails.
        cancelled: the call of which a caller is cancelled.
        paused: the call that is made while Redis is paused.
    """

    processes: int
    many: int
    work: float
    lease: float | None
    short_lease: float
    long_work: float
    failing: float
    cancelled: float
    paused: float = 0.05


FULL = Scale(4, 1000, 2.0, None, 1.0, 1.5, 0.3, 0.5)
QUICK = Scale(2, 0, 0.3, 0.5, 0.3, 0.5, 0.2, 0.3)


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
    def complete(self) -> bool:
        """Whether all callers were answered, or told of the failure, before the cap."""
        return len(self.seconds) == self.wanted


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
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.cache.stampede_worker", json.dumps(options._asdict())]
    pipe = asyncio.subprocess.PIPE
    started = [
        await asyncio.create_subprocess_exec(
            *command, stdin=pipe, stdout=pipe, stderr=asyncio.subprocess.DEVNULL, env=workers.environment()
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
    run: Callable[[str, Scale], Awaitable[Seen | None]]
    without: tuple[str, ...] = ()


def _one_call(who: str, scale: Scale) -> Awaitable[Seen | None]:
    return _see(scale.processes, Options(who, 0, scale.work))


def _killed(who: str, scale: Scale) -> Awaitable[Seen | None]:
    return _see(scale.processes, Options(who, 0, scale.work, scale.lease if who == OURS else None), kill=True)


def _short_lease(who: str, scale: Scale) -> Awaitable[Seen | None]:
    return _see(scale.processes, Options(who, 0, scale.long_work, scale.short_lease))


def _failing(who: str, scale: Scale) -> Awaitable[Seen | None]:
    return _see(scale.processes, Options(who, 0, scale.failing, fails=True))


def _many_failing(who: str, scale: Scale) -> Awaitable[Seen | None]:
    callers = scale.many // scale.processes
    return _see(scale.processes, Options(who, 0, scale.failing, fails=True, callers=callers))


def _cancelled(who: str, scale: Scale) -> Awaitable[Seen | None]:
    return _see(1, Options(who, 0, scale.cancelled, locks=False, cancelled=1))


def _paused(who: str, scale: Scale) -> Awaitable[Seen | None]:
    return _see(1, Options(who, 0, scale.paused, locks=False, callers=PAUSED_CALLS, in_turn=True), pause=True)


PAUSED_CALLS = 4
ONE_CALL = Case("one call", _one_call)
KILLED = Case("the process that calls is killed", _killed, (ASYNC_LRU,))
SHORT_LEASE = Case("a lease shorter than the call", _short_lease, (ASYNC_LRU,))
FAILING = Case("a call that fails", _failing)
MANY_FAILING = Case("a call that fails for many", _many_failing, (CASHEWS, AIOCACHE, DOGPILE, ASYNC_LRU))
CANCELLED = Case("one caller is cancelled", _cancelled, (DOGPILE,))  # a thread cannot be cancelled
PAUSED = Case("Redis is paused", _paused, (ASYNC_LRU,))
CASES = (ONE_CALL, KILLED, SHORT_LEASE, FAILING, MANY_FAILING, CANCELLED, PAUSED)


async def measure(scale: Scale, contestants: Sequence[str], report: Report) -> dict[str, dict[str, Any]]:
    """What was seen, by case and contestant: `Seen` as a dict, or None if the library is not installed.

    Empty without a Redis. A case that a contestant has nothing for is left out.
    """
    if not redis_is_here():
        report("stampedes: left out, redis-server or the redis package is not installed")
        return {}
    found: dict[str, dict[str, Any]] = {}
    for case in CASES:
        if case is MANY_FAILING and not scale.many:
            continue
        seen_of = found[case.name] = {}
        for contestant in contestants:
            if contestant not in case.without:
                report(f"stampedes: {case.name}, {contestant}")
                seen = await case.run(contestant, scale)
                seen_of[contestant] = None if seen is None else seen._asdict()
    return found
