"""What a process has invalidated reaches Redis when the process ends, or the log says that it has not."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from observability_integration.caching.policy import CachePolicy
from observability_integration.primitives import CachePrimitive
from tests.processes import RedisProcess, free_port
from tests.redis_caches import Caches, Calls, ask_server, caches

pytestmark = [
    pytest.mark.once,
    pytest.mark.needs_redis_package,
    pytest.mark.needs_redis_server,
    pytest.mark.promise("C11"),
]

__all__ = ["caches"]

_POLICY = CachePolicy(
    backend_budget_seconds=0.1, backend_retry_seconds=60.0, backend_retry_max_seconds=60.0, ttl_jitter=0.0
)
_LAST_SECONDS = 1.0
_LOST = "has not confirmed"

Cache = CachePrimitive[Any, Any]

_INVALIDATIONS: dict[str, Callable[[Cache], Awaitable[None]]] = {
    "key": lambda cache: cache.invalidate("question"),
    "tag": lambda cache: cache.invalidate(tag="a tag"),
    "clear": lambda cache: cache.clear(),
}


@pytest.fixture
async def away(redis_process: RedisProcess) -> AsyncIterator[RedisProcess]:
    """A Redis that is stopped during the test, and goes on at the end at the latest."""
    yield redis_process
    redis_process.resume()


def _lost(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if _LOST in record.getMessage()]


async def _ask(cache: Cache, calls: Calls) -> Any:
    return await cache.get_or_compute("question", calls, tags=["a tag"])


async def _done(server: RedisProcess) -> None:
    """Returns when the server has nothing left to read from connections that were closed meanwhile."""
    await asyncio.to_thread(ask_server, server, "PING")
    await asyncio.sleep(0.1)


@pytest.mark.parametrize("invalidation", list(_INVALIDATIONS))
@pytest.mark.parametrize("way", ["url", "asyncio", "sync"])
async def test_it_lies_in_the_socket_of_a_stopped_redis(
    away: RedisProcess, caches: Caches, caplog: pytest.LogCaptureFixture, way: str, invalidation: str
) -> None:
    """A stopped server does what it was sent when it goes on, although the process is gone by then."""
    cache = caches(way, away, operation_name="stopped", policy=_POLICY)
    assert "old" == await _ask(cache, Calls("old"))
    away.pause()
    await _INVALIDATIONS[invalidation](cache)
    began = time.monotonic()
    await cache.aclose()
    assert time.monotonic() - began < _LAST_SECONDS + 0.5
    assert 1 == len(_lost(caplog))  # it is not known here that it will arrive
    away.resume()
    await _done(away)
    assert "new" == await _ask(caches("asyncio", away, operation_name="stopped"), Calls("new"))


async def test_it_is_sent_at_last_where_redis_was_out_of_use(away: RedisProcess, caches: Caches) -> None:
    """The cache had given Redis up before; the connection that stands is used all the same."""
    cache = caches("asyncio", away, operation_name="given up", policy=_POLICY)
    await asyncio.gather(*(cache.get_or_compute(number, Calls("x")) for number in range(16)))
    assert "old" == await _ask(cache, Calls("old"))
    away.pause()
    await cache.get_or_compute("another", Calls("x"))
    assert not cache._engine._tiers.shared.in_use  # type: ignore[union-attr]
    await cache.invalidate("question")
    await cache.aclose()
    away.resume()
    await _done(away)
    assert "new" == await _ask(caches("asyncio", away, operation_name="given up"), Calls("new"))


async def test_it_is_made_up_for_where_redis_is_back_and_not_yet_found(
    away: RedisProcess, caches: Caches, caplog: pytest.LogCaptureFixture
) -> None:
    """The next probe would have been in a minute."""
    cache = caches("asyncio", away, operation_name="back", policy=_POLICY)
    assert "old" == await _ask(cache, Calls("old"))
    away.pause()
    await cache.get_or_compute("another", Calls("x"))
    for number in range(900):
        await cache.invalidate(number)
        if number < 50:
            await cache.invalidate(tag=str(number))
    await cache.invalidate("question")
    away.resume()
    await asyncio.to_thread(ask_server, away, "PING")
    await cache.aclose()
    assert [] == _lost(caplog)
    assert "new" == await _ask(caches("asyncio", away, operation_name="back"), Calls("new"))


async def test_what_cannot_be_delivered_is_told_once(
    redis_process: RedisProcess, caches: Caches, caplog: pytest.LogCaptureFixture
) -> None:
    """How many, what it means and what to do; nothing of what they are."""
    cache = caches("url", redis_process, operation_name="ask", policy=_POLICY)
    await _ask(cache, Calls("old"))
    redis_process.kill()
    for number in range(3):
        await cache.invalidate(f"secret {number}")
    await cache.invalidate(tag="secret")
    began = time.monotonic()
    await cache.aclose()
    await cache.aclose()
    assert time.monotonic() - began < 0.5
    (line,) = _lost(caplog)
    assert line.startswith("Cache 'ask': invalidations that the shared store has not confirmed: 4;")
    assert "clear the operation" in line
    assert "secret" not in caplog.text
    await cache.invalidate("one more")
    await cache.aclose()
    assert 2 == len(_lost(caplog))


async def test_a_silent_redis_holds_up_the_end_for_a_second_at_most(
    away: RedisProcess, caches: Caches, caplog: pytest.LogCaptureFixture
) -> None:
    """However much is due, and however long the budget is."""
    cache = caches("asyncio", away, operation_name="silent", policy=CachePolicy(backend_budget_seconds=5.0))
    away.pause()
    guard: Any = cache._engine._tiers.shared
    for number in range(1000):
        guard._pending.delete(str(number), "note")
    began = time.monotonic()
    await cache.aclose()
    assert _LAST_SECONDS <= time.monotonic() - began < _LAST_SECONDS + 0.5
    assert "confirmed: 1000;" in _lost(caplog)[0]


async def test_writes_are_dropped_in_silence(
    redis_process: RedisProcess, caches: Caches, caplog: pytest.LogCaptureFixture
) -> None:
    """It is only a cache."""
    cache = caches("asyncio", redis_process, operation_name="writes", policy=_POLICY)
    await _ask(cache, Calls("old"))
    redis_process.kill()
    for number in range(3):
        await cache.get_or_compute(number, Calls("x"))
    guard: Any = cache._engine._tiers.shared
    assert guard._pending
    await cache.aclose()
    assert [] == _lost(caplog)


def _lose_an_invalidation(port: int) -> Cache:
    """Returns a cache that was not closed."""

    async def work() -> Cache:
        cache: Cache = CachePrimitive(redis_url=f"redis://127.0.0.1:{port}/0", operation_name="dropped", policy=_POLICY)
        await cache.invalidate("secret")
        await cache.invalidate(tag="secret")
        return cache

    return asyncio.run(work())


def test_a_cache_that_is_dropped_says_so(caplog: pytest.LogCaptureFixture) -> None:
    """It was not closed."""
    cache = _lose_an_invalidation(free_port())
    assert [] == _lost(caplog)
    del cache
    gc.collect()
    (line,) = _lost(caplog)
    assert "'dropped'" in line
    assert "confirmed: 2;" in line


_SCRIPT = """
import os, sys
from tests.integration.test_cache_farewell import _lose_an_invalidation
cache = _lose_an_invalidation(int(sys.argv[1]))
if os.fork() == 0:
    raise SystemExit
os.wait()
"""


def test_an_interpreter_that_ends_says_so() -> None:
    """And a forked child, which has a copy of what is due, does not."""
    done = subprocess.run(
        [sys.executable, "-c", _SCRIPT, str(free_port())],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert 1 == done.stderr.count(_LOST)
    assert "secret" not in done.stderr


def test_the_line_is_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    """The operator has to act on it."""
    _lose_an_invalidation(free_port())
    gc.collect()
    assert [logging.WARNING] == [record.levelno for record in caplog.records if _LOST in record.getMessage()]
