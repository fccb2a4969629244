"""Reads share one connection, and an answer must never be taken for another's, whatever happens to the connection."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from observability_integration.caching.policy import CachePolicy
from tests.processes import RedisProcess
from tests.redis_caches import PATIENT, Caches, Calls, ask_server, caches

__all__ = ["caches"]

pytestmark = [
    pytest.mark.once,
    pytest.mark.unmeasured,
    # redis-py drops the transport of a connection that is cut under it, and Python says so when it is collected.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.needs_redis_package,
    pytest.mark.needs_redis_server,
    pytest.mark.promise("C3", "C5"),
]

_WAYS = ["url", "asyncio text"]
_KEYS = [f"key {number}" for number in range(300)]
_HASTY = CachePolicy(backend_budget_seconds=0.5, backend_retry_seconds=0.02, backend_retry_max_seconds=0.05)


async def written(caches: Caches, way: str, server: RedisProcess, operation: str) -> None:
    """Each key's value is the key."""
    writer = caches(way, server, operation_name=operation)
    for start in range(0, len(_KEYS), 50):
        await asyncio.gather(*(writer.get_or_compute(key, Calls(key)) for key in _KEYS[start : start + 50]))


async def read_all(caches: Caches, way: str, server: RedisProcess, operation: str, policy: CachePolicy) -> list[Any]:
    """What a process that has nothing in memory is served, all at once; a miss is shown as "made"."""
    reader = caches(way, server, operation_name=operation, policy=policy)
    await reader.get_or_compute("a connection for reads", Calls("is opened"))
    return await asyncio.gather(*(reader.get_or_compute(key, Calls("made")) for key in _KEYS))


@pytest.mark.parametrize("operation", ["chat", 5000 * "a long name"])
@pytest.mark.parametrize("way", _WAYS)
async def test_a_burst_is_served_each_its_own(
    way: str, operation: str, redis_process: RedisProcess, caches: Caches
) -> None:
    """Also where the commands do not fit the buffer of the socket, and one of them has to wait."""
    await written(caches, way, redis_process, operation)
    served = await read_all(caches, way, redis_process, operation, PATIENT)
    assert not {key: value for key, value in zip(_KEYS, served, strict=True) if value not in (key, "made")}
    assert len(_KEYS) // 2 < sum(value != "made" for value in served)


@pytest.mark.parametrize("way", _WAYS)
async def test_connections_that_break_under_reads(way: str, redis_process: RedisProcess, caches: Caches) -> None:
    """What a broken connection still owed is asked for again, or made; it is never another's."""
    await written(caches, way, redis_process, "chat")
    for _ in range(2 if way == "url" else 1):  # a client of one's own tries again for long
        reading = asyncio.create_task(read_all(caches, way, redis_process, "chat", _HASTY))
        while not reading.done():
            await asyncio.to_thread(ask_server, redis_process, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        served = await reading
        assert not {key: value for key, value in zip(_KEYS, served, strict=True) if value not in (key, "made")}
