"""One of each primitive around given work, for tests of what all of them promise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from observability_integration import primitives
from observability_integration.primitives import (
    CachePrimitive,
    CircuitBreakerPrimitive,
    ConcurrencyLimitPrimitive,
    ConditionalPrimitive,
    FallbackPrimitive,
    HedgePrimitive,
    LambdaPrimitive,
    LLMCallPrimitive,
    LLMTarget,
    ParallelPrimitive,
    RateLimitPrimitive,
    RetryPrimitive,
    RouterPrimitive,
    SagaPrimitive,
    SagaStep,
    SequentialPrimitive,
    StreamingPrimitive,
    SwitchPrimitive,
    TimeoutPrimitive,
    WorkflowPrimitive,
    pipeline,
)

Make = Callable[[Any], WorkflowPrimitive[Any, Any]]


class Older:
    """An object with an `execute` of its own, as of an older interface."""

    def __init__(self, call: Any) -> None:
        self._call = call

    async def execute(self, request: Any, context: Any = None) -> Any:
        """Calls the function."""
        return await self._call(request)


def _key(request: Any) -> str:
    return str(request)


async def _undo(request: Any) -> None:
    pass


#: Around an async function.
AROUND_CALLS: dict[str, Make] = {
    "cache": lambda call: CachePrimitive(call, _key, operation_name="every"),
    "circuit breaker": CircuitBreakerPrimitive,
    "concurrency limit": lambda call: ConcurrencyLimitPrimitive(call, 2),
    "conditional": lambda call: ConditionalPrimitive(bool, call),
    "fallback": lambda call: FallbackPrimitive([call, call]),
    "hedge": lambda call: HedgePrimitive(call, delay_seconds=30.0),
    "lambda": LambdaPrimitive,
    "llm call": lambda call: LLMCallPrimitive(call, model="m"),
    "parallel": lambda call: ParallelPrimitive([call]),
    "rate limit": lambda call: RateLimitPrimitive(call, requests_per_minute=600),
    "retry": lambda call: RetryPrimitive(call, 1),
    "router": lambda call: RouterPrimitive({"only": call}, lambda request, context: "only", default="only"),
    "saga": lambda call: SagaPrimitive([SagaStep(call, _undo)]),
    "sequence": lambda call: SequentialPrimitive([call]),
    "switch": lambda call: SwitchPrimitive(lambda request: "a", {"a": call}),
    "timeout": lambda call: TimeoutPrimitive(call, 20.0),
    # Those that are made of others.
    "older object": lambda call: SequentialPrimitive([Older(call)]),
    "pipeline": lambda call: pipeline([call], timeout_seconds=20),
    "pipeline of two": lambda call: pipeline([LLMTarget(call=call, name=name) for name in "ab"], timeout_seconds=20),
    "timeout with a fallback": lambda call: TimeoutPrimitive(call, 20.0, fallback=call),
}
#: Around an async generator function.
AROUND_STREAMS: dict[str, Make] = {
    **{name: make for name, make in AROUND_CALLS.items() if name not in ("lambda", "older object", "parallel")},
    "streaming": StreamingPrimitive,
}


def exported() -> set[type]:
    """The classes of the primitives that users can import."""
    found = {getattr(primitives, name) for name in primitives.__all__}
    return {each for each in found if isinstance(each, type) and issubclass(each, WorkflowPrimitive)}


def covered() -> set[type]:
    """The classes that the tables above make one of."""

    async def call(request: Any) -> Any:
        return request

    async def stream(request: Any) -> Any:
        yield request

    made = [make(call) for make in AROUND_CALLS.values()] + [make(stream) for make in AROUND_STREAMS.values()]
    return {type(each) for each in made}
