"""Counts the lookups of a cache, for its statistics and metrics."""

from __future__ import annotations

import time
from typing import NotRequired, TypedDict

from observability_integration.caching.entry import Entry
from observability_integration.caching.freshness import TtlAdapter
from observability_integration.caching.lookup import LookupResult
from observability_integration.telemetry.catalogue.cache import (
    CACHE_BYPASSES,
    CACHE_COST_SAVINGS,
    CACHE_HIT_AGE,
    CACHE_HITS,
    CACHE_LATENCY,
    CACHE_MISSED,
    CACHE_MISSES,
    CACHE_SAVED_TOKENS,
    CACHE_SERVED,
    CACHE_TIER_LATENCY,
)
from observability_integration.telemetry.guard import warn_once
from observability_integration.telemetry.metrics.instruments import CounterSeries, switch
from observability_integration.telemetry.tracing import spans
from observability_integration.telemetry.tracing.spans import OperationSpan

_REENTRANT = (
    "Cache '{}': a call asked, directly or through other cached calls, for the key that it is making, and would have "
    "waited for itself. Such calls are made without the cache; let the inner call ask for another key"
)


class CacheStats(TypedDict):
    """The result of `CachePrimitive.get_stats`; `hit_rate` is hits / total, from 0 to 1.

    With an adaptive TTL also the current TTL, in seconds, and the reason for it.
    """

    operation: str
    hits: int
    misses: int
    total: int
    hit_rate: float
    cost_savings_usd: float
    ttl_seconds: NotRequired[float]
    ttl_reason: NotRequired[str]


class CacheRecord:
    """The counts of one cache.

    Args:
        owner: the cache.
        operation: name of the cache, a label.

    Attributes:
        operation: the same.
    """

    def __init__(self, owner: object, operation: str) -> None:
        self.operation = operation
        self._total_hits = 0
        self._total_misses = 0
        self._saved_usd = 0.0
        self._adapter: TtlAdapter | None = None
        self._hits = CACHE_HITS.declare(owner, operation)
        self._misses = CACHE_MISSES.declare(owner, operation)
        self._savings = CACHE_COST_SAVINGS.declare(owner, operation)
        self._tokens = CACHE_SAVED_TOKENS.declare(owner, operation)
        self._hit_latency = CACHE_LATENCY.declare(owner, operation, "true")
        self._miss_latency = CACHE_LATENCY.declare(owner, operation, "false")
        self._memory_latency = CACHE_TIER_LATENCY.declare(owner, operation, "memory")
        self._age = CACHE_HIT_AGE.declare(owner, operation)
        self._served: dict[tuple[str, str], CounterSeries] = {}

    def adapt(self, adapter: TtlAdapter) -> None:
        """Reports every later lookup to `adapter`."""
        self._adapter = adapter

    def fresh_hit(self, span: OperationSpan, started: float, cost_usd: float, entry: Entry) -> None:
        """Counts a hit on a fresh entry in memory, the most frequent kind."""
        if switch.on or self._adapter is not None or span is not spans.NO_SPAN:
            age_seconds = time.monotonic() - entry.created
            self.hit(span, started, cost_usd, LookupResult(None, "memory", "fresh", age_seconds, entry.tokens))
        else:
            self._total_hits += 1
            self._saved_usd += cost_usd

    def hit(self, span: OperationSpan, started: float, cost_usd: float, served: LookupResult) -> None:
        """Counts a value served instead of a call, by a lookup that began at `started`."""
        self._total_hits += 1
        self._saved_usd += cost_usd
        if self._adapter is not None:
            self._adapter.hit(served.age_seconds)
        if switch.on:  # checked once: a check in each series takes a third of the time of a hit
            looked = time.perf_counter() - started
            self._hits.add()
            self._savings.add(cost_usd)
            self._hit_latency.record(looked, span)
            if served.tier == "memory":
                self._memory_latency.record(looked)
            self._age.record(served.age_seconds)
            if served.tokens:
                self._tokens.add(served.tokens)
            kind = served.tier, served.freshness
            counter = self._served.get(kind)
            if counter is None:
                counter = self._served[kind] = CACHE_SERVED.declare(self, self.operation, *kind)
            counter.add()
        if span is not spans.NO_SPAN:
            span.set_attribute("cache.hit", True)
            span.set_attribute("cache.tier", served.tier)
            span.set_attribute("cache.freshness", served.freshness)

    def miss(self, reason: str, looked_seconds: float, span: OperationSpan) -> None:
        """Counts a lookup that found no value, so that the call is made."""
        self._total_misses += 1
        if self._adapter is not None:
            self._adapter.miss()
        if switch.on:
            self._misses.add()
            CACHE_MISSED.series(self.operation, reason).add()
            self._miss_latency.record(looked_seconds, span)

    def bypass(self, span: OperationSpan, reason: str) -> None:
        """Counts a call that bypasses the cache, and says of one that asks for itself how it comes about."""
        if reason == "reentrant":
            warn_once("cache.reentrant", self.operation, _REENTRANT.format(self.operation))
        CACHE_BYPASSES.series(self.operation, reason).add()
        span.set_attribute("cache.bypass", reason)

    def stats(self, ttl_seconds: float) -> CacheStats:
        """Returns the counts since construction."""
        hits, total = self._total_hits, self._total_hits + self._total_misses
        stats: CacheStats = {
            "operation": self.operation,
            "hits": hits,
            "misses": total - hits,
            "total": total,
            "hit_rate": hits / total if total else 0.0,
            # Ten decimals: below any price, and above the rounding errors of the sum.
            "cost_savings_usd": round(self._saved_usd, 10),
        }
        if self._adapter is not None:
            stats["ttl_seconds"] = ttl_seconds
            stats["ttl_reason"] = self._adapter.reason
        return stats
