"""A hit that Redis has and memory has not, beside a bare GET and beside other caches on the same Redis.

Keys are asked for in turn, and ours keeps one entry in memory: each time, memory has another one.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any

import msgspec

from observability_integration.caching.policy import CachePolicy
from observability_integration.primitives import CachePrimitive

from . import checks, workload
from .measure import Call, Case, Contestant, Effort, Samples, run
from .servers import RedisServer, redis_is_here
from .workload import DISTINCT_PROMPTS, Repeated, Work

BARE = "GET and decode"
CASHEWS, AIOCACHE = "cashews", "aiocache"
PEERS = (BARE, CASHEWS, AIOCACHE)
EFFORT, QUICK = Effort(40, 5, 48), Effort(6, 3, 32)
_READ = "mget"  # the command of a lookup of ours

Report = Callable[[str], None]
Made = tuple[Call, Callable[[], Awaitable[Any]]]


async def measure(effort: Effort, report: Report) -> Samples:
    """Seconds a call, by contestant; empty without a Redis.

    Raises:
        NotDoneError: a contestant did not find what it should have.
    """
    if not redis_is_here():
        report("Redis hits: left out, redis-server or the redis package is not installed")
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
    works: dict[str, Work] = {}
    for name, make in (("ours", _ours), (BARE, _bare), (CASHEWS, _cashews), (AIOCACHE, _aiocache)):
        work = works[name] = Work(workload.COMPLETION)
        try:
            call, close = make(server, work)
        except ImportError:
            continue
        stack.push_async_callback(close)
        contestants.append(Contestant(name, call))
        for prompt in asked:
            checks.answered(name, workload.COMPLETION, await call(prompt))
    made = {name: work.calls for name, work in works.items()}
    checks.expect(made["ours"] == 0, "ours made a call where another cache had written the answer")
    server.commands()
    samples = await run(Case("Redis hit", contestants, prompts), effort)
    read = server.commands().get(_READ, 0)
    # cashews and aiocache read by GET, so these are ours alone.
    checks.expect(read >= effort.total, f"ours read {read} times from Redis, not {effort.total} times")
    checks.expect(made == {name: work.calls for name, work in works.items()}, "a hit was none")
    return samples


async def _write(server: RedisServer, prompts: Sequence[str]) -> None:
    """What ours and the bare client find there."""
    client = _client(server)
    writer = _cache(client, Work(workload.COMPLETION))
    for prompt in prompts:
        await writer.execute(prompt)
        await client.set(prompt, msgspec.msgpack.encode(workload.COMPLETION))
    await writer.aclose()
    await client.aclose()


def _client(server: RedisServer) -> Any:
    from redis.asyncio import Redis

    return Redis(port=server.port)


def _cache(client: Any, work: Work, policy: CachePolicy | None = None) -> CachePrimitive[Any, Any]:
    return CachePrimitive(
        work.answer,
        workload.key_of_prompt,
        workload.TTL_SECONDS,
        client,
        operation_name=workload.OPERATION,
        policy=policy,
    )


def _ours(server: RedisServer, work: Work) -> Made:
    client = _client(server)
    cache = _cache(client, work, CachePolicy(max_entries=1))

    async def close() -> None:
        await cache.aclose()
        await client.aclose()

    return cache.execute, close


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
