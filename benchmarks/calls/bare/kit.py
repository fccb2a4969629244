"""Equivalents in plain asyncio with the same guarantees, without telemetry: the reference without OpenTelemetry.

Same guarantees: the router uses the default route if the rule fails or names no route. The cache is bounded, expires
entries with jitter, hashes keys, gives each caller its own copy of a structure, makes overlapping calls once, and
survives the cancellation of a caller, or of the call before it starts. The timeout returns even if the work ignores its
cancellation. Left out, though ours has them: inherited deadlines, a context, async or failing rules and key functions,
checks of stored values and of complete answers, a bound on bytes, tags, stale answers, a shared store, several event
loops, streaming.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable, Mapping
from functools import partial
from hashlib import blake2b
from random import random
from time import monotonic
from typing import Any

import msgspec

from benchmarks import workload
from benchmarks.measure import Call
from benchmarks.workload import Runnable, Work

from . import resilience

MISSING = object()
_JITTER = 0.1
_IMMUTABLE = (str, bytes, int, float, bool, type(None))
_abandoned: set[asyncio.Task[Any]] = set()


class Router:
    """Routes by a rule, and to the default route if the rule fails."""

    def __init__(self, routes: Mapping[str, Call], choose: Callable[[Any], str], default: str) -> None:
        self._routes = routes
        self._choose = choose
        self._default = default

    async def execute(self, request: Any) -> Any:
        """Runs the chosen route."""
        try:
            call = self._routes.get(self._choose(request))
        except Exception:
            call = None
        if call is None:
            call = self._routes[self._default]
        return await call(request)


class Store:
    """Values by key, bounded by number and age. Structures are stored as JSON, so that callers do not share them."""

    def __init__(self, ttl_seconds: float, max_entries: int) -> None:
        self._ttl_seconds = ttl_seconds
        self._max_entries = max_entries
        self._entries: OrderedDict[bytes, tuple[float, bool, Any]] = OrderedDict()

    def get(self, key: bytes) -> Any:
        """Returns the value, or MISSING."""
        entry = self._entries.get(key)
        if entry is None:
            return MISSING
        expires, encoded, value = entry
        if expires <= monotonic():
            del self._entries[key]
            return MISSING
        self._entries.move_to_end(key)
        return msgspec.json.decode(value) if encoded else value

    def put(self, key: bytes, value: Any) -> None:
        """Stores a value, and evicts the least recently used entry when the store is full."""
        encoded = not isinstance(value, _IMMUTABLE)
        self._entries[key] = (
            monotonic() + self._ttl_seconds * (1 - _JITTER * random()),
            encoded,
            msgspec.json.encode(value) if encoded else value,
        )
        if len(self._entries) > self._max_entries:
            self._entries.popitem(last=False)


def hashed(key: str) -> bytes:
    """Returns the key of an entry."""
    return blake2b(key.encode(), digest_size=32).digest()


class Cache:
    """Returns a stored value instead of making the call; overlapping calls are made once."""

    def __init__(self, call: Call, key_of: Callable[[Any], str]) -> None:
        self._call = call
        self._key_of = key_of
        self._store = Store(workload.TTL_SECONDS, workload.MAX_ENTRIES)
        self._flights: dict[bytes, asyncio.Task[Any]] = {}
        self.hits = 0
        self.misses = 0
        self.saved_usd = 0.0

    async def execute(self, request: Any) -> Any:
        """Returns the stored value, or a new one."""
        key = hashed(self._key_of(request))
        value = self._store.get(key)
        if value is MISSING:
            flight = self._flights.get(key)
            if flight is None:
                self.misses += 1
                flight = self._flights[key] = asyncio.create_task(self._compute(key, request))
                # A task that is cancelled before it starts does not run a `finally`.
                flight.add_done_callback(partial(self._remove_flight, key))
                return await asyncio.shield(flight)
            await asyncio.shield(flight)
            value = self._store.get(key)
        self.hits += 1
        self.saved_usd += workload.SAVED_PER_HIT_USD
        return value

    async def _compute(self, key: bytes, request: Any) -> Any:
        value = await self._call(request)
        self._store.put(key, value)
        return value

    def _remove_flight(self, key: bytes, flight: asyncio.Task[Any]) -> None:
        if self._flights.get(key) is flight:
            del self._flights[key]

    def get_stats(self) -> dict[str, Any]:
        """Returns hits and misses."""
        return {"hits": self.hits, "misses": self.misses}


async def finished_within(task: asyncio.Task[Any], limit_seconds: float, grace_seconds: float) -> bool:
    """Returns whether the task ended in time; if not, cancels it, waits for the grace, then abandons it."""
    try:
        done, _ = await asyncio.wait({task}, timeout=limit_seconds)
        if done:
            return True
        task.cancel()
        await asyncio.wait({task}, timeout=grace_seconds)
    except asyncio.CancelledError:
        task.cancel()
        await asyncio.wait({task}, timeout=grace_seconds)
        raise
    if not task.done():
        _abandoned.add(task)
        task.add_done_callback(_abandoned.discard)
    return False


class Timeout:
    """Returns in time, even if the work ignores its cancellation."""

    def __init__(
        self,
        call: Call,
        limit_seconds: float = workload.TIMEOUT_SECONDS,
        grace_seconds: float = workload.GRACE_SECONDS,
    ) -> None:
        self._call = call
        self._limit_seconds = limit_seconds
        self._grace_seconds = grace_seconds
        self.successes = 0
        self.failures = 0

    async def execute(self, request: Any) -> Any:
        """Returns the answer, or raises TimeoutError."""
        task = asyncio.create_task(self._call(request))
        if not await finished_within(task, self._limit_seconds, self._grace_seconds):
            self.failures += 1
            raise TimeoutError
        answer = task.result()
        self.successes += 1
        return answer

    def get_stats(self) -> dict[str, Any]:
        """Returns successes and failures."""
        return {"successes": self.successes, "failures": self.failures}


class Unwrapped:
    """An LLM call without telemetry is just the call."""

    def __init__(self, call: Call) -> None:
        self.execute = call


class Bare:
    """Makes each primitive's equivalent around some work."""

    name = "bare asyncio"

    def router(self, work: Work) -> Runnable:
        """The equivalent of RouterPrimitive."""
        return Router({workload.FAST: work.answer, workload.PREMIUM: work.answer}, workload.choose, workload.FAST)

    def cache(self, work: Work) -> Runnable:
        """The equivalent of CachePrimitive."""
        return Cache(work.answer, workload.key_of_prompt)

    def timeout(self, work: Work) -> Runnable:
        """The equivalent of TimeoutPrimitive."""
        return Timeout(work.answer)

    def llm_call(self, work: Work) -> Runnable:
        """The equivalent of LLMCallPrimitive."""
        return Unwrapped(work.answer)

    def chain(self, work: Work) -> Runnable:
        """The equivalents of cache, router, timeout and LLM call, nested."""
        routes = {route: Timeout(work.answer).execute for route in workload.COST_PER_ROUTE_USD}
        return Cache(Router(routes, workload.choose, workload.FAST).execute, workload.key_of_request)

    def retry(self, work: Work) -> Runnable:
        """The equivalent of RetryPrimitive."""
        return resilience.Retry(work.answer)

    def fallback(self, work: Work) -> Runnable:
        """The equivalent of FallbackPrimitive."""
        return resilience.Fallback({workload.TARGET: work.answer, workload.OTHER_TARGET: work.answer})

    def breaker(self, work: Work) -> Runnable:
        """The equivalent of CircuitBreakerPrimitive."""
        return resilience.Breaker(work.answer)

    def concurrency(self, work: Work) -> Runnable:
        """The equivalent of ConcurrencyLimitPrimitive."""
        return resilience.Concurrency(work.answer)

    def rate_limit(self, work: Work) -> Runnable:
        """The equivalent of RateLimitPrimitive."""
        return resilience.RateLimit(work.answer)

    def hedge(self, work: Work) -> Runnable:
        """The equivalent of HedgePrimitive."""
        return resilience.Hedge(work.answer)

    def saga(self, work: Work) -> Runnable:
        """The equivalent of SagaPrimitive."""
        return resilience.Saga([(work.answer, workload.undo)] * 2)

    def pipeline(self, work: Work) -> Runnable:
        """The equivalent of `pipeline`."""

        def target() -> Call:
            attempt = Timeout(work.answer, workload.PIPELINE_ATTEMPT_SECONDS, workload.PIPELINE_GRACE_SECONDS)
            return resilience.Retry(resilience.Breaker(attempt.execute).execute).execute

        targets = resilience.Fallback({workload.TARGET: target(), workload.OTHER_TARGET: target()})
        return Timeout(targets.execute, workload.PIPELINE_SECONDS, workload.PIPELINE_GRACE_SECONDS)
