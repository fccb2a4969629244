"""The instruments of the SDK that the primitives written by hand record into."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from opentelemetry.metrics import CallbackOptions, Meter, Observation

from observability_integration.telemetry import catalogue
from observability_integration.telemetry.catalogue import Kind
from observability_integration.telemetry.metrics.instruments import Instrument

Gauge = tuple[Callable[[], float], Mapping[str, str]]

_GAUGES = [
    gauge.spec
    for gauge in (
        catalogue.resilience.BREAKER_STATE,
        catalogue.resilience.CONCURRENCY_LIMIT,
        catalogue.resilience.CONCURRENCY_IN_FLIGHT,
        catalogue.resilience.CONCURRENCY_QUEUED,
        catalogue.resilience.RATE_LIMIT_REMAINING,
    )
]


class Instruments:
    """The instruments of all equivalents, created once.

    Attributes:
        gauges: by metric name, the functions to read at collection, with their labels.
    """

    def __init__(self, meter: Meter) -> None:
        def make(metric: Instrument[Any]) -> Any:
            spec = metric.spec
            if spec.kind is Kind.COUNTER:
                return meter.create_counter(spec.name, spec.unit, spec.description)
            return meter.create_histogram(
                spec.name, spec.unit, spec.description, explicit_bucket_boundaries_advisory=list(spec.buckets)
            )

        self.router_decisions = make(catalogue.router.ROUTER_DECISIONS)
        self.router_execution = make(catalogue.router.ROUTER_EXECUTION)
        self.router_savings = make(catalogue.router.ROUTER_COST_SAVINGS)
        self.router_errors = make(catalogue.router.ROUTER_ERRORS)
        self.cache_hits = make(catalogue.cache.CACHE_HITS)
        self.cache_misses = make(catalogue.cache.CACHE_MISSES)
        self.cache_savings = make(catalogue.cache.CACHE_COST_SAVINGS)
        self.cache_latency = make(catalogue.cache.CACHE_LATENCY)
        self.cache_served = make(catalogue.cache.CACHE_SERVED)
        self.cache_missed = make(catalogue.cache.CACHE_MISSED)
        self.cache_tier_latency = make(catalogue.cache.CACHE_TIER_LATENCY)
        self.cache_compute = make(catalogue.cache.CACHE_COMPUTE)
        self.cache_lock_wait = make(catalogue.cache.CACHE_LOCK_WAIT)
        self.cache_entry_size = make(catalogue.cache.CACHE_ENTRY_SIZE)
        self.cache_hit_age = make(catalogue.cache.CACHE_HIT_AGE)
        self.cache_saved_tokens = make(catalogue.cache.CACHE_SAVED_TOKENS)
        self.timeout_successes = make(catalogue.timeout.TIMEOUT_SUCCESSES)
        self.timeout_failures = make(catalogue.timeout.TIMEOUT_FAILURES)
        self.timeout_errors = make(catalogue.timeout.TIMEOUT_ERRORS)
        self.timeout_execution = make(catalogue.timeout.TIMEOUT_EXECUTION)
        self.timeout_utilization = make(catalogue.timeout.TIMEOUT_UTILIZATION)
        self.llm_duration = make(catalogue.gen_ai.GEN_AI_DURATION)
        self.llm_tokens = make(catalogue.gen_ai.GEN_AI_TOKEN_USAGE)
        self.retry_operations = make(catalogue.resilience.RETRY_OPERATIONS)
        self.retry_attempts = make(catalogue.resilience.RETRY_ATTEMPTS)
        self.retry_retries = make(catalogue.resilience.RETRY_RETRIES)
        self.retry_gave_up = make(catalogue.resilience.RETRY_GAVE_UP)
        self.retry_wait = make(catalogue.resilience.RETRY_WAIT)
        self.fallback_served = make(catalogue.resilience.FALLBACK_SERVED)
        self.fallback_failed = make(catalogue.resilience.FALLBACK_FAILED)
        self.fallback_failovers = make(catalogue.resilience.FALLBACK_FAILOVERS)
        self.breaker_calls = make(catalogue.resilience.BREAKER_CALLS)
        self.breaker_transitions = make(catalogue.resilience.BREAKER_TRANSITIONS)
        self.concurrency_wait = make(catalogue.resilience.CONCURRENCY_QUEUE_WAIT)
        self.concurrency_refusals = make(catalogue.resilience.CONCURRENCY_REFUSALS)
        self.rate_limit_calls = make(catalogue.resilience.RATE_LIMIT_CALLS)
        self.rate_limit_wait = make(catalogue.resilience.RATE_LIMIT_WAIT)
        self.rate_limit_tokens = make(catalogue.resilience.RATE_LIMIT_TOKENS)
        self.hedge_operations = make(catalogue.resilience.HEDGE_OPERATIONS)
        self.hedge_launched = make(catalogue.resilience.HEDGE_LAUNCHED)
        self.hedge_suppressed = make(catalogue.resilience.HEDGE_SUPPRESSED)
        self.hedge_delay = make(catalogue.resilience.HEDGE_DELAY)
        self.saga_operations = make(catalogue.resilience.SAGA_OPERATIONS)
        self.gauges: dict[str, list[Gauge]] = {spec.name: [] for spec in _GAUGES}
        for spec in _GAUGES:
            meter.create_observable_gauge(spec.name, [_observed(self.gauges[spec.name])], spec.unit, spec.description)


def _observed(gauges: list[Gauge]) -> Callable[[CallbackOptions], Iterator[Observation]]:
    def observe(_: CallbackOptions) -> Iterator[Observation]:
        for read, labels in gauges:
            yield Observation(read(), labels)

    return observe
