"""No call waits for a call that waits for it: it makes its own."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import types
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from observability_integration.caching import CachePolicy
from observability_integration.caching.flights import waiting
from observability_integration.primitives import CachePrimitive
from observability_integration.testing import FakeClockLoop

LOOP_FACTORY = FakeClockLoop

pytestmark = [pytest.mark.once, pytest.mark.promise("C2")]

Ask = Callable[[str], Awaitable[str]]


class Caches:
    """Two caches whose calls ask them again, each by one of three ways.

    Args:
        way: ``execute``, ``stream`` or ``get_or_compute``.
        plan: for each call, by its number from 1: the questions that it asks on the way, as pairs of cache and key.
    """

    def __init__(self, way: str, plan: dict[int, list[tuple[str, str]]]) -> None:
        self.way = way
        self.plan = plan
        self.calls: list[str] = []
        self.pause: float | None = 0.0
        self._caches: dict[str, CachePrimitive[Any, Any]] = {}
        for name in "ab":
            step: Any = self._answer if way == "execute" else self._chunks
            if way == "get_or_compute":
                self._caches[name] = CachePrimitive(operation_name=name)
            else:
                self._caches[name] = CachePrimitive(step(name), lambda key: key, operation_name=name)

    def _answer(self, name: str) -> Ask:
        async def answer(key: str) -> str:
            return await self._made(name, key)

        return answer

    def _chunks(self, name: str) -> Callable[[str], AsyncIterator[str]]:
        async def chunks(key: str) -> AsyncIterator[str]:
            yield "<"
            yield await self._made(name, key)
            yield ">"

        return chunks

    async def _made(self, name: str, key: str) -> str:
        self.calls.append(name + key)
        number = len(self.calls)
        if self.pause is not None:
            await asyncio.sleep(self.pause)
        inner = [await self.ask(*asked) for asked in self.plan.get(number, ())]
        return f"{name}{key}({' '.join(inner)})"

    async def ask(self, name: str, key: str) -> str:
        cache = self._caches[name]
        if self.way == "execute":
            return str(await cache.execute(key))
        if self.way == "get_or_compute":
            return str(await cache.get_or_compute(key, lambda: self._made(name, key)))
        async with cache.stream(key) as chunks:
            return "".join([chunk async for chunk in chunks]).strip("<>")

    def stats(self) -> list[Any]:
        return [cache.get_stats() for cache in self._caches.values()]


WAYS = ["execute", "stream", "get_or_compute"]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("plan", "answer"),
    [
        ({1: [("a", "x")]}, "ax(ax())"),
        ({1: [("a", "x")], 2: [("a", "x")]}, "ax(ax(ax()))"),
        ({1: [("b", "x")], 2: [("a", "x")]}, "ax(bx(ax()))"),
        ({1: [("a", "y")], 2: [("a", "z")], 3: [("a", "x")]}, "ax(ay(az(ax())))"),
        ({1: [("a", "y"), ("a", "x")]}, "ax(ay() ax())"),
        ({1: [("a", "y")], 2: [("b", "x")], 3: [("a", "y")]}, "ax(ay(bx(ay())))"),
    ],
    ids=["itself", "itself twice", "through another cache", "in a circle", "after another", "in an inner circle"],
)
async def test_a_call_that_asks_for_itself(
    way: str, plan: dict[int, list[tuple[str, str]]], answer: str, metrics: Any
) -> None:
    """A recursion without a cache would be made; with one it is made too, beside the cache, and counted as such."""
    caches = Caches(way, plan)
    async with asyncio.timeout(60.0):
        assert answer == await caches.ask("a", "x")
        assert answer == await caches.ask("a", "x")  # the outer answer has been kept
    bypasses = sum(metrics("cache.bypasses", operation=name, reason="reentrant") or 0 for name in "ab")
    assert len(caches.calls) - len(set(caches.calls)) == bypasses


@pytest.mark.parametrize("way", WAYS)
async def test_two_calls_that_wait_for_each_other(way: str) -> None:
    """The second of the two waits closes the circle, so it is not made."""
    caches = Caches(way, {1: [("a", "y")], 2: [("a", "x")]})
    caches.pause = 1.0
    async with asyncio.timeout(60.0):
        answers = await asyncio.gather(caches.ask("a", "x"), caches.ask("a", "y"))
    assert sorted(["ax", "ay"]) == sorted({call[:2] for call in caches.calls})
    assert all("ax" in answer and "ay" in answer for answer in answers) or 3 == len(caches.calls)


@pytest.mark.parametrize("way", WAYS)
async def test_from_tasks_of_the_call(way: str) -> None:
    """Tasks inherit where they were started: three at once, of which each asks for the call that waits for them."""
    caches = Caches(way, {})
    asked = 0

    async def made(name: str, key: str) -> str:
        nonlocal asked
        caches.calls.append(name + key)
        if asked:
            return "inner"
        asked += 1
        return " ".join(await asyncio.gather(*(asyncio.create_task(caches.ask("a", "x")) for _ in range(3))))

    caches._made = made  # type: ignore[method-assign]
    async with asyncio.timeout(60.0):
        assert "inner inner inner" == await caches.ask("a", "x")


@pytest.mark.parametrize("way", WAYS)
async def test_others_still_share_one_call(way: str) -> None:
    """Callers from outside, and calls that wait in no circle, are not led around the cache."""
    caches = Caches(way, {1: [("b", "y")], 2: [("b", "y")]})
    caches.pause = 1.0
    async with asyncio.timeout(60.0):
        await asyncio.gather(*(caches.ask("a", key) for key in "xxzz"))
    assert ["ax", "az", "by"] == sorted(caches.calls)


async def test_a_task_that_outlives_the_call() -> None:
    """It is inside of a call that is over, which no other can wait for: it joins like any caller."""
    started, calls = asyncio.Event(), 0
    later: list[asyncio.Task[Any]] = []

    async def outer(key: str) -> str:
        async def ask_later() -> Any:
            await started.wait()
            return await inner.execute("y")

        later.append(asyncio.create_task(ask_later()))
        return "outer"

    async def slow(key: str) -> int:
        nonlocal calls
        calls += 1
        started.set()
        await asyncio.sleep(1.0)
        return calls

    cache, inner = CachePrimitive(outer, str), CachePrimitive(slow, str, operation_name="inner")
    assert "outer" == await cache.execute("x")
    assert [1, 1] == await asyncio.gather(inner.execute("y"), later[0])


async def test_a_refresh_that_asks_for_itself() -> None:
    """A background refresh is joined once the old value is too old, also by the code inside of it."""
    depth = 0

    async def call(key: str) -> AsyncIterator[str]:
        nonlocal depth
        depth += 1
        yield f"{depth}"
        if depth == 2:
            for _ in range(2):
                await asyncio.sleep(0)
            async with cache.stream(key) as chunks:
                yield "".join([chunk async for chunk in chunks])

    policy = CachePolicy(stale_while_revalidate_seconds=100.0, ttl_jitter=0.0)
    cache = CachePrimitive(call, str, ttl_seconds=1e-6, policy=policy)
    async with asyncio.timeout(60.0):
        for _ in range(4):
            async with cache.stream("x") as chunks:
                [chunk async for chunk in chunks]
            await asyncio.sleep(1.0)
    assert depth >= 2


async def test_nothing_is_kept() -> None:
    """A background task of a call, and a context that it copied, keep neither the answer nor the flight alive."""

    class Answer:
        """An answer that can be referred to weakly."""

    ended = asyncio.Event()
    tasks = []

    async def call(key: str) -> Answer:
        tasks.append(asyncio.create_task(ended.wait()))
        return Answer()

    cache = CachePrimitive(call, str, policy=CachePolicy(max_bytes=1))
    answer: Any = await cache.execute("x")
    gone = weakref.ref(answer)
    del answer
    await asyncio.sleep(0)
    gc.collect()
    assert gone() is None
    ended.set()
    await asyncio.gather(*tasks)


def test_waits_are_undone() -> None:
    """Each wait of several at once for the same call is noted and undone by itself."""
    outer, inner = waiting.CallNode(), waiting.CallNode()

    async def nested() -> None:
        waiting.enter(outer)
        first, second = waiting.begin_wait(inner), waiting.begin_wait(inner)
        assert waiting.waits_for_itself(outer, inner)
        waiting.end_wait(first, inner)
        assert waiting.waits_for_itself(outer, inner)
        waiting.end_wait(second, inner)
        assert not waiting.waits_for_itself(outer, inner)

    asyncio.run(nested())
    assert waiting.current() is None
    assert waiting.begin_wait(inner) is None
    assert not waiting.waits_for_itself(inner, None)
    assert not waiting.waits_for_itself(None, inner)


def test_a_circle_of_others_ends_the_search() -> None:
    """Calls whose waits have been given up may still be noted as a circle for a moment."""
    one, other, outside = waiting.CallNode(), waiting.CallNode(), waiting.CallNode()
    one.waits_for.append(other)
    other.waits_for.append(one)
    assert not waiting.waits_for_itself(one, outside)


class _Done(asyncio.Future[Any]):
    def set_name(self, name: object) -> None:
        """As tasks have it."""


def _eager(loop: asyncio.AbstractEventLoop, work: Any, **options: Any) -> Any:
    """What the eager tasks of Python 3.12 do: the first step is made when the task is, in a context of its own."""
    context = options.pop("context", None) or contextvars.copy_context()
    try:
        first = context.run(work.send, None)
    except StopIteration as end:
        done = _Done(loop=loop)
        done.set_result(end.value)
        return done

    @types.coroutine
    def steps() -> Any:
        waited = first
        while True:
            if waited is not None:
                waited._asyncio_future_blocking = True
            try:
                yield waited
                waited = work.send(None)
            except StopIteration as end:
                return end.value

    async def rest() -> Any:
        return await steps()

    return asyncio.Task(rest(), loop=loop, context=context, **options)


@pytest.mark.parametrize("way", WAYS)
async def test_with_eager_tasks(way: str) -> None:
    """A call that begins before its caller can wait for it is known to be waited for all the same."""
    caches = Caches(way, {1: [("b", "x")], 2: [("a", "x")]})
    caches.pause = None
    loop = asyncio.get_running_loop()
    loop.set_task_factory(_eager)
    try:
        async with asyncio.timeout(60.0):
            assert "ax(bx(ax()))" == await caches.ask("a", "x")
    finally:
        loop.set_task_factory(None)
