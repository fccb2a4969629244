"""Makes this library's primitives around the common workload."""

from __future__ import annotations

from typing import Any

from benchmarks import workload
from benchmarks.workload import Runnable, Work
from observability_integration.primitives import (
    CachePrimitive,
    CircuitBreakerPrimitive,
    ConcurrencyLimitPrimitive,
    FallbackPrimitive,
    HedgePrimitive,
    LLMCallPrimitive,
    LLMTarget,
    RateLimitPrimitive,
    RetryPrimitive,
    RouterPrimitive,
    SagaPrimitive,
    SagaStep,
    TimeoutPrimitive,
    pipeline,
)


class Ours:
    """Makes each primitive around some work."""

    name = "ours"

    def router(self, work: Work) -> Runnable:
        """The wrapper form, with two routes."""
        return self._router({workload.FAST: work.answer, workload.PREMIUM: work.answer})

    def cache(self, work: Work) -> Runnable:
        """The wrapper form, in memory."""
        return self._cache(work.answer, workload.key_of_prompt)

    def timeout(self, work: Work) -> Runnable:
        """The wrapper form."""
        return self._timeout(work.answer)

    def llm_call(self, work: Work) -> Runnable:
        """A call to a chat model."""
        return LLMCallPrimitive(work.answer, provider=workload.PROVIDER)

    def chain(self, work: Work) -> Runnable:
        """Cache, router, timeout and LLM call, nested in the recommended order."""
        routes = {route: self._timeout(self.llm_call(work)) for route in workload.COST_PER_ROUTE_USD}
        return self._cache(self._router(routes), workload.key_of_request)

    def retry(self, work: Work) -> Runnable:
        """One target, with a budget of its own."""
        return RetryPrimitive(work.answer, workload.MAX_ATTEMPTS, operation_name=workload.OPERATION)

    def fallback(self, work: Work) -> Runnable:
        """Two targets; the first answers."""
        return FallbackPrimitive(
            {workload.TARGET: work.answer, workload.OTHER_TARGET: work.answer}, operation_name=workload.OPERATION
        )

    def breaker(self, work: Work) -> Runnable:
        """A closed circuit breaker."""
        return CircuitBreakerPrimitive(work.answer, target=workload.TARGET)

    def concurrency(self, work: Work) -> Runnable:
        """A limit that is never reached."""
        return ConcurrencyLimitPrimitive(work.answer, workload.MAX_CONCURRENCY, operation_name=workload.OPERATION)

    def rate_limit(self, work: Work) -> Runnable:
        """Limits of requests and tokens that are never reached."""
        return RateLimitPrimitive(
            work.answer,
            requests_per_minute=workload.REQUESTS_PER_MINUTE,
            tokens_per_minute=workload.TOKENS_PER_MINUTE,
            estimate_tokens=workload.tokens_of_request,
            operation_name=workload.OPERATION,
        )

    def hedge(self, work: Work) -> Runnable:
        """A hedge whose measured delay is longer than any call."""
        return HedgePrimitive(
            work.answer,
            quantile=workload.HEDGE_QUANTILE,
            min_delay_seconds=workload.HEDGE_MIN_SECONDS,
            warmup_calls=workload.HEDGE_WARMUP_CALLS,
            operation_name=workload.OPERATION,
        )

    def saga(self, work: Work) -> Runnable:
        """Two steps, each with its compensation."""
        steps = [SagaStep(work.answer, workload.undo, name) for name in (workload.TARGET, workload.OTHER_TARGET)]
        return SagaPrimitive(steps, operation_name=workload.OPERATION)

    def pipeline(self, work: Work) -> Runnable:
        """Two targets at the defaults; the first answers."""
        targets = [
            LLMTarget(call=work.answer, name=name, model=workload.MODEL, provider=workload.PROVIDER)
            for name in (workload.TARGET, workload.OTHER_TARGET)
        ]
        return pipeline(targets, operation_name=workload.PIPELINE)

    def _router(self, routes: dict[str, Any]) -> RouterPrimitive[Any, Any]:
        return RouterPrimitive(routes, workload.choose, workload.FAST, workload.COST_PER_ROUTE_USD)

    def _cache(self, primitive: Any, key_of: Any) -> CachePrimitive[Any, Any]:
        return CachePrimitive(
            primitive,
            key_of,
            workload.TTL_SECONDS,
            cost_per_call=workload.SAVED_PER_HIT_USD,
            operation_name=workload.OPERATION,
        )

    def _timeout(self, primitive: Any) -> TimeoutPrimitive[Any, Any]:
        return TimeoutPrimitive(primitive, workload.TIMEOUT_SECONDS, workload.GRACE_SECONDS, workload.OPERATION)
