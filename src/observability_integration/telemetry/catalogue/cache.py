"""Metrics of CachePrimitive."""

from __future__ import annotations

from observability_integration.telemetry.metrics.instruments import counter, gauge, histogram, ratio

from .common import AGE_SECONDS, ENTRY_BYTES, LLM_SECONDS, LOOKUP_SECONDS, OPERATION

CACHE_HITS = counter("cache.hits", OPERATION, "Values returned instead of a call.")
CACHE_MISSES = counter("cache.misses", OPERATION, "Lookups that had to call, or that failed.")
CACHE_HIT_RATE = ratio(
    "cache.hit_rate",
    OPERATION,
    "Hits / (hits + misses) since start, 0 to 1; absent before the first lookup.",
    CACHE_HITS,
    (CACHE_HITS, CACHE_MISSES),
)
CACHE_LATENCY = histogram(
    "cache.latency",
    ("operation", "hit"),
    "Time of the lookup alone, without the call it may lead to.",
    "s",
    LOOKUP_SECONDS,
)
CACHE_COST_SAVINGS = counter(
    "cache.cost_savings_usd", OPERATION, "Estimated USD saved: hits times the stated cost per call."
)
CACHE_BYPASSES = counter("cache.bypasses", ("operation", "reason"), "Calls that went around the cache, by reason.")
CACHE_BACKEND_ERRORS = counter(
    "cache.backend_errors",
    ("operation", "error_type"),
    "Failed or timed-out accesses to the shared store; the call went on without it.",
)
CACHE_BACKEND_UP = gauge(
    "cache.backend_up",
    OPERATION,
    "1 while the shared store is in use, 0 while its breaker is open; absent without a shared store.",
)

CACHE_SERVED = counter(
    "cache.served",
    ("operation", "tier", "freshness"),
    "Hits by where they came from (memory, backend, flight, semantic) and how (fresh, stale, coalesced).",
)
CACHE_MISSED = counter(
    "cache.missed",
    ("operation", "reason"),
    "Misses by reason: absent, expired, backend_down (the shared store was out of use), failed (an equal call failed).",
)
CACHE_TIER_LATENCY = histogram(
    "cache.tier.latency",
    ("operation", "tier"),
    "Time that looking into one tier took: memory, where it served; the shared store, whether or not it had the entry.",
    "s",
    LOOKUP_SECONDS,
)
CACHE_COMPUTE = histogram(
    "cache.compute", ("operation", "outcome"), "Time of the calls made on a miss.", "s", LLM_SECONDS
)
CACHE_LOCK_WAIT = histogram(
    "cache.lock.wait",
    ("operation", "reach"),
    "Time spent waiting for an equal call, by whether it was made by this process or another.",
    "s",
    LLM_SECONDS,
)
CACHE_ENTRY_SIZE = histogram(
    "cache.entry.size",
    OPERATION,
    "Size of the entries kept: as written to the shared store, else as estimated in memory.",
    "By",
    ENTRY_BYTES,
)
CACHE_HIT_AGE = histogram(
    "cache.hit.age",
    OPERATION,
    "Age of an entry when it is hit, from the beginning of the call that made it.",
    "s",
    AGE_SECONDS,
)
CACHE_REFRESHES = counter(
    "cache.refreshes",
    ("operation", "outcome"),
    "Refreshes in the background: success, error, left (another process makes it), skipped (too many at once).",
)
CACHE_STALE_SERVED = counter(
    "cache.stale.served",
    ("operation", "reason"),
    "Stale entries served: revalidating, error (the call failed), throttled (it failed lately), timeout (it is late).",
)
CACHE_REFUSALS = counter(
    "cache.refusals", ("operation", "reason"), "Values that were returned and not kept, by reason."
)
CACHE_DUPLICATES = counter(
    "cache.singleflight.duplicates",
    OPERATION,
    "Calls that were made although another process was making the same one: its lease was lost, or could not be had.",
)
CACHE_SAVED_TOKENS = counter(
    "cache.saved_tokens", OPERATION, "Tokens that hits did not use again, where the answer's usage says.", "{token}"
)
