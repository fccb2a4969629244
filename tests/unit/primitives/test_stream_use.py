"""No way to read a stream gives an empty answer in place of the chunks or an error."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from typing import Any

import pytest

from observability_integration.primitives import (
    FallbackPrimitive,
    LLMCallPrimitive,
    RouterPrimitive,
    SequentialPrimitive,
    StreamingPrimitive,
    SwitchPrimitive,
    TimeoutPrimitive,
    WorkflowPrimitive,
)
from observability_integration.primitives.base import ChunkStream
from observability_integration.primitives.first_content import FirstContent
from observability_integration.testing import FakeClockLoop
from tests.every_primitive import AROUND_CALLS, AROUND_STREAMS

LOOP_FACTORY = FakeClockLoop

pytestmark = pytest.mark.once


class Producer:
    """Yields two chunks, and notes when it is closed."""

    def __init__(self) -> None:
        self.closed = False

    async def stream(self, request: Any) -> AsyncIterator[str]:
        try:
            yield "a"
            yield "b"
        finally:
            self.closed = True


async def call(request: Any) -> str:
    return "ab"


def streamed(name: str) -> tuple[WorkflowPrimitive[Any, Any], Producer]:
    producer = Producer()
    return AROUND_STREAMS[name](producer.stream), producer


@pytest.mark.parametrize("name", AROUND_STREAMS)
async def test_without_a_block_the_chunks_come(name: str) -> None:
    """Users of the SDKs write ``async for`` around a stream; the stream then opens and closes itself."""
    primitive, producer = streamed(name)
    assert ["a", "b"] == [chunk async for chunk in primitive.stream("q")]
    assert producer.closed


@pytest.mark.parametrize("name", AROUND_CALLS)
async def test_without_a_block_the_answer_comes(name: str) -> None:
    """So it does for a call that does not stream."""
    assert "ab" in str([chunk async for chunk in AROUND_CALLS[name](call).stream("q")])


@pytest.mark.parametrize("name", AROUND_STREAMS)
async def test_inside_of_a_block_the_stream_itself_can_be_read(name: str) -> None:
    """``async with stream: async for chunk in stream`` is as good as the name after ``as``."""
    primitive, producer = streamed(name)
    stream = primitive.stream("q")
    async with stream:
        assert ["a", "b"] == [chunk async for chunk in stream]
    assert producer.closed


async def slow_stream(request: Any) -> AsyncIterator[str]:
    for chunk in "abcd":
        await asyncio.sleep(1.0)
        yield chunk


async def slow_call(request: Any) -> str:
    await asyncio.sleep(1.0)
    return "ab"


@pytest.mark.parametrize("name", AROUND_STREAMS)
async def test_a_second_reader_is_refused_and_takes_nothing(name: str) -> None:
    """Neither waits for a chunk that the other has got, and the first gets the whole answer."""
    async with AROUND_STREAMS[name](slow_stream).stream("q") as chunks:

        async def read() -> list[Any]:
            return [chunk async for chunk in chunks]

        first, second = await asyncio.gather(read(), read(), return_exceptions=True)
    assert ["a", "b", "c", "d"] == first
    assert isinstance(second, RuntimeError)
    assert asyncio.get_running_loop().time() < 10.0


@pytest.mark.parametrize("name", sorted({*AROUND_CALLS} - {"cache", "llm call"}))  # they make the call as they open
async def test_a_second_reader_of_a_whole_answer_is_refused(name: str) -> None:
    """While the call runs it has no answer, and an empty one would be wrong."""
    async with AROUND_CALLS[name](slow_call).stream("q") as chunks:

        async def read() -> list[Any]:
            return [chunk async for chunk in chunks]

        first, second = await asyncio.gather(read(), read(), return_exceptions=True)
    assert "ab" in str(first)
    assert isinstance(second, RuntimeError)


@pytest.mark.parametrize("name", sorted({*AROUND_STREAMS} - {"streaming"}))
async def test_a_stream_closed_under_its_reader_is_no_whole_answer(name: str) -> None:
    """The task that reads gets an error of its own: neither the end of the answer, nor a cancellation of another's."""
    stream = AROUND_STREAMS[name](slow_stream).stream("q")
    chunks = await stream.__aenter__()
    seen: list[Any] = []

    async def read() -> None:
        async for chunk in chunks:
            seen.append(chunk)

    reader = asyncio.create_task(read())
    await asyncio.sleep(2.5)
    await asyncio.gather(stream.__aexit__(None, None, None), return_exceptions=True)
    (ended,) = await asyncio.gather(reader, return_exceptions=True)
    assert isinstance(ended, Exception), ended
    assert len(seen) < 4


@pytest.mark.parametrize("name", sorted({*AROUND_STREAMS} - {"cache", "streaming"}))  # a cache opens with a chunk
async def test_a_reader_that_is_cancelled_as_its_stream_is_closed(name: str) -> None:
    """Its own cancellation wins."""
    stream = AROUND_STREAMS[name](slow_stream).stream("q")
    chunks = await stream.__aenter__()
    reader = asyncio.ensure_future(anext(chunks))
    await asyncio.sleep(0.5)
    reader.cancel()
    await asyncio.gather(stream.__aexit__(None, None, None), return_exceptions=True)
    (ended,) = await asyncio.gather(reader, return_exceptions=True)
    assert isinstance(ended, asyncio.CancelledError)


@pytest.mark.parametrize("name", AROUND_STREAMS)
async def test_without_a_block_a_reader_may_leave_early(name: str) -> None:
    """The stream is closed once it has been collected, as a generator is."""
    primitive, producer = streamed(name)
    async for chunk in primitive.stream("q"):
        assert "a" == chunk
        break
    gc.collect()
    await asyncio.sleep(10.0)
    assert producer.closed


@pytest.mark.parametrize("name", AROUND_STREAMS)
async def test_errors_pass_without_a_block(name: str) -> None:
    """The error of the producer is the reader's, as inside of a block."""

    async def failing(request: Any) -> AsyncIterator[str]:
        yield "a"
        raise ConnectionError

    seen = []
    with pytest.raises(Exception, match=r".*") as caught:  # noqa: PT012
        async for chunk in AROUND_STREAMS[name](failing).stream("q"):
            seen.append(chunk)
    assert ["a"] == seen
    assert isinstance(caught.value, ConnectionError) or isinstance(caught.value.__cause__, ConnectionError)


@pytest.mark.parametrize("name", sorted({*AROUND_STREAMS} - {"streaming"}))
async def test_a_stream_that_is_not_open_says_so(name: str) -> None:
    """A chunk that is asked for before the opening is no end of the answer."""
    primitive, _ = streamed(name)
    stream: Any = primitive.stream("q")
    with pytest.raises(RuntimeError, match="async with"):
        await anext(stream)
    async with stream as chunks:
        assert ["a", "b"] == [chunk async for chunk in chunks]
        assert [] == [chunk async for chunk in chunks]


@pytest.mark.parametrize("name", AROUND_STREAMS)
async def test_a_stream_is_one_call(name: str) -> None:
    """To open it twice, or to read it after its end, is a mistake that an empty answer would hide."""
    primitive, _ = streamed(name)
    stream = primitive.stream("q")
    async with stream as chunks:
        assert "a" == await anext(chunks)
        with pytest.raises(RuntimeError, match="open already"):
            async with stream:
                pass
        assert "b" == await anext(chunks)
    with pytest.raises(RuntimeError, match="closed"):
        [chunk async for chunk in stream]
    with pytest.raises(RuntimeError, match="closed"):
        async with stream:
            pass


@pytest.mark.parametrize("name", AROUND_CALLS)
async def test_a_whole_answer_is_one_call(name: str) -> None:
    """The stream of a call that does not stream keeps to the same rules."""
    stream = AROUND_CALLS[name](call).stream("q")
    assert "ab" in str([chunk async for chunk in stream])
    with pytest.raises(RuntimeError, match="closed"):
        [chunk async for chunk in stream]


async def nothing() -> AsyncIterator[Any]:
    return
    yield


async def takes_first(request: Any) -> Any:
    return await anext(nothing())


async def streams_first(request: Any) -> Any:
    first = await anext(nothing())

    async def rest() -> AsyncIterator[Any]:
        yield first

    return rest()


@pytest.mark.parametrize("name", AROUND_CALLS)
async def test_the_end_of_another_iterator_is_an_error(name: str) -> None:
    """A call that fails with StopAsyncIteration has failed: its reader must not take it for an answer of no chunks."""
    primitive = AROUND_CALLS[name](takes_first)
    with pytest.raises(Exception, match=r"StopAsyncIteration|All targets"):
        [chunk async for chunk in primitive.stream("q")]
    with pytest.raises(Exception, match=r".*"):
        await primitive.execute("q")


def chooser(request: Any) -> Any:
    return takes_first(request)


class Opening(ChunkStream):
    """A stream of the user's whose opening takes the first item of an empty iterator."""

    async def __aenter__(self) -> AsyncIterator[Any]:
        return await anext(nothing())

    async def __aexit__(self, exc_type: Any, exc: BaseException | None, tb: Any) -> None:
        pass


class Closing(ChunkStream):
    """A stream of the user's whose closing does."""

    async def __aenter__(self) -> AsyncIterator[Any]:
        return nothing()

    async def __aexit__(self, exc_type: Any, exc: BaseException | None, tb: Any) -> None:
        await anext(nothing())


class Own(WorkflowPrimitive[Any, Any]):
    """A primitive of the user's."""

    def __init__(self, stream: type[ChunkStream]) -> None:
        self._stream = stream

    async def execute(self, input_data: Any, context: Any = None) -> Any:
        """Is not called."""

    def stream(self, input_data: Any, context: Any = None) -> ChunkStream:
        """Returns the stream of the user's."""
        return self._stream()


PLACES: dict[str, WorkflowPrimitive[Any, Any]] = {
    "a call that opens a stream": TimeoutPrimitive(LLMCallPrimitive(streams_first, streaming=True), 5.0),
    "a call that opens a stream, alone": LLMCallPrimitive(streams_first, streaming=True),
    "a step before the last": SequentialPrimitive([takes_first, call]),
    "a selector": SwitchPrimitive(chooser, {"a": call}),
    "the only target": FallbackPrimitive([takes_first]),
    **{f"{name} around an opening": make(Own(Opening)) for name, make in AROUND_STREAMS.items() if name != "streaming"},
}


@pytest.mark.parametrize("place", PLACES)
async def test_wherever_it_is_raised(place: str) -> None:
    """The opening of a stream, a selector and an earlier step are no ends of a stream either."""
    with pytest.raises(Exception, match=r".*") as caught:
        [chunk async for chunk in PLACES[place].stream("q")]
    assert not isinstance(caught.value, StopAsyncIteration)


async def test_a_closing_that_raises_it() -> None:
    """An error of the closing ends no stream of another primitive as if all were well."""
    with pytest.raises(RuntimeError, match="StopAsyncIteration"):
        [chunk async for chunk in TimeoutPrimitive(Own(Closing), 5.0).stream("q")]


async def test_the_next_target_is_asked() -> None:
    """To a fallback such a failure is a reason to ask the next target."""

    async def second(request: Any) -> str:
        return "second"

    assert ["second"] == [chunk async for chunk in FallbackPrimitive([takes_first, second]).stream("q")]
    assert "second" == await FallbackPrimitive([takes_first, second]).execute("q")


async def test_a_router_goes_on_with_its_default() -> None:
    """Its function may fail in any way; the call is made all the same."""
    router = RouterPrimitive({"only": call}, lambda request, context: takes_first(request), default="only")
    assert ["ab"] == [chunk async for chunk in router.stream("q")]


async def test_first_content_of_an_opening_that_raises_it() -> None:
    """Retries, fallbacks and hedges open their attempts as the first chunk is asked for."""
    with pytest.raises(RuntimeError, match="StopAsyncIteration"):
        await FirstContent(Opening()).next()


async def test_an_empty_stream_is_an_empty_answer() -> None:
    """A producer that ends without a chunk has answered, with nothing."""
    empty: Any = StreamingPrimitive(lambda_of_nothing)
    assert [] == [chunk async for chunk in TimeoutPrimitive(empty, 5.0).stream("q")]


async def lambda_of_nothing(request: Any) -> AsyncIterator[Any]:
    return
    yield
