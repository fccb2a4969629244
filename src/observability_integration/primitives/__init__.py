"""The primitives that users compose, one a file."""

from observability_integration.caching.keys import GLOBAL
from observability_integration.caching.policy import CachePolicy

from .base import WorkflowPrimitive
from .cache import CachePrimitive
from .conditional import ConditionalPrimitive, SwitchPrimitive
from .lifting import LambdaPrimitive, StreamingPrimitive
from .llm_call import LLMCallPrimitive
from .parallel import ParallelPrimitive
from .router import Route, RouterPrimitive, RoutingDecision
from .sequential import SequentialPrimitive
from .timeout import PrimitiveTimeoutError, TimeoutPrimitive

__all__ = [
    "GLOBAL",
    "CachePolicy",
    "CachePrimitive",
    "ConditionalPrimitive",
    "LLMCallPrimitive",
    "LambdaPrimitive",
    "ParallelPrimitive",
    "PrimitiveTimeoutError",
    "Route",
    "RouterPrimitive",
    "RoutingDecision",
    "SequentialPrimitive",
    "StreamingPrimitive",
    "SwitchPrimitive",
    "TimeoutPrimitive",
    "WorkflowPrimitive",
]
