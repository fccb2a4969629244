"""Equivalents with the same guarantees and telemetry, written by hand on the OpenTelemetry API."""

from __future__ import annotations

from opentelemetry.metrics import Meter
from opentelemetry.trace import Tracer

from benchmarks import workload
from benchmarks.measure import Call
from benchmarks.workload import Runnable, Work

from . import limits, resilience
from .instruments import Instruments
from .parts import Cache, LLMCall, Router, Timeout


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
