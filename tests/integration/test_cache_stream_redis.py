"""Kept streams and a real Redis: what one process recorded another replays, and nothing half-read gets there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest

from observability_integration.caching.policy import CachePolicy
from observability_integration.caching.wire.encryption import Keyring
from observability_integration.primitives import CachePrimitive
from tests.processes import RedisProcess
from tests.redis_caches import Caches, ask_server, caches, keys_in

__all__ = ["caches"]

pytestmark = [pytest.mark.needs_redis_package, pytest.mark.needs_redis_server]


class Chunk(msgspec.Struct):
    text: str


def _same(question: str) -> str:
    return question


def whole(*contents: str) -> list[Any]:
    chunks = [{"choices": [{"delta": {"content": content}, "finish_reason": None}]} for content in contents]
    return [*chunks, {"choices": [{"delta": {}, "finish_reason": "stop"}]}]


class Producer:
    """Yields the same chunks each time; a number is a wait in seconds."""

    __name__ = "producer"

    def __init__(self, *script: Any) -> None:
        self.script = script
        self.calls = 0

    async def __call__(self, _: Any) -> AsyncIterator[Any]:
        self.calls += 1
        for item in self.script:
            if isinstance(item, float):
                await asyncio.sleep(item)
            else:
                yield item


async def read(cache: CachePrimitive[Any, Any]) -> list[Any]:
    async with cache.stream("q") as chunks:
        return [chunk async for chunk in chunks]


@pytest.fixture
def server(redis_server: RedisProcess) -> RedisProcess:
    """The server of the whole run, emptied."""
    redis_server.flush()
    return redis_server


@pytest.fixture
def pair(caches: Caches, server: RedisProcess) -> Any:
    """Makes two caches of one operation, as two processes have them, around one producer."""

    def make(producer: Producer, **options: Any) -> list[CachePrimitive[Any, Any]]:
        return [caches("asyncio", server, producer, _same, operation_name="ask", **options) for _ in range(2)]

    return make


STREAMS: dict[str, list[Any]] = {
    "text": ["a", "", "日本 👩‍🚀"],
    "bytes": [b"data: x\n\n", b"\xc1"],
    "dicts": whole("a", "b"),
    "models": [Chunk("a"), Chunk("b")],
    "empty": [],
    "long": ["x" * 100] * 3000,
}


@pytest.mark.parametrize("stream", STREAMS.values(), ids=STREAMS)
async def test_another_process_replays_what_one_recorded(stream: list[Any], pair: Any) -> None:
    """Chunk by chunk as it was; then from its own memory."""
    producer = Producer(*stream)
    first, second = pair(producer, chunk_types=(Chunk,))
    assert [stream] * 3 == [await read(first), await read(second), await read(second)]
    assert 1 == producer.calls
    assert (2, 0) == (second.get_stats()["hits"], second.get_stats()["misses"])


@pytest.mark.parametrize(
    "options",
    [
        {"policy": CachePolicy(backend_budget_seconds=1.0, compress_above_bytes=10)},
        {"keyring": Keyring({"k": b"0" * 32}, current="k")},
    ],
    ids=["compressed", "encrypted"],
)
async def test_recordings_are_written_like_any_entry(options: Any, pair: Any, server: RedisProcess) -> None:
    """Compressed or encrypted, if the cache is told to."""
    producer = Producer(*["a prompt of somebody's"] * 50)
    first, second = pair(producer, **options)
    assert await read(first) == await read(second)
    assert 1 == producer.calls
    entries = [
        ask_server(server, "GET", key) for key in keys_in(server) if ask_server(server, "TYPE", key) == b"string"
    ]
    assert not any(b"somebody's" * 2 in entry for entry in entries)


async def test_readers_in_two_processes_share_a_call(pair: Any) -> None:
    """Who waits for another process gets the whole stream when it is there."""
    producer = Producer("a", 0.3, "b")
    first, second = pair(producer)
    leading = asyncio.ensure_future(read(first))
    await asyncio.sleep(0.1)
    assert [["a", "b"]] * 3 == await asyncio.gather(leading, read(second), read(second))
    assert 1 == producer.calls


async def test_a_leader_that_breaks_off_makes_way(pair: Any) -> None:
    """Its lease is given back at once, and the other process makes the call."""
    producer = Producer("a", 0.3, "b")
    first, second = pair(producer, policy=CachePolicy(backend_budget_seconds=1.0, lease_seconds=30.0))
    async with first.stream("q") as chunks:
        assert "a" == await anext(chunks)
        waiting = asyncio.ensure_future(read(second))
        await asyncio.sleep(0.1)
    async with asyncio.timeout(5.0):
        assert ["a", "b"] == await waiting
    assert 2 == producer.calls


async def test_a_stream_that_is_cut_never_gets_there(pair: Any) -> None:
    """No finish reason, or nobody who reads it to its end."""
    producer = Producer(*whole("a")[:-1])
    first, second = pair(producer)
    await read(first)
    await read(second)
    assert 2 == producer.calls

    producer = Producer("a", 0.3, "b")
    first, second = pair(producer)
    async with first.stream("q") as chunks:
        await anext(chunks)
    assert ["a", "b"] == await read(second)
    assert 1 + 1 == producer.calls


async def test_what_cannot_be_written_stays_in_memory(pair: Any) -> None:
    """Chunks of a type that the cache was not told of are kept where they are, and only there."""
    producer = Producer(Chunk("a"))
    first, second = pair(producer)
    assert [[Chunk("a")]] * 3 == [await read(cache) for cache in (first, first, second)]
    assert 2 == producer.calls


async def test_streams_of_openai_chunks(pair: Any) -> None:
    """The models of the SDK come back as such, equal to the last field."""
    openai = pytest.importorskip("openai.types.chat")
    head = {"id": "c-1", "object": "chat.completion.chunk", "created": 1, "model": "m-1"}
    stream = [openai.ChatCompletionChunk.model_validate({**head, **chunk}) for chunk in indexed(whole("a", "b"))]
    producer = Producer(*stream)
    first, second = pair(producer, chunk_types=(openai.ChatCompletionChunk,))
    assert stream == await read(first) == await read(second) == await read(second)
    assert 1 == producer.calls
    assert [chunk.model_dump() for chunk in stream] == [chunk.model_dump() for chunk in await read(second)]


def indexed(chunks: list[Any]) -> list[Any]:
    return [{"choices": [{"index": 0, **choice} for choice in chunk["choices"]]} for chunk in chunks]


async def test_invalidation_reaches_streams_elsewhere(pair: Any) -> None:
    """In the memory of the other process as soon as Redis tells it."""
    producer = Producer("a")
    first, second = pair(producer)
    await read(first)
    await read(second)
    await first.invalidate("q")
    async with asyncio.timeout(5.0):
        while producer.calls == 1:
            await read(second)
            await asyncio.sleep(0.01)
    assert 2 == producer.calls


async def test_a_damaged_recording_is_a_miss(pair: Any, server: RedisProcess) -> None:
    """It is found out before the first chunk, and written anew."""
    producer = Producer("a", "b")
    first, second = pair(producer)
    await read(first)
    for key in keys_in(server):
        if ask_server(server, "TYPE", key) == b"string":
            entry = ask_server(server, "GET", key)
            ask_server(server, "SET", key, entry[:-1] + b"\xc1", "KEEPTTL")
    assert ["a", "b"] == await read(second)
    assert 2 == producer.calls


async def test_a_dead_redis_stops_no_stream(caches: Caches, redis_process: RedisProcess) -> None:
    """It is made, shared and kept in memory; chunks do not wait for Redis, nor does the end."""
    producer = Producer("a", 0.05, "b")
    cache = caches("asyncio", redis_process, producer, _same, operation_name="ask", policy=CachePolicy())
    redis_process.kill()
    assert [["a", "b"]] * 2 == await asyncio.gather(read(cache), read(cache))
    assert ["a", "b"] == await read(cache)
    assert 1 == producer.calls


async def test_a_redis_that_hangs_meanwhile_stops_no_stream(caches: Caches, redis_process: RedisProcess) -> None:
    """The stream has begun when Redis falls silent: all of it arrives, and it is kept in memory."""
    producer = Producer("a", 0.2, "b")
    cache = caches("asyncio", redis_process, producer, _same, operation_name="ask", policy=CachePolicy())
    async with cache.stream("q") as chunks:
        assert "a" == await anext(chunks)
        redis_process.pause()
        async with asyncio.timeout(5.0):
            assert ["b"] == [chunk async for chunk in chunks]
            assert ["a", "b"] == await read(cache)
    redis_process.resume()
    assert 1 == producer.calls
