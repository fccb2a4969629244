"""Kept streams: the same chunks for every reader, one call for all of them, and nothing kept that is not whole."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest

from observability_integration.caching.entry_options import entry_options
from observability_integration.caching.lookup import LookupResult
from observability_integration.caching.policy import CachePolicy
from observability_integration.caching.streams.broadcast import Listener
from observability_integration.caching.streams.recording import ChunkCodec, Recording
from observability_integration.context import Deadline, WorkflowContext, current_deadline, set_deadline
from observability_integration.errors import PrimitiveTimeoutError, StreamInterruptedError
from observability_integration.primitives import (
    GLOBAL,
    CachePrimitive,
    LLMCallPrimitive,
    StreamingPrimitive,
    TimeoutPrimitive,
)
from observability_integration.primitives.cache.identity import Identity
from observability_integration.primitives.cache.read_through import ReadThrough
from observability_integration.primitives.cache.record import CacheRecord
from observability_integration.primitives.cache.stream import CachedStream
from observability_integration.primitives.cache.streams import StreamCache, StreamCall
from observability_integration.primitives.streams import StreamRestart
from observability_integration.testing import FakeClockLoop

pytestmark = pytest.mark.promise("C14")

LOOP_FACTORY = FakeClockLoop


def now() -> float:
    return asyncio.get_running_loop().time()


def text(content: str, reason: str | None = None) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {"content": content}, "finish_reason": reason}]}


class Producer:
    """A number is a wait in seconds, an exception is raised, anything else is a chunk.

    Args:
        scripts: what happens, in order, one for each call; the last one again and again.
    """

    __name__ = "producer"

    def __init__(self, *scripts: list[Any]) -> None:
        self.scripts = scripts
        self.calls = 0
        self.closed = 0

    async def __call__(self, question: Any) -> AsyncIterator[Any]:
        script = self.scripts[min(self.calls, len(self.scripts) - 1)]
        self.calls += 1
        try:
            for item in script:
                if isinstance(item, BaseException):
                    raise item
                if isinstance(item, float):
                    await asyncio.sleep(item)
                else:
                    yield item
        finally:
            self.closed += 1


def cached(step: Any, **options: Any) -> CachePrimitive[Any, Any]:
    options.setdefault("operation_name", "ask")
    return CachePrimitive(step, lambda question: question, **options)


async def read(cache: Any, context: WorkflowContext | None = None, *, question: Any = "q", think: float = 0.0) -> Any:
    """All chunks; on an error, the error comes last."""
    got: list[Any] = []
    try:
        async with cache.stream(question, context) as chunks:
            async for chunk in chunks:
                got.append(chunk)
                if think:
                    await asyncio.sleep(think)
    except Exception as error:
        got.append(error)
    return got


async def settle(turns: int = 10) -> None:
    for _ in range(turns):
        await asyncio.sleep(0)


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Lets the clock by which entries age jump."""
    ahead = 0.0
    real = time.monotonic

    def jump(seconds: float) -> None:
        nonlocal ahead
        ahead += seconds

    monkeypatch.setattr(time, "monotonic", lambda: real() + ahead)
    return jump


# ---- what a reader gets


STREAMS: dict[str, list[Any]] = {
    "text": ["a", "", "b"],
    "unicode": ["日本", "👩‍🚀", "\ud83d"],
    "bytes": [b"data: {}\n\n", b"\xc1"],
    "dicts": [text("a"), text("b", "stop"), {"choices": [], "usage": {"prompt_tokens": 1}}],
    "tuples": [("a", 1), {"b": {2}}],
    "empty": [],
    "nothing but None": [None],
}


@pytest.mark.parametrize("stream", STREAMS.values(), ids=STREAMS)
async def test_a_hit_replays_the_same_chunks(stream: list[Any]) -> None:
    """One by one as they were, and without a call."""
    producer = Producer(stream)
    cache = cached(producer)
    assert [stream] * 3 == [await read(cache) for _ in range(3)]
    assert 1 == producer.calls == producer.closed
    stats = cache.get_stats()
    assert (2, 1) == (stats["hits"], stats["misses"])


async def test_each_input_has_a_stream_of_its_own() -> None:
    """And the stream of an input is not its answer in one piece."""
    producer = Producer(["a"])
    cache = cached(producer)
    for question in ("q", "r"):
        await read(cache, question=question)
    assert "a" == await cache.execute("q")
    assert 3 == producer.calls


@pytest.mark.parametrize("stream", [[text("a", "stop")], [{"a": (1,)}]], ids=["encoded", "copied"])
async def test_changing_a_chunk_changes_no_other(stream: list[Any]) -> None:
    """Neither the next replay, nor what another reader of the same stream gets."""
    expected = repr(stream)
    cache = cached(Producer([*stream, 1.0]))

    async def spoil() -> str:
        got = await read(cache)
        seen = repr(got)
        for chunk in got:
            chunk.clear()
        return seen

    assert [expected] * 2 == await asyncio.gather(spoil(), spoil())
    assert [expected] * 2 == [await spoil(), await spoil()]
    assert 3 == cache.get_stats()["hits"]


async def test_a_replay_keeps_pace() -> None:
    """At once by default; as the stream was, or faster, if the policy says so."""
    for pace, seconds in ((0.0, 0.0), (1.0, 3.0), (0.5, 1.5)):
        cache = cached(Producer([5.0, "a", 1.0, "b", 2.0, "c"]), policy=CachePolicy(stream_replay_pace=pace))
        await read(cache)
        began = now()
        assert ["a", "b", "c"] == await read(cache)
        assert seconds == pytest.approx(now() - began)


async def test_the_result_of_a_step_that_does_not_stream_is_one_chunk() -> None:
    """Kept like any stream."""
    calls = 0

    async def ask(_: str) -> dict[str, int]:
        nonlocal calls
        calls += 1
        return {"n": calls}

    cache = cached(ask)
    assert [[{"n": 1}]] * 2 == [await read(cache), await read(cache)]


# ---- many readers of one stream


async def test_readers_of_one_stream_share_a_call() -> None:
    """Who comes late gets all chunks from the first one on, and then each as it comes."""
    producer = Producer(["a", 1.0, "b", 1.0, "c", 1.0])
    cache = cached(producer)
    arrivals: list[tuple[str, float]] = []

    async def late() -> None:
        await asyncio.sleep(1.5)
        async with cache.stream("q") as chunks:
            async for chunk in chunks:
                arrivals.append((chunk, now()))

    first, second, _ = await asyncio.gather(read(cache), read(cache), late())
    assert [["a", "b", "c"]] * 2 == [first, second]
    assert [("a", 1.5), ("b", 1.5), ("c", 2.0)] == arrivals
    assert 1 == producer.calls
    stats = cache.get_stats()
    assert (2, 1) == (stats["hits"], stats["misses"])


async def test_a_slow_reader_holds_up_nobody() -> None:
    """Each goes at a pace of its own, the producer at its own too."""
    producer = Producer(["a", "b", "c"])
    cache = cached(producer)
    slow = asyncio.ensure_future(read(cache, think=100.0))
    await settle()
    assert 1 == producer.closed
    assert ["a", "b", "c"] == await read(cache)
    assert 0.0 == now()
    assert ["a", "b", "c"] == await slow


async def test_a_reader_that_leaves_harms_no_other() -> None:
    """Whether it breaks off, is cancelled or fails, and whether it was the first or joined."""
    for leaver in range(2):
        producer = Producer(["a", 1.0, "b", 1.0, "c"])
        cache = cached(producer)

        async def leave(how: str, cache: Any = cache) -> None:
            async with cache.stream("q") as chunks:
                assert "a" == await anext(chunks)
                if how == "breaks off":
                    return
                if how == "fails":
                    raise LookupError
                await anext(chunks)
                await anext(chunks)

        for how in ("breaks off", "fails", "is cancelled"):
            tasks: list[asyncio.Task[Any]] = []
            makers: list[Callable[[], Any]] = [lambda c=cache: read(c), lambda c=cache: read(c)]  # type: ignore[misc]
            makers.insert(leaver, lambda how=how: leave(how))  # type: ignore[misc]
            for make in makers:
                tasks.append(asyncio.ensure_future(make()))
                await settle(3)
            if how == "is cancelled":
                tasks[leaver].cancel()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            del results[leaver]
            assert [["a", "b", "c"]] * 2 == results
        assert 1 == producer.calls


async def test_when_the_last_reader_leaves_the_call_ends() -> None:
    """It is closed by the time the last one has left, nothing is kept, and the next reader gets a call of its own."""
    producer = Producer(["a", 1.0, "b"])
    cache = cached(producer)
    async with cache.stream("q") as first, cache.stream("q") as second:
        assert ["a", "a"] == [await anext(first), await anext(second)]
        assert 0 == producer.closed
    assert (1, 1, 0.0) == (producer.calls, producer.closed, now())
    assert ["a", "b"] == await read(cache)
    assert 2 == producer.calls
    assert ["a", "b"] == await read(cache)
    assert 2 == producer.calls


async def test_a_stream_has_time_to_close() -> None:
    """It is cancelled once; who left waits until it is closed, but not beyond a deadline of its own."""
    closed = []

    async def stream(_: str) -> AsyncIterator[str]:
        try:
            yield "a"
            await asyncio.sleep(100.0)
        finally:
            await asyncio.sleep(2.0)
            closed.append(now())

    async with cached(stream).stream("q") as chunks:
        await anext(chunks)
    assert [2.0] == closed
    async with cached(stream).stream("q", WorkflowContext(deadline=Deadline.after(1.0))) as chunks:
        await anext(chunks)
    assert (3.0, [2.0]) == (pytest.approx(now()), closed)
    await asyncio.sleep(2.0)
    assert [2.0, pytest.approx(4.0)] == closed


async def test_a_reader_that_leaves_at_the_end_has_read_it_whole() -> None:
    """The producer was done: what it made is kept, though its reader did not look at all of it."""
    producer = Producer(["a", "b"])
    cache = cached(producer)
    async with cache.stream("q") as chunks:
        assert "a" == await anext(chunks)
        await settle()
    assert ["a", "b"] == await read(cache)
    assert 1 == producer.calls


async def test_who_leaves_at_the_finish_reason_has_read_it_whole() -> None:
    """Many readers stop there: the end that may yet come is waited for in the background, and the stream is kept."""
    producer = Producer([text("a"), text("b", "stop"), 1.0, {"choices": [], "usage": {"prompt_tokens": 1}}])
    cache = cached(producer)
    async with cache.stream("q") as chunks:
        async for chunk in chunks:
            if chunk["choices"][0]["finish_reason"]:
                break
    assert (0, 0.0) == (producer.closed, now())
    await asyncio.sleep(2.0)
    assert 3 == len(await read(cache))
    assert 1 == producer.calls


class Backend:
    """A shared store that takes its time."""

    def __init__(self) -> None:
        self.entries: dict[str, bytes] = {}

    async def get(self, key: str) -> bytes | None:
        return self.entries.get(key)

    async def set(self, key: str, value: bytes, ttl_milliseconds: int) -> None:
        await asyncio.sleep(1.0)
        self.entries[key] = value

    async def delete(self, *keys: str) -> None:
        for key in keys:
            self.entries.pop(key, None)

    async def clear(self, prefix: str) -> None:
        self.entries.clear()

    async def aclose(self) -> None:
        pass


async def test_the_end_comes_when_the_stream_is_kept() -> None:
    """ChunkCodec wait for no store, but who has read to the end finds the stream wherever it looks next."""
    backend = Backend()
    cache = cached(
        Producer(["a", "b"]), backend=backend, policy=CachePolicy(backend_budget_seconds=5.0, lease_seconds=20.0)
    )
    async with cache.stream("q") as chunks:
        assert ["a", "b"] == [await anext(chunks), await anext(chunks)]
        assert (0.0, {}) == (now(), backend.entries)
        with pytest.raises(StopAsyncIteration):
            await anext(chunks)
    assert (1.0, 1) == (now(), len(backend.entries))


async def test_who_leaves_while_the_stream_is_being_kept_stops_nothing() -> None:
    """Its producer is done, and what is left is to store it."""
    producer, backend = Producer(["a"]), Backend()
    cache = cached(producer, backend=backend, policy=CachePolicy(backend_budget_seconds=5.0, lease_seconds=20.0))
    async with cache.stream("q") as chunks:
        assert "a" == await anext(chunks)
        await settle()
    assert (0.0, {}) == (now(), backend.entries)
    await asyncio.sleep(2.0)
    assert 1 == len(backend.entries)
    assert ["a"] == await read(cache)
    assert 1 == producer.calls


async def test_an_end_that_never_comes_is_not_waited_for() -> None:
    """The background has a limit too."""
    producer = Producer([text("a", "stop"), 1000.0])
    cache = cached(producer, policy=CachePolicy(background_seconds=10.0))
    async with cache.stream("q") as chunks:
        await anext(chunks)
    await asyncio.sleep(9.0)
    assert 0 == producer.closed
    await asyncio.sleep(2.0)
    assert 1 == producer.closed


async def test_a_stream_that_is_dropped_is_left() -> None:
    """Collected without having been closed, in whatever thread: the call ends like any other that nobody wants."""
    for collect in (gc.collect, lambda: _in_a_thread(gc.collect)):
        producer = Producer(["a", 1.0, "b"])
        cache = cached(producer)
        chunks = await cache.stream("q").__aenter__()
        assert "a" == await anext(chunks)
        del chunks
        collect()
        await settle()
        assert 1 == producer.closed
        assert 0.0 == now()


async def test_a_stream_that_is_dropped_is_left_in_its_own_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of an event loop may be touched from the thread in which the collector happens to run."""
    threads = []
    leave = Listener.leave

    def noted(listener: Listener) -> None:
        threads.append(threading.get_ident())
        leave(listener)

    monkeypatch.setattr(Listener, "leave", noted)
    chunks = await cached(Producer(["a", 1.0, "b"])).stream("q").__aenter__()
    dropped = [chunks]
    del chunks
    _in_a_thread(dropped.clear)
    await settle()
    assert [threading.get_ident()] == threads


async def test_a_reader_that_is_cancelled_has_left() -> None:
    """Whether or not it closes the stream as it should."""
    producer = Producer(["a", 1.0, "b"])
    chunks = await cached(producer).stream("q").__aenter__()
    await anext(chunks)
    reading = asyncio.ensure_future(anext(chunks))  # type: ignore[arg-type]
    await settle()
    reading.cancel()
    await settle()
    assert (1, 0.0) == (producer.closed, now())
    assert isinstance(chunks, CachedStream)


def _in_a_thread(work: Callable[[], Any]) -> None:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def test_a_stream_may_outlive_its_loop(caplog: pytest.LogCaptureFixture) -> None:
    """Collected when the loop is gone, it has nobody to tell, and nothing to complain of."""

    async def begin() -> Any:
        return await cached(Producer(["a", 1.0, "b"])).stream("q").__aenter__()

    chunks = asyncio.run(begin())
    left = weakref.ref(chunks)
    del chunks
    gc.collect()
    assert left() is None
    assert "" == caplog.text


async def test_a_reader_of_an_ended_stream_may_ask_again() -> None:
    """As of any stream: there is no more."""
    cache = cached(Producer(["a"]))
    for _ in range(2):
        async with cache.stream("q") as chunks:
            assert ["a"] == [chunk async for chunk in chunks]
            assert [] == [chunk async for chunk in chunks]


# ---- errors


async def test_an_error_in_the_middle_reaches_all() -> None:
    """After the same chunks; who joins before it gets them too, and nothing is kept."""
    failure = LookupError("x")
    producer = Producer(["a", 1.0, "b", 1.0, failure], ["c"])
    cache = cached(producer)

    async def late() -> Any:
        await asyncio.sleep(1.5)
        return await read(cache)

    assert [["a", "b", failure]] * 3 == await asyncio.gather(read(cache), read(cache), late())
    assert ["c"] == await read(cache)
    assert 2 == producer.calls


async def test_an_error_before_the_first_chunk_reaches_all() -> None:
    """When the stream is opened: one failure, shared, not one call after another."""
    failure = LookupError("x")
    producer = Producer([1.0, failure])
    cache = cached(producer)
    assert [[failure]] * 3 == await asyncio.gather(*(read(cache) for _ in range(3)))
    assert 1 == producer.calls
    stats = cache.get_stats()
    assert (0, 3) == (stats["hits"], stats["misses"])


async def test_an_error_in_closing_is_an_error() -> None:
    """What could not be closed properly may not have been whole."""

    class Failing(Producer):
        async def __call__(self, question: Any) -> AsyncIterator[Any]:
            self.calls += 1
            yield "a"
            raise LookupError

    producer = Failing()
    cache = cached(producer)
    for _ in range(2):
        first, second = await read(cache)
        assert "a" == first
        assert isinstance(second, LookupError)
    assert 2 == producer.calls


async def test_a_stream_that_cannot_be_opened() -> None:
    """The error of the step is the reader's, unchanged."""

    class Step(CachePrimitive[Any, Any]):
        def stream(self, *_: Any) -> Any:
            raise LookupError("x")

    (error,) = await read(cached(Step()))
    assert isinstance(error, LookupError)


async def test_a_call_that_is_cancelled_from_elsewhere_is_interrupted() -> None:
    """Its readers were not cancelled, so what they get is an error."""
    cache = cached(Producer(["a", asyncio.CancelledError()]))
    first, second = await read(cache)
    assert "a" == first
    assert isinstance(second, StreamInterruptedError)
    assert (1, "cancelled") == (second.chunks, second.reason)
    (error,) = await read(cached(Producer([1.0, asyncio.CancelledError()])))
    assert isinstance(error, StreamInterruptedError)


# ---- what is kept


WHOLE = [text("a"), text("b", "stop")]
NOT_KEPT: dict[str, list[Any]] = {
    "truncated": [text("a")],
    "length": [text("a"), text("b", "length")],
    "content_filter": [text("a"), text("b", "content_filter")],
    "tool_call": [text("a"), text("", "tool_calls")],
    "too_large": ["x" * 600] * 20,
    "uncopyable": [{"lock": threading.Lock()}],
}


@pytest.mark.parametrize(("reason", "stream"), NOT_KEPT.items(), ids=NOT_KEPT)
async def test_only_a_whole_stream_is_kept(reason: str, stream: list[Any], metrics: Any) -> None:
    """Whatever else it is, its reader gets it as it comes, and the next one gets a call of its own."""
    producer = Producer(stream, ["whole"])
    cache = cached(producer, policy=CachePolicy(max_value_bytes=10_000))
    assert stream == await read(cache)
    assert 1 == metrics("cache.refusals", operation="ask", reason=reason)
    assert [["whole"]] * 2 == [await read(cache), await read(cache)]
    assert 2 == producer.calls


async def test_a_stream_that_began_anew_is_not_kept(metrics: Any) -> None:
    """Half an answer of one target's before the whole one of another's is nothing to give to the next reader."""
    restart = StreamRestart("b", "stream_cut", 1)
    producer = Producer([text("half"), restart, *WHOLE], WHOLE)
    cache = cached(producer)
    assert [text("half"), restart, *WHOLE] == await read(cache)
    assert 1 == metrics("cache.refusals", operation="ask", reason="truncated")
    assert [WHOLE] * 2 == [await read(cache), await read(cache)]
    assert 2 == producer.calls


async def test_a_stream_cut_off_is_an_error_to_all_where_the_call_says_so() -> None:
    """An LLM call knows that a reason is missing; nobody is led to believe that this was all."""
    producer = Producer([text("a"), 1.0])
    cache = cached(LLMCallPrimitive(producer))
    for got in await asyncio.gather(read(cache), read(cache)):
        assert text("a") == got[0]
        assert isinstance(got[1], StreamInterruptedError)
    await read(cache)
    assert 2 == producer.calls


async def test_tool_calls_are_kept_on_request() -> None:
    """The policy and the user's own function decide about streams as they do about answers."""
    producer = Producer([text("a"), text("", "tool_calls")])
    cache = cached(producer, policy=CachePolicy(store_tool_calls=True))
    await read(cache)
    await read(cache)
    assert 1 == producer.calls
    seen = []

    def admit(answer: Any) -> bool:
        seen.append(answer)
        return False

    producer = Producer(["a", "b"])
    cache = cached(producer, admit=admit)
    await read(cache)
    await read(cache)
    assert (2, ["ab", "ab"]) == (producer.calls, seen)


async def test_odd_chunks_fail_no_stream(metrics: Any) -> None:
    """A chunk that cannot be looked into is handed on like any other."""

    class Odd:
        def __getattr__(self, name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            raise LookupError(name)

    odd = Odd()
    producer = Producer([odd])
    cache = cached(producer)
    got = await read(cache)
    assert got == [odd]
    assert metrics("telemetry.faults", site="cache.chunk") >= 1


async def test_requests_that_ask_for_variety_are_not_cached() -> None:
    """At a temperature above 0 no two streams are the same, so none stands for another."""
    producer = Producer(WHOLE)
    cache = CachePrimitive.for_requests(producer, scope=GLOBAL, operation_name="ask")
    hot = {"model": "m", "messages": [], "temperature": 1.0}
    for _ in range(2):
        assert WHOLE == await read(cache, question=hot)
    assert 2 == producer.calls
    for _ in range(2):
        assert WHOLE == await read(cache, question={**hot, "temperature": 0})
    assert 3 == producer.calls


async def test_the_call_may_decide_that_its_stream_is_not_kept() -> None:
    """By the same options as for any entry."""
    calls = 0

    async def stream(_: str) -> AsyncIterator[str]:
        nonlocal calls
        calls += 1
        entry_options().do_not_store()
        yield "a"

    cache = cached(stream)
    assert [["a"]] * 2 == [await read(cache), await read(cache)]
    assert 2 == calls


async def test_a_stream_too_large_cannot_be_joined(metrics: Any) -> None:
    """Its beginning is gone: who comes later gets a call of its own at once, and those who are there get all of it."""
    big = ["x" * 600] * 20
    producer = Producer([*big, 10.0, "end"], ["own"])
    cache = cached(producer, policy=CachePolicy(max_value_bytes=1000))
    first = asyncio.ensure_future(read(cache))
    await settle(100)
    assert ["own"] == await read(cache)
    assert 0.0 == now()
    assert [*big, "end"] == await first
    assert 1 == metrics("cache.bypasses", operation="ask", reason="uncopyable")


async def test_a_stream_without_end_is_held_back() -> None:
    """It runs only so far ahead of a reader who has stopped reading."""
    count = 0

    async def endless(_: str) -> AsyncIterator[str]:
        nonlocal count
        while True:
            count += 1
            yield "x" * 100

    cache = cached(endless, policy=CachePolicy(max_value_bytes=10_000))
    async with cache.stream("q") as chunks:
        await anext(chunks)
        await asyncio.sleep(10.0)
        assert count < 1000


# ---- invalidation


async def test_invalidating_a_key_forgets_its_stream_too() -> None:
    """A stream under way is then neither kept nor joined, and still goes to those who read it."""
    producer = Producer(["a", 1.0, "a"], ["b", 1.0, "b"])
    cache = cached(producer)
    first = asyncio.ensure_future(read(cache))
    await settle()
    await cache.invalidate("q")
    assert ["b", "b"] == await read(cache)
    assert ["a", "a"] == await first
    assert ["b", "b"] == await read(cache)
    assert 2 == producer.calls
    await cache.invalidate("q")
    await read(cache)
    assert 3 == producer.calls


async def test_an_invalidated_stream_ends_with_its_last_reader_too() -> None:
    """Though the cache knows of it no more."""
    producer = Producer(["a", 1.0, "a"])
    cache = cached(producer)
    async with cache.stream("q") as chunks:
        await anext(chunks)
        await cache.invalidate("q")
    assert (1, 0.0) == (producer.closed, now())


async def test_tags_reach_streams(later: Callable[[float], None]) -> None:
    """And so does clearing."""
    producer = Producer(["a"])
    cache = cached(producer, tags=["t"])
    await read(cache)
    await cache.invalidate(tag="t")
    await read(cache)
    await cache.clear()
    await read(cache)
    await read(cache)
    assert 3 == producer.calls


async def test_a_stream_under_way_with_an_invalidated_tag_is_not_joined() -> None:
    """Its content may be from before. Those who read it already read on, also when who came later leaves again."""
    producer = Producer(["a", 1.0, "a"], ["b", 1.0, "b"])
    cache = cached(producer, tags=["t", "u"])
    first = asyncio.ensure_future(read(cache))
    await settle()
    await cache.invalidate(tag="another")
    second = asyncio.ensure_future(read(cache))
    await settle()
    assert 1 == producer.calls
    await cache.invalidate(tag="u")
    leaves, third = asyncio.ensure_future(read(cache)), asyncio.ensure_future(read(cache))
    await settle()
    leaves.cancel()
    assert [["a", "a"], ["a", "a"], ["b", "b"]] == [await first, await second, await third]
    assert 2 == producer.calls


async def test_who_waits_for_another_stream_and_leaves_stops_it_not() -> None:
    """The last of those who came later has left; those who came first read on."""
    producer = Producer(["a", 1.0, "a"])
    cache = cached(producer, tags=["t"])
    first = asyncio.ensure_future(read(cache))
    await settle()
    await cache.invalidate(tag="t")
    leaves = asyncio.ensure_future(read(cache))
    await settle()
    leaves.cancel()
    assert ["a", "a"] == await first
    assert 1 == producer.calls


async def test_tags_that_the_call_adds_count_too() -> None:
    """As they do for its entry."""
    calls = 0

    async def stream(_: str) -> AsyncIterator[int]:
        nonlocal calls
        calls += 1
        entry_options().add_tags("added")
        yield calls
        await asyncio.sleep(1.0)

    cache = cached(stream)
    first = asyncio.ensure_future(read(cache))
    await settle()
    await cache.invalidate(tag="added")
    assert [2] == await read(cache)
    assert [1] == await first


# ---- stale streams


async def test_a_stale_stream_stands_in_for_a_call_that_cannot_begin(
    later: Callable[[float], None], metrics: Any
) -> None:
    """For all who wait; but not once there was a chunk, for no two answers are mixed."""
    failure = LookupError()
    producer = Producer(["old"], [1.0, failure], [1.0, "new", 1.0, failure])
    policy = CachePolicy(stale_if_error_seconds=1000.0, stale_if_error_throttle_seconds=1.0)
    cache = cached(producer, ttl_seconds=10.0, policy=policy)
    await read(cache)
    later(20.0)
    assert [["old"]] * 2 == await asyncio.gather(read(cache), read(cache))
    stats = cache.get_stats()
    assert (2, 1) == (stats["hits"], stats["misses"])
    assert 1 == metrics("cache.served", operation="ask", tier="flight", freshness="stale")
    later(2.0)
    assert [["new", failure]] * 2 == await asyncio.gather(read(cache), read(cache))
    stats = cache.get_stats()
    assert (3, 2) == (stats["hits"], stats["misses"])


async def test_a_stale_stream_is_served_while_it_is_replaced(later: Callable[[float], None]) -> None:
    """At once, with one call in the background."""
    producer = Producer(["old"], [1.0, "new", 1.0])
    cache = cached(producer, ttl_seconds=10.0, policy=CachePolicy(stale_while_revalidate_seconds=1000.0))
    await read(cache)
    later(20.0)
    assert [["old"]] * 2 == [await read(cache), await read(cache)]
    assert 0.0 == now()
    await asyncio.sleep(3.0)
    assert ["new"] == await read(cache)
    assert 2 == producer.calls


async def test_a_refresh_may_be_joined(later: Callable[[float], None]) -> None:
    """By who finds the old stream too old, from the first chunk on; and it goes on when that one has left."""
    producer = Producer(["old"], ["new", 1.0, "er"])
    cache = cached(producer, ttl_seconds=10.0, policy=CachePolicy(stale_while_revalidate_seconds=10.0))
    await read(cache)
    later(15.0)
    assert ["old"] == await read(cache)
    await settle()
    later(15.0)
    async with cache.stream("q") as chunks:
        assert "new" == await anext(chunks)
        assert 0.0 == now()
    await asyncio.sleep(2.0)
    assert ["new", "er"] == await read(cache)
    assert 2 == producer.calls


async def test_a_refresh_that_is_too_large_is_given_up(later: Callable[[float], None]) -> None:
    """Nobody reads it and nothing will be kept: it is closed as soon as that is known."""
    producer = Producer(["old"], [*["x" * 600] * 5, 10.0, "end"])
    policy = CachePolicy(stale_while_revalidate_seconds=1000.0, max_value_bytes=1000)
    cache = cached(producer, ttl_seconds=10.0, policy=policy)
    await read(cache)
    later(20.0)
    assert ["old"] == await read(cache)
    await settle(30)
    assert (2, 0.0) == (producer.closed, now())


async def test_a_stale_stream_stands_in_for_a_late_one(later: Callable[[float], None]) -> None:
    """Late is what has not begun in time; it goes on, and is kept."""
    producer = Producer(["old"], [5.0, "new"])
    policy = CachePolicy(stale_if_error_seconds=1000.0, soft_timeout_seconds=1.0)
    cache = cached(producer, ttl_seconds=10.0, policy=policy)
    await read(cache)
    later(20.0)
    assert ["old"] == await read(cache)
    assert 1.0 == pytest.approx(now(), abs=0.01)
    await asyncio.sleep(5.0)
    assert ["new"] == await read(cache)
    assert 2 == producer.calls


async def test_a_hard_limit_ends_the_wait_for_the_beginning() -> None:
    """The call goes on in the background, and its stream is kept."""
    producer = Producer([5.0, "a"])
    cache = cached(producer, policy=CachePolicy(hard_timeout_seconds=1.0))
    (error,) = await read(cache)
    assert isinstance(error, PrimitiveTimeoutError)
    assert ("hard", 1.0) == (error.kind, pytest.approx(now(), abs=0.01))
    await asyncio.sleep(5.0)
    assert ["a"] == await read(cache)
    assert 1 == producer.calls


async def test_a_stream_that_has_begun_is_not_late(later: Callable[[float], None]) -> None:
    """The limits are for a call that does not answer."""
    producer = Producer(["old"], ["a", 500.0, "b"])
    policy = CachePolicy(stale_if_error_seconds=1000.0, soft_timeout_seconds=1.0, hard_timeout_seconds=2.0)
    cache = cached(producer, ttl_seconds=10.0, policy=policy)
    await read(cache)
    later(20.0)
    assert [["a", "b"]] * 2 == await asyncio.gather(read(cache), read(cache))
    assert ["a", "b"] == await read(cache)
    assert 2 == producer.calls


# ---- deadlines


async def test_the_deadline_of_one_reader_is_its_own() -> None:
    """Whether it came first or joined: its time is up, the others read on, and the stream is kept."""
    for hurried in range(2):
        began = now()
        producer = Producer(["a", 5.0, "b"])
        cache = cached(producer)
        contexts = [WorkflowContext(), WorkflowContext()]
        contexts[hurried] = WorkflowContext(deadline=Deadline.after(2.0))
        got = await asyncio.gather(*(read(cache, context) for context in contexts))
        assert ["a", "b"] == got[1 - hurried]
        assert "a" == got[hurried][0]
        error = got[hurried][1]
        assert isinstance(error, PrimitiveTimeoutError)
        assert ("deadline", "inherited") == (error.kind, error.deadline_source)
        assert contexts[hurried].deadline is error.deadline
        assert (2.0, 2.0) == pytest.approx((error.timeout_seconds, error.elapsed_seconds))
        assert 5.0 == pytest.approx(now() - began)
        assert ["a", "b"] == await read(cache)


async def test_a_deadline_ends_the_wait_for_the_beginning() -> None:
    """And with the only reader the call ends."""
    producer = Producer([5.0, "a"])
    cache = cached(producer)
    set_deadline(Deadline.after(2.0))
    (error,) = await read(cache)
    set_deadline(None)
    assert isinstance(error, PrimitiveTimeoutError)
    assert 2.0 == now()
    await settle()
    assert 1 == producer.closed


async def test_a_deadline_ends_a_paced_replay() -> None:
    """The reader has control back in time."""
    cache = cached(Producer(["a", 5.0, "b"]), policy=CachePolicy(stream_replay_pace=1.0))
    await read(cache)
    began = now()
    first, error = await read(cache, WorkflowContext(deadline=Deadline.after(2.0)))
    assert "a" == first
    assert isinstance(error, PrimitiveTimeoutError)
    assert 2.0 == pytest.approx(now() - began)


async def test_the_call_knows_no_deadline() -> None:
    """It is made for whoever comes, and each minds its own; around the cache, the deadline is what it was."""
    seen: list[Any] = []

    async def stream(_: str, context: WorkflowContext) -> AsyncIterator[str]:
        seen.append((current_deadline(), context.deadline, context.workflow_id))
        yield "a"

    deadline = Deadline.after(5.0)
    set_deadline(deadline)
    assert ["a"] == await read(cached(stream), WorkflowContext("w", deadline=Deadline.after(7.0)))
    assert [(None, None, "w")] == seen
    assert current_deadline() is deadline
    set_deadline(None)


async def test_a_timeout_around_knows_its_own_deadline() -> None:
    """Whoever notices first, the limit that fired is the one that was set."""
    producer = Producer(["a", 5.0, "b"])
    (chunk, error) = await read(TimeoutPrimitive(cached(producer), 2.0, operation_name="outer"))
    assert "a" == chunk
    assert isinstance(error, PrimitiveTimeoutError)
    assert ("total", "outer", 2.0) == (error.kind, error.operation, now())
    await settle()
    assert 1 == producer.closed


# ---- what is counted and shown


async def test_spans_and_counts(tracing: Any, metrics: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A call, a reader who joined it, a replay: each has a span of its own, and says what it was."""
    links: list[Any] = []
    monkeypatch.setattr(type(tracing), "link", lambda _, span, other: links.append((span, other)))
    producer = Producer([1.0, "a", 1.0, "b"])
    cache = cached(producer, cost_per_call=0.5)
    context = WorkflowContext("w")
    await asyncio.gather(read(cache, context), read(cache, context))
    await read(cache)
    first, joined, _ = tracing.spans
    assert ["cache ask"] * 3 == [span.name for span in tracing.spans]
    assert [(joined, first)] == links
    assert [] == tracing.unended()
    assert tracing.current is None
    shown = [{k: v for k, v in span.attributes.items() if not k.startswith("workflow.")} for span in tracing.spans]
    assert [
        {"cache.hit": False, "outcome": "success"},
        {"cache.hit": True, "cache.tier": "flight", "cache.freshness": "coalesced", "outcome": "success"},
        {"cache.hit": True, "cache.tier": "memory", "cache.freshness": "fresh", "outcome": "success"},
    ] == shown
    assert ["w", "w", None] == [span.attributes.get("workflow.id") for span in tracing.spans]
    assert 2 == metrics("cache.hits", operation="ask")
    assert 1 == metrics("cache.misses", operation="ask")
    assert 1 == metrics("cache.served", operation="ask", tier="flight", freshness="coalesced")
    assert 1 == metrics("cache.served", operation="ask", tier="memory", freshness="fresh")
    assert 1.0 == cache.get_stats()["cost_savings_usd"]


async def test_waiting_for_the_call_is_no_part_of_a_lookup(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time of a hit is what looking for it took, not what the stream did."""
    looked = []
    hit = CacheRecord.hit

    def noted(record: CacheRecord, span: Any, started: float, *rest: Any) -> None:
        looked.append(time.perf_counter() - started)
        hit(record, span, started, *rest)

    monkeypatch.setattr(CacheRecord, "hit", noted)
    monkeypatch.setattr(time, "perf_counter", now)
    cache = cached(Producer([5.0, "a"]))
    await asyncio.gather(read(cache), read(cache))
    await read(cache)
    assert [0.0, 0.0] == looked


async def test_saved_tokens_are_counted(metrics: Any) -> None:
    """As the usage at the end of the stream said."""
    usage = {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4}}
    cache = cached(Producer([*WHOLE, usage]))
    await read(cache)
    await read(cache)
    assert 7 == metrics("cache.saved_tokens", operation="ask")


async def test_the_call_is_shown_under_the_one_who_made_it(tracing: Any) -> None:
    """Its span hangs below that of the reader who began it, and none is current while a reader thinks."""

    async def stream(_: str) -> AsyncIterator[str]:
        yield tracing.current.name
        await asyncio.sleep(1.0)
        yield tracing.current.name

    async with cached(stream).stream("q") as chunks:
        async for name in chunks:
            assert "cache ask" == name
            assert tracing.current is None
    assert [] == tracing.unended()


async def test_errors_are_shown_on_every_reader(tracing: Any) -> None:
    """Each span fails with the error its reader got."""
    failure = LookupError()
    cache = cached(Producer([1.0, failure]))
    await asyncio.gather(read(cache), read(cache))
    assert [failure, failure] == [span.error for span in tracing.spans]
    assert [False, False] == [span.attributes["cache.hit"] for span in tracing.spans]


async def test_a_key_function_that_fails_is_gone_around(metrics: Any, tracing: Any) -> None:
    """The user's function must not fail the user's stream."""

    def key(_: str) -> str:
        raise LookupError

    producer = Producer(["a", "b"])
    cache = CachePrimitive(producer, key, operation_name="ask")
    assert [["a", "b"]] * 2 == [await read(cache), await read(cache)]
    assert (2, 2) == (producer.calls, producer.closed)
    assert 2 == metrics("cache.bypasses", operation="ask", reason="key_error")
    async with cache.stream("q") as chunks:
        await anext(chunks)
    assert 3 == producer.closed
    failing: Any = CachePrimitive(Producer([LookupError("x")]), key, operation_name="ask")
    assert isinstance((await read(failing))[0], LookupError)
    assert [] == tracing.unended()


async def test_keys_by_context() -> None:
    """A key or scope that is read from the context sees one, also if none was given."""
    producer = Producer(["a"])
    cache = CachePrimitive(producer, lambda _, context: context.workflow_id or "none", operation_name="ask")
    for context in (None, WorkflowContext("w"), WorkflowContext("w"), WorkflowContext("v"), None):
        await read(cache, context)
    assert 3 == producer.calls


# ---- whatever the engine does


class Engine:
    """Does as it is told with what it is asked."""

    def __init__(self, fetch_or_compute: Callable[[Any], Any]) -> None:
        self.fetch_or_compute = fetch_or_compute
        self.abandoned = 0

    def serve_from_memory(self, *_: Any) -> None:
        return None

    async def serve_confirmed(self, *_: Any) -> None:
        return None

    def flight_task(self, *_: Any) -> None:
        return None

    def cancel_flight(self, _: bytes) -> None:
        self.abandoned += 1


def over(engine: Any, producer: Producer) -> Any:
    async def identify() -> Identity:
        return Identity(b"digest", (), None)

    streams = StreamCache("ask", engine, CacheRecord(engine, "ask"), CachePolicy(), ChunkCodec((), 1000))
    call = StreamCall(
        identify, lambda _: StreamingPrimitive(producer).stream("q"), lambda: None, lambda _: (0, None), None, 0.0
    )

    class Primitive:
        def stream(self, *_: Any) -> CachedStream:
            return CachedStream(streams, call)

    return Primitive()


async def test_an_equal_call_that_brings_no_recording() -> None:
    """Its stream was too large, say, so nobody else can have it: the call is made for this one's readers alone."""

    async def compute(lookup: Any) -> LookupResult:
        await asyncio.sleep(1.0)
        return LookupResult("too_large", "flight")

    producer = Producer(["a", 1.0, "b"])
    cache = over(Engine(compute), producer)
    assert [["a", "b"]] * 2 == await asyncio.gather(read(cache), read(cache))
    assert (1, 2.0) == (producer.calls, now())
    failure = LookupError()
    assert ["a", failure] == await read(over(Engine(compute), Producer(["a", failure])))


async def test_a_call_that_begins_when_its_readers_have_left() -> None:
    """Is not made."""
    ended: list[BaseException] = []

    async def compute(lookup: Any) -> LookupResult:
        try:
            await asyncio.sleep(5.0)
        except asyncio.CancelledError:
            try:
                await lookup.compute(False)
            except BaseException as error:
                ended.append(error)
            raise
        raise AssertionError

    producer, engine = Producer(["a"]), Engine(compute)
    reading = asyncio.ensure_future(read(over(engine, producer)))
    await settle()
    reading.cancel()
    await settle()
    assert (0, 1) == (producer.calls, engine.abandoned)
    assert [asyncio.CancelledError] == [type(error) for error in ended]


async def test_a_stream_that_has_begun_goes_on() -> None:
    """Though the engine has something else to serve meanwhile, or gives up."""
    calls: list[Any] = []
    for outcome in (LookupResult(Recording((), ()), "memory", "stale"), LookupError()):

        async def compute(lookup: Any, outcome: Any = outcome) -> LookupResult:
            calls.append(asyncio.ensure_future(lookup.compute(False)))
            await lookup.stream_started
            if isinstance(outcome, BaseException):
                raise outcome
            return outcome

        assert ["a", "b"] == await read(over(Engine(compute), Producer(["a", 1.0, "b"])))


async def test_no_second_stream_follows_upon_the_first() -> None:
    """Two answers are never spliced, should the engine try again."""

    async def compute(lookup: Any) -> LookupResult:
        for _ in range(2):
            with contextlib.suppress(LookupError):
                await lookup.compute(False)
        raise AssertionError

    producer = Producer(["a", LookupError("x")], ["b"])
    got = await read(over(Engine(compute), producer))
    assert ("a", LookupError) == (got[0], type(got[1]))
    assert 1 == producer.calls


# ---- cancellation


async def test_cancelled_at_every_turn() -> None:
    """Whenever the only reader is cancelled: no task is left, nothing half is kept, and the next reader gets it all."""
    for turn in range(40):
        producer = Producer(["a", 0.0, "b", 0.0, "c"])
        cache = cached(producer)
        reading = asyncio.ensure_future(read(cache))
        await settle(turn)
        reading.cancel()
        await asyncio.wait({reading})
        await settle(30)
        assert {asyncio.current_task()} == asyncio.all_tasks()
        assert producer.closed == producer.calls
        assert ["a", "b", "c"] == await read(cache)


async def test_whoever_is_cancelled_the_other_reads_on() -> None:
    """At whatever turn, the one who came first or the one who joined."""
    for leaver in range(2):
        for turn in range(25):
            producer = Producer(["a", 0.0, "b", 0.0, 0.0, "c"])
            cache = cached(producer)
            readers = [asyncio.ensure_future(read(cache)) for _ in range(2)]
            await settle(turn)
            readers[leaver].cancel()
            await asyncio.wait(readers)
            assert ["a", "b", "c"] == readers[1 - leaver].result()
            assert 1 == producer.calls


class Chunk(msgspec.Struct):
    text: str


class Faithless:
    """Can be copied for the recording, and from there once."""

    def __init__(self, copies: int = 9) -> None:
        self.copies = copies

    def __deepcopy__(self, _: Any) -> Faithless:
        self.copies -= 1
        if self.copies < 0:
            raise LookupError
        return Faithless(copies=1)


async def test_a_chunk_that_cannot_be_copied_again_interrupts() -> None:
    """The reader is told, by an error of this library's."""
    cache = cached(Producer(["a", Faithless()]))
    assert 2 == len(await read(cache))
    first, error = await read(cache)
    assert "a" == first
    assert isinstance(error, StreamInterruptedError)
    assert (1, "unreadable") == (error.chunks, error.reason)
    assert isinstance(error.__cause__, LookupError)


async def test_judging_that_fails_keeps_nothing(metrics: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever goes wrong, the reader has its stream."""
    monkeypatch.setattr(ReadThrough, "judge", lambda *_: 1 / 0)
    producer = Producer(["a"])
    cache = cached(producer)
    assert [["a"]] * 2 == [await read(cache), await read(cache)]
    assert 2 == producer.calls == metrics("telemetry.faults", site="cache.chunk")


async def test_models_are_replayed_as_models() -> None:
    """In memory whether or not the cache was told of their type."""
    for types in ((), (Chunk,)):
        producer = Producer([Chunk("a"), Chunk("b")])
        cache = cached(producer, chunk_types=types)
        assert [[Chunk("a"), Chunk("b")]] * 2 == [await read(cache), await read(cache)]
        assert 1 == producer.calls


@pytest.mark.parametrize("seed", range(30))
async def test_many_readers_that_come_and_go(seed: int) -> None:
    """At random moments: whoever stays to the end has every chunk of one and the same stream, in order."""
    import random

    random_ = random.Random(seed)
    calls = 0

    async def stream(_: str) -> AsyncIterator[str]:
        nonlocal calls
        calls += 1
        mine = calls
        for number in range(10):
            await asyncio.sleep(random_.choice([0.0, 1.0]))
            yield f"{mine}:{number}"

    cache = cached(stream)

    async def reader() -> list[str]:
        await asyncio.sleep(random_.uniform(0.0, 12.0))
        stay = random_.choice([10, 10, 3])
        got: list[str] = []
        async with cache.stream("q") as chunks:
            async for chunk in chunks:
                got.append(chunk)
                if len(got) == stay:
                    return got
                await asyncio.sleep(random_.choice([0.0, 0.0, 2.0]))
        return got

    tasks = [asyncio.ensure_future(reader()) for _ in range(12)]
    for task in random_.sample(tasks, 3):
        asyncio.get_running_loop().call_later(random_.uniform(0.0, 12.0), task.cancel)
    await asyncio.wait(tasks)
    for task in tasks:
        if not task.cancelled():
            got = task.result()
            call = got[0].partition(":")[0]
            assert [f"{call}:{number}" for number in range(len(got))] == got
            assert len(got) in (3, 10)
