"""The cache on a Redis Cluster, and on a master that a sentinel names: as on any server, also while they change."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from observability_integration.caching.policy import CachePolicy
from observability_integration.primitives import CachePrimitive
from tests.redis_caches import PATIENT, Calls
from tests.redis_cluster import RedisCluster
from tests.redis_sentinel import SERVICE, SentinelGroup

pytestmark = [
    # redis-py drops the transport of a connection attempt that is cancelled, and Python says so when it is collected.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.once,
    pytest.mark.unmeasured,
    pytest.mark.needs_redis_package,
    pytest.mark.needs_redis_server,
    pytest.mark.promise("C4", "C5"),
]

CLUSTERED = ["cluster, asyncio", "cluster, sync"]
WATCHED = ["sentinel, asyncio", "sentinel, sync"]
WAYS = [*CLUSTERED, "cluster, asyncio text", "cluster, sync text", *WATCHED]

# The defaults, but for the time after which the server is tried again: nobody wants to wait for a second here.
_EAGER = CachePolicy(backend_retry_seconds=0.05, backend_retry_max_seconds=0.2)
_KEYS = 12
_CALLERS = 8
_PAUSE_SECONDS = 0.005
_MOVES = 4
_ON_ITS_WAY_SECONDS = 0.05
_IN_USE_SECONDS = 20.0
_HEARD_SECONDS = 5.0

Caches = Callable[..., CachePrimitive[Any, Any]]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisCluster]:
    """For all tests of this module, whose operations have names of their own."""
    running = RedisCluster(tmp_path_factory.mktemp("cluster"))
    yield running
    running.stop()


@pytest.fixture(scope="module")
def sentinel(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SentinelGroup]:
    """The same, of a master and its replica."""
    running = SentinelGroup(tmp_path_factory.mktemp("sentinel"))
    yield running
    running.stop()


@pytest.fixture
async def caches(request: pytest.FixtureRequest) -> AsyncIterator[Caches]:
    """Makes caches, each through a client of its own as users make them; all are closed at the end."""
    made: list[CachePrimitive[Any, Any]] = []
    clients: list[Any] = []

    def make(way: str, operation: str, **kwargs: Any) -> CachePrimitive[Any, Any]:
        client, *others = _clients(way, request)
        clients.extend([client, *others])
        kwargs.setdefault("policy", PATIENT)
        made.append(CachePrimitive(redis_client=client, operation_name=f"{operation} ({way})", **kwargs))
        return made[-1]

    yield make
    for cache in made:
        await cache.aclose()
    for client in clients:
        closing = client.aclose() if hasattr(client, "aclose") else client.close()
        if inspect.isawaitable(closing):
            await closing
    # What was left open warns while the test is not over.
    made.clear()
    clients.clear()


def _clients(way: str, request: pytest.FixtureRequest) -> list[Any]:
    """The client for a cache, and those that it needs itself and does not close."""
    import redis.asyncio.cluster
    import redis.asyncio.sentinel
    import redis.sentinel
    from redis.driver_info import DriverInfo

    kind, _, style = way.partition(", ")
    package: Any = redis.asyncio if style.startswith("asyncio") else redis
    if kind == "cluster":
        port = request.getfixturevalue("cluster").port
        return [package.cluster.RedisCluster(host="127.0.0.1", port=port, decode_responses=style.endswith("text"))]
    address = request.getfixturevalue("sentinel").address
    # Else every connection reads the package's version from the disk when it is opened, inside the loop.
    driver_info = DriverInfo(lib_version=redis.__version__)
    sentinel = package.sentinel.Sentinel([address])
    return [sentinel.master_for(SERVICE, driver_info=driver_info), *sentinel.sentinels]


async def under_load(cache: CachePrimitive[Any, Any], change: Callable[[], Any]) -> None:
    """Has callers ask for a few keys over and over while something changes; a call that fails fails the test.

    What they ask for is forgotten in turn, so that it is read, computed and written all the time.
    """
    over = asyncio.Event()

    async def call(caller: int) -> None:
        asked = 0
        while not over.is_set():
            asked += 1
            key = (asked + caller) % _KEYS
            assert f"answer {key}" == await cache.get_or_compute(key, lambda key=key: _answer(key))
            if asked % _KEYS == caller:
                await cache.invalidate(key)
            await asyncio.sleep(_PAUSE_SECONDS)

    async with asyncio.TaskGroup() as group:
        for caller in range(_CALLERS):
            group.create_task(call(caller))
        await asyncio.to_thread(change)
        over.set()


async def _answer(key: int) -> str:
    await asyncio.sleep(_PAUSE_SECONDS)
    return f"answer {key}"


async def until_shared(cache: CachePrimitive[Any, Any], make_reader: Callable[[], CachePrimitive[Any, Any]]) -> None:
    """Goes on calling, as users do, until others have what this cache has computed, because its store is in use."""
    number = 0
    async with asyncio.timeout(_IN_USE_SECONDS):
        while True:
            number += 1
            await cache.get_or_compute(f"shared {number}", Calls("computed here"))
            await asyncio.sleep(_PAUSE_SECONDS)
            if "computed here" == await make_reader().get_or_compute(f"shared {number}", Calls("computed there")):
                return


# When all is well -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
async def test_what_one_process_has_computed_another_has(way: str, caches: Caches) -> None:
    """The reason for a shared store: values of every kind that JSON holds are there, whoever wrote them."""
    writer, reader = caches(way, "shared"), caches(way, "shared")
    values = ["text", "ünïcödé 🎈", None, 0.1, [{"role": "assistant"}, [1, True]], "long " * 20_000]
    for key, value in enumerate(values):
        assert value == await writer.get_or_compute(key, Calls(value))
    unneeded = Calls("never")
    assert values == [await reader.get_or_compute(key, unneeded) for key in range(len(values))]
    assert 0 == unneeded.made


@pytest.mark.parametrize("everything", [False, True])
@pytest.mark.parametrize("way", WAYS)
async def test_what_is_forgotten_is_forgotten_by_all(way: str, everything: bool, caches: Caches) -> None:
    """One entry or all of them: on a cluster the keys may be on different nodes, and no node may be left out."""
    operation = f"forgotten {everything}"
    writer = caches(way, operation)
    for key in range(_KEYS):
        await writer.get_or_compute(key, Calls("old"))
    await (writer.clear() if everything else writer.invalidate(0))
    for cache in (caches(way, operation), writer):
        assert "new" == await cache.get_or_compute(0, Calls("new"))
        kept = [await cache.get_or_compute(key, Calls("new")) for key in range(1, _KEYS)]
        assert ["new" if everything else "old"] * (_KEYS - 1) == kept


@pytest.mark.parametrize("way", WAYS)
async def test_what_is_forgotten_is_forgotten_in_every_memory(way: str, caches: Caches) -> None:
    """Nodes of a cluster pass on what is published: a process hears of it, whichever of them it listens to."""
    here, there = caches(way, "heard"), caches(way, "heard")
    async with asyncio.timeout(_HEARD_SECONDS):
        for number in itertools.count():
            for cache in (here, there):
                assert number <= await cache.get_or_compute("key", Calls(number))
            await here.invalidate("key")
            await asyncio.sleep(_PAUSE_SECONDS)
            if "heard" == await there.get_or_compute("key", Calls("heard")):
                return
            await there.invalidate("key")  # it was not listening yet


@pytest.mark.parametrize("way", CLUSTERED)
async def test_an_operation_has_its_keys_in_one_slot(way: str, caches: Caches, cluster: RedisCluster) -> None:
    """What has to happen at once, an entry and its lease say, can happen only within one slot."""
    cluster.flush()
    cache = caches(way, "slots", scope="one tenant")
    for key in range(_KEYS):
        await cache.get_or_compute(key, Calls("answer"))
    await cache.clear()
    await caches(way, "slots", scope="another").get_or_compute("key", Calls("answer"))
    keys = cluster.all_keys()
    assert _KEYS < len(keys)
    assert 1 == len({cluster.slot_of(key) for key in keys})


@pytest.mark.promise("C2")
@pytest.mark.parametrize("way", WAYS)
async def test_equal_calls_of_two_processes_are_made_once(way: str, caches: Caches) -> None:
    """The leases work wherever the values do."""
    made = 0

    async def compute() -> str:
        nonlocal made
        made += 1
        await asyncio.sleep(0.1)
        return "answer"

    each = [caches(way, "once") for _ in range(3)]
    assert ["answer"] * 3 == await asyncio.gather(*(cache.get_or_compute("key", compute) for cache in each))
    assert 1 == made


# While it changes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", CLUSTERED)
async def test_a_slot_that_moves_harms_no_call(way: str, caches: Caches, cluster: RedisCluster) -> None:
    """Clusters are scaled while they are used: every call is answered, and the store is in use afterwards."""
    cluster.flush()
    cache = caches(way, "moving", policy=_EAGER)
    await until_shared(cache, lambda: caches(way, "moving"))

    def change() -> None:
        for _ in range(_MOVES):
            key = next((key for key in cluster.all_keys() if "moving" in key), "none")
            with cluster.moving_slot(key):
                time.sleep(_ON_ITS_WAY_SECONDS)

    await under_load(cache, change)
    await until_shared(cache, lambda: caches(way, "moving"))


@pytest.mark.parametrize("way", CLUSTERED)
async def test_entries_move_with_their_slot(way: str, caches: Caches, cluster: RedisCluster) -> None:
    """A client that still knows the old node is sent to the new one, and finds there what it had written."""
    cluster.flush()
    cache = caches(way, "moved", policy=replace(PATIENT, max_entries=1))
    for key in range(_KEYS):
        await cache.get_or_compute(key, Calls("answer"))
    for entry in {cluster.slot_of(key): key for key in cluster.all_keys()}.values():
        await asyncio.to_thread(cluster.move_slot, entry)
    unneeded = Calls("never")
    assert ["answer"] * _KEYS == [await cache.get_or_compute(key, unneeded) for key in range(_KEYS)]
    assert 0 == unneeded.made


@pytest.mark.parametrize("way", WATCHED)
async def test_a_failover_harms_no_call(way: str, caches: Caches, sentinel: SentinelGroup) -> None:
    """A master is replaced while it is used: every call is answered, and the new one is used without a restart."""
    cache = caches(way, "failing over", policy=_EAGER)
    await until_shared(cache, lambda: caches(way, "failing over"))
    before = sentinel.master.port
    await under_load(cache, sentinel.failover)
    assert before != sentinel.master.port
    await until_shared(cache, lambda: caches(way, "failing over"))
