"""Replays one hour of real chat traffic through the cache, with and without each of its features.

Times, prompts and lengths of answers come from the conversation trace published with Mooncake (FAST 2025; see `data`).
Latencies and failures are simulated. The hour passes on the clock of an event loop that never waits, and that clock
replaces `time.monotonic` for the cache.
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
FAILING = 0.05  # of the calls, outside the outage
OUTAGE_SECONDS = 1800.0, 2100.0
PREFIX_BLOCKS = 2
_COALESCING_ONLY_SECONDS = 1e-6  # too short for a hit
_SEED = 2024

Report = Callable[[str], None]


class Request(NamedTuple):
    """A request of the trace: its second, the blocks of its prompt, and the tokens of prompt and answer."""

    at: float
    blocks: tuple[int, ...]
    prompt_tokens: int
    answer_tokens: int


class Feature(NamedTuple):
    """A configuration to replay.

    Attributes:
        name: of the configuration.
        policy: of the cache; None without a cache.
        ttl_seconds: the TTL.
        fails: whether calls fail as described at `FAILING` and `OUTAGE_SECONDS`.
    """

    name: str
    policy: CachePolicy | None
    ttl_seconds: float = TTL_SECONDS
    fails: bool = False


class Outcome(NamedTuple):
    """The result of a replay.

    Attributes:
        requests: number of requests.
        calls: requests and background refreshes that reached the provider.
        stale: answers served beyond their TTL.
        failures: errors that callers got.
        p50_seconds: median latency of callers.
        p99_seconds: 99th percentile of the latency of callers.
    """

    requests: int
    calls: int
    stale: int
    failures: int
    p50_seconds: float
    p99_seconds: float


def _policy(**knobs: Any) -> CachePolicy:
    return CachePolicy(ttl_jitter=0.0, **knobs)  # so that the age of an answer shows whether it is stale


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
    PREFIX: "This key is wrong for real use, because it treats prompts with the same beginning as equal. It stands "
    "for traffic with more repetition. ",
}
_KEYS: dict[str, Callable[[Request], Any]] = {
    WHOLE: lambda request: (*request.blocks, request.prompt_tokens),
    PREFIX: lambda request: request.blocks[:PREFIX_BLOCKS],
}


def measure(share: float, clock: SimulatedClock, report: Report) -> dict[str, Any]:
    """Replays the first part of the hour.

    Args:
        share: fraction of the hour's requests.
        clock: replaced `time.monotonic` before the library was imported.
        report: called with progress.

    Returns:
        Under ``lacking`` the missing data, or None; under ``repeating`` the share of repeated requests by workload;
        under ``outcomes`` an `Outcome` as a dict by workload and feature.
    """
    trace = data.find(TRACE)
    if trace is None:
        lacking = f"{TRACE} was not found (set {data.VARIABLE})"
        report(f"chat replay: skipped, {lacking}")
        return {"lacking": lacking, "repeating": {}, "outcomes": {}}
    requests = list(read(trace))
    requests = requests[: round(share * len(requests))]
    found: dict[str, Any] = {"lacking": None, "repeating": {}, "outcomes": {}}
    for workload, key_of in _KEYS.items():
        report(f"chat replay: {workload}")
        found["repeating"][workload] = 1 - len({key_of(request) for request in requests}) / len(requests)
        found["outcomes"][workload] = {
            feature.name: replay(requests, key_of, feature, clock)._asdict() for feature in FEATURES
        }
    return found


def read(file: Path) -> Iterator[Request]:
    """Yields the requests of the trace."""
    with gzip.open(file, "rt") as lines:
        for line in lines:
            row = json.loads(line)
            yield Request(row["timestamp"] / 1000, tuple(row["hash_ids"]), row["input_length"], row["output_length"])


def replay(
    requests: Sequence[Request], key_of: Callable[[Request], Any], feature: Feature, clock: SimulatedClock
) -> Outcome:
    """Sends the requests at their times through the configuration."""
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
        in_flight: set[asyncio.Task[None]] = set()
        for request in requests:
            await asyncio.sleep(request.at - loop.time())
            task = loop.create_task(self._ask(ask, request))
            in_flight.add(task)
            task.add_done_callback(in_flight.discard)
        while in_flight:
            await asyncio.wait(in_flight)
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
        # The answer is its own time, so that a caller can tell its age.
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
