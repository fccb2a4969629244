"""The primitives that users compose, one a file."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from observability_integration.caching.keys import GLOBAL
    from observability_integration.caching.policy import CachePolicy

    from .base import WorkflowPrimitive
    from .cache import CachePrimitive
    from .circuit_breaker import CircuitBreakerPrimitive
    from .concurrency import ConcurrencyLimitPrimitive
    from .fallback import FallbackPrimitive
    from .fallback.stream import StreamRestart
    from .flow.conditional import ConditionalPrimitive, SwitchPrimitive
    from .flow.parallel import ParallelPrimitive
    from .flow.sequential import SequentialPrimitive
    from .hedge import HedgePrimitive
    from .lifting import LambdaPrimitive, StreamingPrimitive
    from .llm.call import LLMCallPrimitive
    from .llm.completion import Completion, ToolCall, completion_of
    from .pipelines import PipelineDefaults, pipeline
    from .rate_limit import RateLimitPrimitive
    from .retry import RetryPrimitive
    from .router import Route, RouterPrimitive, RoutingDecision
    from .saga import SagaPrimitive, SagaStep
    from .target import LLMTarget
    from .timeout import PrimitiveTimeoutError, TimeoutPrimitive

__all__ = [
    "GLOBAL",
    "CachePolicy",
    "CachePrimitive",
    "CircuitBreakerPrimitive",
    "Completion",
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
    "RateLimitPrimitive",
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

_HOME = {
    "GLOBAL": "observability_integration.caching.keys",
    "CachePolicy": "observability_integration.caching.policy",
    "CachePrimitive": ".cache",
    "CircuitBreakerPrimitive": ".circuit_breaker",
    "Completion": ".completion",
    "ConcurrencyLimitPrimitive": ".concurrency",
    "ConditionalPrimitive": ".conditional",
    "FallbackPrimitive": ".fallback",
    "HedgePrimitive": ".hedge",
    "LLMCallPrimitive": ".llm_call",
    "LLMTarget": ".target",
    "LambdaPrimitive": ".lifting",
    "ParallelPrimitive": ".parallel",
    "PipelineDefaults": ".pipelines",
    "PrimitiveTimeoutError": ".timeout",
    "RateLimitPrimitive": ".rate_limit",
    "RetryPrimitive": ".retry",
    "Route": ".router",
    "RouterPrimitive": ".router",
    "RoutingDecision": ".router",
    "SagaPrimitive": ".saga",
    "SagaStep": ".saga",
    "SequentialPrimitive": ".sequential",
    "StreamRestart": ".fallback_stream",
    "StreamingPrimitive": ".lifting",
    "SwitchPrimitive": ".conditional",
    "TimeoutPrimitive": ".timeout",
    "ToolCall": ".completion",
    "WorkflowPrimitive": ".base",
    "completion_of": ".completion",
    "pipeline": ".pipelines",
}


def __getattr__(name: str) -> Any:
    # Lazily: who wants a timeout need not load the caches.
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOME[name], __name__), name)
    globals()[name] = value
    return value
