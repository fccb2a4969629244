"""With a keyring, nothing of keys, scopes, tags, values, chunks or errors can be read in Redis, nor in its messages."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from observability_integration.caching import CachePolicy, Keyring
from observability_integration.errors import SharedCallError
from observability_integration.primitives import CachePrimitive
from tests.processes import RedisProcess
from tests.redis_caches import ask_server

pytestmark = [
    pytest.mark.once,
    pytest.mark.unmeasured,
    pytest.mark.needs_redis_package,
    pytest.mark.needs_redis_server,
    pytest.mark.promise("C15"),
]

SECRET = "ada's balance is 42"
_READ = {
    "string": lambda key: ("GET", key),
    "list": lambda key: ("LRANGE", key, 0, -1),
    "set": lambda key: ("SMEMBERS", key),
    "hash": lambda key: ("HGETALL", key),
    "zset": lambda key: ("ZRANGE", key, 0, -1, "WITHSCORES"),
    "stream": lambda key: ("XRANGE", key, "-", "+"),
}


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


def everything_in(server: RedisProcess) -> list[bytes]:
    """All keys, those of leases, marks and counters too, and their values of all types."""
    found: list[bytes] = []
    for key in ask_server(server, "KEYS", "*"):
        found.append(repr(key).encode())
        kind = _text(ask_server(server, "TYPE", key))
        found.append(repr(ask_server(server, *_READ[kind](key))).encode())  # type: ignore[no-untyped-call]
    return found


async def answer(prompt: str) -> str:
    if "fail" in prompt:
        await asyncio.sleep(0.3)
        raise ValueError(f"no answer to {prompt}")
    return f"{prompt}: {SECRET}" + " " * 5000  # long enough to be compressed


async def chunks(prompt: str) -> AsyncIterator[Any]:
    yield {"text": prompt}
    yield {"text": SECRET}


@pytest.mark.parametrize("compress", [None, 100])
async def test_nothing_can_be_read_in_redis(redis_process: RedisProcess, compress: int | None) -> None:
    """A reader of the server, its dump or its messages learns lengths and times, and no word."""
    import redis.asyncio

    server = redis_process
    heard: list[bytes] = []
    clients = [redis.asyncio.Redis(port=server.port) for _ in range(3)]
    listener = clients[2].pubsub()
    await listener.psubscribe("*")

    async def listen() -> None:
        async for message in listener.listen():
            heard.append(repr(message).encode())

    listening = asyncio.create_task(listen())

    def make(step: Any, client: int) -> CachePrimitive[Any, Any]:
        return CachePrimitive(
            step,
            lambda prompt: f"key of {prompt}",
            operation_name="secrets",
            redis_client=clients[client],
            scope=lambda prompt: f"scope of {SECRET}",
            tags=lambda prompt: [f"tag of {SECRET}", "tag of " + prompt],
            keyring=Keyring({"k1": bytes(range(32))}, current="k1"),
            policy=CachePolicy(compress_above_bytes=compress, backend_budget_seconds=2.0, stale_if_error_seconds=60.0),
        )

    first, second = make(answer, 0), make(answer, 1)
    assert SECRET in await first.execute(SECRET)
    assert SECRET in await second.execute(SECRET)
    assert 1 == second.get_stats()["hits"], "the second one reads what the first one wrote"
    streams = make(chunks, 0), make(chunks, 1)
    for each in streams:
        async with each.stream(SECRET) as got:
            assert [{"text": SECRET}] * 2 == [chunk async for chunk in got]
    failed = await asyncio.gather(
        *(cache.execute(f"fail {SECRET}") for cache in (first, second)), return_exceptions=True
    )
    assert all(isinstance(error, ValueError | SharedCallError) for error in failed)
    assert all(SECRET not in str(error) for error in failed if isinstance(error, SharedCallError))
    failing = asyncio.create_task(first.execute("fail again"))
    await asyncio.sleep(0.1)
    seen = everything_in(server)
    assert any(b":l'" in each for each in seen), "the lease of a call under way is among them"
    await asyncio.wait([failing])
    await first.execute("x")
    await first.invalidate("key of x", scope=f"scope of {SECRET}")
    await first.invalidate(tag=f"tag of {SECRET}")
    await first.clear()
    await asyncio.sleep(0.2)
    seen += everything_in(server) + heard
    assert heard, "the messages were heard"
    assert len(seen) > 4
    for part in ("balance", " is ", "key of", "tag of", "scope of", "no answer", "text"):
        assert [] == [each for each in seen if part.encode() in each], part
    for cache in (first, second, *streams):
        await cache.aclose()
    listening.cancel()
    await listener.aclose()
    for client in clients:
        await client.aclose()
