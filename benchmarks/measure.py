"""The timing engine: contestants take turns, and only what they did in the same round is compared.

A round gives every contestant its turn, in an order that rotates. A turn is a few batches of calls on the same
arguments in the same event loop, and its figure is the fastest batch: another load on the machine can only slow a batch
down. A ratio is taken within each round, and what is reported is the median over the rounds. The garbage collector
does not run during a turn.
"""

from __future__ import annotations

import gc
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

Call = Callable[[Any], Coroutine[Any, Any, Any]]


async def _nothing() -> None:
    pass


@dataclass(frozen=True, slots=True)
class Contestant:
    """Something to be timed.

    Attributes:
        name: as it stands in the tables.
        call: what one call is.
        settle: awaited after each batch, off the clock: waits for what the calls left running.
        share: the part of the calls of a batch that is enough for this one, for a contestant that is slow.
    """

    name: str
    call: Call
    settle: Callable[[], Awaitable[None]] = _nothing
    share: float = 1.0


@dataclass(frozen=True, slots=True)
class Case:
    """Contestants for one task.

    Attributes:
        name: of the task.
        contestants: who does it.
        arguments: makes the arguments of a batch, given their number; each contestant gets the same ones.
    """

    name: str
    contestants: Sequence[Contestant]
    arguments: Callable[[int], Sequence[Any]]


class Effort(NamedTuple):
    """How much is measured: rounds, batches in a turn, and calls in a batch."""

    rounds: int
    batches: int
    calls: int

    @property
    def total(self) -> int:
        """How many calls a contestant makes in all, the batch to warm up included."""
        return self.calls * (1 + self.rounds * self.batches)


class Ratio(NamedTuple):
    """The median over the rounds, and the range within which the middle half of the rounds lies."""

    median: float
    low: float
    high: float


Samples = dict[str, list[float]]


async def run(case: Case, effort: Effort) -> Samples:
    """Seconds a call, by contestant: one figure a round."""
    await _warm_up(case, effort)
    samples: Samples = {contestant.name: [] for contestant in case.contestants}
    for number in range(effort.rounds):
        batches = [case.arguments(effort.calls) for _ in range(effort.batches)]
        start = number % len(case.contestants)
        for contestant in (*case.contestants[start:], *case.contestants[:start]):
            samples[contestant.name].append(await _turn(contestant, batches))
    gc.unfreeze()
    return samples


async def _warm_up(case: Case, effort: Effort) -> None:
    arguments = case.arguments(effort.calls)
    for contestant in case.contestants:
        await _turn(contestant, [arguments])
    gc.collect()
    gc.freeze()  # what is here already need not be walked again between the turns


async def _turn(contestant: Contestant, batches: Sequence[Sequence[Any]]) -> float:
    gc.collect()
    gc.disable()
    try:
        fastest = float("inf")
        for arguments in batches:
            part = arguments[: max(1, round(len(arguments) * contestant.share))]
            fastest = min(fastest, await _batch(contestant.call, part))
            await contestant.settle()
        return fastest
    finally:
        gc.enable()


async def _batch(call: Call, arguments: Sequence[Any]) -> float:
    started = perf_counter()
    for argument in arguments:
        await call(argument)
    return (perf_counter() - started) / len(arguments)


def ratio(samples: Mapping[str, Sequence[float]], part: str, whole: str) -> Ratio:
    """How many times as long as `whole` it took `part`."""
    quotients = sorted(a / b for a, b in zip(samples[part], samples[whole], strict=True))
    quarter = len(quotients) // 4
    return Ratio(median(quotients), quotients[quarter], quotients[-1 - quarter])
