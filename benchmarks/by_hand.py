"""The same guarantees and the same telemetry, written by hand against OpenTelemetry."""

from __future__ import annotations

from typing import Any

from opentelemetry.metrics import Meter
from opentelemetry.trace import Tracer

from observability_integration.telemetry import catalogue
from observability_integration.telemetry.catalogue import Kind, MetricSpec

from . import workload
from .by_hand_parts import Cache, LLMCall, Router, Timeout
from .workload import Runnable, Work


class Instruments:
    """Every instrument that the four parts record, made once."""

    def __init__(self, meter: Meter) -> None:
        def make(spec: MetricSpec) -> Any:
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
        """The equivalents of all four, one in the other."""
        call = LLMCall(*self._tools, work.answer).execute
        routes = {route: Timeout(*self._tools, call).execute for route in workload.COST_PER_ROUTE_USD}
        return Cache(*self._tools, Router(*self._tools, routes).execute, workload.key_of_request)
