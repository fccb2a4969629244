"""`execute` around a step that gathers a stream: its three clocks watch the answer come in, though nobody reads it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from observability_integration.context import Deadline, WorkflowContext
from observability_integration.errors import PrimitiveTimeoutError, StreamStalledError
from observability_integration.primitives import LLMCallPrimitive, TimeoutPrimitive
from observability_integration.testing import FakeClockLoop

LOOP_FACTORY = FakeClockLoop
pytestmark = pytest.mark.promise("T8")

ROLE = {"choices": [{"delta": {"role": "assistant"}}]}


def chunks(*steps: tuple[float, Any]) -> Any:
    """Chunks, each after so many seconds."""

    async def stream(_: Any) -> AsyncIterator[Any]:
        for seconds, chunk in steps:
            await asyncio.sleep(seconds)
            yield chunk

    return stream


def timeout(step: Any, **knobs: Any) -> TimeoutPrimitive[Any, Any]:
    return TimeoutPrimitive(step, 30.0, 2.0, "ask", **{"first_chunk_seconds": 10.0, "idle_seconds": 5.0, **knobs})


async def test_an_answer_that_keeps_coming_is_waited_for(metrics: Any, tracing: Any) -> None:
    """Each gap is shorter than the idle limit, though all of it takes longer."""
    assert "abcd" == await timeout(chunks((9.0, "a"), (4.0, "b"), (4.0, "c"), (4.0, "d"))).execute(1)
    assert 1 == metrics("timeout.successes", operation="ask")
    assert "success" == tracing.named("timeout ask").attributes["outcome"]


async def test_a_late_first_content_is_not_waited_for(metrics: Any) -> None:
    """A role frame is no content: who is silent behind it is left at 10 s."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    with pytest.raises(PrimitiveTimeoutError, match="first_chunk_seconds") as caught:
        await timeout(chunks((1.0, ROLE), (20.0, "a"))).execute(1)
    assert (10.0, "first_chunk", 10.0) == (loop.time() - began, caught.value.kind, caught.value.timeout_seconds)
    assert 1 == metrics("timeout.failures", operation="ask", kind="first_chunk")


async def test_a_stall_is_not_waited_for(metrics: Any) -> None:
    """Five seconds after the last content, not after thirty."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    with pytest.raises(StreamStalledError, match="idle_seconds") as caught:
        await timeout(chunks((1.0, "a"), (1.0, "b"), (50.0, "c"))).execute(1)
    assert (7.0, 2) == (loop.time() - began, caught.value.chunks)
    assert 1 == metrics("timeout.failures", operation="ask", kind="idle")


async def test_the_whole_limit_holds_too() -> None:
    """An answer that drips for ever ends."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    with pytest.raises(PrimitiveTimeoutError) as caught:
        await timeout(chunks(*((4.0, "a") for _ in range(20)))).execute(1)
    assert (30.0, "total") == (loop.time() - began, caught.value.kind)


async def test_an_inherited_deadline_comes_first() -> None:
    """And is told apart."""
    with pytest.raises(PrimitiveTimeoutError) as caught:
        await timeout(chunks((50.0, "a"))).execute(1, WorkflowContext(deadline=Deadline.after(3.0)))
    assert ("deadline", "inherited") == (caught.value.kind, caught.value.deadline_source)


async def test_a_call_that_does_not_stream_has_no_first_chunk() -> None:
    """Its answer comes whole, as late as it may."""

    async def whole(_: Any) -> str:
        await asyncio.sleep(25.0)
        return "answer"

    assert "answer" == await timeout(whole).execute(1)


async def test_letting_finish_is_not_for_streams() -> None:
    """A stream that stalls is cancelled when it stalls, whatever the grace mode."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    with pytest.raises(StreamStalledError):
        await timeout(chunks((1.0, "a"), (50.0, "b")), grace_mode="finish").execute(1)
    assert 6.0 == loop.time() - began


async def test_a_fallback_answers_in_place_of_a_stall() -> None:
    """Nothing was shown yet, so it may at any moment."""

    async def instead(_: Any) -> str:
        return "instead"

    assert "instead" == await timeout(chunks((1.0, "a"), (50.0, "b")), fallback=instead).execute(1)


async def test_what_gathers_makes_the_answer() -> None:
    """The timeout hands on what the call itself would have made of its chunks."""
    call = LLMCallPrimitive[Any, Any](chunks((0.0, "a"), (0.0, "b")), collect=len)
    assert 2 == await call.execute(1) == await timeout(call).execute(1)
    nested = timeout(timeout(call))
    assert 2 == await nested.execute(1)


async def test_the_producers_error_passes(metrics: Any) -> None:
    """Unchanged."""

    async def broken(_: Any) -> AsyncIterator[Any]:
        yield "a"
        raise LookupError("its own")

    with pytest.raises(LookupError, match="its own"):
        await timeout(broken).execute(1)
    assert 1 == metrics("timeout.errors", operation="ask", error_type="LookupError")
