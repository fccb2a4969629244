"""Measures retries against a provider that is down (a storm), and one that is overloaded for a while (a brown-out).

Time is simulated: the event loop jumps from one timer to the next, and its clock replaces `time.monotonic` for the
library.
"""

from __future__ import annotations

import asyncio
import random
from bisect import bisect_left
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from benchmarks.checks import expect
from benchmarks.simulated_clock import SimulatedClock
from observability_integration.testing import FakeClockLoop

from .retry_storm_contestants import BROWN_OUT_CONTESTANTS, STORM_CONTESTANTS, Ask, Build, OverloadedError

CONTESTANTS = tuple(dict.fromkeys((*STORM_CONTESTANTS, *BROWN_OUT_CONTESTANTS)))
BROWN_OUT_SECONDS, LONG_SECONDS = 30.0, 120.0
STORM_CALLS = 1000
SPREADS_SECONDS = 0.0, 60.0
WINDOW_SECONDS, _STEP_SECONDS = 5.0, 0.5
RECOVERED = 0.9  # answers per call

Report = Callable[[str], None]


class Scenario(NamedTuple):
    """A provider, its load, and its brown-out.

    Attributes:
        slots: requests served at once.
        seconds: mean service time; service times and times between calls are exponentially distributed.
        load: calls as a share of the capacity.
        browned_out: calls as a multiple of the capacity during the brown-out.
        before: seconds before the brown-out.
        during: seconds of the brown-out.
        after: seconds after the brown-out.
    """

    slots: int = 40  # differs from the initial limit of Aimd
    seconds: float = 0.5
    load: float = 0.7
    browned_out: float = 2.0
    before: float = 30.0
    during: float = BROWN_OUT_SECONDS
    after: float = 120.0

    @property
    def calls_per_second(self) -> float:
        """Arrival rate of calls."""
        return self.load * self.slots / self.seconds

    @property
    def slots_left(self) -> int:
        """Requests served at once during the brown-out."""
        return round(self.slots * self.load / self.browned_out)


class BrownOutResult(NamedTuple):
    """The result of one run.

    Attributes:
        seconds: of the brown-out.
        attempts: requests to the provider per call, over the whole run.
        during: answers per call during the brown-out.
        after: answers per call after it; above 1 where queued calls were answered.
        recovered_seconds: from the end of the brown-out until answers kept up with calls; None if they never did.
        slowest_seconds: 99th percentile of the latency from the start of the brown-out on.
        wasted: share of the provider's work after the brown-out on requests whose caller had gone.
    """

    seconds: float
    attempts: float
    during: float
    after: float
    recovered_seconds: float | None
    slowest_seconds: float
    wasted: float


class Provider:
    """Serves a number of requests at once, and queues the others in order.

    Like real providers, it also serves requests whose caller has gone.

    Args:
        slots: requests served at once.
        seconds: draws a service time.
    """

    def __init__(self, slots: int, seconds: Callable[[], float]) -> None:
        self._slots = slots
        self._seconds = seconds
        self._queue: deque[asyncio.Future[None]] = deque()
        self._busy = 0
        self.requests = 0
        self.served: list[tuple[float, bool]] = []
        """The end of each request, and whether its caller still waited."""

    def resize(self, slots: int) -> None:
        """Changes the number of slots; running requests finish."""
        self._slots = slots
        self._serve()

    async def ask(self, _: object) -> str:
        """Queues a request and returns its answer."""
        self.requests += 1
        answered = asyncio.get_running_loop().create_future()
        self._queue.append(answered)
        self._serve()
        await answered
        return "answer"

    def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        while self._queue and self._busy < self._slots:
            self._busy += 1
            loop.call_later(self._seconds(), self._done, self._queue.popleft())

    def _done(self, answered: asyncio.Future[None]) -> None:
        self._busy -= 1
        self.served.append((asyncio.get_running_loop().time(), not answered.done()))
        if not answered.done():
            answered.set_result(None)
        self._serve()


def measure(
    contestants: Sequence[str], runs: Sequence[tuple[float, int]], clock: SimulatedClock, report: Report
) -> dict[str, Any]:
    """Runs the contestants.

    Args:
        contestants: to run.
        runs: seconds of a brown-out, and number of runs with it.
        clock: replaced `time.monotonic` before the library was imported.
        report: called with progress.

    Returns:
        Under ``storm``, by contestant, attempts per call, in the order of `SPREADS_SECONDS`; under ``brown_out``,
        by contestant, a `BrownOutResult` as a dict for each run. None where the library is not installed.
    """
    found: dict[str, Any] = {"storm": {}, "brown_out": {}}
    scenarios = [(Scenario(during=seconds), seed) for seconds, number in runs for seed in range(number)]
    for name in contestants:
        report(f"retry storm, brown-out: {name}")
        if (build := STORM_CONTESTANTS.get(name)) is not None:
            found["storm"][name] = _of(build, lambda build: [storm(build, spread, clock) for spread in SPREADS_SECONDS])
        if (build := BROWN_OUT_CONTESTANTS.get(name)) is not None:
            found["brown_out"][name] = _of(
                build, lambda build: [brown_out(build, scenario, seed, clock)._asdict() for scenario, seed in scenarios]
            )
    return found


def _of(build: Build, look: Callable[[Build], list[Any]]) -> list[Any] | None:
    try:
        return look(build)
    except ImportError as error:
        if (error.name or "").startswith("observability_integration"):
            raise  # our library is installed but broken
        return None


def storm(build: Build, spread_seconds: float, clock: SimulatedClock, calls: int = STORM_CALLS) -> float:
    """Returns attempts per call while the provider refuses every request.

    Args:
        build: the contestant.
        spread_seconds: over which calls arrive; 0 for all at once.
        clock: replaced `time.monotonic` before the library was imported.
        calls: number of calls.
    """
    attempts = 0

    async def refuse(_: object) -> str:
        nonlocal attempts
        attempts += 1
        raise OverloadedError

    async def run() -> None:
        ask = build(refuse)
        times = [spread_seconds * number / calls for number in range(calls)]
        answers = await _ask_at(times, ask)
        expect(all(at is None for at in answers), "a call was answered though the provider refuses all")

    random.seed(0)  # the waits between attempts
    _simulate(run, clock)
    return attempts / calls


def brown_out(build: Build, scenario: Scenario, seed: int, clock: SimulatedClock) -> BrownOutResult:
    """Makes calls before, during and after a brown-out, independent of earlier outcomes.

    Args:
        build: the contestant; an attempt times out after `PATIENCE_SECONDS`.
        scenario: provider, load and brown-out.
        seed: of arrivals, service times, and waits between attempts.
        clock: replaced `time.monotonic` before the library was imported.
    """
    draws = random.Random(seed)
    starts, ends = scenario.before, scenario.before + scenario.during
    arrivals = [draws.expovariate(scenario.calls_per_second)]
    while arrivals[-1] < ends + scenario.after:
        arrivals.append(arrivals[-1] + draws.expovariate(scenario.calls_per_second))
    provider = Provider(scenario.slots, lambda: draws.expovariate(1 / scenario.seconds))
    answers: list[float | None] = []

    async def run() -> None:
        loop = asyncio.get_running_loop()
        loop.call_at(starts, provider.resize, scenario.slots_left)
        loop.call_at(ends, provider.resize, scenario.slots)
        answers.extend(await _ask_at(arrivals, build(provider.ask)))

    random.seed(seed)
    _simulate(run, clock)
    until = ends + scenario.after
    answered = sorted(at for at in answers if at is not None)
    took = sorted(
        at - arrived for arrived, at in zip(arrivals, answers, strict=True) if at is not None and at >= starts
    )
    work = [was_wanted for at, was_wanted in provider.served if ends <= at < until]
    return BrownOutResult(
        scenario.during,
        provider.requests / len(arrivals),
        _kept_up(arrivals, answered, starts, ends),
        _kept_up(arrivals, answered, ends, until),
        recovered_seconds(arrivals, answered, ends, until),
        took[len(took) * 99 // 100] if took else 0.0,
        1 - sum(work) / len(work) if work else 0.0,
    )


def recovered_seconds(arrivals: Sequence[float], answered: Sequence[float], since: float, until: float) -> float | None:
    """Returns the seconds until answers kept up with calls.

    That is, at least `RECOVERED` answers per call, both in the next `WINDOW_SECONDS` and up to the end of the run.

    Args:
        arrivals: times of calls, in order.
        answered: times of answers, in order.
        since: end of the brown-out.
        until: end of the run.

    Returns:
        None if they never did.
    """
    for step in range(int((until - since - WINDOW_SECONDS) / _STEP_SECONDS) + 1):
        start = since + step * _STEP_SECONDS
        shares = (_kept_up(arrivals, answered, start, end) for end in (start + WINDOW_SECONDS, until))
        if min(shares) >= RECOVERED:
            return start - since
    return None


def _kept_up(arrivals: Sequence[float], answered: Sequence[float], since: float, until: float) -> float:
    calls, answers = (bisect_left(times, until) - bisect_left(times, since) for times in (arrivals, answered))
    return answers / calls if calls else 1.0


async def _ask_at(times: Sequence[float], ask: Ask) -> list[float | None]:
    """Asks at these times of the loop; returns the time of each answer, or None."""
    loop = asyncio.get_running_loop()

    async def one() -> float | None:
        try:
            await ask("question")
        except Exception:
            return None
        return loop.time()

    tasks: list[asyncio.Task[float | None]] = []
    for at in times:
        if at > loop.time():
            await asyncio.sleep(at - loop.time())
        tasks.append(loop.create_task(one()))
    return await asyncio.gather(*tasks)


def _simulate(run: Callable[[], Any], clock: SimulatedClock) -> None:
    with asyncio.Runner(loop_factory=FakeClockLoop) as runner, clock.follow(runner.get_loop()):
        runner.run(run())
