"""A wrong knob is refused where it is set, by name: at the first call in production it is too late."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from observability_integration import initialize_observability, is_observability_enabled
from observability_integration.caching.entry_options import entry_options
from observability_integration.caching.policy import AdaptiveTtl, CachePolicy
from observability_integration.errors import ConfigurationError
from observability_integration.primitives import (
    Breaker,
    BreakerPolicy,
    CachePrimitive,
    CircuitBreakerPrimitive,
    ConcurrencyLimit,
    ConcurrencyLimitPrimitive,
    FallbackPrimitive,
    HedgePrimitive,
    ParallelPrimitive,
    RateLimitPrimitive,
    RetryPrimitive,
    RouterPrimitive,
    SagaPrimitive,
    SagaStep,
    TimeoutPrimitive,
    pipeline,
)
from observability_integration.propagation import incoming
from observability_integration.resilience.aimd import Aimd
from observability_integration.resilience.backoff import Backoff
from observability_integration.resilience.faults import Fault
from observability_integration.resilience.retry_budget import RetryBudget
from observability_integration.testing import FaultyProvider
from observability_integration.testing.faults import CutAt, FlappingEvery, SlowFirstToken
from observability_integration.web.asgi import DeadlineMiddleware

Make = Callable[..., Any]

# What no rule for numbers takes: NaN compares with nothing, and True is no 1.
_NO_NUMBERS: tuple[Any, ...] = (math.nan, math.inf, True, "1")


async def step(question: str) -> str:
    return question


async def priority(question: str) -> str:
    return question


_by_model = partial(RouterPrimitive, cheap_model="small", premium_model="large")
_by_route = partial(RouterPrimitive, routes={"fast": step}, router_fn=lambda question, context: "fast")

# Each knob once, with a value just outside of what it takes; of two that must be in order, also the wrong order.
_TABLE: dict[str, tuple[Make, dict[str, Any]]] = {
    "initialize_observability": (
        initialize_observability,
        {
            "prometheus_port": 65_536,
            "prometheus_host": "",
            "prometheus_bearer_token": "secret\n",
            "prometheus_tls_key_file": "key.pem",
            "prometheus_tls_client_ca_file": "ca.pem",
            "otlp_endpoint": "localhost:4318",
            "otlp_metric_interval_seconds": 0,
            "gen_ai_profile": "v1.0",
        },
    ),
    "incoming": (partial(incoming, {}), {"max_seconds": 0}),
    "DeadlineMiddleware": (partial(DeadlineMiddleware, step), {"max_seconds": 0, "default_seconds": 0}),
    "TimeoutPrimitive": (partial(TimeoutPrimitive, step), {"timeout_seconds": 0}),
    "TimeoutPrimitive, limit": (
        partial(TimeoutPrimitive, step, 10.0),
        {
            "first_chunk_seconds": 0,
            "idle_seconds": 0,
            "grace_period_seconds": -1,
            "grace_mode": "wait",
            "late_result": "keep",
        },
    ),
    "TimeoutPrimitive, no primitive": (TimeoutPrimitive, {"timeout_seconds": 0}),
    "RetryPrimitive": (partial(RetryPrimitive, step), {"max_attempts": 0, "classifier": "transient"}),
    "Backoff": (
        Backoff,
        {"base_seconds": 0, "factor": 0.9, "max_seconds": 0, "max_retry_after_seconds": -1, "jitter": "some"},
    ),
    "Backoff, order": (Backoff, {"base_seconds": 9.0}),
    "RetryBudget": (RetryBudget, {"ratio": 0, "min_per_second": -1, "burst": 0.9, "over_operations": 0}),
    "HedgePrimitive": (
        partial(HedgePrimitive, step),
        {
            "quantile": 1,
            "delay_seconds": -1,
            "min_delay_seconds": -1,
            "warmup_calls": 513,
            "grace_seconds": -1,
            "cost_per_call": -1,
            "hedge_cost_per_call": -1,
            "classifier": "transient",
        },
    ),
    "HedgePrimitive, least": (partial(HedgePrimitive, step), {"quantile": 0, "warmup_calls": 0}),
    "FallbackPrimitive": (
        partial(FallbackPrimitive, {"a": step}),
        {"policy": {"timeout": "retry"}, "context_windows": {"a": 0}, "classifier": "transient"},
    ),
    "CircuitBreakerPrimitive": (
        partial(CircuitBreakerPrimitive, step),
        {"policy": object(), "hang_seconds": 0, "classifier": "transient"},
    ),
    "BreakerPolicy": (
        BreakerPolicy,
        {
            "failure_ratio": 1.1,
            "window_seconds": 0,
            "minimum_calls": 0,
            "consecutive_failures": 0,
            "open_seconds": 0,
            "max_open_seconds": 0,
            "busy_open_seconds": 0,
            "probe_seconds": 0,
            "successes_to_close": 0,
            "growth": 0.9,
            "jitter": 1.0,
        },
    ),
    "BreakerPolicy, least": (BreakerPolicy, {"failure_ratio": 0, "jitter": -0.1}),
    "BreakerPolicy, order": (BreakerPolicy, {"open_seconds": 24.0, "busy_open_seconds": 24.0}),
    "Breaker.force_open": (Breaker().force_open, {"seconds": 0}),
    "ConcurrencyLimitPrimitive": (partial(ConcurrencyLimitPrimitive, step), {"limit": 0}),
    "ConcurrencyLimitPrimitive, limit": (
        partial(ConcurrencyLimitPrimitive, step, 1),
        {"max_queued": -1, "max_wait_seconds": -0.1, "priority": priority, "classifier": "overloaded"},
    ),
    "ConcurrencyLimit": (ConcurrencyLimit, {"limit": 0}),
    "ConcurrencyLimit, limit": (partial(ConcurrencyLimit, 1), {"max_queued": -1, "max_wait_seconds": -0.1}),
    "Aimd": (
        Aimd,
        {
            "initial": 201,
            "min_limit": 0,
            "max_limit": 0,
            "increase": 0,
            "decrease_ratio": 1.0,
            "window_seconds": -1,
        },
    ),
    "Aimd, least": (Aimd, {"initial": 0, "decrease_ratio": 0.49}),
    "RateLimitPrimitive": (partial(RateLimitPrimitive, step), {"requests_per_minute": 0, "tokens_per_minute": 0}),
    "RateLimitPrimitive, limit": (
        partial(RateLimitPrimitive, step, requests_per_minute=1),
        {
            "max_wait_seconds": -1,
            "burst_seconds": -1,
            "redis_budget_seconds": 0,
            "estimate_tokens": "five",
            "without_redis": "open",
            "redis_client": object(),
        },
    ),
    "ParallelPrimitive": (partial(ParallelPrimitive, [step]), {"max_concurrency": 0}),
    "SagaPrimitive": (partial(SagaPrimitive, [SagaStep(step)]), {"compensation_timeout_seconds": 0}),
    "RouterPrimitive, routes": (_by_route, {"cost_per_route": {"fast": -1}}),
    "RouterPrimitive, models": (
        _by_model,
        {"complexity_threshold": 1.5, "cheap_cost_per_call": -0.1, "premium_cost_per_call": -0.1},
    ),
    "CachePrimitive": (CachePrimitive, {"ttl_seconds": 0, "cost_per_call": -0.01, "scope": b"tenant"}),
    "EntryOptions.set_ttl": (lambda **knobs: entry_options().set_ttl(**knobs), {"ttl_seconds": 0}),
    "CachePolicy": (
        CachePolicy,
        {
            "max_entries": 0,
            "max_bytes": 0,
            "max_value_bytes": 0,
            "max_refreshes": 0,
            "stale_while_revalidate_seconds": -1,
            "stale_if_error_seconds": -1,
            "stale_if_error_throttle_seconds": -1,
            "early_refresh_beta": -1,
            "stream_replay_pace": -1,
            "compress_above_bytes": -1,
            "background_seconds": 0,
            "lease_seconds": 0,
            "soft_timeout_seconds": 0,
            "hard_timeout_seconds": 0,
            "ttl_jitter": 1,
            "eager_refresh": 1,
            "backend_budget_seconds": 0,
            "backend_retry_seconds": 0,
            "backend_retry_max_seconds": 0,
        },
    ),
    "CachePolicy, least": (CachePolicy, {"ttl_jitter": -0.1, "eager_refresh": 0.0}),
    "CachePolicy, order": (
        partial(CachePolicy, hard_timeout_seconds=1.0),
        {"soft_timeout_seconds": 2.0, "backend_retry_seconds": 31.0},
    ),
    "AdaptiveTtl": (AdaptiveTtl, {"min_lookups": 0, "min_seconds": 0, "max_seconds": 0}),
    "AdaptiveTtl, order": (partial(AdaptiveTtl, max_seconds=1.0), {"min_seconds": 2.0}),
    "pipeline": (
        partial(pipeline, [step]),
        {
            "grace_period_seconds": -1,
            "max_attempts": 0,
            "requests_per_minute": 0,
            "tokens_per_minute": 0,
            "max_wait_seconds": -1,
        },
    ),
    "Fault": (partial(Fault, "transient"), {"status": 200, "retry_after_seconds": -1, "should_retry": "yes"}),
    "Fault, kind": (Fault, {"kind": "broken"}),
    "FaultyProvider": (FaultyProvider, {"time_scale": 0, "max_request_seconds": 0, "max_connections": 0}),
    "FaultyProvider.down": (lambda **knobs: FaultyProvider().down(**knobs), {"how": "404"}),
    "CutAt": (CutAt, {"token": -1}),
    "SlowFirstToken": (SlowFirstToken, {"seconds": 1_000_001}),
    "FlappingEvery": (FlappingEvery, {"nth": 0}),
}


def _rows() -> Iterator[Any]:
    for name, (make, knobs) in _TABLE.items():
        for knob, bad in knobs.items():
            yield pytest.param(make, knob, bad, id=f"{name}-{knob}")


@pytest.mark.promise("S2")
@pytest.mark.parametrize(("make", "knob", "bad"), [*_rows()])
def test_a_wrong_knob_is_refused_by_name(make: Make, knob: str, bad: Any) -> None:
    """The message begins with the knob, and callers that expect a ValueError get one; a number is one, and finite."""
    for wrong in (bad, *(_NO_NUMBERS if isinstance(bad, int | float) else ())):
        with pytest.raises(ValueError, match=rf"^{knob}\b") as caught:
            make(**{knob: wrong})
        assert isinstance(caught.value, ConfigurationError), wrong
    assert not is_observability_enabled()
