"""Equivalents with the same guarantees and telemetry, written by hand on the OpenTelemetry API."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from opentelemetry.metrics import CallbackOptions, Meter, Observation
from opentelemetry.trace import Tracer

from benchmarks import workload
from benchmarks.measure import Call
from benchmarks.workload import Runnable, Work
from observability_integration.telemetry import catalogue
from observability_integration.telemetry.catalogue import Kind
from observability_integration.telemetry.metrics.instruments import Instrument

from . import limits, resilience
from .parts import Cache, LLMCall, Router, Timeout

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


class ByHand:
    """Makes each primitive's equivalent around some work."""

    name = "by hand"

    def __init__(self, tracer: Tracer, meter: Meter) -> None:
        self._tools = (tracer, Instruments(meter))

    def router(self, work: Work) -> Runnable:
        """The equivalent of RouterPrimitive."""
        return Router(*self._tools, {workload.FAST: work.answer, workload.PREMIUM: work.answer})

    def cache(self, work: Work) -> Runnable:
        """The equivalent of CachePrimitive."""
        return Cache(*self._tools, work.answer, workload.key_of_prompt)

    def timeout(self, work: Work) -> Runnable:
        """The equivalent of TimeoutPrimitive."""
        return Timeout(*self._tools, work.answer)

    def llm_call(self, work: Work) -> Runnable:
        """The equivalent of LLMCallPrimitive."""
        return LLMCall(*self._tools, work.answer)

    def chain(self, work: Work) -> Runnable:
        """The equivalents of cache, router, timeout and LLM call, nested."""
        call = LLMCall(*self._tools, work.answer).execute
        routes = {route: Timeout(*self._tools, call).execute for route in workload.COST_PER_ROUTE_USD}
        return Cache(*self._tools, Router(*self._tools, routes).execute, workload.key_of_request)

    def retry(self, work: Work) -> Runnable:
        """The equivalent of RetryPrimitive."""
        return resilience.Retry(*self._tools, work.answer)

    def fallback(self, work: Work) -> Runnable:
        """The equivalent of FallbackPrimitive."""
        targets = {workload.TARGET: work.answer, workload.OTHER_TARGET: work.answer}
        return resilience.Fallback(*self._tools, targets)

    def breaker(self, work: Work) -> Runnable:
        """The equivalent of CircuitBreakerPrimitive."""
        return limits.Breaker(*self._tools, work.answer)

    def concurrency(self, work: Work) -> Runnable:
        """The equivalent of ConcurrencyLimitPrimitive."""
        return limits.Concurrency(*self._tools, work.answer)

    def rate_limit(self, work: Work) -> Runnable:
        """The equivalent of RateLimitPrimitive."""
        return limits.RateLimit(*self._tools, work.answer)

    def hedge(self, work: Work) -> Runnable:
        """The equivalent of HedgePrimitive."""
        return resilience.Hedge(*self._tools, work.answer)

    def saga(self, work: Work) -> Runnable:
        """The equivalent of SagaPrimitive."""
        return resilience.Saga(*self._tools, [(work.answer, workload.undo)] * 2)

    def pipeline(self, work: Work) -> Runnable:
        """The equivalent of `pipeline`."""
        bounds = workload.PIPELINE_ATTEMPT_SECONDS, workload.PIPELINE_GRACE_SECONDS

        def target(name: str) -> Call:
            attempt = Timeout(*self._tools, LLMCall(*self._tools, work.answer).execute, name, *bounds)
            breaker = limits.Breaker(*self._tools, attempt.execute, name)
            return resilience.Retry(*self._tools, breaker.execute, name).execute

        targets = {name: target(name) for name in (workload.TARGET, workload.OTHER_TARGET)}
        fallback = resilience.Fallback(*self._tools, targets, workload.PIPELINE)
        bounds = workload.PIPELINE_SECONDS, workload.PIPELINE_GRACE_SECONDS
        return Timeout(*self._tools, fallback.execute, workload.PIPELINE, *bounds)
