"""One stream for many readers: each gets all of it, whatever the others do; and what is not read does not pile up."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from typing import Any

import pytest

from observability_integration.caching.lookup import LookupResult
from observability_integration.caching.streams.broadcast import LATE, Broadcast, Listener
from observability_integration.caching.streams.recording import ChunkCodec, Recorder, Recording
from observability_integration.caching.streams.replay import Replay
from observability_integration.context import Deadline
from observability_integration.testing import FakeClockLoop

LOOP_FACTORY = FakeClockLoop

CHUNKS = ChunkCodec((), 10_000)


class Told:
    """What the broadcast told whoever started it."""

    def __init__(self) -> None:
        self.ends = 0
        self.left = 0

    def end(self) -> None:
        self.ends += 1

    def left_by_all(self) -> None:
        self.left += 1


def broadcast(max_bytes: int = 10_000) -> tuple[Broadcast, Told]:
    told = Told()
    made = Broadcast(CHUNKS, max_bytes, None, told.end)
    made.on_last_reader_left = told.left_by_all
    return made, told


async def read(listener: Listener | Replay, deadline: Deadline | None = None) -> list[Any]:
    """All chunks; on an error, the error comes last."""
    got: list[Any] = []
    try:
        while True:
            got.append(await listener.next(deadline))
    except StopAsyncIteration:
        return got
    except Exception as error:
        return [*got, error]


async def settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def send(to: Broadcast, *chunks: Any, seconds: float = 0.0) -> None:
    for chunk in chunks:
        await to.push(chunk)
        await asyncio.sleep(seconds)


async def test_every_reader_gets_every_chunk() -> None:
    """Whether there from the first, joining in the middle, or slow."""
    stream, told = broadcast()
    first = asyncio.ensure_future(read(stream.join()))
    await send(stream, "a", "b", seconds=1.0)
    late, idle = asyncio.ensure_future(read(stream.join())), stream.join()
    await send(stream, "c")
    assert 0 == told.ends
    stream.finish()
    assert [["a", "b", "c"]] * 3 == [await first, await late, await read(idle)]
    assert 1 == told.ends
    assert 0 == told.left


async def test_chunks_come_as_soon_as_they_are_there() -> None:
    """A joined stream is live from where it is, not a replay at its end."""
    stream, _ = broadcast()
    moments: list[tuple[Any, float]] = []

    async def watch() -> None:
        listener = stream.join()
        while len(moments) < 2:
            moments.append((await listener.next(None), asyncio.get_running_loop().time()))

    watching = asyncio.ensure_future(watch())
    await settle()
    await send(stream, "a", "b", seconds=1.0)
    await watching
    assert [("a", 0.0), ("b", 1.0)] == moments


async def test_no_two_readers_share_a_chunk_that_can_change() -> None:
    """One that is changed by its reader stays as it was for the others and for the recording."""
    stream, _ = broadcast()
    readers = [stream.join() for _ in range(3)]
    produced = {"text": ["a"]}
    await stream.push(produced)
    for number, reader in enumerate(readers):
        chunk = await reader.next(None)
        assert {"text": ["a"]} == chunk
        assert (chunk is produced) == (number == 0)
        chunk["text"].append("changed")
    stream.finish()
    assert [{"text": ["a"]}] == await read(stream.join())
    assert [{"text": ["a"]}] == [CHUNKS.restore(chunk) for chunk in stream.recording(0, None).chunks]


async def test_an_error_comes_after_the_chunks() -> None:
    """All readers get what there was, and then the same error."""
    stream, told = broadcast()
    readers = [stream.join(), stream.join()]
    await send(stream, "a", "b")
    failure = LookupError()
    stream.fail(failure)
    stream.fail(ValueError())
    stream.finish()
    assert [["a", "b", failure]] * 2 == [await read(reader) for reader in readers]
    assert 1 == told.ends


async def test_who_leaves_harms_nobody() -> None:
    """Whether at once, while waiting, or cancelled."""
    stream, told = broadcast()
    stays, leaves, cancelled = stream.join(), stream.join(), stream.join()
    waiting = asyncio.ensure_future(cancelled.next(None))
    staying = asyncio.ensure_future(read(stays))
    await settle()
    waiting.cancel()
    leaves.leave()
    await send(stream, "a")
    cancelled.leave()
    cancelled.leave()
    assert 0 == told.left
    stream.finish()
    assert ["a"] == await staying
    assert waiting.cancelled()


async def test_the_last_to_leave_is_told_of() -> None:
    """Unless the stream has ended by then: nothing is to be cancelled."""
    stream, told = broadcast()
    readers = [stream.join(), stream.join()]
    await send(stream, "a")
    readers[0].leave()
    assert 0 == told.left
    readers[1].leave()
    readers[1].leave()
    assert 1 == told.left

    ended, told = broadcast()
    reader = ended.join()
    ended.finish()
    reader.leave()
    assert 0 == told.left

    nobodys = Broadcast(CHUNKS, 10_000, None, told.end)  # of a refresh, which goes on without readers
    nobodys.join().leave()
    assert not nobodys.ended


async def test_a_reader_whose_time_is_up_is_told_so() -> None:
    """And finds the chunk when it asks again; without a deadline it would have waited."""
    stream, _ = broadcast()
    reader = stream.join()
    assert LATE is await reader.next(Deadline.after(2.0))
    assert 2.0 == asyncio.get_running_loop().time()
    await send(stream, "a")
    assert "a" == await reader.next(Deadline.after(0.0))


async def test_what_was_found_is_served_instead() -> None:
    """A recording ends the wait; but chunks of two streams are never mixed."""
    found = LookupResult(Recording((), ()), "backend")
    stream, told = broadcast()
    assert not stream.settled
    stream.serve(found)
    assert (found, True, True, 1) == (stream.stored, stream.settled, stream.ended, told.ends)

    begun, _ = broadcast()
    await send(begun, "a")
    begun.serve(found)
    assert (None, True, False) == (begun.stored, begun.settled, begun.ended)


async def test_a_stream_goes_on_being_recorded_without_readers() -> None:
    """They have been served something else meanwhile, or were told that it takes too long."""
    stream, _ = broadcast()
    stream.fail(TimeoutError())
    await send(stream, "a", "b")
    assert 0 == stream.count
    assert ["a", "b"] == stream.recorded()
    assert stream.wanted


# Streams that are too large to be recorded


async def test_a_recorded_stream_runs_ahead_of_its_readers() -> None:
    """What they have not read is kept anyway, so a reader who thinks holds up neither producer nor readers."""
    stream, _ = broadcast()
    stream.join()
    async with asyncio.timeout(1.0):
        await send(stream, *"x" * 200)
    assert 200 == stream.count


async def test_a_lost_stream_waits_for_its_slowest_reader() -> None:
    """And keeps no more than what that one has yet to read."""
    stream, _ = broadcast(max_bytes=1)
    fast, slow = stream.join(), stream.join()
    sending = asyncio.ensure_future(send(stream, *range(300)))
    await settle()
    reading = asyncio.ensure_future(read(fast))
    await asyncio.sleep(1.0)
    assert "too_large" == stream.unrecorded_reason
    ahead = stream.count
    assert 10 < ahead < 100
    assert not sending.done()
    for number in range(10):
        assert number == await slow.next(None)
        await settle()
        assert ahead + number + 1 == stream.count
    slow.leave()
    await sending
    stream.finish()
    assert list(range(300)) == await reading


async def test_a_lost_stream_whose_readers_have_left_is_not_wanted() -> None:
    """Nothing is kept and nobody reads; as long as one of both is so, there is a use in it."""
    stream, _ = broadcast(max_bytes=1)
    stream.on_last_reader_left = None
    reader = stream.join()
    await send(stream, "a")
    assert stream.wanted
    reader.leave()
    assert not stream.wanted
    await send(stream, *"x" * 200)  # waits for nobody


async def test_readers_of_a_lost_stream_share_no_chunk_either() -> None:
    """Being too large to be kept is no reason to let one reader see what another does."""
    stream, _ = broadcast(max_bytes=1)
    readers = [stream.join(), stream.join()]
    await stream.push({"a": [1]})
    for reader in readers:
        chunk = await reader.next(None)
        assert {"a": [1]} == chunk
        chunk["a"].append(2)


async def test_a_chunk_that_cannot_be_copied_goes_to_all() -> None:
    """Better one that is shared than a stream that breaks off; but nobody else can join."""
    stream, _ = broadcast()
    readers = [stream.join(), stream.join()]
    chunk = {"lock": threading.Lock()}
    await stream.push(chunk)
    assert "uncopyable" == stream.unrecorded_reason
    assert all([await reader.next(None) is chunk for reader in readers])


# Replays


def recording(*moments: float) -> Recording:
    recorder = Recorder(CHUNKS, 10_000)
    for number, moment in enumerate(moments):
        recorder.record({"n": number}, moment)
    return recorder.recording(0, None)


def timed(replay: Replay, *, think: float = 0.0) -> Callable[[], Any]:
    async def go() -> list[tuple[int, float]]:
        got: list[tuple[int, float]] = []
        try:
            while True:
                chunk = await replay.next(None)
                got.append((chunk["n"], round(asyncio.get_running_loop().time(), 6)))
                await asyncio.sleep(think)
        except StopAsyncIteration:
            return got

    return go


@pytest.mark.parametrize(("pace", "moments"), [(0.0, [0.0, 0.0, 0.0]), (1.0, [0.0, 1.5, 2.0]), (0.5, [0.0, 0.75, 1.0])])
async def test_a_replay_keeps_pace(pace: float, moments: list[float]) -> None:
    """At once, or as the stream was; the wait for its first chunk is what the cache is there to save."""
    replay = Replay(recording(7.0, 8.5, 9.0), CHUNKS, pace)
    assert list(enumerate(moments)) == await timed(replay)()


async def test_a_reader_who_thinks_is_not_held_up_twice() -> None:
    """The stream would have gone on meanwhile."""
    replay = Replay(recording(0.0, 1.0, 2.0, 10.0), CHUNKS, 1.0)
    assert [(0, 0.0), (1, 1.5), (2, 3.0), (3, 10.0)] == await timed(replay, think=1.5)()


async def test_a_replay_minds_the_deadline() -> None:
    """The reader has control back in time, and may go on after it has been told."""
    replay = Replay(recording(0.0, 4.0), CHUNKS, 1.0)
    deadline = Deadline.after(3.0)
    assert {"n": 0} == await replay.next(deadline)
    assert LATE is await replay.next(deadline)
    assert 3.0 == asyncio.get_running_loop().time()
    assert {"n": 1} == await replay.next(None)
    assert 4.0 == asyncio.get_running_loop().time()


async def test_a_replay_at_once_needs_no_time() -> None:
    """A deadline that has passed ends waiting, and there is nothing to wait for."""
    assert [{"n": 0}, {"n": 1}] == await read(Replay(recording(0.0, 4.0), CHUNKS, 0.0), Deadline.after(-1.0))
