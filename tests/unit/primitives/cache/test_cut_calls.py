"""A call that is cut by the cache, or by its last reader, is no answer: not for those who joined it, nor for later."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from observability_integration.caching import CachePolicy
from observability_integration.caching.shared import leases
from observability_integration.primitives import CachePrimitive
from observability_integration.testing import FakeClockLoop
from tests.scripts import run_script

LOOP_FACTORY = FakeClockLoop

pytestmark = [pytest.mark.once, pytest.mark.promise("C14"), pytest.mark.usefixtures("clocks")]

ENDS = ["at once", "late", "as if it were whole", "with an error"]


class Source:
    """Answers with the number of the call; one of the calls hangs, and ends in some way when it is cancelled.

    Args:
        end: how the call ends that hangs.
        hangs: which call hangs.
        first: whether it yields a chunk before.
    """

    def __init__(self, end: str, *, hangs: int, first: bool = False) -> None:
        self.end = end
        self.hangs = hangs
        self.first = first
        self.calls = 0

    async def stream(self, _: str) -> AsyncIterator[str]:
        self.calls += 1
        number = self.calls
        if number == self.hangs:
            if self.first:
                yield "begun"
            try:
                await asyncio.sleep(1_000.0)
            except asyncio.CancelledError:
                if self.end != "at once":
                    await asyncio.sleep(1.0)
                if self.end == "as if it were whole":
                    return
                if self.end == "with an error":
                    raise ConnectionError("the clean-up has failed") from None
                raise
        yield f"answer {number}"

    async def call(self, question: str) -> str:
        return "".join([chunk async for chunk in self.stream(question)])


async def ask(cache: CachePrimitive[Any, Any], way: str) -> str:
    if way == "execute":
        return str(await cache.execute("q"))
    async with cache.stream("q") as chunks:
        return "".join([chunk async for chunk in chunks])


@pytest.mark.parametrize("way", ["execute", "stream"])
@pytest.mark.parametrize("end", ENDS)
async def test_a_refresh_that_is_cut_is_no_answer(way: str, end: str) -> None:
    """Those who joined it make one call of their own, which is kept; what the refresh left behind is not."""
    source = Source(end, hangs=2)
    policy = CachePolicy(stale_while_revalidate_seconds=1.0, background_seconds=8.0, ttl_jitter=0.0)
    cache = CachePrimitive(source.call if way == "execute" else source.stream, str, ttl_seconds=10.0, policy=policy)
    assert "answer 1" == await ask(cache, way)
    await asyncio.sleep(10.5)
    assert "answer 1" == await ask(cache, way)  # stale: begins the refresh
    await asyncio.sleep(1.0)  # too old to be served
    async with asyncio.timeout(60.0):
        assert ["answer 3"] * 3 == await asyncio.gather(*(ask(cache, way) for _ in range(3)))
    assert "answer 3" == await ask(cache, way)
    assert 3 == source.calls


@pytest.mark.parametrize("first", [False, True], ids=["before a chunk", "after a chunk"])
@pytest.mark.parametrize("end", ENDS)
async def test_the_last_reader_takes_no_other_with_it(end: str, first: bool) -> None:
    """A reader that comes while the call of those who left is being closed has not left: it gets a whole answer."""
    source = Source(end, hangs=1, first=first)
    cache = CachePrimitive(source.stream, str)
    leaving = asyncio.create_task(ask(cache, "stream"))
    await asyncio.sleep(1.0)
    leaving.cancel()
    await asyncio.sleep(0)
    async with asyncio.timeout(60.0):
        assert ["answer 2"] * 2 == await asyncio.gather(ask(cache, "stream"), ask(cache, "stream"))
    await asyncio.wait([leaving])
    assert leaving.cancelled()
    assert "answer 2" == await ask(cache, "stream")
    assert 2 == source.calls


async def test_what_a_cut_call_returns_is_not_kept_without_waiters() -> None:
    """A call that ran too long in the background after its callers got a stale answer."""
    source = Source("as if it were whole", hangs=2)
    policy = CachePolicy(stale_if_error_seconds=100.0, soft_timeout_seconds=1.0, background_seconds=5.0, ttl_jitter=0.0)
    cache = CachePrimitive(source.call, str, ttl_seconds=10.0, policy=policy)
    await ask(cache, "execute")
    await asyncio.sleep(11.0)
    assert "answer 1" == await ask(cache, "execute")
    await asyncio.sleep(10.0)
    assert "answer 3" == await ask(cache, "execute")


@pytest.mark.promise("C9")
@pytest.mark.parametrize(
    ("looks", "over"),
    [
        ([(0.0, 900), (0.9, 1000), (1.8, 1001), (50.0, 0)], False),
        ([(0.0, -1), (0.5, -1), (1.0, -1)], True),
        ([(0.0, -1), (0.9, -1)], False),
        ([(0.0, 10**10), (1.0, 10**10 - 1000)], True),
        ([(0.0, 10**10), (1.0, 10**10 - 900)], True),  # the reply came late
        ([(0.0, 3000), (0.8, 2200), (1.0, 3000), (1.8, 2200), (2.0, 3000)], False),  # another knob, and renewed
        ([(0.0, 3000), (0.8, 2200), (1.0, 3000), (1.8, 2200), (2.1, 1900)], True),
        ([(0.0, -1), (0.9, 500), (1.5, -1)], False),  # another lease in between
        ([(0.0, 3000), (1.0, -1)], False),
        ([(0.0, 3000), (1.0, -1), (2.0, -1)], True),
    ],
)
def test_a_lease_is_ended_when_no_leader_renews_it(looks: list[tuple[float, int]], over: bool) -> None:
    """One within the length of a lease ends by itself; a longer one is followed while its end moves on."""
    endless = leases._Endless(1.0)
    assert over == [endless.is_over(left_ms, now) for now, left_ms in looks][-1]


def test_a_forked_child_leads_nothing() -> None:
    """The calls that held the leases go on in the parent, so the child waits for them as for those of any process."""
    code = """
    import os
    from observability_integration.caching.shared import leases

    leases._leaders["key"] = leases.CallNode()
    if child := os.fork():
        assert os.waitpid(child, 0)[1] == 0 and leases._leaders
    else:
        os._exit(bool(leases._leaders))
    """
    run_script(code)
