"""Every metric, once: the table from which instruments, documentation and tests are made.

Names are OpenTelemetry instrument names; `MetricSpec.prometheus_name` is what a scrape shows. Units follow UCUM. A
USD counter carries no unit, because the exporter would append it (``..._usd_USD_total``).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

# An LLM call takes from 10 ms (a warm, tiny model) to minutes (a reasoning model): 0.01 s to 120 s, about ×2 apart.
LLM_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0)
# A lookup takes from microseconds (memory) to a Redis that is about to be given up.
LOOKUP_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
# An answer takes from a few bytes (a label) to a megabyte, the largest that is kept by default.
ENTRY_BYTES = (64, 256, 1024, 4096, 16384, 65536, 262144, 1048576)
# An entry is hit from a second after it was made (a retry) to the end of a TTL of days.
AGE_SECONDS = (1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 14400.0, 86400.0, 604800.0)
# elapsed / limit: a timeout that is always used to 10 % is too long, one used to 90 % is about to fire.
UTILIZATION = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.5)
# OpenTelemetry semantic conventions v1.41, gen-ai metrics: the advised boundaries.
GEN_AI_SECONDS = (0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92)
GEN_AI_TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576, 4194304, 16777216, 67108864)


# As the reader spells them (prometheus_names.unit_word, which needs OpenTelemetry); {token} is no word.
_UNIT_WORDS = {"s": "seconds", "By": "bytes"}


class Kind(Enum):
    """What an instrument counts."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


class Profile(Enum):
    """Which spelling of the gen_ai conventions a metric belongs to."""

    ALWAYS = "always"
    V1_41 = "v1.41"
    LATEST = "latest"


@dataclass(frozen=True, slots=True)
class MetricSpec:
    """One metric.

    Attributes:
        name: OpenTelemetry instrument name.
        kind: counter, gauge or histogram.
        labels: attribute keys, in the order in which values are given.
        description: one sentence, shown as HELP.
        unit: UCUM unit; empty for plain numbers and ratios.
        buckets: upper bounds of a histogram.
        ratio: for a gauge derived from counters: (part, whole...), summed over the labels the gauge does not have.
        profile: the gen_ai profile in which it is emitted.
    """

    name: str
    kind: Kind
    labels: tuple[str, ...]
    description: str
    unit: str = ""
    buckets: tuple[float, ...] = ()
    ratio: tuple[str, ...] = ()
    profile: Profile = Profile.ALWAYS

    @property
    def prometheus_name(self) -> str:
        """The family name in a scrape (a histogram adds ``_bucket``, ``_sum`` and ``_count``)."""
        counts = self.kind is Kind.COUNTER
        name = self.name.replace(".", "_")
        if counts:
            name = name.removesuffix("_total")
        word = _UNIT_WORDS.get(self.unit)
        if word and not name.endswith(f"_{word}"):
            name += f"_{word}"
        return f"{name}_total" if counts else name

    @property
    def prometheus_labels(self) -> tuple[str, ...]:
        """The label names in a scrape."""
        return tuple(label.replace(".", "_") for label in self.labels)


_OPERATION = ("operation",)
_GEN_AI = ("gen_ai.operation.name", "gen_ai.provider.name", "gen_ai.request.model")
_GEN_AI_RESULT = (*_GEN_AI, "gen_ai.response.model")

ROUTER_DECISIONS = MetricSpec(
    "router.decisions", Kind.COUNTER, ("route", "reason"), "Routing decisions, by chosen route and why it was chosen."
)
ROUTER_EXECUTION = MetricSpec(
    "router.execution", Kind.HISTOGRAM, ("route",), "Time a routed call took, success or not.", "s", LLM_SECONDS
)
ROUTER_COST_SAVINGS = MetricSpec(
    "router.cost_savings_usd",
    Kind.COUNTER,
    ("route",),
    "Estimated USD saved by successful calls against always taking the dearest route.",
)
ROUTER_ERRORS = MetricSpec(
    "router.errors",
    Kind.COUNTER,
    ("route", "error_type"),
    "Errors of the routing function (counted under the default route) and of the routed calls.",
)

CACHE_HITS = MetricSpec("cache.hits", Kind.COUNTER, _OPERATION, "Values returned instead of a call.")
CACHE_MISSES = MetricSpec("cache.misses", Kind.COUNTER, _OPERATION, "Lookups that had to call, or that failed.")
CACHE_HIT_RATE = MetricSpec(
    "cache.hit_rate",
    Kind.GAUGE,
    _OPERATION,
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
    "cache.cost_savings_usd", Kind.COUNTER, _OPERATION, "Estimated USD saved: hits times the stated cost per call."
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
    _OPERATION,
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
    _OPERATION,
    "Size of the entries kept: as written to the shared store, else as estimated in memory.",
    "By",
    ENTRY_BYTES,
)
CACHE_HIT_AGE = MetricSpec(
    "cache.hit.age",
    Kind.HISTOGRAM,
    _OPERATION,
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
    _OPERATION,
    "Calls that were made although another process was making the same one: its lease was lost, or could not be had.",
)
CACHE_SAVED_TOKENS = MetricSpec(
    "cache.saved_tokens",
    Kind.COUNTER,
    _OPERATION,
    "Tokens that hits did not use again, where the answer's usage says.",
    "{token}",
)

TIMEOUT_SUCCESSES = MetricSpec("timeout.successes", Kind.COUNTER, _OPERATION, "Calls that finished in time.")
TIMEOUT_FAILURES = MetricSpec(
    "timeout.failures", Kind.COUNTER, ("operation", "kind"), "Calls that ran out of time, by the clock that fired."
)
TIMEOUT_ERRORS = MetricSpec(
    "timeout.errors",
    Kind.COUNTER,
    ("operation", "error_type"),
    "Calls that failed in time, with an error of their own.",
)
TIMEOUT_CANCELLATIONS = MetricSpec(
    "timeout.cancellations", Kind.COUNTER, _OPERATION, "Calls cancelled by their caller."
)
TIMEOUT_EXECUTION = MetricSpec(
    "timeout.execution",
    Kind.HISTOGRAM,
    _OPERATION,
    "Time until the caller had control back, whatever the outcome.",
    "s",
    LLM_SECONDS,
)
TIMEOUT_RATE = MetricSpec(
    "timeout.rate",
    Kind.GAUGE,
    _OPERATION,
    "Failures / (successes + failures) since start, 0 to 1; absent before the first call.",
    ratio=("timeout.failures", "timeout.successes", "timeout.failures"),
)
TIMEOUT_UTILIZATION = MetricSpec(
    "timeout.utilization",
    Kind.HISTOGRAM,
    _OPERATION,
    "Elapsed time as a share of the limit: shows limits that are set too tight or too loose.",
    buckets=UTILIZATION,
)
TIMEOUT_CLEANUP = MetricSpec(
    "timeout.cleanup",
    Kind.HISTOGRAM,
    ("operation", "cleanup"),
    "Time between the cancel and the end of the work's clean-up, by how it ended.",
    "s",
    LLM_SECONDS,
)
TIMEOUT_LATE_RESULTS = MetricSpec(
    "timeout.late_results", Kind.COUNTER, _OPERATION, "Values that arrived after the limit."
)
TIMEOUT_ABANDONED = MetricSpec(
    "timeout.abandoned", Kind.COUNTER, _OPERATION, "Calls whose work ignored its cancellation and was left behind."
)
TIMEOUT_ABANDONED_ACTIVE = MetricSpec(
    "timeout.abandoned_active", Kind.GAUGE, _OPERATION, "Abandoned work that is still running."
)

GEN_AI_DURATION = MetricSpec(
    "gen_ai.client.operation.duration",
    Kind.HISTOGRAM,
    (*_GEN_AI_RESULT, "error.type"),
    "GenAI operation duration.",
    "s",
    GEN_AI_SECONDS,
    profile=Profile.V1_41,
)
GEN_AI_TOKEN_USAGE = MetricSpec(
    "gen_ai.client.token.usage",
    Kind.HISTOGRAM,
    (*_GEN_AI_RESULT, "gen_ai.token.type"),
    "Number of input and output tokens used.",
    "{token}",
    GEN_AI_TOKENS,
    profile=Profile.V1_41,
)
GEN_AI_FIRST_CHUNK = MetricSpec(
    "gen_ai.client.operation.time_to_first_chunk",
    Kind.HISTOGRAM,
    _GEN_AI,
    "Time from the request to the first chunk of a streamed answer.",
    "s",
    GEN_AI_SECONDS,
    profile=Profile.V1_41,
)
GEN_AI_CHUNK_GAP = MetricSpec(
    "gen_ai.client.operation.time_per_output_chunk",
    Kind.HISTOGRAM,
    _GEN_AI,
    "Time between two chunks of a streamed answer, after the first.",
    "s",
    GEN_AI_SECONDS,
    profile=Profile.V1_41,
)
GEN_AI_INFERENCE_DURATION = MetricSpec(
    "gen_ai.client.inference.duration",
    Kind.HISTOGRAM,
    (*_GEN_AI_RESULT, "error.type"),
    "GenAI inference duration.",
    "s",
    GEN_AI_SECONDS,
    profile=Profile.LATEST,
)
GEN_AI_INFERENCE_FIRST_CHUNK = MetricSpec(
    "gen_ai.client.inference.time_to_first_chunk",
    Kind.HISTOGRAM,
    _GEN_AI,
    "Time from the request to the first chunk of a streamed answer.",
    "s",
    GEN_AI_SECONDS,
    profile=Profile.LATEST,
)
GEN_AI_INFERENCE_CHUNK_GAP = MetricSpec(
    "gen_ai.client.inference.time_per_output_chunk",
    Kind.HISTOGRAM,
    _GEN_AI,
    "Time between two chunks of a streamed answer, after the first.",
    "s",
    GEN_AI_SECONDS,
    profile=Profile.LATEST,
)
GEN_AI_INPUT_TOKENS = MetricSpec(
    "gen_ai.client.inference.operation.input_tokens",
    Kind.HISTOGRAM,
    (*_GEN_AI_RESULT, "error.type"),
    "Input tokens of one inference.",
    "{token}",
    GEN_AI_TOKENS,
    profile=Profile.LATEST,
)
GEN_AI_OUTPUT_TOKENS = MetricSpec(
    "gen_ai.client.inference.operation.output_tokens",
    Kind.HISTOGRAM,
    (*_GEN_AI_RESULT, "error.type"),
    "Output tokens of one inference.",
    "{token}",
    GEN_AI_TOKENS,
    profile=Profile.LATEST,
)
_USAGE_COUNTERS = {
    "input_tokens": "Input tokens billed.",
    "output_tokens": "Output tokens billed.",
    "cache_read.input_tokens": "Input tokens read from the provider's prompt cache.",
    "cache_write.input_tokens": "Input tokens written to the provider's prompt cache.",
    "reasoning.output_tokens": "Output tokens spent on reasoning.",
}
GEN_AI_USAGE = {
    part: MetricSpec(
        f"gen_ai.client.inference.usage.{part}",
        Kind.COUNTER,
        (*_GEN_AI_RESULT, "gen_ai.token.modality"),
        description,
        "{token}",
        profile=Profile.LATEST,
    )
    for part, description in _USAGE_COUNTERS.items()
}

TELEMETRY_FAULTS = MetricSpec(
    "telemetry.faults",
    Kind.COUNTER,
    ("site",),
    "Faults in telemetry or in a user's hook that were kept away from the caller, by place.",
)

CATALOGUE: tuple[MetricSpec, ...] = (
    ROUTER_DECISIONS,
    ROUTER_EXECUTION,
    ROUTER_COST_SAVINGS,
    ROUTER_ERRORS,
    CACHE_HITS,
    CACHE_MISSES,
    CACHE_HIT_RATE,
    CACHE_LATENCY,
    CACHE_COST_SAVINGS,
    CACHE_BYPASSES,
    CACHE_BACKEND_ERRORS,
    CACHE_BACKEND_UP,
    CACHE_SERVED,
    CACHE_MISSED,
    CACHE_TIER_LATENCY,
    CACHE_COMPUTE,
    CACHE_LOCK_WAIT,
    CACHE_ENTRY_SIZE,
    CACHE_HIT_AGE,
    CACHE_REFRESHES,
    CACHE_STALE_SERVED,
    CACHE_REFUSALS,
    CACHE_DUPLICATES,
    CACHE_SAVED_TOKENS,
    TIMEOUT_SUCCESSES,
    TIMEOUT_FAILURES,
    TIMEOUT_ERRORS,
    TIMEOUT_CANCELLATIONS,
    TIMEOUT_EXECUTION,
    TIMEOUT_RATE,
    TIMEOUT_UTILIZATION,
    TIMEOUT_CLEANUP,
    TIMEOUT_LATE_RESULTS,
    TIMEOUT_ABANDONED,
    TIMEOUT_ABANDONED_ACTIVE,
    GEN_AI_DURATION,
    GEN_AI_TOKEN_USAGE,
    GEN_AI_FIRST_CHUNK,
    GEN_AI_CHUNK_GAP,
    GEN_AI_INFERENCE_DURATION,
    GEN_AI_INFERENCE_FIRST_CHUNK,
    GEN_AI_INFERENCE_CHUNK_GAP,
    GEN_AI_INPUT_TOKENS,
    GEN_AI_OUTPUT_TOKENS,
    *GEN_AI_USAGE.values(),
    TELEMETRY_FAULTS,
)
