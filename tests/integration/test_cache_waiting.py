"""Waits for a lease in a real Redis end: no call follows itself, and no lease without end holds its followers."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from observability_integration.caching import CachePolicy
from observability_integration.primitives import CachePrimitive
from tests.processes import RedisProcess
from tests.redis_caches import ask_server

pytestmark = [
    pytest.mark.once,
    pytest.mark.unmeasured,
    pytest.mark.needs_redis_package,
    pytest.mark.needs_redis_server,
    pytest.mark.promise("C2"),
]

_LEASE_SECONDS = 0.4
_SLACK_SECONDS = 2.0  # what a machine that has other things to do may add

Make = Callable[..., CachePrimitive[Any, Any]]


@pytest.fixture
async def make(redis_server: RedisProcess) -> AsyncIterator[Make]:
    import redis.asyncio

    ask_server(redis_server, "FLUSHALL")
    made: list[CachePrimitive[Any, Any]] = []
    clients: list[Any] = []

    def cache(call: Any, name: str = "answers", **policy: Any) -> CachePrimitive[Any, Any]:
        clients.append(redis.asyncio.Redis(port=redis_server.port))
        made.append(
            CachePrimitive(
                call,
                str,
                operation_name=name,
                redis_client=clients[-1],
                policy=CachePolicy(**{"lease_seconds": _LEASE_SECONDS, "backend_budget_seconds": 2.0, **policy}),
            )
        )
        return made[-1]

    yield cache
    for each in made:
        await each.aclose()
    for client in clients:
        await client.aclose()


async def read(cache: CachePrimitive[Any, Any], key: str, way: str) -> Any:
    if way == "execute":
        return await cache.execute(key)
    async with cache.stream(key) as chunks:
        return "".join([chunk async for chunk in chunks])


@pytest.mark.parametrize("way", ["execute", "stream"])
@pytest.mark.parametrize("thread", [False, True], ids=["in one loop", "from a thread with its own loop"])
async def test_two_caches_of_one_operation(make: Make, way: str, thread: bool) -> None:
    """The second of them would follow the lease of the first, whose call waits for the second."""
    calls = 0

    async def inner() -> Any:
        second = second_cache if not thread else make_there()
        try:
            return await read(second, "x", way)
        finally:
            if thread:
                await second.aclose()
                await second.redis_client.aclose()

    def make_there() -> CachePrimitive[Any, Any]:
        import redis.asyncio

        client = redis.asyncio.Redis(port=first_cache.redis_client.connection_pool.connection_kwargs["port"])
        return CachePrimitive(
            work, str, operation_name="answers", redis_client=client, policy=CachePolicy(lease_seconds=30.0)
        )

    async def answer(key: str) -> str:
        nonlocal calls
        calls += 1
        if calls > 1:
            return "inner"
        return "outer " + str(await (asyncio.to_thread(asyncio.run, inner()) if thread else inner()))

    async def chunks(key: str) -> AsyncIterator[str]:
        yield await answer(key)

    work: Any = answer if way == "execute" else chunks
    first_cache, second_cache = make(work, lease_seconds=30.0), make(work, lease_seconds=30.0)
    async with asyncio.timeout(10.0):
        assert "outer inner" == await read(first_cache, "x", way)
    assert 2 == calls


async def test_a_circle_through_two_processes(make: Make, redis_server: RedisProcess) -> None:
    """A call inside of another one follows a leader elsewhere for a lease, which may wait for the outer call."""
    held = await _lease_of_another(make, redis_server)
    ask_server(redis_server, "SET", _lease_key(make, "y"), held, "PX", int(_LEASE_SECONDS * 1000))

    async def renew() -> None:
        while True:
            ask_server(redis_server, "PEXPIRE", _lease_key(make, "y"), int(_LEASE_SECONDS * 1000))
            await asyncio.sleep(_LEASE_SECONDS / 4)

    renewing = asyncio.create_task(renew())
    asked = 0

    async def answer(key: str) -> str:
        nonlocal asked
        asked += 1
        return key if key == "y" else key + await inner.execute("y")

    outer, inner = make(answer, "outer"), make(answer)
    began = time.monotonic()
    async with asyncio.timeout(10.0):
        assert "xy" == await outer.execute("x")
    assert _LEASE_SECONDS <= time.monotonic() - began <= 3 * _LEASE_SECONDS + _SLACK_SECONDS
    renewing.cancel()
    assert 2 == asked


async def test_a_leader_that_renews_its_lease_is_followed(make: Make) -> None:
    """However long its call takes: from outside of all calls a wait has no other end."""
    calls = 0

    async def answer(key: str) -> int:
        nonlocal calls
        calls += 1
        await asyncio.sleep(4 * _LEASE_SECONDS)
        return calls

    first, second = make(answer), make(answer)
    assert [1, 1] == await asyncio.gather(first.execute("x"), second.execute("x"))


def _lease_key(make: Make, key: str) -> str:
    cache = make(_nothing)
    return str(cache._keys.place(cache._keys.digest(key)).key) + ":l"


async def _lease_of_another(make: Make, server: RedisProcess) -> str:
    """What the lease of a process elsewhere holds: its token and the id of the operation's generation."""
    cache = make(_answer)
    await cache.execute("first")
    generation = ask_server(server, "GET", cache._keys.prefix + "gen")
    return "elsewhere:" + (generation.decode() if isinstance(generation, bytes) else str(generation)).split(":")[0]


async def _answer(key: str) -> str:
    return "answer"


async def _nothing(key: str) -> None:
    """Is never called."""


LEASES: dict[str, list[tuple[Any, ...]]] = {
    "without end": [("SET", "LEASE", "HELD")],
    "of months": [("SET", "LEASE", "HELD", "PX", 10**10)],
    "far beyond any clock": [("SET", "LEASE", "HELD", "PX", 10**15)],
    "empty": [("SET", "LEASE", "")],
    "garbage": [("SET", "LEASE", b"\xff\x00:\n" * 100)],
    "huge": [("SET", "LEASE", b"x" * 100_000)],
    "of a generation to come": [("SET", "LEASE", "somebody:99999999999999999999:99999999999999999999")],
    "a list": [("RPUSH", "LEASE", "HELD")],
    "a hash": [("HSET", "LEASE", "somebody", "1")],
    "persisted": [("SET", "LEASE", "HELD", "PX", 300), ("PERSIST", "LEASE")],
}


@pytest.mark.parametrize("name", LEASES)
async def test_a_lease_that_no_leader_renews(make: Make, redis_server: RedisProcess, name: str) -> None:
    """Forged, persisted, restored from a dump, or under a clock that was set back: it is ended after one lease."""
    calls = 0

    async def answer(key: str) -> int:
        nonlocal calls
        calls += 1
        return calls

    lease = _lease_key(make, "x")
    filled = {"LEASE": lease, "HELD": await _lease_of_another(make, redis_server)}
    for command in LEASES[name]:
        ask_server(redis_server, *(filled.get(part, part) if isinstance(part, str) else part for part in command))
    caches = [make(answer) for _ in range(3)]
    began = time.monotonic()
    async with asyncio.timeout(20 * _LEASE_SECONDS):
        answers = await asyncio.gather(*(cache.execute("x") for cache in caches))
    assert time.monotonic() - began <= 2 * _LEASE_SECONDS + _SLACK_SECONDS
    assert [1, 1, 1] == answers, "it is replaced by a lease of one of them, which the others follow"
    assert ask_server(redis_server, "EXISTS", lease) in (0, b"0")
    assert 1 == await make(answer).execute("x"), "and what that one made is kept"
