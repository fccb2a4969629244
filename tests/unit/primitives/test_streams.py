"""Streams: their three clocks, how they are closed in every case, and what is shown of them."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, cast

import pytest

from observability_integration import WorkflowContext
from observability_integration.context import Deadline, current_deadline
from observability_integration.errors import (
    ConfigurationError,
    PrimitiveTimeoutError,
    StreamInterruptedError,
    StreamStalledError,
)
from observability_integration.primitives import (
    CachePrimitive,
    ConditionalPrimitive,
    LLMCallPrimitive,
    RouterPrimitive,
    SequentialPrimitive,
    StreamingPrimitive,
    SwitchPrimitive,
    TimeoutPrimitive,
)
from observability_integration.testing import FakeClockLoop

LOOP_FACTORY = FakeClockLoop

QUESTION = "what is the secret ingredient?"
ROLE = {"choices": [{"delta": {"role": "assistant"}}]}
KEEP_ALIVE = {"type": "ping"}


def now() -> float:
    return asyncio.get_running_loop().time()


def text(content: str, finish_reason: str | None = None) -> dict[str, Any]:
    return {"model": "m-1", "choices": [{"delta": {"content": content}, "finish_reason": finish_reason}]}


class Producer:
    """A scripted producer: a number is a wait in seconds, an exception is raised, anything else is a chunk.

    Args:
        script: what happens, in order.
        closing_seconds: how long it takes to close.
        closing_error: what it raises then.
        ignores: how many cancels it ignores.
    """

    __name__ = "producer"

    def __init__(
        self,
        *script: Any,
        closing_seconds: float = 0.0,
        closing_error: BaseException | None = None,
        ignores: int = 0,
    ) -> None:
        self.script = script
        self.closing_seconds = closing_seconds
        self.closing_error = closing_error
        self.ignores = ignores
        self.starts = 0
        self.closed_at: list[float] = []

    async def __call__(self, question: str = QUESTION) -> AsyncIterator[Any]:
        assert question == QUESTION
        self.starts += 1
        try:
            for item in self.script:
                if isinstance(item, BaseException):
                    raise item
                if isinstance(item, float):
                    await self._sleep(item)
                else:
                    yield item
        finally:
            await self._sleep(self.closing_seconds)
            self.closed_at.append(now())
            if self.closing_error is not None:
                raise self.closing_error

    async def _sleep(self, seconds: float) -> None:
        until = now() + seconds
        while now() < until:
            try:
                await asyncio.sleep(until - now())
            except asyncio.CancelledError:
                self.ignores -= 1
                if self.ignores < 0:
                    raise


def bounded(step: Any, timeout_seconds: float = 100.0, **options: Any) -> TimeoutPrimitive[Any, Any]:
    return TimeoutPrimitive(step, timeout_seconds, operation_name="ask", **options)


async def read(primitive: Any, context: WorkflowContext | None = None, *, think: float = 0.0) -> list[Any]:
    """All chunks, by a reader that thinks so long over each; on an error, the error comes last."""
    got: list[Any] = []
    try:
        async with primitive.stream(QUESTION, context) as chunks:
            async for chunk in chunks:
                got.append(chunk)
                await asyncio.sleep(think)
    except Exception as error:
        got.append(error)
    return got


async def cancelled(reading: Awaitable[Any], *moments: float) -> float:
    """Cancels the reader at these moments, and tells when it ended, which must be by that cancellation."""
    task = asyncio.ensure_future(reading)
    assert isinstance(task, asyncio.Task)
    for moment in moments:
        asyncio.get_running_loop().call_at(moment, task.cancel)
    await asyncio.wait({task})
    assert task.cancelled()
    assert len(moments) == task.cancelling()
    return now()


# ---- the three clocks


@pytest.mark.promise("T8")
async def test_whole_stream_in_time(metrics: Any, tracing: Any) -> None:
    """A stream that stays within its clocks is handed on as it is, and is one success."""
    producer = Producer(1.0, "a", 1.0, "b", 1.0, "c")
    primitive = bounded(producer, first_chunk_seconds=2.0, idle_seconds=2.0)
    assert ["a", "b", "c"] == await read(primitive)
    assert [3.0] == producer.closed_at
    assert 1 == metrics("timeout.successes", operation="ask")
    assert 1 == metrics("timeout.execution", operation="ask")
    assert 1 == primitive.get_stats()["successes"]
    span = tracing.named("timeout ask")
    assert ({"timeout.limit_seconds": 100.0, "outcome": "success"}, []) == (span.attributes, span.events)


@pytest.mark.promise("T8")
@pytest.mark.parametrize("keep_alive", [KEEP_ALIVE, ROLE, "", None], ids=["ping", "role", "empty", "None"])
async def test_first_chunk_clock_wants_content(metrics: Any, keep_alive: Any) -> None:
    """Keep-alives and role chunks are handed on, but the wait for the first content goes on."""
    producer = Producer(*[1.0, keep_alive] * 10)
    *chunks, error = await read(bounded(producer, first_chunk_seconds=4.5))
    assert [keep_alive] * 4 == chunks
    assert isinstance(error, PrimitiveTimeoutError)
    assert ("first_chunk", "own", "clean", 4.5, 4.5) == (
        error.kind,
        error.deadline_source,
        error.cleanup,
        error.timeout_seconds,
        error.elapsed_seconds,
    )
    assert "raise first_chunk_seconds" in str(error)
    assert not isinstance(error, StreamInterruptedError)
    assert [4.5] == producer.closed_at
    assert 1 == metrics("timeout.failures", operation="ask", kind="first_chunk")


@pytest.mark.promise("T8")
async def test_first_chunk_clock_starts_before_the_request() -> None:
    """A provider that accepts the request and then sends nothing, not even headers, is seen by the first clock."""

    async def connects(_: str) -> AsyncIterator[str]:
        await asyncio.sleep(60.0)
        raise AssertionError

    (error,) = await read(bounded(LLMCallPrimitive(connects), first_chunk_seconds=5.0))
    assert ("first_chunk", 5.0) == (error.kind, now())


@pytest.mark.promise("T8")
async def test_idle_clock_is_re_armed_by_content_only(metrics: Any, tracing: Any) -> None:
    """Keep-alives do not keep a stalled answer alive: the idle clock runs from the last content."""
    producer = Producer(1.0, "a", 2.0, "b", *[1.0, KEEP_ALIVE] * 10)
    *chunks, error = await read(bounded(producer, idle_seconds=3.5))
    assert ["a", "b", *[KEEP_ALIVE] * 3] == chunks
    assert ("idle", 3.5, 6.5) == (error.kind, error.timeout_seconds, error.elapsed_seconds)
    assert "raise idle_seconds" in str(error)
    assert 1 == metrics("timeout.failures", operation="ask", kind="idle")
    assert 1 == metrics("timeout.cleanup", operation="ask", cleanup="clean")
    span = tracing.named("timeout ask")
    assert ("idle", ["timeout.cancel_sent"]) == (span.attributes["timeout.kind"], span.events)


@pytest.mark.promise("T8")
async def test_idle_clock_waits_for_the_first_content() -> None:
    """Before any content there is no gap between contents: a reasoning model may take its time."""
    assert ["a"] == await read(bounded(Producer(50.0, "a"), idle_seconds=3.0))


@pytest.mark.promise("T8")
async def test_stalled_answer_is_an_interrupted_stream_and_a_timeout() -> None:
    """A reader that holds half an answer catches a stall as it does a cut, or as any timeout, whichever it prefers."""
    *_, error = await read(bounded(Producer("a", "b", 60.0), idle_seconds=5.0))
    assert isinstance(error, StreamStalledError)
    assert isinstance(error, StreamInterruptedError)
    assert isinstance(error, PrimitiveTimeoutError)
    assert ("stalled", 2, "ask") == (error.reason, error.chunks, error.operation)


@pytest.mark.promise("T8")
async def test_total_clock(metrics: Any) -> None:
    """However lively the stream, the limit ends it."""
    producer = Producer(*[1.0, "a"] * 100)
    *chunks, error = await read(bounded(producer, 10.5, first_chunk_seconds=2.0, idle_seconds=2.0))
    assert 10 == len(chunks)
    assert ("total", "own", 10.5, 10.5) == (
        error.kind,
        error.deadline_source,
        error.timeout_seconds,
        error.elapsed_seconds,
    )
    assert 1 == metrics("timeout.failures", operation="ask", kind="total")


@pytest.mark.promise("T8")
async def test_slow_reader_never_trips_a_clock() -> None:
    """The clocks run only while the producer is being waited for: what the reader does meanwhile is its affair."""
    producer = Producer(1.0, "a", 1.0, "b", 1.0, "c")
    primitive = bounded(producer, 4.0, first_chunk_seconds=2.0, idle_seconds=2.0)
    assert ["a", "b", "c"] == await read(primitive, think=1000.0)
    assert 1 == primitive.get_stats()["successes"]


@pytest.mark.promise("T8")
async def test_producer_runs_ahead_by_no_more_than_what_is_asked_for() -> None:
    """A chunk is produced when the reader asks for it, not while it thinks: a slow reader holds the producer up."""
    producer = Producer("a", 5.0, "b")
    async with bounded(producer).stream(QUESTION) as chunks:
        assert "a" == await anext(chunks)
        await asyncio.sleep(100.0)
        assert "b" == await anext(chunks)
        assert 105.0 == now()


@pytest.mark.promise("T7", "T8")
async def test_inherited_deadline_does_not_stand_still(metrics: Any) -> None:
    """Somebody else's deadline is a moment in time: it passes while the reader thinks, too."""
    context = WorkflowContext(deadline=Deadline.after(10.0))
    chunk, error = await read(bounded(Producer(1.0, "a", 1.0, "b")), context, think=60.0)
    assert "a" == chunk
    assert ("deadline", "inherited", 61.0) == (error.kind, error.deadline_source, now())
    assert context.deadline is error.deadline
    assert 1 == metrics("timeout.failures", operation="ask", kind="deadline")


@pytest.mark.promise("T7", "T8")
async def test_deadline_that_is_the_nearest_clock() -> None:
    """A deadline that comes before all the clocks ends the wait at its moment."""
    context = WorkflowContext(deadline=Deadline.after(3.0))
    primitive = bounded(Producer(60.0, "a"), first_chunk_seconds=5.0)
    (error,) = await read(primitive, context)
    assert ("deadline", 3.0, 3.0) == (error.kind, error.timeout_seconds, now())


@pytest.mark.promise("T7")
async def test_stream_is_refused_when_nothing_remains(tracing: Any, metrics: Any) -> None:
    """Nothing is opened after the deadline has passed."""
    producer = Producer("a")
    (error,) = await read(bounded(producer), WorkflowContext(deadline=Deadline.after(0.0)))
    assert ("deadline", "refused") == (error.kind, error.cleanup)
    assert 0 == producer.starts
    assert [] == tracing.unended()
    assert 1 == metrics("timeout.failures", operation="ask", kind="deadline")


@pytest.mark.promise("T7")
async def test_inside_a_stream_its_deadline_is_in_force() -> None:
    """What the producer does is bound by the stream's limit and those from further out; the reader's context is not."""
    seen: list[float] = []

    async def produce(_: str) -> AsyncIterator[str]:
        for _ in range(3):
            seen.append(cast("Deadline", current_deadline()).when)
            yield "a"

    deadline = Deadline.after(10.0)
    assert ["a"] * 3 == await read(bounded(produce), WorkflowContext(deadline=deadline))
    assert [10.0] * 3 == seen
    assert current_deadline() is None
    # The stream's own limit stands still while its reader thinks.
    async with TimeoutPrimitive(produce, 20.0).stream("q", WorkflowContext(deadline=Deadline.after(26.0))) as chunks:
        async for _ in chunks:
            await asyncio.sleep(4.0)
    assert [20.0, 24.0, 26.0] == seen[3:]


@pytest.mark.promise("T7")
async def test_nested_streams_agree_on_whose_deadline_passed(metrics: Any) -> None:
    """When a stream further in is first to notice an inherited deadline, those around it do not call it an error."""
    inner = TimeoutPrimitive(Producer(60.0, "a"), 50.0, operation_name="inner")
    outer = TimeoutPrimitive(inner, 50.0, operation_name="outer")
    context = WorkflowContext(deadline=Deadline.after(3.0))

    class Impatient(TimeoutPrimitive[Any, Any]):
        """Is itself first to notice."""

        def stream(self, input_data: Any, context: WorkflowContext | None = None) -> Any:
            async def produce() -> AsyncIterator[Any]:
                deadline = current_deadline()
                raise PrimitiveTimeoutError(
                    "inner", 3.0, 3.0, kind="deadline", deadline_source="inherited", deadline=deadline
                )
                yield

            return StreamingPrimitive(lift_generator(produce)).stream(input_data)

    (error,) = await read(TimeoutPrimitive(Impatient(Producer(), 1.0), 50.0, operation_name="outer"), context)
    assert ("outer", "deadline", "inherited") == (error.operation, error.kind, error.deadline_source)
    assert 1 == metrics("timeout.failures", operation="outer", kind="deadline")

    (error,) = await read(outer, WorkflowContext(deadline=Deadline.after(3.0)))
    assert ("outer", "deadline", 3.0) == (error.operation, error.kind, now())


def lift_generator(produce: Callable[[], AsyncIterator[Any]]) -> Any:
    """An async generator function that takes the input and forgets it."""

    async def generator(_: Any) -> AsyncIterator[Any]:
        async for chunk in produce():
            yield chunk

    return generator


# ---- ends: the producer's, the reader's, and nobody's


async def test_error_of_the_producer_passes(metrics: Any, tracing: Any) -> None:
    """An error in the middle reaches the reader unchanged, after the chunks before it, and ends the stream."""
    failure = ConnectionResetError("cut")
    producer = Producer("a", 1.0, failure)
    primitive = bounded(producer)
    async with primitive.stream(QUESTION) as chunks:
        assert "a" == await anext(chunks)
        with pytest.raises(ConnectionResetError) as caught:
            await anext(chunks)
        with pytest.raises(StopAsyncIteration):
            await anext(chunks)
    assert failure is caught.value
    assert 1 == metrics("timeout.errors", operation="ask", error_type="ConnectionResetError")
    assert 0 == primitive.get_stats()["total"]
    span = tracing.named("timeout ask")
    assert ("error", failure) == (span.attributes["outcome"], span.error)


async def test_error_while_opening(tracing: Any) -> None:
    """A source that cannot be opened says so at the first chunk."""
    failure = ConnectionRefusedError()

    async def refuses(_: str) -> AsyncIterator[str]:
        raise failure

    assert [failure] == await read(bounded(LLMCallPrimitive(refuses)))
    async with bounded(LLMCallPrimitive(refuses)).stream(QUESTION) as chunks:
        await asyncio.sleep(1.0)  # it has failed before anything was asked for
        with pytest.raises(ConnectionRefusedError):
            await anext(chunks)
    assert [] == tracing.unended()


async def test_error_while_opening_that_nobody_asked_for(tracing: Any) -> None:
    """A reader that leaves without reading is not bothered, and asyncio does not complain of an unread error."""
    told: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))

    async def refuses(_: str) -> AsyncIterator[str]:
        raise ConnectionRefusedError

    async with bounded(LLMCallPrimitive(refuses)).stream(QUESTION):
        await asyncio.sleep(1.0)
    gc.collect()
    assert [] == told
    assert [] == tracing.unended()
    assert "closed" == tracing.named("timeout ask").attributes["outcome"]


async def test_source_that_cannot_even_be_made(tracing: Any) -> None:
    """A step that refuses to stream fails the opening itself, and its span is ended."""
    wraps_nothing: CachePrimitive[str, str] = CachePrimitive()
    with pytest.raises(ConfigurationError, match="nothing to stream from"):
        async with bounded(wraps_nothing).stream(QUESTION):
            pass
    assert ["timeout ask"] == tracing.tree()
    assert "error" == tracing.named("timeout ask").attributes["outcome"]
    assert [] == tracing.unended()


async def test_producer_that_cancels_itself(metrics: Any, tracing: Any) -> None:
    """A CancelledError of the producer's own goes on to the reader and is no timeout."""
    with pytest.raises(asyncio.CancelledError):
        await read(bounded(Producer("a", asyncio.CancelledError())))
    task = asyncio.current_task()
    assert task is not None
    assert 0 == task.cancelling()
    assert 1 == metrics("timeout.cancellations", operation="ask")
    assert "cancelled" == tracing.named("timeout ask").attributes["outcome"]


@pytest.mark.promise("X3")
async def test_early_break_closes_the_producer(metrics: Any, tracing: Any) -> None:
    """A reader that has seen enough closes the stream by leaving: the producer ends, and nothing has failed."""
    producer = Producer("a", 1.0, "b", closing_seconds=2.0)
    primitive = bounded(producer)
    async with primitive.stream(QUESTION) as chunks:
        async for chunk in chunks:
            assert "a" == chunk
            break
    assert ([2.0], 2.0) == (producer.closed_at, now())
    assert 0 == primitive.get_stats()["total"]
    assert metrics("timeout.cancellations", operation="ask") is None
    span = tracing.named("timeout ask")
    assert ("closed", [], 1) == (span.attributes["outcome"], span.events, span.ends)
    with pytest.raises(StopAsyncIteration):
        await anext(chunks)


async def test_break_before_the_first_chunk() -> None:
    """A stream that is opened and left without reading never starts a generator, and closes what it opened."""
    producer = Producer(60.0, "a")
    async with bounded(producer).stream(QUESTION):
        await asyncio.sleep(1.0)
    assert (1.0, 0) == (now(), producer.starts)


async def test_error_in_closing_reaches_the_reader_that_left(tracing: Any) -> None:
    """As with a plain generator: what goes wrong in closing is not swept under the carpet."""
    failure = ValueError("cannot close")
    with pytest.raises(ValueError, match="cannot close") as caught:
        async with bounded(Producer("a", 1.0, closing_error=failure)).stream(QUESTION) as chunks:
            await anext(chunks)
    assert failure is caught.value
    assert "error" == tracing.named("timeout ask").attributes["outcome"]


@pytest.mark.promise("T1", "T4")
async def test_producer_that_does_not_close_is_left_behind(metrics: Any) -> None:
    """A reader that leaves waits for the closing no longer than the grace."""
    producer = Producer("a", 1.0, closing_seconds=60.0, ignores=99)
    async with bounded(producer, grace_period_seconds=5.0).stream(QUESTION) as chunks:
        await anext(chunks)
    assert 5.0 == now()
    assert 1 == metrics("timeout.abandoned_active", operation="ask")
    await asyncio.sleep(60.0)
    assert 0 == metrics("timeout.abandoned_active", operation="ask")


@pytest.mark.promise("T1", "T4")
@pytest.mark.parametrize("goes_on", [[], ["b", 60.0, "c"]], ids=["ends", "goes on"])
async def test_producer_that_ignores_its_cancellation(goes_on: list[Any], metrics: Any, tracing: Any) -> None:
    """A timeout gives control back at limit + grace; leaving the block costs no second grace, and counts nothing."""
    producer = Producer("a", 60.0, *goes_on, ignores=99)
    (chunk, error) = await read(bounded(producer, 10.0, grace_period_seconds=5.0))
    assert ("a", "abandoned", 15.0, 15.0) == (chunk, error.cleanup, error.elapsed_seconds, now())
    assert 1 == metrics("timeout.abandoned", operation="ask")
    assert 1 == metrics("timeout.abandoned_active", operation="ask")
    assert 1 == metrics("timeout.cleanup", operation="ask", cleanup="abandoned")
    assert [] == tracing.unended()
    await asyncio.sleep(60.0)
    assert [60.0] == producer.closed_at
    assert 0 == metrics("timeout.abandoned_active", operation="ask")


async def test_clean_up_that_fails_at_a_timeout_is_its_cause(metrics: Any) -> None:
    """An error in the producer's clean-up must neither hide the timeout nor be lost."""
    failure = ValueError("cannot close")
    (error,) = await read(bounded(Producer(60.0, closing_error=failure), 10.0))
    assert ("failed", failure) == (error.cleanup, error.__cause__)
    assert 1 == metrics("timeout.cleanup", operation="ask", cleanup="failed")


async def test_end_that_comes_in_answer_to_the_cancel(metrics: Any, tracing: Any) -> None:
    """A producer that takes its cancel for the end has not finished in time."""

    async def takes_it_for_the_end(_: str) -> AsyncIterator[str]:
        yield "a"
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(60.0)

    (chunk, error) = await read(bounded(takes_it_for_the_end, 10.0))
    assert ("a", "late_result") == (chunk, error.cleanup)
    assert 1 == metrics("timeout.late_results", operation="ask")
    assert tracing.named("timeout ask").attributes["timeout.late"] is True


@pytest.mark.promise("T5")
async def test_reader_cancelled_while_it_waits(metrics: Any, tracing: Any) -> None:
    """The producer is cancelled and its closing waited for; then the cancellation goes on."""
    producer = Producer("a", 60.0, closing_seconds=2.0)
    assert 5.0 == await cancelled(read(bounded(producer)), 3.0)
    assert [5.0] == producer.closed_at
    assert 1 == metrics("timeout.cancellations", operation="ask")
    span = tracing.named("timeout ask")
    assert ("cancelled", []) == (span.attributes["outcome"], span.events)


@pytest.mark.promise("T5")
async def test_reader_cancelled_twice() -> None:
    """A second cancellation does not wait for the grace to end, and leaving the block does not start another."""
    producer = Producer("a", 60.0, ignores=99)
    assert 4.0 == await cancelled(read(bounded(producer, grace_period_seconds=5.0)), 3.0, 4.0)
    await asyncio.sleep(60.0)


@pytest.mark.promise("T1", "T5")
async def test_reader_cancelled_in_the_grace(metrics: Any, tracing: Any) -> None:
    """The cancellation wins over our timeout, and limit + grace stays the bound."""
    producer = Producer("a", 60.0, ignores=99)
    assert 15.0 == await cancelled(read(bounded(producer, 10.0, grace_period_seconds=5.0)), 12.0)
    assert 0 == metrics("timeout.failures", operation="ask", kind="total")
    assert 1 == metrics("timeout.cancellations", operation="ask")
    assert 1 == metrics("timeout.abandoned", operation="ask")
    assert [] == tracing.unended()
    await asyncio.sleep(60.0)


@pytest.mark.promise("T5")
async def test_reader_cancelled_while_it_thinks(tracing: Any) -> None:
    """A reader that is cancelled over a chunk leaves the block, and with it closes the stream."""
    producer = Producer("a", 1.0, "b", closing_seconds=2.0)
    assert 5.0 == await cancelled(read(bounded(producer), think=60.0), 3.0)
    assert [5.0] == producer.closed_at
    assert "closed" == tracing.named("timeout ask").attributes["outcome"]


@pytest.mark.promise("X3")
async def test_dropped_stream_is_closed_when_it_is_collected(tracing: Any) -> None:
    """A stream that nobody closed costs no connection for ever: its span ends once, as abandoned, its producer too."""
    producer = Producer("a", 1.0, "b")
    stream = bounded(producer).stream(QUESTION)
    chunks = await stream.__aenter__()
    assert "a" == await anext(chunks)
    del stream, chunks
    gc.collect()
    span = tracing.named("timeout ask")
    assert ("abandoned", 1) == (span.attributes["outcome"], span.ends)
    for _ in range(5):
        await asyncio.sleep(0)
    assert [0.0] == producer.closed_at
    assert [] == tracing.unended()


@pytest.mark.promise("X3")
async def test_reader_that_is_dropped_while_it_waits(tracing: Any) -> None:
    """A reader that nobody drives any more, as after its loop was stopped, ends the span when it goes."""

    async def hang(_: str) -> None:
        await asyncio.Event().wait()

    async with SwitchPrimitive(len, {0: hang}, default=hang).stream(QUESTION) as chunks:
        waiting: Any = chunks.__anext__()
        waiting.send(None)
        waiting.close()
        assert "abandoned" == tracing.named("switch").attributes["outcome"]
        with pytest.raises(StopAsyncIteration):
            await anext(chunks)
    assert [] == tracing.unended()


async def test_dropped_stream_of_a_closed_loop(caplog: pytest.LogCaptureFixture) -> None:
    """Collected after its loop has gone, a stream has nobody to tell and says nothing."""
    streams = []

    async def leave_open() -> None:
        stream = bounded(Producer("a")).stream(QUESTION)
        await anext(await stream.__aenter__())
        streams.append(stream)

    def other_loop() -> None:
        loop = asyncio.new_event_loop()
        loop.run_until_complete(leave_open())
        loop.close()

    await asyncio.get_running_loop().run_in_executor(None, other_loop)
    left = weakref.ref(streams.pop())
    gc.collect()
    assert left() is None
    assert "" == caplog.text


@pytest.mark.promise("B4")
@pytest.mark.parametrize("turns", [1, 2])
async def test_everything_but_the_reader_is_cancelled(turns: int) -> None:
    """Cancelling all other tasks, as some shutdowns do, reaches a reader that asks at that very moment."""
    async with bounded(Producer("a"), 10.0).stream(QUESTION) as chunks:
        for _ in range(turns):
            await asyncio.sleep(0)
        (pump,) = asyncio.all_tasks() - {asyncio.current_task()}
        pump.cancel()
        with pytest.raises(asyncio.CancelledError):
            await anext(chunks)


async def test_pump_that_was_cancelled_before_it_began() -> None:
    """A task that is cancelled before its first step cannot tell anyone: the reader's own clock ends the wait."""
    stream = bounded(Producer("a"), 10.0).stream(QUESTION)
    async with stream as chunks:
        (pump,) = asyncio.all_tasks() - {asyncio.current_task()}
        pump.cancel()
        with pytest.raises(PrimitiveTimeoutError):
            await anext(chunks)
    assert 10.0 == now()


@pytest.mark.promise("X3")
async def test_spans_are_current_only_while_the_producer_works(tracing: Any) -> None:
    """A span left current over a `yield` would become the parent of whatever the reader does next."""
    seen: list[str] = []

    async def produce(_: str) -> AsyncIterator[str]:
        for letter in "ab":
            seen.append(tracing.current.name)
            yield letter

    primitive = RouterPrimitive({"fast": bounded(LLMCallPrimitive(produce, model="m"))}, lambda _, __: "fast")
    async with primitive.stream(QUESTION) as chunks:
        assert tracing.current is None
        async for _ in chunks:
            assert tracing.current is None
    assert tracing.current is None
    assert ["chat m", "chat m"] == seen
    assert ["router", "router > timeout ask", "router > timeout ask > chat m"] == tracing.tree()


# ---- fallback


async def test_fallback_stream_before_the_first_content(tracing: Any) -> None:
    """When time runs out before anything of the answer was seen, the fallback streams instead."""
    primitive = bounded(Producer(ROLE, 60.0, "a"), first_chunk_seconds=5.0, fallback=Producer("plan", 1.0, "b"))
    assert [ROLE, "plan", "b"] == await read(primitive)
    assert 6.0 == now()
    assert 1 == primitive.get_stats()["failures"]
    assert [] == tracing.unended()


async def test_no_fallback_after_content() -> None:
    """Two answers are never spliced: after the first content a stall is the reader's to know of."""
    plan_b = Producer("plan b")
    *chunks, error = await read(bounded(Producer("a", 60.0), idle_seconds=5.0, fallback=plan_b))
    assert ["a"] == chunks
    assert isinstance(error, StreamStalledError)
    assert 0 == plan_b.starts


async def test_no_fallback_for_what_is_not_our_timeout() -> None:
    """The producer's own errors, inner timeouts and inherited deadlines are no reason for the fallback."""
    plan_b = Producer("plan b")
    failure = TimeoutError("own")
    assert [failure] == await read(bounded(Producer(failure), fallback=plan_b))
    inner = TimeoutPrimitive(Producer(60.0), 3.0, operation_name="ask")
    (error,) = await read(bounded(inner, fallback=plan_b))
    assert 3.0 == error.timeout_seconds
    context = WorkflowContext(deadline=Deadline.after(3.0))
    (error,) = await read(bounded(Producer(60.0), fallback=plan_b), context)
    assert "inherited" == error.deadline_source
    assert 0 == plan_b.starts


async def test_fallback_stream_is_closed_on_a_break() -> None:
    """Leaving the block closes whichever stream is being read."""
    plan_b = Producer("plan", 1.0, "b")
    async with bounded(Producer(60.0), 5.0, fallback=plan_b).stream(QUESTION) as chunks:
        async for chunk in chunks:
            assert "plan" == chunk
            break
    assert [5.0] == plan_b.closed_at


# ---- streams of the other primitives


async def test_execute_collects() -> None:
    """Reading a streaming step at one go joins text, and lists anything else."""
    assert "abc" == await StreamingPrimitive(Producer("a", 1.0, "b", "c")).execute(QUESTION)
    assert [1, "b"] == await StreamingPrimitive(Producer(1, "b")).execute(QUESTION)
    assert "" == await StreamingPrimitive(Producer()).execute(QUESTION)
    assert "ab" == await bounded(Producer("a", 1.0, "b")).execute(QUESTION)
    with pytest.raises(PrimitiveTimeoutError):
        await bounded(Producer("a", 60.0), 10.0).execute(QUESTION)


async def test_streaming_step_takes_the_context() -> None:
    """An async generator function may take the context like any other step, and gets one when there is none."""

    async def produce(_: str, context: WorkflowContext) -> AsyncIterator[str | None]:
        yield context.workflow_id

    step: Any = StreamingPrimitive(produce, name="named")
    assert ["w-1"] == await read(step, WorkflowContext("w-1"))
    assert [None] == await read(step)
    assert "named" == step.describe()


async def test_step_that_does_not_stream_gives_one_chunk() -> None:
    """Any step can be streamed from: what does not stream comes in one piece."""

    async def answer(question: str) -> str:
        return question.upper()

    primitive = TimeoutPrimitive(answer, 10.0)
    assert [QUESTION.upper()] == await read(primitive)
    parallel: Any = TimeoutPrimitive(answer, 10.0) | answer
    assert [[QUESTION.upper()] * 2] == await read(parallel)


async def test_one_chunk_that_is_not_read_is_not_made() -> None:
    """A stream that is left before its only chunk was asked for does not make the call."""
    calls = []

    async def answer(question: str) -> str:
        calls.append(question)
        return "answer"

    primitive: Any = TimeoutPrimitive(answer, 10.0) | answer
    stream = primitive.stream(QUESTION)
    async with stream as chunks:
        pass
    with pytest.raises(StopAsyncIteration):
        await anext(chunks)
    assert [] == calls


async def test_sequence_streams_its_last_step(tracing: Any) -> None:
    """What comes before the last step is run; the last step's chunks come as they are produced."""

    async def prepare(_: str) -> str:
        await asyncio.sleep(1.0)
        return QUESTION

    sequence = SequentialPrimitive([prepare, bounded(Producer("a", 1.0, "b"))])
    moments = []
    async with sequence.stream("anything") as chunks:
        async for chunk in chunks:
            moments.append((chunk, now()))
            assert tracing.current is None
    assert [("a", 1.0), ("b", 2.0)] == moments
    assert ["sequence", "sequence > timeout ask"] == tracing.tree()
    assert "success" == tracing.named("sequence").attributes["outcome"]


async def test_sequence_that_fails_before_its_last_step(tracing: Any) -> None:
    """An error on the way to the stream is an error of the opening, unchanged."""

    async def fails(_: str) -> str:
        raise LookupError

    (error,) = await read(SequentialPrimitive([fails, Producer("a")]))
    assert isinstance(error, LookupError)
    assert [] == tracing.unended()
    assert error is tracing.named("sequence").error


async def test_switch_streams_the_case(tracing: Any) -> None:
    """A switch and a condition hand on the chunks of the case they chose, or the input when there is none."""
    switch = SwitchPrimitive(len, {len(QUESTION): Producer("a", 1.0, "b")}, default=Producer("c"))
    assert ["a", "b"] == await read(switch)
    assert str(len(QUESTION)) == tracing.named("switch").attributes["switch.branch"]
    assert ["c"] == await read(SwitchPrimitive(len, {0: Producer("a")}, default=Producer("c")))
    condition = ConditionalPrimitive(lambda _: False, Producer("a"))
    assert [QUESTION] == await read(condition)
    assert [] == tracing.unended()


@pytest.mark.promise("X1", "X3")
async def test_nested_streams(tracing: Any, metrics: Any) -> None:
    """Router, cache, timeout and call, each around the next: every chunk passes, every span ends, under its parent."""
    call = LLMCallPrimitive(Producer(ROLE, text("a"), 1.0, text("b", "stop")), model="m-1")
    cache = CachePrimitive(bounded(call), lambda question: question, operation_name="ask")
    router = RouterPrimitive({"fast": cache}, lambda _, __: "fast", name="models")
    context = WorkflowContext(workflow_id="w-1")
    assert [ROLE, text("a"), text("b", "stop")] == await read(router, context)
    assert [
        "router models",
        "router models > cache ask",
        "router models > cache ask > timeout ask",
        "router models > cache ask > timeout ask > chat m-1",
    ] == tracing.tree()
    assert ["success"] * 4 == [span.attributes["outcome"] for span in tracing.spans]
    assert ["w-1"] * 4 == [span.attributes["workflow.id"] for span in tracing.spans]
    assert [] == tracing.unended()
    assert 1 == metrics("router.decisions", route="fast", reason="routing_function")
    assert 1 == metrics("timeout.successes", operation="ask")


@pytest.mark.promise("X3")
async def test_nested_streams_left_early(tracing: Any) -> None:
    """A break outside closes every stream inside."""
    producer = Producer(text("a"), 1.0, text("b", "stop"))
    cache = CachePrimitive(bounded(LLMCallPrimitive(producer)), lambda question: question)
    router = RouterPrimitive({"fast": cache}, lambda _, __: "fast")
    async with router.stream(QUESTION) as chunks:
        await anext(chunks)
    assert [0.0] == producer.closed_at
    assert 4 == len(tracing.spans)
    assert [] == tracing.unended()


@pytest.mark.promise("X3")
async def test_nested_streams_dropped(tracing: Any) -> None:
    """Streams that nobody closes end their spans, each once, when they are collected."""
    call = LLMCallPrimitive(Producer(text("a"), 1.0, text("b", "stop")))
    cache = CachePrimitive(call, lambda question: question)
    router = RouterPrimitive({"fast": SequentialPrimitive([cache])}, lambda _, __: "fast")
    chunks = await router.stream(QUESTION).__aenter__()
    await anext(chunks)
    del chunks
    gc.collect()
    for _ in range(5):
        await asyncio.sleep(0)
    # The call is no reader's: it is cancelled, because nobody reads it any more.
    assert ["abandoned"] * 3 + ["cancelled"] == [span.attributes["outcome"] for span in tracing.spans]
    assert [] == tracing.unended()


async def test_error_in_a_nested_stream(tracing: Any) -> None:
    """An error deep inside passes through every stream around it unchanged, and is on each span."""
    failure = ConnectionResetError("cut")
    cache = CachePrimitive(LLMCallPrimitive(Producer(text("a"), failure)), lambda question: question)
    router = RouterPrimitive({"fast": cache}, lambda _, __: "fast")
    assert [text("a"), failure] == await read(router)
    assert [failure] * 3 == [span.error for span in tracing.spans]
    assert [] == tracing.unended()


# ---- answers that are cut short


@pytest.mark.promise("L2")
@pytest.mark.parametrize(
    "chunks",
    [
        [ROLE, text("a"), text("b")],
        [
            {"type": "message_start", "message": {"model": "m"}},
            {"type": "content_block_delta", "delta": {"text": "a"}},
        ],
    ],
    ids=["openai", "anthropic"],
)
async def test_provider_stream_without_a_finish_reason(chunks: list[Any]) -> None:
    """A provider's stream announces its end; one that just stops was cut, and is never taken for a whole answer."""
    *got, error = await read(LLMCallPrimitive(Producer(*chunks), model="m-1"))
    assert chunks == got
    assert isinstance(error, StreamInterruptedError)
    assert ("chat m-1", len(chunks), "no_finish_reason") == (error.operation, error.chunks, error.reason)
    assert "a" not in str(error).split()


@pytest.mark.promise("L2")
@pytest.mark.parametrize(
    "chunks",
    [
        [text("a"), text("b", "stop")],
        [text("a"), text("b", "length"), {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2}}],
        [
            {"type": "message_start", "message": {"model": "m"}},
            {"type": "content_block_delta", "delta": {"text": "a"}},
            {"type": "message_delta", "delta": {"stop_reason": "end_turn"}},
            {"type": "message_stop"},
        ],
        ["plain", "text"],
        [{"token": "a"}, {"token": "b"}],
    ],
    ids=["openai", "openai with usage", "anthropic", "text", "of no known provider"],
)
async def test_whole_answers(chunks: list[Any]) -> None:
    """A stream that gave its reason, or that has no such thing, ends like any other."""
    assert chunks == await read(LLMCallPrimitive(Producer(*chunks)))
