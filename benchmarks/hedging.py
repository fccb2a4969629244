"""What a second call does for the slowest answers, and what it costs: `python -m benchmarks.hedging`, from the root.

Two providers behind real sockets, each slow with one request in twenty, and callers that ask one after the other. The
exit code is 0 when the targets are met, 1 when one is missed, and 2 when a call was answered wrongly.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from statistics import quantiles
from typing import Any, NamedTuple

from observability_integration.primitives import HedgePrimitive
from observability_integration.resilience.retry_budget import RetryBudget

from . import report
from .checks import NotDoneError, expect
from .table import Table, TableRow, Verdict

FAST_SECONDS = (0.01, 0.03)
SLOW_SECONDS = (0.36, 0.44)
SLOW_SHARE = 0.05
QUANTILE = 0.94  # of 1 - SLOW_SHARE = 95 % normal calls
TIMES_LOWER, MORE_CALLS = 3.0, 0.07
_SPENT_RATIO = 0.01
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
        first, second, quantile=QUANTILE, budget=RetryBudget(_SPENT_RATIO, 0, 1, over_operations=200)
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


def tables(found: Mapping[str, Any], scale: Scale) -> Iterator[Table]:
    """What was found.

    Args:
        found: what `measure` returned.
        scale: that it was given.
    """
    seen = {name: Seen(**figures) for name, figures in found.items()}
    yield Table(
        "A second call when the first is slow",
        ("second call", "p50", "p99", "p99 without / with", "more calls", "given up"),
        [_row(name, one, seen[WITHOUT]) for name, one in seen.items()],
        f"Two providers on loopback sockets, a connection a call. Each answers after {_range(FAST_SECONDS)}, and "
        f"{SLOW_SHARE:.0%} of the requests, drawn at random, after {_range(SLOW_SECONDS)}. {scale.callers} callers ask "
        f"one question after the other, {scale.calls:,} in all, after {scale.before} that are not counted. More calls "
        "are those that the providers got beyond one a question; given up are those whose connection was closed before "
        "the answer. A quantile has to lie below the share of normal calls: at p95 the slow ones begin, and which side "
        "of that the measured one is on is chance. A budget of 1 % is one that is used up all the time.",
    )


def _row(name: str, seen: Seen, without: Seen) -> TableRow:
    lower = without.percentile(99) / seen.percentile(99)
    figures = (
        f"{seen.percentile(50) * 1e3:.1f} ms",
        f"{seen.percentile(99) * 1e3:.0f} ms",
        "" if name == WITHOUT else f"{lower:.1f}×",
        f"{seen.more_calls:.1%}",
        f"{seen.cut_off}",
    )
    if name == HEDGED:
        kept = lower >= TIMES_LOWER and seen.more_calls <= MORE_CALLS
        return TableRow(name, figures, f"≥ {TIMES_LOWER:g}× for ≤ {MORE_CALLS:.0%} more", kept)
    if name == SPENT:
        return TableRow(name, figures, f"≤ {_SPENT_RATIO:.0%} more", seen.more_calls <= _SPENT_RATIO)
    return TableRow(name, figures)


def _range(seconds: tuple[float, float]) -> str:
    return f"{seconds[0] * 1e3:.0f} to {seconds[1] * 1e3:.0f} ms"


def main(arguments: list[str]) -> int:
    """Measure, print, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hedging", description=__doc__.partition(":")[0])
    parser.add_argument("--quick", action="store_true", help="a quarter of the calls; the figures are rougher")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the time of every call to FILE")
    options = parser.parse_args(arguments)
    scale = QUICK if options.quick else FULL
    try:
        found = asyncio.run(measure(scale, report.progress))
    except NotDoneError as error:
        print(error, file=sys.stderr)
        return 2
    grids = list(tables(found, scale))
    print(report.as_text(report.this_run(" ".join(["python -m benchmarks.hedging", *arguments])), grids, []))
    if options.json:
        options.json.write_text(json.dumps(found), encoding="utf-8")
    return int(any(row.verdict is Verdict.MISSED for grid in grids for row in grid.rows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
