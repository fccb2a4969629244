"""However its reader goes away, a stream of any primitive lets go: no task, no open span, no context out of place."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest

from observability_integration import WorkflowContext
from observability_integration.errors import AllTargetsFailedError
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
    SequentialPrimitive,
    TimeoutPrimitive,
    pipeline,
)
from observability_integration.testing import FakeClockLoop

LOOP_FACTORY = FakeClockLoop
pytestmark = [pytest.mark.once, pytest.mark.promise("B4")]


class Producer:
    """Text in pieces, a second each, and whether it was closed."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.fails_at = fails_at
        self.open = 0

    async def __call__(self, _: Any) -> AsyncIterator[str]:
        self.open += 1
        try:
            for number in range(5):
                await asyncio.sleep(1.0)
                if number == self.fails_at:
                    raise LookupError("its own")
                yield f"piece {number} "
        finally:
            self.open -= 1


PRIMITIVES: dict[str, Callable[[Any], Any]] = {
    "llm call": LLMCallPrimitive,
    "timeout": lambda step: TimeoutPrimitive(step, 30.0, first_chunk_seconds=10.0, idle_seconds=10.0),
    "router": lambda step: RouterPrimitive({"a": step}, lambda _: "a", default_route="a"),
    "cache": lambda step: CachePrimitive(step, str, operation_name="ask"),
    "retry": RetryPrimitive,
    "fallback": lambda step: FallbackPrimitive([step, step]),
    "circuit breaker": CircuitBreakerPrimitive,
    "concurrency": lambda step: ConcurrencyLimitPrimitive(step, 1),
    "rate limit": lambda step: RateLimitPrimitive(step, requests_per_minute=60),
    "hedge": lambda step: HedgePrimitive(step, delay_seconds=0.5),
    "saga": lambda step: SagaPrimitive([step]),
    "sequence": lambda step: SequentialPrimitive([step]),
    "pipeline": lambda step: pipeline(
        [LLMTarget(call=step, name=name) for name in "ab"], max_concurrency=1, requests_per_minute=60
    ),
    "all": lambda step: CachePrimitive(HedgePrimitive(pipeline([step]), delay_seconds=0.5), str, operation_name="ask"),
}


async def reads_all(stream: Any) -> None:
    async with stream as chunks:
        async for _ in chunks:
            pass


async def breaks(stream: Any) -> None:
    async with stream as chunks:
        async for _ in chunks:
            break


async def leaves_unread(stream: Any) -> None:
    async with stream:
        pass


async def raises(stream: Any) -> None:
    async with stream as chunks:
        async for _ in chunks:
            raise KeyError


async def is_cancelled(stream: Any) -> None:
    task = asyncio.ensure_future(reads_all(stream))
    await asyncio.sleep(1.5)
    task.cancel()
    await task


async def reads_in_other_tasks(stream: Any) -> None:
    chunks = await asyncio.ensure_future(stream.__aenter__())
    await asyncio.ensure_future(anext(aiter(chunks)))
    await asyncio.ensure_future(stream.__aexit__(None, None, None))


READERS = [reads_all, breaks, leaves_unread, raises, is_cancelled, reads_in_other_tasks]


@pytest.mark.parametrize("fails_at", [None, 0, 2], ids=["well", "fails first", "fails later"])
@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.__name__)
@pytest.mark.parametrize("make", PRIMITIVES.values(), ids=PRIMITIVES)
async def test_a_stream_lets_go(
    make: Callable[[Any], Any], reader: Callable[[Any], Awaitable[None]], fails_at: int | None, tracing: Any
) -> None:
    """The producer is closed, each span is ended once, no context is out of place, and nothing runs on."""
    loop = asyncio.get_running_loop()
    complaints: list[Any] = []
    loop.set_exception_handler(lambda _, context: complaints.append(context))
    producer = Producer(fails_at)
    primitive = make(producer)
    stream = primitive.stream("question", WorkflowContext("w-1"))
    with suppress(LookupError, asyncio.CancelledError, AllTargetsFailedError):
        await reader(stream)
    if "hedge" not in primitive.describe():  # whose loser is left to clean up while the winner is read
        assert 0 == producer.open
    await asyncio.sleep(60.0)
    assert 0 == producer.open
    assert [] == tracing.unended()
    assert tracing.current is None
    assert {asyncio.current_task()} == asyncio.all_tasks()
    gc.collect()
    assert [] == complaints


@pytest.mark.parametrize("chunks_read", [0, 2])
@pytest.mark.parametrize("make", PRIMITIVES.values(), ids=PRIMITIVES)
async def test_a_stream_that_is_forgotten_lets_go(make: Callable[[Any], Any], chunks_read: int, tracing: Any) -> None:
    """A reader that neither ends nor closes: the garbage collection does, and no task or span stays behind."""
    producer = Producer()
    primitive = make(producer)

    async def forget() -> None:
        stream = primitive.stream("question")
        chunks = aiter(await stream.__aenter__())
        for _ in range(chunks_read):
            await anext(chunks)

    await asyncio.ensure_future(forget())
    for _ in range(3):
        gc.collect()
        await asyncio.sleep(60.0)
    assert [] == tracing.unended()
    assert 0 == producer.open
    assert {asyncio.current_task()} == asyncio.all_tasks()
