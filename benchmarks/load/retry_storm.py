"""What retries do to a provider that is down, and to one that is for a while too slow for its load.

Nothing waits in earnest: all of it passes on the clock of an event loop that jumps from one timer to the next, and the
library is given that clock in place of `time.monotonic`.
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
RECOVERED = 0.9  # answers for each call that comes in

Report = Callable[[str], None]


class Scene(NamedTuple):
    """A provider, its load, and its brown-out.

    Attributes:
        slots: requests that it serves at once.
        seconds: that one takes, in the mean; how long each takes is exponentially distributed, as is the time from one
            call to the next.
        load: share of what it can do that callers ask of it.
        browned_out: times what it can do in the brown-out, that callers ask of it then.
        before: seconds until the brown-out.
        during: seconds of it.
        after: seconds that come after it.
    """

    slots: int = 40  # not what an Aimd begins with
    seconds: float = 0.5
    load: float = 0.7
    browned_out: float = 2.0
    before: float = 30.0
    during: float = BROWN_OUT_SECONDS
    after: float = 120.0

    @property
    def calls_per_second(self) -> float:
        """How many calls come in."""
        return self.load * self.slots / self.seconds

    @property
    def slots_left(self) -> int:
        """Requests that it serves at once in the brown-out."""
        return round(self.slots * self.load / self.browned_out)


class Seen(NamedTuple):
    """What came of the calls of one run.

    Attributes:
        seconds: of the brown-out.
        attempts: requests to the provider for each call, over the whole run.
        during: answers in the brown-out for each call that came in then.
        after: the same after it; above 1 where calls had waited.
        recovered_seconds: after the brown-out, until answers kept up with calls again; None if they never did.
        slowest_seconds: all but a hundredth of the answers from the brown-out on came sooner after their call.
        wasted: share of the provider's work after the brown-out that nobody waited for any more.
    """

    seconds: float
    attempts: float
    during: float
    after: float
    recovered_seconds: float | None
    slowest_seconds: float
    wasted: float


class Provider:
    """Serves so many requests at once, and the others in the order in which they came.

    As real ones do, it works on a request whose caller has left: nobody tells it.

    Args:
        slots: requests at once.
        seconds: draws how long one takes.
    """

    def __init__(self, slots: int, seconds: Callable[[], float]) -> None:
        self._slots = slots
        self._seconds = seconds
        self._queue: deque[asyncio.Future[None]] = deque()
        self._busy = 0
        self.requests = 0
        self.served: list[tuple[float, bool]] = []
        """When each request was done, and whether somebody still waited for it."""

    def resize(self, slots: int) -> None:
        """From now on it serves so many at once; what it serves already it finishes."""
        self._slots = slots
        self._serve()

    async def ask(self, _: object) -> str:
        """Waits for its turn, and for the answer."""
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
    """Looks at the contestants.

    Args:
        contestants: who is to be looked at.
        runs: brown-outs of how many seconds, and how many of each.
        clock: what the library took for `time.monotonic`.
        report: is told what is going on.

    Returns:
        Under ``storm``, by contestant, attempts for each call, in the order of `SPREADS_SECONDS`; under ``brown_out``,
        by contestant, a `Seen` as a dict for each run. None where the library is not installed.
    """
    found: dict[str, Any] = {"storm": {}, "brown_out": {}}
    scenes = [(Scene(during=seconds), seed) for seconds, number in runs for seed in range(number)]
    for name in contestants:
        report(f"storms: {name}")
        if (build := STORM_CONTESTANTS.get(name)) is not None:
            found["storm"][name] = _of(build, lambda build: [storm(build, spread, clock) for spread in SPREADS_SECONDS])
        if (build := BROWN_OUT_CONTESTANTS.get(name)) is not None:
            found["brown_out"][name] = _of(
                build, lambda build: [brown_out(build, scene, seed, clock)._asdict() for scene, seed in scenes]
            )
    return found


def _of(build: Build, look: Callable[[Build], list[Any]]) -> list[Any] | None:
    try:
        return look(build)
    except ImportError as error:
        if (error.name or "").startswith("observability_integration"):
            raise  # the library is here, and does not work
        return None


def storm(build: Build, spread_seconds: float, clock: SimulatedClock, calls: int = STORM_CALLS) -> float:
    """How many attempts a provider sees for each call while it refuses every one of them.

    Args:
        build: the contestant.
        spread_seconds: over which the calls come in; 0 for all in one instant.
        clock: what the library took for `time.monotonic`.
        calls: how many.
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
        expect(all(at is None for at in answers), "a call was answered that nobody answers")

    random.seed(0)  # the waits between attempts
    _simulate(run, clock)
    return attempts / calls


def brown_out(build: Build, scene: Scene, seed: int, clock: SimulatedClock) -> Seen:
    """Has calls come in before, during and after a brown-out, whatever became of those before.

    Args:
        build: the contestant, whose callers give an attempt up after `storm_contestants.PATIENCE_SECONDS`.
        scene: the provider.
        seed: of the times at which calls come in, how long requests take, and the waits between attempts.
        clock: what the library took for `time.monotonic`.
    """
    draws = random.Random(seed)
    starts, ends = scene.before, scene.before + scene.during
    comes = [draws.expovariate(scene.calls_per_second)]
    while comes[-1] < ends + scene.after:
        comes.append(comes[-1] + draws.expovariate(scene.calls_per_second))
    provider = Provider(scene.slots, lambda: draws.expovariate(1 / scene.seconds))
    answers: list[float | None] = []

    async def run() -> None:
        loop = asyncio.get_running_loop()
        loop.call_at(starts, provider.resize, scene.slots_left)
        loop.call_at(ends, provider.resize, scene.slots)
        answers.extend(await _ask_at(comes, build(provider.ask)))

    random.seed(seed)
    _simulate(run, clock)
    until = ends + scene.after
    answered = sorted(at for at in answers if at is not None)
    took = sorted(at - came for came, at in zip(comes, answers, strict=True) if at is not None and at >= starts)
    work = [was_wanted for at, was_wanted in provider.served if ends <= at < until]
    return Seen(
        scene.during,
        provider.requests / len(comes),
        _kept_up(comes, answered, starts, ends),
        _kept_up(comes, answered, ends, until),
        recovered_seconds(comes, answered, ends, until),
        took[len(took) * 99 // 100] if took else 0.0,
        1 - sum(work) / len(work) if work else 0.0,
    )


def recovered_seconds(comes: Sequence[float], answered: Sequence[float], since: float, until: float) -> float | None:
    """How long it took until answers kept up with calls: nine for ten, in the five seconds that follow and to the end.

    Args:
        comes: when calls came in, in order.
        answered: when they were answered, in order.
        since: when the brown-out ended.
        until: when the watch ended.

    Returns:
        None if they never did.
    """
    for step in range(int((until - since - WINDOW_SECONDS) / _STEP_SECONDS) + 1):
        start = since + step * _STEP_SECONDS
        shares = (_kept_up(comes, answered, start, end) for end in (start + WINDOW_SECONDS, until))
        if min(shares) >= RECOVERED:
            return start - since
    return None


def _kept_up(comes: Sequence[float], answered: Sequence[float], since: float, until: float) -> float:
    calls, answers = (bisect_left(times, until) - bisect_left(times, since) for times in (comes, answered))
    return answers / calls if calls else 1.0


async def _ask_at(times: Sequence[float], ask: Ask) -> list[float | None]:
    """Asks at these times of the loop; when each was answered, or None if it was not."""
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
