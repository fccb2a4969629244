"""Without the redis package a cache that was given a Redis works from memory, and says so once."""

from __future__ import annotations

import asyncio
import logging
import sys

import pytest

from observability_integration.caching.policy import CachePolicy
from observability_integration.primitives import CachePrimitive
from tests.scripts import run_script

pytestmark = [pytest.mark.each_environment, pytest.mark.promise("S10")]

_URL = "redis://user:hunter2@cache.internal:6379/0"
_BLOCKED = "import sys; sys.modules['redis'] = None"


@pytest.fixture
def redis_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    """Importing redis, or a part of it that is loaded already, fails as if it had never been installed."""
    loaded = {name for name in sys.modules if name.partition(".")[0] == "redis"}
    for name in {"redis", "redis.asyncio", "redis.asyncio.retry", "redis.backoff"} | loaded:
        monkeypatch.setitem(sys.modules, name, None)


@pytest.fixture
def cache(redis_absent: None, caplog: pytest.LogCaptureFixture) -> CachePrimitive[object, object]:
    """A cache that was told where Redis is."""
    return CachePrimitive(redis_url=_URL, operation_name="chat", cost_per_call=0.5)


def _warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    # The cache is made while the test is being set up, and caplog keeps that stage apart.
    records = [*caplog.get_records("setup"), *caplog.get_records("call")]
    return [record.getMessage() for record in records if record.levelno >= logging.WARNING]


async def test_values_are_kept_in_memory(cache: CachePrimitive[object, object]) -> None:
    """Hits, savings and invalidation are the same as with Redis, for one process."""
    calls: list[str] = []

    async def answer() -> dict[str, list[int]]:
        calls.append("made")
        return {"tokens": [1, 2]}

    assert [{"tokens": [1, 2]}] * 3 == [await cache.get_or_compute("prompt", answer) for _ in range(3)]
    assert 1 == len(calls)
    await cache.invalidate("prompt")
    assert {"tokens": [1, 2]} == await cache.get_or_compute("prompt", answer)
    await cache.clear()
    assert {"tokens": [1, 2]} == await cache.get_or_compute("prompt", answer)
    await cache.aclose()
    assert 3 == len(calls)
    assert {
        "operation": "chat",
        "hits": 2,
        "misses": 3,
        "total": 5,
        "hit_rate": 0.4,
        "cost_savings_usd": 1.0,
    } == cache.get_stats()


@pytest.mark.promise("C2")
async def test_equal_calls_are_made_once(cache: CachePrimitive[object, object]) -> None:
    """A stampede must not reach the provider just because a package is missing."""
    calls: list[str] = []
    go_on = asyncio.Event()

    async def answer() -> str:
        calls.append("made")
        await go_on.wait()
        return "answer"

    asked = [asyncio.create_task(cache.get_or_compute("prompt", answer)) for _ in range(50)]
    await asyncio.sleep(0)
    go_on.set()
    assert ["answer"] * 50 == await asyncio.gather(*asked)
    assert 1 == len(calls)


async def test_one_warning_names_the_package_and_how_to_get_it(
    cache: CachePrimitive[object, object], caplog: pytest.LogCaptureFixture
) -> None:
    """Somebody who believes that Redis is in use must learn otherwise, but not on every call, nor with the password."""
    for number in range(20):
        assert number == await cache.get_or_compute(number, lambda number=number: number)
    (warning,) = _warnings(caplog)
    assert "'chat'" in warning
    assert "redis is not installed" in warning
    assert "pip install redis" in warning
    assert "memory" in warning
    assert "hunter2" not in warning


def test_the_chain_shows_that_memory_is_all_there_is(cache: CachePrimitive[object, object]) -> None:
    """`describe()` is where one looks when hits do not cross processes."""
    assert "cache chat (ttl 3600s, memory)" in cache.describe()


@pytest.mark.promise("C6")
async def test_memory_is_bounded(redis_absent: None) -> None:
    """What was to be shared by a Redis of many gigabytes now lives in the process, and must not fill it."""
    cache: CachePrimitive[object, object] = CachePrimitive(redis_url=_URL, policy=CachePolicy(max_entries=3))
    for number in range(10):
        await cache.get_or_compute(number, lambda number=number: number)
    for number in range(10):
        await cache.get_or_compute(9 - number, lambda number=number: number)
    assert (3, 17) == (cache.get_stats()["hits"], cache.get_stats()["misses"])


def test_a_whole_process_without_redis() -> None:
    """Nothing of the package may import redis on the way to a cache, with a store of the user's own or without one."""
    printed = run_script(
        f"""
        {_BLOCKED}
        import asyncio
        from observability_integration.primitives import CachePrimitive

        class Backend:
            def __init__(self):
                self.kept = {{}}
            async def get(self, key):
                return self.kept.get(key)
            async def set(self, key, value, ttl_milliseconds):
                self.kept[key] = value
            async def delete(self, *keys):
                for key in keys:
                    self.kept.pop(key, None)
            async def clear(self, prefix):
                self.kept.clear()
            async def aclose(self):
                pass

        async def main():
            shared = Backend()
            for kwargs in {{"redis_url": "{_URL}"}}, {{"backend": shared}}, {{"backend": shared}}, {{}}:
                cache = CachePrimitive(**kwargs)
                for _ in range(2):
                    assert "answer" == await cache.get_or_compute("prompt", lambda: "answer")
                print(cache.get_stats()["hits"])
                await cache.aclose()

        asyncio.run(main())
        print(sys.modules["redis"])
        """
    )
    assert ["1", "1", "2", "1", "None"] == printed.split()


@pytest.mark.needs_redis_package
def test_the_package_is_imported_only_where_a_url_asks_for_it() -> None:
    """Importing redis takes longer than all of this package: who does not use it must not pay for it."""
    printed = run_script(
        """
        import sys
        from observability_integration.primitives import CachePrimitive
        CachePrimitive()
        print("redis" in sys.modules)
        CachePrimitive(redis_url="redis://127.0.0.1:1/0")
        print("redis" in sys.modules)
        """
    )
    assert ["False", "True"] == printed.split()
