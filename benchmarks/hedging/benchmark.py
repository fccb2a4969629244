"""Measures the latency that a hedge saves, and the calls that it adds.

Two providers behind real sockets are slow for one request in twenty; each caller asks one question after the other.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from random import Random
from statistics import quantiles
from typing import Any, NamedTuple

from benchmarks.checks import expect
from observability_integration.primitives import HedgePrimitive
from observability_integration.resilience.retry_budget import RetryBudget

FAST_SECONDS = (0.01, 0.03)
SLOW_SECONDS = (0.36, 0.44)
SLOW_SHARE = 0.05
QUANTILE = 0.94  # of 1 - SLOW_SHARE = 95 % normal calls
TIMES_LOWER, MORE_CALLS = 3.0, 0.07
SPENT_RATIO = 0.01
_LEAST_SECONDS = 0.001  # the default of 50 ms lies above all normal calls of this provider
_SEED = 2013

Ask = Callable[[int], Awaitable[int]]
Report = Callable[[str], None]


class Scale(NamedTuple):
    """How much is measured.

    Attributes:
        calls: measured calls.
        before: calls for the warm-up of the hedge's delay.
        callers: concurrent callers.
        speed: divides all times.
    """

    calls: int
    before: int
    callers: int
    speed: float = 1.0


FULL = Scale(4000, 512, 20)
QUICK = Scale(1000, 256, 20)


class HedgingResult(NamedTuple):
    """The result of one configuration.

    Attributes:
        seconds: of each call.
        requests: received by the providers.
        cut_off: requests whose connection was closed before the answer.
    """

    seconds: list[float]
    requests: int
    cut_off: int

    def percentile(self, percent: int) -> float:
        """Returns a percentile of the calls' seconds."""
        return quantiles(self.seconds, n=100, method="inclusive")[percent - 1]

    @property
    def more_calls(self) -> float:
        """Requests beyond one per call, as a share of the calls."""
        return (self.requests - len(self.seconds)) / len(self.seconds)


class Provider:
    """Echoes a number, sometimes slowly; counts the connections that a client closes before the answer."""

    def __init__(self, seed: int, speed: float) -> None:
        self._random = Random(seed)
        self._speed = speed
        self._port = 0
        self.requests = 0
        self.cut_off = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Provider]:
        """Listens on a free port of 127.0.0.1 inside the block."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        async with server:
            self._port = server.sockets[0].getsockname()[1]
            yield self

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        question = await reader.readline()
        self.requests += 1
        slow = self._random.random() < SLOW_SHARE
        seconds = self._random.uniform(*(SLOW_SECONDS if slow else FAST_SECONDS)) / self._speed
        try:
            async with asyncio.timeout(seconds):
                await reader.read()
            self.cut_off += 1
        except TimeoutError:
            writer.write(question)
        writer.close()

    async def ask(self, number: int) -> int:
        """Sends a request on a connection of its own; a cancelled request closes it."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            writer.write(b"%d\n" % number)
            return int(await reader.readline())
        finally:
            writer.close()


def _hedged(first: Ask, second: Ask, **options: Any) -> Ask:
    return HedgePrimitive(first, second, **({"min_delay_seconds": _LEAST_SECONDS} | options)).execute


WITHOUT, HEDGED, SPENT = "no hedge", f"after p{QUANTILE * 100:g}", f"after p{QUANTILE * 100:g}, budget of 1 %"
WAYS: dict[str, Callable[[Ask, Ask], Ask]] = {
    WITHOUT: lambda first, _: first,
    HEDGED: lambda first, second: _hedged(first, second, quantile=QUANTILE),
    "after p95, where slow calls begin": lambda first, second: _hedged(first, second),
    "after p90": lambda first, second: _hedged(first, second, quantile=0.9, budget=None),
    "after 50 ms": lambda first, second: _hedged(first, second, delay_seconds=0.05),
    SPENT: lambda first, second: _hedged(
        first, second, quantile=QUANTILE, budget=RetryBudget(SPENT_RATIO, 0, 1, over_operations=200)
    ),
}


async def measure(scale: Scale, report: Report) -> dict[str, Any]:
    """Runs all configurations; returns a `HedgingResult` as a dict by name.

    Raises:
        NotDoneError: a call returned a wrong answer.
    """
    found: dict[str, Any] = {}
    for name, way in WAYS.items():
        report(f"hedging: {name}")
        found[name] = (await _run(way, scale))._asdict()
    return found


async def _run(way: Callable[[Ask, Ask], Ask], scale: Scale) -> HedgingResult:
    first, second = (Provider(_SEED + number, scale.speed) for number in range(2))
    async with first.running(), second.running():
        ask = way(first.ask, second.ask)
        await _call_all(ask, scale.before, scale.callers)
        before = first.requests + second.requests, first.cut_off + second.cut_off
        seconds = await _call_all(ask, scale.calls, scale.callers)
        # Connections of cancelled requests close some iterations of the loop later.
        await asyncio.sleep(max(SLOW_SECONDS) / scale.speed)
        return HedgingResult(
            seconds, first.requests + second.requests - before[0], first.cut_off + second.cut_off - before[1]
        )


async def _call_all(ask: Ask, calls: int, callers: int) -> list[float]:
    clock = asyncio.get_running_loop().time
    numbers = iter(range(calls))
    seconds: list[float] = []

    async def caller() -> None:
        for number in numbers:
            began = clock()
            expect(await ask(number) == number, "a hedged call answered something else")
            seconds.append(clock() - began)

    await asyncio.gather(*(caller() for _ in range(callers)))
    return seconds
