"""What a second call does for the slowest answers, and what it costs: `python -m benchmarks.hedging`, from the root.

Two providers behind real sockets, each slow with one request in twenty, and callers that ask one after the other. The
exit code is 0 when the targets are met, 1 when one is missed, and 2 when a call was answered wrongly.
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
_LEAST_SECONDS = 0.001  # by default 50 ms, which no call of this provider takes unless it is slow
_SEED = 2013

Ask = Callable[[int], Awaitable[int]]
Report = Callable[[str], None]


class Scale(NamedTuple):
    """How much is measured.

    Attributes:
        calls: of which the times are counted, and the calls of the providers.
        before: calls before that, in which a hedge learns what slow is.
        callers: how many ask at the same time.
        speed: what all times are divided by.
    """

    calls: int
    before: int
    callers: int
    speed: float = 1.0


FULL = Scale(4000, 512, 20)
QUICK = Scale(1000, 256, 20)


class Seen(NamedTuple):
    """What was seen of one way to call.

    Attributes:
        seconds: of each call.
        requests: that the providers got meanwhile.
        cut_off: of those, that were given up before they were answered.
    """

    seconds: list[float]
    requests: int
    cut_off: int

    def percentile(self, percent: int) -> float:
        """Seconds that so many percent of the calls did not exceed."""
        return quantiles(self.seconds, n=100, method="inclusive")[percent - 1]

    @property
    def more_calls(self) -> float:
        """Requests beyond one a call, as a share of the calls."""
        return (self.requests - len(self.seconds)) / len(self.seconds)


class Provider:
    """Answers a number with the same number, mostly soon; notices when nobody waits for that any more."""

    def __init__(self, seed: int, speed: float) -> None:
        self._random = Random(seed)
        self._speed = speed
        self._port = 0
        self.requests = 0
        self.cut_off = 0

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Provider]:
        """Listens on a free port of this machine."""
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
        """One request, on a connection of its own: closing it is how a provider hears that it may stop."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            writer.write(b"%d\n" % number)
            return int(await reader.readline())
        finally:
            writer.close()


def _hedged(first: Ask, second: Ask, **options: Any) -> Ask:
    return HedgePrimitive(first, second, **({"min_delay_seconds": _LEAST_SECONDS} | options)).execute


WITHOUT, HEDGED, SPENT = "no hedge", f"after p{QUANTILE * 100:g}", "after the same, budget of 1 %"
WAYS: dict[str, Callable[[Ask, Ask], Ask]] = {
    WITHOUT: lambda first, _: first,
    HEDGED: lambda first, second: _hedged(first, second, quantile=QUANTILE),
    "after p95, where the slow ones begin": lambda first, second: _hedged(first, second),
    "after p90": lambda first, second: _hedged(first, second, quantile=0.9, budget=None),
    "after 50 ms": lambda first, second: _hedged(first, second, delay_seconds=0.05),
    SPENT: lambda first, second: _hedged(
        first, second, quantile=QUANTILE, budget=RetryBudget(SPENT_RATIO, 0, 1, over_operations=200)
    ),
}


async def measure(scale: Scale, report: Report) -> dict[str, Any]:
    """What was seen, by way to call: `Seen` as a dict.

    Raises:
        NotDoneError: a call was answered wrongly.
    """
    found: dict[str, Any] = {}
    for name, way in WAYS.items():
        report(f"hedging: {name}")
        found[name] = (await _see(way, scale))._asdict()
    return found


async def _see(way: Callable[[Ask, Ask], Ask], scale: Scale) -> Seen:
    first, second = (Provider(_SEED + number, scale.speed) for number in range(2))
    async with first.running(), second.running():
        ask = way(first.ask, second.ask)
        await _call_all(ask, scale.before, scale.callers)
        before = first.requests + second.requests, first.cut_off + second.cut_off
        seconds = await _call_all(ask, scale.calls, scale.callers)
        # A cancelled caller's connection is closed, and the provider told, some turns of the loop later.
        await asyncio.sleep(max(SLOW_SECONDS) / scale.speed)
        return Seen(seconds, first.requests + second.requests - before[0], first.cut_off + second.cut_off - before[1])


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
