"""The primitives that users compose, one a file."""

from observability_integration.caching.keys import GLOBAL
from observability_integration.caching.policy import CachePolicy

from .base import WorkflowPrimitive
from .cache import CachePrimitive
from .circuit_breaker import CircuitBreakerPrimitive
from .completion import Completion, ToolCall, completion_of
from .concurrency import ConcurrencyLimitPrimitive
from .conditional import ConditionalPrimitive, SwitchPrimitive
from .fallback import FallbackPrimitive
from .fallback_stream import StreamRestart
from .lifting import LambdaPrimitive, StreamingPrimitive
from .llm_call import LLMCallPrimitive
from .parallel import ParallelPrimitive
from .pipeline import PipelineDefaults, pipeline
from .retry import RetryPrimitive
from .router import Route, RouterPrimitive, RoutingDecision
from .sequential import SequentialPrimitive
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
    "LLMCallPrimitive",
    "LLMTarget",
    "LambdaPrimitive",
    "ParallelPrimitive",
    "PipelineDefaults",
    "PrimitiveTimeoutError",
    "RetryPrimitive",
    "Route",
    "RouterPrimitive",
    "RoutingDecision",
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
