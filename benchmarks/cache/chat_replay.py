"""An hour of real chat through the cache, with and without each of its features.

Who asks what and when, and how long the answers are, is the conversation trace published with Mooncake (FAST 2025; see
`data`). How long an answer takes and which calls fail is simulated. The hour passes on the clock of an event loop that
never waits, and the cache is given that clock in place of `time.monotonic`.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks import data
from benchmarks.simulated_clock import SimulatedClock
from observability_integration.caching.policy import CachePolicy
from observability_integration.primitives import CachePrimitive
from observability_integration.testing import FakeClockLoop

from .eviction import TRACE

FIRST_TOKEN_SECONDS, TOKEN_SECONDS = 0.3, 0.02
TTL_SECONDS, STALE_SECONDS, SOFT_SECONDS, EAGER = 300.0, 1800.0, 2.0, 0.8
FAILING = 0.05  # of the calls, all the time
OUTAGE_SECONDS = 1800.0, 2100.0
PREFIX_BLOCKS = 2
_COALESCING_ONLY_SECONDS = 1e-6  # a TTL in which nobody can come back
_SEED = 2024

Report = Callable[[str], None]


class Request(NamedTuple):
    """One of the trace: when it comes, in seconds, what its prompt is, and how many tokens the answer has."""

    at: float
    blocks: tuple[int, ...]
    prompt_tokens: int
    answer_tokens: int


class Feature(NamedTuple):
    """What is replayed.

    Attributes:
        name: what is on.
        policy: the knobs; None for no cache at all.
        ttl_seconds: the TTL.
        fails: whether calls fail as described at `FAILING` and `OUTAGE_SECONDS`.
    """

    name: str
    policy: CachePolicy | None
    ttl_seconds: float = TTL_SECONDS
    fails: bool = False


class Outcome(NamedTuple):
    """What came of a replay.

    Attributes:
        requests: how many were made.
        calls: how many of them, and of the refreshes in the background, reached the provider.
        stale: answers served beyond their TTL.
        failures: errors that callers saw.
        p50_seconds: half of the callers waited for less.
        p99_seconds: all but a hundredth of them did.
    """

    requests: int
    calls: int
    stale: int
    failures: int
    p50_seconds: float
    p99_seconds: float


def _policy(**knobs: Any) -> CachePolicy:
    return CachePolicy(ttl_jitter=0.0, **knobs)  # so that whoever is served can tell what is stale


_REVALIDATE = {"stale_while_revalidate_seconds": STALE_SECONDS}
_IF_ERROR = {"stale_if_error_seconds": STALE_SECONDS}

FEATURES = (
    Feature("no cache", None),
    Feature("single flight alone", _policy(), _COALESCING_ONLY_SECONDS),
    Feature("cache", _policy()),
    Feature("cache, eager refresh", _policy(eager_refresh=EAGER)),
    Feature("cache, stale while revalidate", _policy(**_REVALIDATE)),
    Feature("cache, soft timeout, stale if late", _policy(**_IF_ERROR, soft_timeout_seconds=SOFT_SECONDS)),
    Feature("calls fail: no cache", None, fails=True),
    Feature("calls fail: cache", _policy(), fails=True),
    Feature("calls fail: cache, stale if error", _policy(**_IF_ERROR), fails=True),
    Feature("calls fail: cache, all of it", _policy(**_IF_ERROR, **_REVALIDATE, eager_refresh=EAGER), fails=True),
)

WHOLE, PREFIX = "whole prompts", f"the first {PREFIX_BLOCKS} blocks of 512 tokens"
MEANING = {
    WHOLE: "",
    PREFIX: "Not what a cache may do with chat: it takes prompts for equal that begin alike, and stands for traffic "
    "that repeats itself more. ",
}
_KEYS: dict[str, Callable[[Request], Any]] = {
    WHOLE: lambda request: (*request.blocks, request.prompt_tokens),
    PREFIX: lambda request: request.blocks[:PREFIX_BLOCKS],
}


def measure(share: float, clock: SimulatedClock, report: Report) -> dict[str, Any]:
    """Replays the first part of the hour.

    Args:
        share: which part.
        clock: what the library took for `time.monotonic`.
        report: is told what is going on.

    Returns:
        Under ``lacking`` what is not there, or None; under ``repeating`` which part of the requests had come before,
        by workload; under ``outcomes`` an `Outcome` as a dict by workload and feature.
    """
    trace = data.find(TRACE)
    if trace is None:
        lacking = f"{TRACE} was not found (set {data.VARIABLE})"
        report(f"replay: left out, {lacking}")
        return {"lacking": lacking, "repeating": {}, "outcomes": {}}
    requests = list(read(trace))
    requests = requests[: round(share * len(requests))]
    found: dict[str, Any] = {"lacking": None, "repeating": {}, "outcomes": {}}
    for workload, key_of in _KEYS.items():
        report(f"replay: {workload}")
        found["repeating"][workload] = 1 - len({key_of(request) for request in requests}) / len(requests)
        found["outcomes"][workload] = {
            feature.name: replay(requests, key_of, feature, clock)._asdict() for feature in FEATURES
        }
    return found


def read(file: Path) -> Iterator[Request]:
    """The requests of the trace."""
    with gzip.open(file, "rt") as lines:
        for line in lines:
            row = json.loads(line)
            yield Request(row["timestamp"] / 1000, tuple(row["hash_ids"]), row["input_length"], row["output_length"])


def replay(
    requests: Sequence[Request], key_of: Callable[[Request], Any], feature: Feature, clock: SimulatedClock
) -> Outcome:
    """Sends the requests at their times through a cache."""
    with asyncio.Runner(loop_factory=FakeClockLoop) as runner, clock.follow(runner.get_loop()):
        return runner.run(_Replay(key_of, feature).run(requests))


class _Replay:
    def __init__(self, key_of: Callable[[Request], Any], feature: Feature) -> None:
        self._feature = feature
        self._key_of = key_of
        self._random = random.Random(_SEED)
        self._seconds: list[float] = []
        self._calls = self._stale = self._failures = 0

    async def run(self, requests: Sequence[Request]) -> Outcome:
        feature, loop = self._feature, asyncio.get_running_loop()
        cache: CachePrimitive[Request, float] | None = None
        ask = self._provider
        if feature.policy is not None:
            cache = CachePrimitive(self._provider, self._key_of, feature.ttl_seconds, policy=feature.policy)
            ask = cache.execute
        under_way: set[asyncio.Task[None]] = set()
        for request in requests:
            await asyncio.sleep(request.at - loop.time())
            task = loop.create_task(self._ask(ask, request))
            under_way.add(task)
            task.add_done_callback(under_way.discard)
        while under_way:
            await asyncio.wait(under_way)
        if cache is not None:
            await cache.aclose()
        self._seconds.sort()
        return Outcome(
            len(requests),
            self._calls,
            self._stale,
            self._failures,
            self._seconds[len(self._seconds) // 2],
            self._seconds[len(self._seconds) * 99 // 100],
        )

    async def _provider(self, request: Request) -> float:
        # Answers with the moment of the answer, so that whoever gets it can tell its age.
        loop = asyncio.get_running_loop()
        self._calls += 1
        if self._feature.fails:
            unlucky = self._random.random() < FAILING
            if unlucky or OUTAGE_SECONDS[0] <= loop.time() < OUTAGE_SECONDS[1]:
                await asyncio.sleep(FIRST_TOKEN_SECONDS)
                raise ConnectionError
        await asyncio.sleep(FIRST_TOKEN_SECONDS + TOKEN_SECONDS * request.answer_tokens)
        return loop.time()

    async def _ask(self, ask: Callable[[Request], Any], request: Request) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        try:
            answered = await ask(request)
        except ConnectionError:
            self._failures += 1
        else:
            self._stale += loop.time() - answered > self._feature.ttl_seconds
        self._seconds.append(loop.time() - began)
