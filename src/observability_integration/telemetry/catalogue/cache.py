"""Metrics of CachePrimitive."""

from __future__ import annotations

from .spec import AGE_SECONDS, ENTRY_BYTES, LLM_SECONDS, LOOKUP_SECONDS, OPERATION, Kind, MetricSpec

CACHE_HITS = MetricSpec("cache.hits", Kind.COUNTER, OPERATION, "Values returned instead of a call.")
CACHE_MISSES = MetricSpec("cache.misses", Kind.COUNTER, OPERATION, "Lookups that had to call, or that failed.")
CACHE_HIT_RATE = MetricSpec(
    "cache.hit_rate",
    Kind.GAUGE,
    OPERATION,
    "Hits / (hits + misses) since start, 0 to 1; absent before the first lookup.",
    ratio=("cache.hits", "cache.hits", "cache.misses"),
)
CACHE_LATENCY = MetricSpec(
    "cache.latency",
    Kind.HISTOGRAM,
    ("operation", "hit"),
    "Time of the lookup alone, without the call it may lead to.",
    "s",
    LOOKUP_SECONDS,
)
CACHE_COST_SAVINGS = MetricSpec(
    "cache.cost_savings_usd", Kind.COUNTER, OPERATION, "Estimated USD saved: hits times the stated cost per call."
)
CACHE_BYPASSES = MetricSpec(
    "cache.bypasses", Kind.COUNTER, ("operation", "reason"), "Calls that went around the cache, by reason."
)
CACHE_BACKEND_ERRORS = MetricSpec(
    "cache.backend_errors",
    Kind.COUNTER,
    ("operation", "error_type"),
    "Failed or timed-out accesses to the shared store; the call went on without it.",
)
CACHE_BACKEND_UP = MetricSpec(
    "cache.backend_up",
    Kind.GAUGE,
    OPERATION,
    "1 while the shared store is in use, 0 while its breaker is open; absent without a shared store.",
)

CACHE_SERVED = MetricSpec(
    "cache.served",
    Kind.COUNTER,
    ("operation", "tier", "freshness"),
    "Hits by where they came from (memory, backend, flight, semantic) and how (fresh, stale, coalesced).",
)
CACHE_MISSED = MetricSpec(
    "cache.missed",
    Kind.COUNTER,
    ("operation", "reason"),
    "Misses by reason: absent, expired, backend_down (the shared store was out of use), failed (an equal call failed).",
)
CACHE_TIER_LATENCY = MetricSpec(
    "cache.tier.latency",
    Kind.HISTOGRAM,
    ("operation", "tier"),
    "Time that looking into one tier took: memory, where it served; the shared store, whether or not it had the entry.",
    "s",
    LOOKUP_SECONDS,
)
CACHE_COMPUTE = MetricSpec(
    "cache.compute", Kind.HISTOGRAM, ("operation", "outcome"), "Time of the calls made on a miss.", "s", LLM_SECONDS
)
CACHE_LOCK_WAIT = MetricSpec(
    "cache.lock.wait",
    Kind.HISTOGRAM,
    ("operation", "reach"),
    "Time spent waiting for an equal call, by whether it was made by this process or another.",
    "s",
    LLM_SECONDS,
)
CACHE_ENTRY_SIZE = MetricSpec(
    "cache.entry.size",
    Kind.HISTOGRAM,
    OPERATION,
    "Size of the entries kept: as written to the shared store, else as estimated in memory.",
    "By",
    ENTRY_BYTES,
)
CACHE_HIT_AGE = MetricSpec(
    "cache.hit.age",
    Kind.HISTOGRAM,
    OPERATION,
    "Age of an entry when it is hit, from the beginning of the call that made it.",
    "s",
    AGE_SECONDS,
)
CACHE_REFRESHES = MetricSpec(
    "cache.refreshes",
    Kind.COUNTER,
    ("operation", "outcome"),
    "Refreshes in the background: success, error, left (another process makes it), skipped (too many at once).",
)
CACHE_STALE_SERVED = MetricSpec(
    "cache.stale.served",
    Kind.COUNTER,
    ("operation", "reason"),
    "Stale entries served: revalidating, error (the call failed), throttled (it failed lately), timeout (it is late).",
)
CACHE_REFUSALS = MetricSpec(
    "cache.refusals", Kind.COUNTER, ("operation", "reason"), "Values that were returned and not kept, by reason."
)
CACHE_DUPLICATES = MetricSpec(
    "cache.singleflight.duplicates",
    Kind.COUNTER,
    OPERATION,
    "Calls that were made although another process was making the same one: its lease was lost, or could not be had.",
)
CACHE_SAVED_TOKENS = MetricSpec(
    "cache.saved_tokens",
    Kind.COUNTER,
    OPERATION,
    "Tokens that hits did not use again, where the answer's usage says.",
    "{token}",
)
