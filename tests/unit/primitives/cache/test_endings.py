"""Every ending of a producer reaches every caller that joined it, as that ending or as a call of the caller's own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest

from observability_integration.caching import CachePolicy
from observability_integration.errors import StreamInterruptedError
from observability_integration.primitives import CachePrimitive
from observability_integration.testing import FakeClockLoop
from tests.cache_doubles import Server, clocks_of_the_loop

LOOP_FACTORY = FakeClockLoop

pytestmark = [pytest.mark.once, pytest.mark.promise("C14")]

ANSWER = ["the ", "answer"]


@pytest.fixture(autouse=True)
def clocks() -> Iterator[None]:
    with clocks_of_the_loop():
        yield


class Producer:
    """Answers the first call; the second one ends as `ending` says; all later ones answer again.

    Args:
        ending: what the call under test does after a second: an exception to raise before or after a chunk, and so on.
        plain: whether the first call already is the one under test.
    """

    def __init__(self, ending: str, *, plain: bool) -> None:
        self.ending = ending
        self.plain = plain
        self.calls = 0

    async def stream(self, key: str) -> AsyncIterator[str]:
        self.calls += 1
        if self.calls != (1 if self.plain else 2):
            for chunk in ANSWER:
                yield chunk
            return
        await asyncio.sleep(1.0)
        if self.ending == "error":
            raise ConnectionError("down")
        if self.ending == "stop":
            await anext(empty())
        if self.ending == "hang":
            await asyncio.sleep(1_000.0)
        if self.ending == "cancel itself":
            raise asyncio.CancelledError
        if self.ending == "no chunk":
            return
        yield ANSWER[0]
        if self.ending == "error after a chunk":
            raise ConnectionError("cut")
        if self.ending == "hang after a chunk":
            await asyncio.sleep(1_000.0)
        yield ANSWER[1]

    async def call(self, key: str) -> str:
        return "".join([chunk async for chunk in self.stream(key)])


async def empty() -> AsyncIterator[Any]:
    return
    yield


async def read(cache: CachePrimitive[Any, Any]) -> Any:
    async with cache.stream("q") as chunks:
        return [chunk async for chunk in chunks]


async def execute(cache: CachePrimitive[Any, Any]) -> Any:
    return [*await cache.execute("q")]


ENDINGS = [
    "value",
    "no chunk",
    "error",
    "stop",
    "hang",
    "cancel itself",
    "error after a chunk",
    "hang after a chunk",
]
JOINS = ["a call", "a refresh that is not yet due", "a refresh, when the old value is too old", "of another cache"]


@pytest.mark.parametrize("ending", ENDINGS)
@pytest.mark.parametrize("join", JOINS)
@pytest.mark.parametrize("way", ["stream", "execute"])
async def test_endings_reach_all_who_joined(way: str, join: str, ending: str) -> None:
    """A whole answer, or an error: an empty or a half one is an answer only if the producer ended with it."""
    producer = Producer(ending, plain="call" in join)
    policy = CachePolicy(
        stale_while_revalidate_seconds=5.0, background_seconds=8.0, ttl_jitter=0.0, lease_seconds=2.0, max_entries=100
    )
    server = Server()

    def make() -> CachePrimitive[Any, Any]:
        step: Any = producer.stream if way == "stream" else producer.call
        backend: Any = server.store() if join == "of another cache" else None
        return CachePrimitive(step, str, ttl_seconds=1.0, policy=policy, backend=backend, operation_name="answers")

    first, second = make(), None
    second = make() if join == "of another cache" else first
    look = read if way == "stream" else execute
    if not producer.plain:
        assert [*"".join(ANSWER)] == [*"".join(await look(first))]
        await asyncio.sleep(2.0)
        await look(first)  # stale: begins the refresh
        if "too old" in join:
            await asyncio.sleep(4.5)  # longer than the stale window, and the refresh may still run
            producer_is_running = ending.startswith("hang")
            assert producer_is_running or producer.calls >= 2
    async with asyncio.timeout(3_000.0):
        joined = [asyncio.create_task(look(cache)) for cache in (first, second) for _ in range(2)]
        outcomes = await asyncio.gather(*joined, return_exceptions=True)
    await asyncio.sleep(1_100.0)
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            assert isinstance(outcome, ConnectionError | StreamInterruptedError | RuntimeError | asyncio.CancelledError)
            assert ending not in ("value", "no chunk")
        else:
            whole = "".join(outcome) == "".join(ANSWER)
            assert whole or (ending == "no chunk" and outcome == []), (outcome, producer.calls)
    await first.aclose()
    await second.aclose()


@pytest.mark.parametrize("stale_if_error", [0.0, 100.0])
async def test_readers_of_a_failed_refresh_look_again(stale_if_error: float) -> None:
    """As the followers of a call do: the call is made again, and its failure may still be covered by the old stream."""
    calls = 0

    async def call(key: str) -> AsyncIterator[str]:
        nonlocal calls
        calls += 1
        if calls > 1:
            await asyncio.sleep(3.0)
            raise ConnectionError
        yield "old"

    policy = CachePolicy(
        stale_while_revalidate_seconds=1.0,
        stale_if_error_seconds=stale_if_error,
        stale_if_error_throttle_seconds=0.0,
        ttl_jitter=0.0,
    )
    cache = CachePrimitive(call, str, ttl_seconds=1.0, policy=policy)
    assert ["old"] == await read(cache)
    await asyncio.sleep(1.5)
    assert ["old"] == await read(cache)
    await asyncio.sleep(1.0)  # too old to be served at once, and the refresh still runs
    outcomes = await asyncio.gather(read(cache), read(cache), return_exceptions=True)
    if stale_if_error:
        assert [["old"], ["old"]] == outcomes
    else:
        assert [ConnectionError, ConnectionError] == [type(outcome) for outcome in outcomes]
    assert 3 == calls, "one call of the readers' own, for all of them"


async def test_a_reader_with_a_deadline_leaves_a_refresh_in_time() -> None:
    """Looking again is no way around the deadline."""
    producer = Producer("error", plain=False)
    policy = CachePolicy(stale_while_revalidate_seconds=0.3, ttl_jitter=0.0)
    cache = CachePrimitive(producer.stream, str, ttl_seconds=0.1, policy=policy)
    await read(cache)
    await asyncio.sleep(0.2)
    await read(cache)
    await asyncio.sleep(0.4)
    from observability_integration.context import Deadline, set_deadline

    set_deadline(Deadline.after(0.1))
    with pytest.raises(TimeoutError):
        await read(cache)
    await asyncio.sleep(5.0)
