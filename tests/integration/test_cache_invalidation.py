"""What is void is void everywhere: in the other's memory in a moment, in a Redis that was away when it is back.

Two caches with clients of their own stand for two processes; whole processes are in test_cache_processes.py.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from observability_integration.caching.policy import CachePolicy
from observability_integration.primitives import CachePrimitive
from tests.processes import RedisProcess
from tests.redis_caches import PATIENT, Caches, Calls, ask_server, caches

pytestmark = [pytest.mark.once, pytest.mark.unmeasured, pytest.mark.needs_redis_package, pytest.mark.needs_redis_server]

__all__ = ["caches"]

# Gives up on Redis soon, and finds it again soon.
_HASTY = CachePolicy(
    backend_budget_seconds=0.1, backend_retry_seconds=0.05, backend_retry_max_seconds=0.1, ttl_jitter=0.0
)
_A_MOMENT_SECONDS = 2.0

_INVALIDATIONS: dict[str, Callable[[CachePrimitive[Any, Any]], Awaitable[None]]] = {
    "key": lambda cache: cache.invalidate("question"),
    "tag": lambda cache: cache.invalidate(tag="a tag"),
    "clear": lambda cache: cache.clear(),
}


async def _soon(holds: Callable[[], Awaitable[bool]], seconds: float = _A_MOMENT_SECONDS) -> bool:
    give_up = time.monotonic() + seconds
    while not await holds():
        if time.monotonic() > give_up:
            return False
        await asyncio.sleep(0.02)
    return True


async def _listening(server: RedisProcess, count: int) -> bool:
    async def listen() -> bool:
        listeners = await asyncio.to_thread(ask_server, server, "CLIENT", "LIST", "TYPE", "pubsub")
        return len(listeners.splitlines()) >= count

    return await _soon(listen)


@pytest.mark.promise("C8")
@pytest.mark.parametrize("kind", list(_INVALIDATIONS))
@pytest.mark.parametrize("ways", [("asyncio", "url"), ("url", "asyncio text"), ("sync", "sync text")])
async def test_it_reaches_the_memory_of_the_other(
    caches: Caches, redis_process: RedisProcess, kind: str, ways: tuple[str, str]
) -> None:
    """Also of one that has only read what the first has made: within a moment it finds the new answer."""
    calls = Calls("old", "new")
    first, second = (caches(way, redis_process, operation_name=f"reach {kind}") for way in ways)

    async def ask(cache: CachePrimitive[Any, Any]) -> Any:
        return await cache.get_or_compute("question", calls, tags=["a tag"])

    assert ["old", "old"] == [await ask(first), await ask(second)]
    assert await _listening(redis_process, 2)
    await _INVALIDATIONS[kind](first)

    async def changed() -> bool:
        return bool("new" == await ask(second))

    assert await _soon(changed)
    assert "new" == await ask(first)
    assert 2 == calls.made


@pytest.mark.promise("C6")
async def test_a_message_that_is_missed_costs_a_ttl_and_no_more(caches: Caches, redis_process: RedisProcess) -> None:
    """Pub/sub is lossy: what memory keeps ends with the life of the entry it was filled from."""
    calls = Calls("old", "new")
    first, second = (caches("asyncio", redis_process, operation_name="missed", ttl_seconds=1.0) for _ in range(2))
    started = time.monotonic()
    assert "old" == await first.get_or_compute("question", calls)
    assert "old" == await second.get_or_compute("question", calls)
    assert await _listening(redis_process, 2)
    await asyncio.to_thread(ask_server, redis_process, "CLIENT", "KILL", "TYPE", "pubsub")
    await first.invalidate("question")
    while "new" != await second.get_or_compute("question", calls):
        assert time.monotonic() - started < 1.0 + 0.5
        await asyncio.sleep(0.02)


@pytest.fixture
async def away(redis_process: RedisProcess) -> AsyncIterator[RedisProcess]:
    """A Redis that is paused, and goes on with what it had at the end at the latest."""
    yield redis_process
    redis_process.resume()


@pytest.mark.promise("C11")
@pytest.mark.parametrize("kind", list(_INVALIDATIONS))
async def test_what_is_invalidated_while_redis_is_away_is_void_when_it_is_back(
    caches: Caches, away: RedisProcess, kind: str
) -> None:
    """A paused server keeps its entries; nobody may be served one that was declared void meanwhile."""
    calls = Calls("old", "new")
    cache = caches("asyncio", away, operation_name=f"away {kind}", policy=_HASTY)
    assert "old" == await cache.get_or_compute("question", calls, tags=["a tag"])
    away.pause()
    await _INVALIDATIONS[kind](cache)
    away.resume()

    async def back() -> bool:
        await cache.get_or_compute("other", Calls("other"))
        return cache._engine._tiers.shared is not None and cache._engine._tiers.shared.in_use

    await asyncio.sleep(0.1)
    assert await _soon(back)
    fresh = caches("asyncio", away, operation_name=f"away {kind}", policy=PATIENT)
    assert "new" == await fresh.get_or_compute("question", calls, tags=["a tag"])


@pytest.mark.promise("C11")
async def test_what_was_made_while_redis_was_away_is_written_when_it_is_back(
    caches: Caches, away: RedisProcess
) -> None:
    """The last value for each key; what has expired meanwhile is not written, nor what is void."""
    cache = caches("asyncio", away, operation_name="late", policy=_HASTY)
    brief = caches("asyncio", away, operation_name="brief", policy=_HASTY, ttl_seconds=0.2)
    await cache.get_or_compute("before", Calls("before"))
    await brief.get_or_compute("before", Calls("before"))
    away.pause()
    assert "kept" == await cache.get_or_compute("kept", Calls("kept"))
    assert "first" == await cache.get_or_compute("twice", Calls("first"))
    await cache.invalidate("twice")
    assert "second" == await cache.get_or_compute("twice", Calls("second"))
    assert "void" == await cache.get_or_compute("void", Calls("void"))
    await cache.invalidate("void")
    assert "brief" == await brief.get_or_compute("question", Calls("brief"))
    await asyncio.sleep(0.3)
    away.resume()

    async def back() -> bool:
        for one in (cache, brief):
            await one.get_or_compute("other", Calls("other"))
        return all(one._engine._tiers.shared is not None and one._engine._tiers.shared.in_use for one in (cache, brief))

    assert await _soon(back)
    other = caches("asyncio", away, operation_name="late")
    not_made = Calls("made anew")
    assert "kept" == await other.get_or_compute("kept", not_made)
    assert "second" == await other.get_or_compute("twice", not_made)
    assert 0 == not_made.made
    assert "made anew" == await other.get_or_compute("void", not_made)
    late = caches("asyncio", away, operation_name="brief")
    assert "made anew" == await late.get_or_compute("question", not_made)
    assert 2 == not_made.made


@pytest.mark.promise("C8")
async def test_what_is_made_after_an_invalidation_is_not_void(caches: Caches, redis_process: RedisProcess) -> None:
    """By the server's clock: a mark voids what was begun before it, and what comes after it stays, tagged or not."""
    calls = Calls("old", "new", "newer")
    first, second = (caches("asyncio", redis_process, operation_name="stamps") for _ in range(2))
    for invalidation, answer in zip(("tag", "clear"), ("new", "newer"), strict=True):
        await first.get_or_compute("question", calls, tags=["a tag"])
        await _INVALIDATIONS[invalidation](first)
        assert answer == await first.get_or_compute("question", calls, tags=["a tag"])
        fresh = caches("asyncio", redis_process, operation_name="stamps")
        assert answer == await fresh.get_or_compute("question", calls)
    assert 3 == calls.made
    assert "newer" == await second.get_or_compute("question", calls)


@pytest.mark.promise("C8")
async def test_a_call_under_way_elsewhere_is_not_kept(caches: Caches, redis_process: RedisProcess) -> None:
    """It began before the invalidation: its caller gets the answer, and nobody after."""
    go_on = asyncio.Event()
    calls = Calls("new")

    async def slow() -> str:
        await go_on.wait()
        return "old"

    first, second = (caches("asyncio", redis_process, operation_name="under way") for _ in range(2))
    asked = asyncio.create_task(first.get_or_compute("question", slow))
    await asyncio.sleep(0.2)
    await second.invalidate("question")
    await asyncio.sleep(0.2)
    go_on.set()
    assert "old" == await asked
    assert "new" == await first.get_or_compute("question", calls)
    assert "new" == await second.get_or_compute("question", calls)
    assert 1 == calls.made
