"""Times hits in Redis after a miss in memory, compared with a bare GET and with other caches on the same Redis.

Lookups cycle through the keys, and ours keeps one entry in memory, so memory never holds the key.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any

import msgspec

from benchmarks import checks, workload
from benchmarks.measure import Call, Case, Contestant, Effort, Samples, run
from benchmarks.servers import RedisServer, redis_is_here
from benchmarks.workload import DISTINCT_PROMPTS, Repeated, Work
from observability_integration.caching.policy import CachePolicy
from observability_integration.primitives import CachePrimitive

BY_URL, BY_CLIENT = "ours, by redis_url", "ours, by redis_client"
BARE = "GET and decode"
CASHEWS, AIOCACHE = "cashews", "aiocache"
EFFORT, QUICK = Effort(40, 5, 48), Effort(6, 3, 32)
_READ = "mget"  # the command of our lookups; the peers do not use it
ANSWER: dict[str, Any] = {
    **workload.COMPLETION,
    "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": 3 * workload.TEXT}}],
}

Report = Callable[[str], None]
Made = tuple[Call, Callable[[], Awaitable[Any]]]


async def measure(effort: Effort, report: Report) -> Samples:
    """Times hits and returns seconds per call by contestant; empty without a Redis.

    Raises:
        NotDoneError: a lookup missed, or returned another value.
    """
    if not redis_is_here():
        report("Redis hits: skipped, redis-server or the redis package is not installed")
        return {}
    report("Redis hits")
    with RedisServer() as server:
        async with AsyncExitStack() as stack:
            return await _beside_each_other(server, effort, stack)


async def _beside_each_other(server: RedisServer, effort: Effort, stack: AsyncExitStack) -> Samples:
    prompts = Repeated()
    asked = prompts(DISTINCT_PROMPTS)
    await _write(server, asked)
    contestants: list[Contestant] = []
    works = {name: Work(ANSWER) for name in _CONTESTANTS}
    for name, make in _CONTESTANTS.items():
        try:
            call, close = make(server, works[name])
        except ImportError:
            continue
        stack.push_async_callback(close)
        contestants.append(Contestant(name, call))
        for prompt in asked:
            checks.expect_answer(name, ANSWER, await call(prompt))
    # The peers wrote their entries themselves; another cache wrote ours.
    for name, own in ((BY_URL, 0), (BY_CLIENT, 0), (CASHEWS, len(asked)), (AIOCACHE, len(asked))):
        checks.expect(works[name].calls in (0, own), f"{name} made {works[name].calls} calls before the timing")
    made = {name: work.calls for name, work in works.items()}
    server.commands()
    samples = await run(Case("Redis hit", contestants, prompts), effort)
    read = server.commands().get(_READ, 0)
    checks.expect(read == 2 * effort.total, f"ours read {read} times from Redis, not {2 * effort.total} times")
    checks.expect(made == {name: work.calls for name, work in works.items()}, "a hit was a miss")
    return samples


async def _write(server: RedisServer, prompts: Sequence[str]) -> None:
    """Writes the entries for ours and for the bare client."""
    client = _client(server)
    writer: CachePrimitive[Any, Any] = CachePrimitive(redis_client=client, policy=_POLICY, **_OURS)
    for prompt in prompts:
        await writer.get_or_compute(prompt, lambda: ANSWER)
        await client.set(prompt, msgspec.msgpack.encode(ANSWER))
    await writer.aclose()
    await client.aclose()


def _client(server: RedisServer) -> Any:
    from redis.asyncio import Redis

    return Redis(port=server.port)


# A stalled machine must not look like a failed Redis.
_POLICY = CachePolicy(max_entries=1, backend_budget_seconds=2.0)
_OURS: dict[str, Any] = {"ttl_seconds": workload.TTL_SECONDS, "operation_name": workload.OPERATION}


def _ours(cache: CachePrimitive[Any, Any], work: Work) -> Call:
    def ask(prompt: str) -> Any:
        return cache.get_or_compute(prompt, lambda: work.answer(prompt))

    return ask


def _by_url(server: RedisServer, work: Work) -> Made:
    cache: CachePrimitive[Any, Any] = CachePrimitive(redis_url=server.url, policy=_POLICY, **_OURS)
    return _ours(cache, work), cache.aclose


def _by_client(server: RedisServer, work: Work) -> Made:
    client = _client(server)
    cache: CachePrimitive[Any, Any] = CachePrimitive(redis_client=client, policy=_POLICY, **_OURS)

    async def close() -> None:
        await cache.aclose()
        await client.aclose()

    return _ours(cache, work), close


def _bare(server: RedisServer, _: Work) -> Made:
    client = _client(server)
    decode = msgspec.msgpack.decode

    async def ask(prompt: str) -> Any:
        return decode(await client.get(prompt))

    return ask, client.aclose


def _cashews(server: RedisServer, work: Work) -> Made:
    from cashews import Cache

    cache = Cache()
    cache.setup(server.url)

    @cache(ttl=workload.TTL_SECONDS, key="answers:{prompt}")
    async def ask(prompt: str) -> Any:
        return await work.answer(prompt)

    return ask, cache.close


def _aiocache(server: RedisServer, work: Work) -> Made:
    from aiocache import Cache, cached
    from aiocache.serializers import PickleSerializer

    @cached(
        ttl=int(workload.TTL_SECONDS),
        key_builder=lambda _, prompt: f"aiocache:{prompt}",
        cache=Cache.REDIS,
        endpoint="127.0.0.1",
        port=server.port,
        serializer=PickleSerializer(),  # faster than JSON, its default
    )
    async def ask(prompt: str) -> Any:
        return await work.answer(prompt)

    return ask, ask.cache.close


_CONTESTANTS: dict[str, Callable[[RedisServer, Work], Made]] = {
    BY_URL: _by_url,
    BY_CLIENT: _by_client,
    BARE: _bare,
    CASHEWS: _cashews,
    AIOCACHE: _aiocache,
}
