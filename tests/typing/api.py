"""What type checkers must make of the public API: checked by mypy and pyright, never run."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, assert_type

from observability_integration import WorkflowContext
from observability_integration.errors import PrimitiveTimeoutError, StreamStalledError
from observability_integration.primitives import (
    CachePrimitive,
    ConditionalPrimitive,
    LambdaPrimitive,
    LLMCallPrimitive,
    ParallelPrimitive,
    RouterPrimitive,
    RoutingDecision,
    SequentialPrimitive,
    StreamingPrimitive,
    SwitchPrimitive,
    TimeoutPrimitive,
    WorkflowPrimitive,
)


async def parse(text: str) -> int:
    return len(text)


async def double(number: int) -> float:
    return number * 2.0


async def name(number: int, context: WorkflowContext) -> str:
    return f"{number} {context.workflow_id}"


def blocking(text: str) -> int:
    return len(text)


async def letters(text: str) -> AsyncIterator[str]:
    for letter in text:
        yield letter


class Own(WorkflowPrimitive[str, bytes]):
    async def execute(self, input_data: str, context: WorkflowContext | None = None) -> bytes:
        return input_data.encode()


class Foreign:
    async def execute(self, input_data: bytes, context: Any = None) -> complex:
        return complex(len(input_data))


async def lifted() -> None:
    """A function's types are those of the primitive made of it."""
    step = LambdaPrimitive(parse)
    assert_type(step, LambdaPrimitive[str, int])
    assert_type(await step.execute("text"), int)
    assert_type(await LambdaPrimitive(name).execute(1, WorkflowContext()), str)
    assert_type(LambdaPrimitive(blocking, run_in_thread=True), LambdaPrimitive[str, int])
    assert_type(StreamingPrimitive(letters), StreamingPrimitive[str])
    async with StreamingPrimitive(letters).stream("text") as chunks:
        async for chunk in chunks:
            assert_type(chunk, Any)


async def sequences() -> None:
    """`>>` goes from the first step's input to the last one's result."""
    chain = LambdaPrimitive(parse) >> double
    assert_type(chain, SequentialPrimitive[str, float])
    assert_type(await chain.execute("text"), float)
    assert_type(LambdaPrimitive(parse) >> LambdaPrimitive(double), SequentialPrimitive[str, float])
    assert_type(LambdaPrimitive(parse) >> name, SequentialPrimitive[str, str])
    assert_type(parse >> LambdaPrimitive(double), SequentialPrimitive[str, float])
    assert_type(Own() >> Foreign(), SequentialPrimitive[str, complex])
    assert_type(Own() >> Foreign() >> LambdaPrimitive[complex, None](nothing), SequentialPrimitive[str, None])


async def nothing(_: complex) -> None: ...


async def parallels() -> None:
    """`|` gives a list of whatever either side returns."""
    both = LambdaPrimitive(double) | name
    assert_type(both, ParallelPrimitive[int, float | str])
    assert_type(await both.execute(1), list[float | str])
    assert_type(LambdaPrimitive(double) | LambdaPrimitive(double), ParallelPrimitive[int, float])
    assert_type(name | LambdaPrimitive(double), ParallelPrimitive[int, str | float])


async def wrappers() -> None:
    """What guards a step has that step's types."""
    timeout = TimeoutPrimitive(parse, 30.0)
    assert_type(timeout, TimeoutPrimitive[str, int])
    assert_type(await timeout.execute("text"), int)
    assert_type(TimeoutPrimitive(LambdaPrimitive(parse), 30.0, fallback=parse), TimeoutPrimitive[str, int])
    assert_type(TimeoutPrimitive(timeout, 60.0, None, "outer"), TimeoutPrimitive[str, int])
    assert_type(TimeoutPrimitive(Own(), 30.0, grace_mode="finish"), TimeoutPrimitive[str, bytes])

    cache = CachePrimitive(timeout, lambda text: text)
    assert_type(cache, CachePrimitive[str, int])
    assert_type(await cache.execute("text"), int)
    assert_type(CachePrimitive(name, lambda number, context: (number, context.session_id)), CachePrimitive[int, str])

    router = RouterPrimitive({"fast": parse, "best": parse}, lambda text, context: "fast")
    assert_type(router, RouterPrimitive[str, int])
    assert_type(await router.execute("text"), int)

    call = LLMCallPrimitive[str, int](parse, model="small")
    assert_type(await call.execute("text"), int)

    conditional = ConditionalPrimitive(lambda text: bool(text), parse)
    assert_type(conditional, ConditionalPrimitive[str, int])
    switch = SwitchPrimitive(lambda text, context: "a", {"a": LambdaPrimitive(parse)}, default=parse)
    assert_type(switch, SwitchPrimitive[str, int])

    assert_type(router >> double, SequentialPrimitive[str, float])
    assert_type(cache.describe(), str)


async def model_forms() -> None:
    """The short forms wrap nothing, so the types come from what each call is given."""
    timeout = TimeoutPrimitive[Any, Any](timeout_seconds=30.0, grace_period=5.0)
    assert_type(await timeout.execute_with_timeout(lambda: parse("text")), int)
    assert_type(await timeout.execute_with_timeout(parse("text"), "parse"), int)
    stats = timeout.get_stats()
    assert_type(stats["timeout_rate"], float)
    assert_type(stats["operation"], str)

    cache = CachePrimitive[Any, Any](redis_url=None)
    assert_type(await cache.get_or_compute("key", lambda: 5), int)
    assert_type(await cache.get_or_compute("key", lambda: parse("text")), int)
    assert_type(cache.get_stats()["hits"], int)

    router = RouterPrimitive[Any, Any](cheap_model="small", premium_model="large")
    assert_type(router.decide_route("question"), RoutingDecision)
    assert_type(await router.execute_async(parse, "question"), int)


async def errors() -> None:
    """An error's facts are typed, so that a handler can rely on them."""
    try:
        await TimeoutPrimitive(parse, 30.0).execute("text")
    except StreamStalledError as error:
        assert_type(error.chunks, int)
        assert_type(error.timeout_seconds, float)
    except PrimitiveTimeoutError as error:
        assert_type(error.elapsed_seconds, float)


def mistakes() -> None:
    """What does not fit is refused; each line would be reported if the checkers let it pass."""
    LambdaPrimitive(parse) >> parse  # type: ignore[operator]  # pyright: ignore[reportOperatorIssue, reportUnusedExpression]
    LambdaPrimitive(parse) | double  # type: ignore[operator]  # pyright: ignore[reportOperatorIssue, reportUnusedExpression]
    LambdaPrimitive(blocking)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType, reportCallIssue]
    TimeoutPrimitive(parse)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
    TimeoutPrimitive(parse, 30.0, grace_period=5.0)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue]
