"""The primitives that users compose, one folder each, and the types that their constructors take."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from observability_integration.caching.keys import GLOBAL
    from observability_integration.caching.policy import CachePolicy
    from observability_integration.resilience.aimd import Aimd
    from observability_integration.resilience.backoff import Backoff
    from observability_integration.resilience.retry_budget import RetryBudget

    from .base import WorkflowPrimitive
    from .cache import CachePrimitive
    from .circuit_breaker import Breaker, BreakerPolicy, CircuitBreakerPrimitive
    from .concurrency import ConcurrencyLimit, ConcurrencyLimitPrimitive, Priority
    from .fallback import FallbackPrimitive
    from .flow import ConditionalPrimitive, ParallelPrimitive, SequentialPrimitive, SwitchPrimitive
    from .hedge import HedgePrimitive
    from .lifting import LambdaPrimitive, StreamingPrimitive
    from .llm import Completion, LLMCallPrimitive, ToolCall, completion_of
    from .pipelines import PipelineDefaults, pipeline
    from .rate_limit import RateLimitPrimitive
    from .retry import RetryPrimitive
    from .router import Route, RouterPrimitive, RoutingDecision
    from .saga import SagaPrimitive, SagaStep
    from .streams import StreamRestart
    from .target import LLMTarget
    from .timeout import PrimitiveTimeoutError, TimeoutPrimitive

__all__ = [
    "GLOBAL",
    "Aimd",
    "Backoff",
    "Breaker",
    "BreakerPolicy",
    "CachePolicy",
    "CachePrimitive",
    "CircuitBreakerPrimitive",
    "Completion",
    "ConcurrencyLimit",
    "ConcurrencyLimitPrimitive",
    "ConditionalPrimitive",
    "FallbackPrimitive",
    "HedgePrimitive",
    "LLMCallPrimitive",
    "LLMTarget",
    "LambdaPrimitive",
    "ParallelPrimitive",
    "PipelineDefaults",
    "PrimitiveTimeoutError",
    "Priority",
    "RateLimitPrimitive",
    "RetryBudget",
    "RetryPrimitive",
    "Route",
    "RouterPrimitive",
    "RoutingDecision",
    "SagaPrimitive",
    "SagaStep",
    "SequentialPrimitive",
    "StreamRestart",
    "StreamingPrimitive",
    "SwitchPrimitive",
    "TimeoutPrimitive",
    "ToolCall",
    "WorkflowPrimitive",
    "completion_of",
    "pipeline",
]

_MODULES = {
    "GLOBAL": "observability_integration.caching.keys",
    "Aimd": "observability_integration.resilience.aimd",
    "Backoff": "observability_integration.resilience.backoff",
    "Breaker": ".circuit_breaker",
    "BreakerPolicy": ".circuit_breaker",
    "CachePolicy": "observability_integration.caching.policy",
    "CachePrimitive": ".cache",
    "CircuitBreakerPrimitive": ".circuit_breaker",
    "Completion": ".llm",
    "ConcurrencyLimit": ".concurrency",
    "ConcurrencyLimitPrimitive": ".concurrency",
    "ConditionalPrimitive": ".flow",
    "FallbackPrimitive": ".fallback",
    "HedgePrimitive": ".hedge",
    "LLMCallPrimitive": ".llm",
    "LLMTarget": ".target",
    "LambdaPrimitive": ".lifting",
    "ParallelPrimitive": ".flow",
    "PipelineDefaults": ".pipelines",
    "PrimitiveTimeoutError": ".timeout",
    "Priority": ".concurrency",
    "RateLimitPrimitive": ".rate_limit",
    "RetryBudget": "observability_integration.resilience.retry_budget",
    "RetryPrimitive": ".retry",
    "Route": ".router",
    "RouterPrimitive": ".router",
    "RoutingDecision": ".router",
    "SagaPrimitive": ".saga",
    "SagaStep": ".saga",
    "SequentialPrimitive": ".flow",
    "StreamRestart": ".streams",
    "StreamingPrimitive": ".lifting",
    "SwitchPrimitive": ".flow",
    "TimeoutPrimitive": ".timeout",
    "ToolCall": ".llm",
    "WorkflowPrimitive": ".base",
    "completion_of": ".llm",
    "pipeline": ".pipelines",
}


def __getattr__(name: str) -> Any:
    # Loaded lazily: a program that uses a timeout does not load the cache.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_MODULES[name], __name__), name)
    globals()[name] = value
    return value
