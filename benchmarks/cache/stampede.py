"""Cache stampedes: many callers in several processes ask for one missing key at the same time.

Each case runs once, with its own Redis and its own processes, and counts calls, Redis commands and seconds.
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
    """The numbers of processes and callers, and durations in seconds.

    Attributes:
        processes: processes of `CALLERS` callers each.
        many: callers in the case of many failures, in all; 0 skips the case.
        work: of the call.
        lease: our lease where the calling process is killed; None for the default.
        short_lease: shorter than `long_work`.
        long_work: of the call that outlasts the lease.
        failing: of the call that fails.
        cancelled: of the call of which a caller is cancelled.
        paused: of the call that is made while Redis is paused.
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


class StampedeResult(NamedTuple):
    """The result of one case.

    Attributes:
        calls: number of calls made.
        commands: number of Redis commands, commands inside scripts included.
        seconds: latency of each caller that got an answer or an error.
        added: the latencies without the time of the caller's own call.
        errors: number of callers by type of error.
        wanted: number of callers in processes that were not killed.
        killed_at: when the calling process was killed, by the clock of `ended_at`; None if none was killed.
        ended_at: when the last caller got its answer or error.
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
        """Whether all callers got an answer or an error before the cap."""
        return len(self.seconds) == self.wanted


class _Processes:
    """The workers of a case, and their messages."""

    def __init__(self, workers: list[asyncio.subprocess.Process]) -> None:
        self._workers = workers
        self.messages: asyncio.Queue[tuple[int, dict[str, Any]]] = asyncio.Queue()
        self._readers = [asyncio.create_task(self._read(worker)) for worker in workers]

    async def _read(self, worker: asyncio.subprocess.Process) -> None:
        assert worker.stdout is not None  # for the type checker
        async for line in worker.stdout:
            self.messages.put_nowait((worker.pid, json.loads(line)))
        self.messages.put_nowait((worker.pid, {"over": True}))

    async def ready(self) -> bool:
        """Waits until all workers are ready; returns False if the library is not installed."""
        for _ in self._workers:
            async with asyncio.timeout(_READY_SECONDS):
                _, said = await self.messages.get()
            if "missing" in said:
                return False
            if "ready" not in said:
                raise NotDoneError("a worker of the stampedes did not start")
        return True

    def begin(self) -> None:
        """Starts the callers of all workers."""
        for worker in self._workers:
            assert worker.stdin is not None  # for the type checker
            worker.stdin.write(b"\n")

    async def end(self) -> None:
        """Kills the workers that still run."""
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


async def _run(number: int, options: Options, *, kill: bool = False, pause: bool = False) -> StampedeResult | None:
    """Runs processes until all callers end, or the cap is reached; None if the library is not installed."""
    with RedisServer() as server:
        options = options._replace(port=server.port)
        async with _processes(number, options) as processes:
            if not await processes.ready():
                return None
            server.commands()
            if pause:
                server.pause()
            processes.begin()
            seen = await _collect(processes, number * options.callers, options, kill)
            return seen if pause else seen._replace(commands=sum(server.commands().values()))


async def _collect(processes: _Processes, wanted: int, options: Options, kill: bool) -> StampedeResult:
    calls = 0
    callers: list[dict[str, Any]] = []
    killed: int | None = None
    killed_at, ended_at = None, time.monotonic()
    try:
        async with asyncio.timeout(CAP_SECONDS):
            while len(callers) < wanted:
                pid, said = await processes.messages.get()
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
    return StampedeResult(
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
        run: runs the case with a contestant.
        without: contestants that do not support the case.
    """

    name: str
    run: Callable[[str, Scale], Awaitable[StampedeResult | None]]
    without: tuple[str, ...] = ()


def _one_call(contestant: str, scale: Scale) -> Awaitable[StampedeResult | None]:
    return _run(scale.processes, Options(contestant, 0, scale.work))


def _killed(contestant: str, scale: Scale) -> Awaitable[StampedeResult | None]:
    return _run(
        scale.processes, Options(contestant, 0, scale.work, scale.lease if contestant == OURS else None), kill=True
    )


def _short_lease(contestant: str, scale: Scale) -> Awaitable[StampedeResult | None]:
    return _run(scale.processes, Options(contestant, 0, scale.long_work, scale.short_lease))


def _failing(contestant: str, scale: Scale) -> Awaitable[StampedeResult | None]:
    return _run(scale.processes, Options(contestant, 0, scale.failing, fails=True))


def _many_failing(contestant: str, scale: Scale) -> Awaitable[StampedeResult | None]:
    callers = scale.many // scale.processes
    return _run(scale.processes, Options(contestant, 0, scale.failing, fails=True, callers=callers))


def _cancelled(contestant: str, scale: Scale) -> Awaitable[StampedeResult | None]:
    return _run(1, Options(contestant, 0, scale.cancelled, locks=False, cancelled=1))


def _paused(contestant: str, scale: Scale) -> Awaitable[StampedeResult | None]:
    return _run(1, Options(contestant, 0, scale.paused, locks=False, callers=PAUSED_CALLS, in_turn=True), pause=True)


PAUSED_CALLS = 4
ONE_CALL = Case("one call", _one_call)
KILLED = Case("the calling process is killed", _killed, (ASYNC_LRU,))
SHORT_LEASE = Case("a lease shorter than the call", _short_lease, (ASYNC_LRU,))
FAILING = Case("a call that fails", _failing)
MANY_FAILING = Case("a call that fails for many", _many_failing, (CASHEWS, AIOCACHE, DOGPILE, ASYNC_LRU))
CANCELLED = Case("one caller is cancelled", _cancelled, (DOGPILE,))  # a thread cannot be cancelled
PAUSED = Case("Redis is paused", _paused, (ASYNC_LRU,))
CASES = (ONE_CALL, KILLED, SHORT_LEASE, FAILING, MANY_FAILING, CANCELLED, PAUSED)


async def measure(scale: Scale, contestants: Sequence[str], report: Report) -> dict[str, dict[str, Any]]:
    """Runs all cases; returns a `StampedeResult` as a dict by case and contestant, None for a missing library.

    The result is empty without a Redis, and skips the cases that a contestant does not support.
    """
    if not redis_is_here():
        report("stampedes: skipped, redis-server or the redis package is not installed")
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
