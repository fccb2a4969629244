"""The timing engine: contestants take turns, and figures are compared within one round only.

Each round gives every contestant one turn, in rotating order. A turn is several batches of calls on the same arguments
in the same event loop. The figure of a turn is its fastest batch, because other load on the machine can only slow a
batch down. A ratio is taken within each round; the median over the rounds is reported. The garbage collector does not
run during a turn.
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
    """A thing to time.

    Attributes:
        name: shown in the tables.
        call: one call.
        settle: awaited after each batch, untimed; waits for background work of the calls.
        share: fraction of a batch's calls that this contestant makes; below 1 for slow contestants.
    """

    name: str
    call: Call
    settle: Callable[[], Awaitable[None]] = _nothing
    share: float = 1.0


@dataclass(frozen=True, slots=True)
class Case:
    """The contestants of one task.

    Attributes:
        name: of the task.
        contestants: do the task.
        arguments: makes the arguments of a batch of the given size; all contestants get the same ones.
    """

    name: str
    contestants: Sequence[Contestant]
    arguments: Callable[[int], Sequence[Any]]


class Effort(NamedTuple):
    """How much is measured: rounds, batches per turn, and calls per batch."""

    rounds: int
    batches: int
    calls: int

    @property
    def total(self) -> int:
        """Calls that a contestant makes in all, the warm-up batch included."""
        return self.calls * (1 + self.rounds * self.batches)


class Ratio(NamedTuple):
    """The median over the rounds, and the quartiles around it."""

    median: float
    low: float
    high: float


Samples = dict[str, list[float]]


async def run(case: Case, effort: Effort) -> Samples:
    """Times a case and returns seconds per call by contestant, one figure per round."""
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
    gc.freeze()  # objects that exist already are not collected again between turns


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
    """Returns the ratio of the times of `part` to those of `whole`, taken round by round."""
    quotients = sorted(a / b for a, b in zip(samples[part], samples[whole], strict=True))
    quarter = len(quotients) // 4
    return Ratio(median(quotients), quotients[quarter], quotients[-1 - quarter])
