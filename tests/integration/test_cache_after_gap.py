"""What memory holds after a gap in the messages of other processes: what may be void is asked for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from observability_integration.caching.policy import CachePolicy
from observability_integration.primitives import CachePrimitive
from tests.processes import RedisProcess
from tests.redis_caches import Caches, Calls, ask_server, caches

pytestmark = [
    pytest.mark.once,
    pytest.mark.needs_redis_package,
    pytest.mark.needs_redis_server,
    pytest.mark.promise("C8"),
]

__all__ = ["caches"]

_SOON_SECONDS = 5.0
_HASTY = CachePolicy(
    backend_budget_seconds=1.0, backend_retry_seconds=0.02, backend_retry_max_seconds=0.05, ttl_jitter=0.0
)

Cache = CachePrimitive[Any, Any]

_INVALIDATIONS: dict[str, Callable[[Cache], Awaitable[None]]] = {
    "key": lambda cache: cache.invalidate("question"),
    "tag": lambda cache: cache.invalidate(tag="a tag"),
    "clear": lambda cache: cache.clear(),
}


async def _soon(holds: Callable[[], bool]) -> None:
    give_up = time.monotonic() + _SOON_SECONDS
    while not holds():
        assert time.monotonic() < give_up
        await asyncio.sleep(0.01)


def _engine(cache: Cache) -> Any:
    return cache._engine


class _Gaps:
    """Counts the gaps of a cache that are over, and what came of them."""

    def __init__(self, cache: Cache) -> None:
        self.over = 0
        self.doubts = 0
        confirmation = _engine(cache)._confirmation
        catch_up, doubt = confirmation._catch_up, _engine(cache)._memory.doubt

        async def catching_up() -> None:
            await catch_up()
            self.over += 1

        def doubting() -> None:
            self.doubts += 1
            doubt()

        confirmation._catch_up = catching_up
        _engine(cache)._memory.doubt = doubting

    async def until(self, over: int) -> None:
        """Returns when so many are over."""
        await _soon(lambda: self.over >= over)


async def _ask(cache: Cache, calls: Calls) -> Any:
    return await cache.get_or_compute("question", calls, tags=["a tag"])


async def _listening(cache: Cache) -> None:
    await _soon(lambda: bool(_engine(cache)._channel.start()))


def _kill_listeners(server: RedisProcess) -> None:
    ask_server(server, "CLIENT", "KILL", "TYPE", "pubsub")


@pytest.mark.parametrize("way", ["asyncio", "sync", "url"])
@pytest.mark.parametrize("invalidation", list(_INVALIDATIONS))
async def test_what_was_invalidated_in_a_gap_is_void_when_it_is_over(
    caches: Caches, redis_process: RedisProcess, way: str, invalidation: str
) -> None:
    """Long before its TTL is over."""
    one, other = caches("asyncio", redis_process), caches(way, redis_process)
    gaps = _Gaps(other)
    assert ["old", "old"] == [await _ask(one, Calls("old")), await _ask(other, Calls())]
    await _listening(other)
    before = gaps.over
    await asyncio.to_thread(_kill_listeners, redis_process)
    await _INVALIDATIONS[invalidation](one)
    await gaps.until(before + 1)
    assert gaps.doubts == 1
    assert "new" == await _ask(other, Calls("new"))
    assert "new" == await _ask(other, Calls())


async def test_what_is_still_in_redis_is_read_once_after_a_gap(caches: Caches, redis_process: RedisProcess) -> None:
    """Something else was invalidated meanwhile, and it is not known what."""
    one, other = (caches("asyncio", redis_process) for _ in range(2))
    gaps = _Gaps(other)
    assert ["old", "old"] == [await _ask(one, Calls("old")), await _ask(other, Calls())]
    await _listening(other)
    before = gaps.over
    await asyncio.to_thread(_kill_listeners, redis_process)
    await one.invalidate("another")
    await gaps.until(before + 1)
    ask_server(redis_process, "CONFIG", "RESETSTAT")
    assert ["old"] * 3 == [await _ask(other, Calls()) for _ in range(3)]
    # The entry, and then its tag.
    assert 2 == ask_server(redis_process, "INFO", "commandstats")["cmdstat_mget"]["calls"]


async def test_a_gap_in_which_nothing_happened_costs_one_command(caches: Caches, redis_process: RedisProcess) -> None:
    """However much memory holds: Redis says how many invalidations there have been, and none was missed."""
    one, other = (caches("asyncio", redis_process) for _ in range(2))
    gaps = _Gaps(other)
    assert ["old", "old"] == [await _ask(one, Calls("old")), await _ask(other, Calls())]
    await _listening(other)
    await one.invalidate("another")
    await _soon(lambda: _engine(other)._channel._heard.number == 1)
    before = gaps.over
    ask_server(redis_process, "CONFIG", "RESETSTAT")
    await asyncio.to_thread(_kill_listeners, redis_process)
    await gaps.until(before + 1)
    assert 0 == gaps.doubts
    assert "old" == await _ask(other, Calls())
    # One for each of the two processes.
    assert 2 >= ask_server(redis_process, "INFO", "commandstats")["cmdstat_mget"]["calls"]


async def test_what_was_read_before_the_first_message_can_come_is_in_doubt(
    caches: Caches, redis_process: RedisProcess
) -> None:
    """Between the read and the beginning of the subscription there is a gap too."""
    one, other = (caches("asyncio", redis_process) for _ in range(2))
    assert "old" == await _ask(one, Calls("old"))
    gaps, channel = _Gaps(other), _engine(other)._channel
    start, channel.start = channel.start, lambda: False
    assert "old" == await _ask(other, Calls())
    await one.invalidate("question")
    channel.start = start
    await _listening(other)
    await gaps.until(1)
    assert "new" == await _ask(other, Calls("new"))


async def test_what_is_in_doubt_is_served_while_redis_is_away(caches: Caches, redis_process: RedisProcess) -> None:
    """As fresh as it was: an outage often follows a gap, and a second one the first."""
    one, other = (caches("asyncio", redis_process, policy=_HASTY) for _ in range(2))
    gaps = _Gaps(other)
    assert ["old", "old"] == [await _ask(one, Calls("old")), await _ask(other, Calls())]
    await _listening(other)
    before = gaps.over
    await asyncio.to_thread(_kill_listeners, redis_process)
    await one.invalidate("another")
    await gaps.until(before + 1)
    redis_process.kill()
    calls = Calls("new")
    assert ["old"] * 3 == [await _ask(other, calls) for _ in range(3)]
    await asyncio.to_thread(redis_process.restart)

    def back() -> bool:
        return bool(_engine(other)._tiers.shared.check())

    await _soon(back)
    assert "new" == await _ask(other, calls)  # Redis has lost what could confirm it


async def test_what_was_never_in_redis_keeps_its_ttl(caches: Caches, redis_process: RedisProcess) -> None:
    """Nothing can be known of it, and to make all such calls anew after each gap would cost more than it is worth."""
    one, other = (caches("asyncio", redis_process, ttl_seconds=1.0) for _ in range(2))
    gaps = _Gaps(other)
    started = time.monotonic()
    assert ("old",) == await _ask(other, Calls(("old",)))
    await _listening(other)
    before = gaps.over
    await asyncio.to_thread(_kill_listeners, redis_process)
    await one.invalidate("another")
    await gaps.until(before + 1)
    calls = Calls(("new",))
    while ("old",) == await _ask(other, calls):
        assert time.monotonic() - started < 1.0 + 0.5
        await asyncio.sleep(0.02)
    assert time.monotonic() - started > 0.8


async def test_one_in_doubt_is_asked_about_once(caches: Caches, redis_process: RedisProcess) -> None:
    """A hundred callers of one entry in doubt ask Redis once."""
    one, other = (caches("asyncio", redis_process) for _ in range(2))
    assert ["old", "old"] == [await _ask(one, Calls("old")), await _ask(other, Calls())]
    await _listening(other)
    _engine(other)._memory.doubt()
    ask_server(redis_process, "CONFIG", "RESETSTAT")
    assert ["old"] * 100 == await asyncio.gather(*(_ask(other, Calls()) for _ in range(100)))
    assert 1 == ask_server(redis_process, "INFO", "commandstats")["cmdstat_mget"]["calls"]
