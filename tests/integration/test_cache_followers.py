"""Who follows a leader in another process for as long as its call takes, and who only for a lease."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from observability_integration.caching import CachePolicy
from observability_integration.caching.flights.waiting import CallNode
from observability_integration.caching.shared import leases
from observability_integration.primitives import CachePrimitive
from observability_integration.telemetry import guard
from tests.processes import RedisProcess
from tests.redis_caches import Caches, caches

__all__ = ["caches"]

pytestmark = [
    pytest.mark.promise("C9"), pytest.mark.once, pytest.mark.unmeasured, pytest.mark.needs_redis_package,
    pytest.mark.needs_redis_server,
]  # fmt: skip

_LEASE_SECONDS = 0.3


class _Elsewhere(dict[str, CallNode]):
    """The leases of this process, as another process knows them: not at all."""

    def __setitem__(self, key: str, node: CallNode) -> None:
        """Keeps nothing."""


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each cache is in a process of its own."""
    monkeypatch.setattr(leases, "_leaders", _Elsewhere())


class Slow:
    """A call that takes several leases, and says which call it was."""

    def __init__(self, leases: float = 5.0) -> None:
        self.seconds = leases * _LEASE_SECONDS
        self.calls = 0

    async def call(self, _: str) -> str:
        self.calls += 1
        number = self.calls
        await asyncio.sleep(self.seconds)
        return str(number)

    async def stream(self, question: str) -> AsyncIterator[str]:
        yield "answer "
        yield await self.call(question)


def _made(caches: Caches, server: RedisProcess, slow: Slow, way: str, lease_seconds: float = _LEASE_SECONDS) -> Any:
    policy = CachePolicy(lease_seconds=lease_seconds, backend_budget_seconds=2.0)
    return caches(
        "asyncio", server, slow.call if way == "execute" else slow.stream, str, operation_name="slow", policy=policy
    )


async def _ask(cache: CachePrimitive[Any, Any], way: str) -> str:
    if way == "execute":
        return str(await cache.execute("q"))
    async with cache.stream("q") as chunks:
        return "".join([chunk async for chunk in chunks])


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("way", ["stream"])
async def test_callers_from_outside_of_all_calls_follow_to_the_end(
    way: str, caches: Caches, redis_process: RedisProcess
) -> None:
    """A stream is looked up in a task of its own; that is no call in which its reader stands."""
    slow = Slow()
    first, second = (_made(caches, redis_process, slow, way) for _ in range(2))
    answers = await asyncio.gather(_ask(first, way), _ask(second, way))
    assert 1 == slow.calls
    assert 1 == len(set(answers))


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("way", ["stream"])
async def test_a_task_that_outlives_its_call_follows_to_the_end(
    way: str, caches: Caches, redis_process: RedisProcess
) -> None:
    """A worker that the first cached call of a process has started serves all later ones."""
    slow, begun, worker = Slow(), asyncio.Event(), list[asyncio.Task[str]]()
    first, second = (_made(caches, redis_process, slow, way) for _ in range(2))

    async def starts_a_worker(_: str) -> str:
        async def work() -> str:
            await begun.wait()
            return await _ask(second, way)

        worker.append(asyncio.create_task(work()))
        return "started"

    await CachePrimitive(starts_a_worker, str).execute("q")
    leading = asyncio.create_task(_ask(first, way))
    while not slow.calls:
        await asyncio.sleep(0.01)
    begun.set()
    assert await leading == await worker[0]
    assert 1 == slow.calls


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize(("begun", "way"), [("inside of it", "execute"), ("outside, before it joins", "stream")])
async def test_what_a_call_with_a_lease_waits_for_follows_for_one_lease(
    way: str, begun: str, caches: Caches, redis_process: RedisProcess
) -> None:
    """The leader elsewhere may wait for that lease, which nothing here can see."""
    slow = Slow(12.0)
    first, second = (_made(caches, redis_process, slow, way) for _ in range(2))

    async def outer(_: str) -> str:
        return await _ask(second, way)

    leading = asyncio.create_task(_ask(first, way))
    while not slow.calls:
        await asyncio.sleep(0.01)
    follower = None
    if begun != "inside of it":
        follower = asyncio.create_task(_ask(second, way))
        await asyncio.sleep(2 * _LEASE_SECONDS)
        assert 1 == slow.calls
    policy = CachePolicy(lease_seconds=_LEASE_SECONDS, backend_budget_seconds=2.0)
    around = caches("asyncio", redis_process, outer, str, operation_name="around", policy=policy)
    inner = asyncio.create_task(around.execute("q"))
    while slow.calls == 1:
        assert not leading.done()
        await asyncio.sleep(0.01)
    assert (await leading)[-1] != str(await inner)[-1]
    assert follower is None or await follower == await inner


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize("way", ["execute"])
async def test_a_call_without_a_lease_follows_to_the_end(way: str, caches: Caches, redis_process: RedisProcess) -> None:
    """No other process can wait for a call that is cached in memory only."""
    slow = Slow()
    first, second = (_made(caches, redis_process, slow, way) for _ in range(2))

    async def outer(_: str) -> str:
        return await _ask(second, way)

    answers = await asyncio.gather(_ask(first, way), CachePrimitive(outer, str).execute("q"))
    assert 1 == slow.calls
    assert 1 == len(set(answers))


@pytest.mark.usefixtures("elsewhere")
async def test_a_longer_lease_that_is_renewed_is_left_alone(caches: Caches, redis_process: RedisProcess) -> None:
    """Processes of two releases, of which one has another knob: the leader is at work."""
    slow = Slow()
    first = _made(caches, redis_process, slow, "execute", 2 * _LEASE_SECONDS)
    second = _made(caches, redis_process, slow, "execute")
    leading = asyncio.create_task(_ask(first, "execute"))
    while not slow.calls:
        await asyncio.sleep(0.01)
    assert await leading == await _ask(second, "execute")
    assert 1 == slow.calls


@pytest.mark.parametrize("way", ["execute", "stream"])
async def test_a_call_that_holds_the_lease_it_asks_for(
    way: str, caches: Caches, redis_process: RedisProcess, metrics: Any, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    """Through another cache of the operation: counted and told of as where it asks the same cache."""
    monkeypatch.setattr(guard, "_warned", set())
    asked: list[str] = []

    async def call(question: str) -> str:
        asked.append(question)
        return "inner" if len(asked) > 1 else "outer " + await _ask(second, way)

    async def stream(question: str) -> AsyncIterator[str]:
        yield await call(question)

    slow = Slow()
    slow.call, slow.stream = call, stream  # type: ignore[method-assign]
    first, second = (_made(caches, redis_process, slow, way) for _ in range(2))
    async with asyncio.timeout(10.0):
        assert "outer inner" == await _ask(first, way)
    assert 1 == metrics("cache.bypasses", operation="slow", reason="reentrant")
    assert (1, 0) == (first.get_stats()["misses"], second.get_stats()["misses"])
    assert 1 == sum("waited for itself" in record.getMessage() for record in caplog.records)
