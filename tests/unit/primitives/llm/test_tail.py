"""After the finish reason nothing can take anything from the answer: no hanging, no fault, no failing close."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from observability_integration.context import Deadline, reset_deadline, set_deadline
from observability_integration.primitives import LLMCallPrimitive
from observability_integration.testing import FakeClockLoop
from tests.scripted_source import Source

pytestmark = [pytest.mark.once, pytest.mark.promise("L4")]

LOOP_FACTORY = FakeClockLoop


def part(content: str | None, reason: str | None = None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": content}, "finish_reason": reason}]}


WHOLE = [part("a"), part(None, "stop")]
USAGE = {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}


def call(source: Source) -> LLMCallPrimitive[Any, Any]:
    return LLMCallPrimitive(lambda _: source, model="m", streaming=True)


def now() -> float:
    return asyncio.get_running_loop().time()


async def test_who_hangs_after_the_reason_has_answered(tracing: Any) -> None:
    """The connection stays open, or its end gets lost: two seconds later that is an end like any other."""
    source = Source(*WHOLE, 1e6)
    assert WHOLE == await call(source).execute("q")
    assert 2.0 == now()
    assert ["cancelled", "closed"] == source.ended
    assert "success" == tracing.named("chat m").attributes["outcome"]
    assert {asyncio.current_task()} == asyncio.all_tasks()
    assert 0 == asyncio.current_task().cancelling()  # type: ignore[union-attr]


async def test_what_comes_in_time_is_read(tracing: Any) -> None:
    """The usage comes after the reason; keep-alives do not prolong the time."""
    chunks = [*WHOLE, 1.0, USAGE, 0.5, {"choices": []}, 0.4, {"choices": []}, 0.2, {"choices": []}]
    got = await call(Source(*chunks)).execute("q")
    assert [*WHOLE, USAGE, {"choices": []}, {"choices": []}] == got
    assert 2.0 == pytest.approx(now())
    assert 2 == tracing.named("chat m").attributes["gen_ai.usage.output_tokens"]


async def test_content_after_a_reason_begins_the_time_anew() -> None:
    """It shows that the reason was none of the last; the usage that follows it is waited for as long as any."""
    chunks = [*WHOLE, 1.5, part("b", "stop"), 5.0, USAGE, 1.5, {"choices": []}]
    got = await call(Source(*chunks, 1e6)).execute("q")
    assert [*WHOLE, part("b", "stop"), USAGE, {"choices": []}] == got
    assert 8.5 == pytest.approx(now())


async def test_what_the_reader_does_meanwhile_is_not_counted() -> None:
    """A slow reader still gets the usage."""
    got: list[Any] = []
    async with call(Source(*WHOLE, USAGE)).stream("q") as chunks:
        async for chunk in chunks:
            got.append(chunk)
            await asyncio.sleep(10.0)
    assert [*WHOLE, USAGE] == got


async def test_the_time_is_no_longer_than_a_deadline_allows() -> None:
    """A whole answer must not be lost to a deadline that passes while nothing more is due."""
    token = set_deadline(Deadline.after(1.0))
    try:
        assert WHOLE == await call(Source(*WHOLE, 1e6)).execute("q")
    finally:
        reset_deadline(token)
    assert 0.5 == now()


@pytest.mark.parametrize("seconds", [1.0, 2.0])
async def test_a_reader_who_is_cancelled_is_cancelled(seconds: float) -> None:
    """Also in the very moment in which the time is up."""
    source = Source(*WHOLE, 1e6)
    task = asyncio.create_task(call(source).execute("q"))
    await asyncio.sleep(0)
    asyncio.get_running_loop().call_at(seconds, task.cancel)
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelled()
    assert ["cancelled", "closed"] == source.ended


async def test_a_source_that_breaks_as_its_reader_is_cancelled_is_no_end() -> None:
    """What it makes of the cancellation is told, and not taken for the answer."""

    async def generate(_: Any) -> AsyncIterator[Any]:
        for chunk in WHOLE:
            yield chunk
        try:
            await asyncio.sleep(1e6)
        except asyncio.CancelledError:
            raise LookupError from None

    task = asyncio.create_task(LLMCallPrimitive[Any, Any](generate).execute("q"))
    await asyncio.sleep(0)
    asyncio.get_running_loop().call_at(2.0, task.cancel)
    with pytest.raises(LookupError):
        await task


async def test_a_source_that_cancels_itself_is_no_end() -> None:
    """That CancelledError is not ours to take."""
    with pytest.raises(asyncio.CancelledError):
        await call(Source(*WHOLE, asyncio.CancelledError())).execute("q")


@pytest.mark.parametrize("answer", [USAGE, RuntimeError("of the clean-up")], ids=["chunk", "error"])
async def test_a_source_that_does_not_die_leaves_no_cancellation_behind(answer: Any) -> None:
    """It may say the rest, or fail while it cleans up: the reader goes on either way, and can be cancelled anew."""

    async def generate(_: Any) -> AsyncIterator[Any]:
        for chunk in WHOLE:
            yield chunk
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(1e6)
        if isinstance(answer, Exception):
            raise answer
        yield answer

    got = await LLMCallPrimitive[Any, Any](generate).execute("q")
    assert (WHOLE if isinstance(answer, Exception) else [*WHOLE, USAGE]) == got
    task = asyncio.current_task()
    assert task is not None
    assert 0 == task.cancelling()


class ReadTimeout(Exception):
    """As httpx has it."""


@pytest.mark.parametrize("error", [ReadTimeout(), TimeoutError(), ConnectionResetError()], ids=repr)
async def test_a_fault_after_the_reason_comes_too_late(error: Exception) -> None:
    """To ask again would pay twice for what is there."""
    assert WHOLE == await call(Source(*WHOLE, error)).execute("q")
    with pytest.raises(type(error)):
        await call(Source(WHOLE[0], error)).execute("q")


async def test_a_fault_of_the_callers_code_is_none_of_these() -> None:
    """What is not about the connection passes unchanged."""
    with pytest.raises(LookupError):
        await call(Source(*WHOLE, LookupError())).execute("q")


async def test_a_close_that_fails_after_the_reason_is_noted(metrics: Any) -> None:
    """The answer is there; without it the error is all there is."""
    error = ConnectionResetError()
    assert WHOLE == await call(Source(*WHOLE, on_close=error)).execute("q")
    assert 1 == metrics("telemetry.faults", site="llm_call.close")
    async with call(Source(*WHOLE, on_close=error)).stream("q") as chunks:
        assert WHOLE == [await anext(chunks), await anext(chunks)]
    with pytest.raises(ConnectionResetError):
        async with call(Source(*WHOLE, on_close=error)).stream("q") as chunks:
            await anext(chunks)


async def test_a_close_that_is_cancelled_after_the_reason_is_cancelled() -> None:
    """A cancellation is no failure to close."""
    with pytest.raises(asyncio.CancelledError):
        await call(Source(*WHOLE, on_close=asyncio.CancelledError())).execute("q")
