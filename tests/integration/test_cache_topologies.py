"""The store on the ways in which people run Redis: clusters, masters found by Sentinel, Unix sockets."""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from observability_integration.caching.stores.redis import RedisStore
from observability_integration.caching.stores.shared import Generation, Place, Reading, Write
from tests.processes import RedisProcess, free_port, require_binary

pytestmark = [
    pytest.mark.once,
    pytest.mark.unmeasured,
    pytest.mark.needs_redis_package,
    pytest.mark.needs_redis_server,
    pytest.mark.promise("C4"),
]

_READY_SECONDS = 15.0
_LAST_CLUSTER_PORT = 65535 - 10000  # the nodes talk to each other on a port that is so much higher

Clients = Callable[[Any], Any]


class Servers:
    """Redis processes with whatever options; all are gone at the end."""

    def __init__(self, directory: Path) -> None:
        self._binary = require_binary("redis-server")
        self._directory = directory
        self._processes: list[subprocess.Popen[bytes]] = []

    def start(self, *options: str, config: str | None = None) -> int:
        """Starts one more, and returns its port when it answers."""
        port = free_port()
        while port > _LAST_CLUSTER_PORT:
            port = free_port()
        own = self._directory / str(port)
        own.mkdir()
        command = [self._binary]
        if config is not None:
            (own / "redis.conf").write_text(config)
            command.append(str(own / "redis.conf"))
        command += ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(own), "--save", "", *options]
        self._processes.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL))
        wait_until(lambda: ask(port, "PING") in (True, b"PONG"))
        return port

    def end(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()


def ask(port: int, *command: Any) -> Any:
    """What a server answers; None when it does not."""
    import redis

    with closing(redis.Redis(port=port, protocol=2)) as client:
        try:
            return client.execute_command(*command)
        except redis.RedisError:
            return None


def wait_until(true: Callable[[], bool]) -> None:
    """Waits for something that takes a moment."""
    give_up = time.monotonic() + _READY_SECONDS
    while not true():
        assert time.monotonic() < give_up
        time.sleep(0.05)


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    """Redis processes for this module."""
    servers = Servers(tmp_path_factory.mktemp("topologies"))
    yield servers
    servers.end()


@pytest.fixture(scope="module")
def cluster(servers: Servers) -> list[int]:
    """Two nodes that have half of the slots each."""
    options = ("--cluster-enabled", "yes", "--cluster-node-timeout", "2000")
    ports = [servers.start(*options) for _ in range(2)]
    ask(ports[0], "CLUSTER", "ADDSLOTSRANGE", 0, 8191)
    ask(ports[1], "CLUSTER", "ADDSLOTSRANGE", 8192, 16383)
    ask(ports[0], "CLUSTER", "MEET", "127.0.0.1", ports[1])

    def whole() -> bool:
        infos = [ask(port, "CLUSTER", "INFO") for port in ports]
        return all(b"cluster_state:ok" in info and b"cluster_known_nodes:2" in info for info in infos)

    wait_until(whole)
    return ports


@pytest.fixture(scope="module")
def sentinel(servers: Servers) -> int:
    """A Sentinel that watches one master."""
    master = servers.start()
    config = f"sentinel monitor main 127.0.0.1 {master} 1\n"
    return servers.start("--sentinel", config=config)


@pytest.fixture
async def closing_at_end() -> AsyncIterator[Callable[[Any], Any]]:
    """Closes stores, and clients of either kind."""
    clients: list[Any] = []

    def keep(client: Any) -> Any:
        clients.append(client)
        return client

    yield keep
    for client in reversed(clients):
        closed = client.aclose() if hasattr(client, "aclose") else client.close()
        if closed is not None:
            await closed


async def check(store: RedisStore, prefix: str) -> None:
    """Goes through everything that the cache asks of a store."""
    place, notes, came = Place(prefix, "entry"), list[str](), asyncio.Event()

    def hear(note: str) -> None:
        notes.append(note.partition("\n")[0])
        came.set()

    async def heard(*expected: str) -> None:
        async with asyncio.timeout(10.0):
            while notes != list(expected):
                came.clear()
                await came.wait()

    async with asyncio.timeout(_READY_SECONDS):
        subscription = await store.listen(prefix, hear, lambda: None)
    await store.probe(prefix)
    leading = await store.acquire(place, "token", 5000, b"", ["u"])
    assert leading.leading
    assert leading.generation is not None
    write = Write(b"\xffdata", 5000, leading.generation, ["t", "u"])
    assert not (await store.acquire(place, "other", 5000, b"")).leading
    assert await store.renew(place, "token", 5000)
    assert "written" == await store.commit(place, "token", write, "set")
    assert Reading(b"\xffdata", leading.generation) == await store.read(place)
    assert await store.vouches(prefix, ["t", "u"], leading.generation)
    await store.void(prefix, "t", "tag", "origin")
    assert not await store.vouches(prefix, ["t", "u"], leading.generation)
    await store.delete(prefix, ["entry", "another"], ["delete", "also"], "origin")
    assert await store.put_late(place, write._replace(data=b"late", tags=["u"]), "late", "origin")
    await store.void(prefix, None, "clear", "origin")
    assert (await store.read(place)).generation is None
    await heard("set", "tag", "delete", "also", "late", "clear")
    await store.delete(prefix, ["entry"], ["at last"], "origin")
    await store.acquire(Place(prefix, "left behind"), "token", 5000, b"", ["t"])
    await subscription.aclose()


@pytest.mark.parametrize("kind", ["asyncio", "asyncio text", "sync", "sync text"])
async def test_a_cluster_serves_each_operation_from_one_node(
    cluster: list[int], closing_at_end: Clients, kind: str
) -> None:
    """The keys of an operation share a slot, and notes are heard on whichever node somebody listens."""
    import redis.asyncio.cluster
    import redis.cluster

    made: Any = redis.asyncio.cluster.RedisCluster if kind.startswith("asyncio") else redis.cluster.RedisCluster
    client = closing_at_end(made(host="127.0.0.1", port=cluster[0], decode_responses="text" in kind))
    store = RedisStore(client)
    # "{a}" is in slot 15495 and "{b}" in 3300: one on each node.
    for prefix in ("cache:{a}:", "cache:{b}:"):
        await check(store, prefix)
    for port, slot in zip(cluster, ("3300", "15495"), strict=True):
        assert (ask(port, "CLUSTER", "COUNTKEYSINSLOT", slot) or 0) >= 3


@pytest.mark.parametrize("kind", ["asyncio", "sync text"])
async def test_a_master_is_found_by_sentinel(sentinel: int, closing_at_end: Clients, kind: str) -> None:
    """Its address is asked for anew with each connection, that of the listener included."""
    import redis.asyncio.sentinel
    import redis.sentinel

    if kind == "asyncio":
        watch: Any = redis.asyncio.sentinel.Sentinel([("127.0.0.1", sentinel)])
        for one in watch.sentinels:
            closing_at_end(one)
    else:
        watch = redis.sentinel.Sentinel([("127.0.0.1", sentinel)])
    client = closing_at_end(watch.master_for("main", decode_responses="text" in kind))
    if kind == "asyncio":
        await client.ping()  # Sentinel's connections read the version of their package from the disk when they are made
    await check(RedisStore(client), f"cache:{{{kind}}}:")


@pytest.mark.parametrize("kind", ["asyncio", "sync", "url"])
async def test_a_unix_socket_is_as_good(servers: Servers, tmp_path: Path, closing_at_end: Clients, kind: str) -> None:
    """Its connections are of another class, with other options."""
    import redis.asyncio

    path = tmp_path / "socket"
    servers.start("--unixsocket", str(path))
    if kind == "url":
        await check(closing_at_end(RedisStore(url=f"unix://{path}", patience_seconds=2.0)), "cache:{a}:")
    else:
        made: Any = redis.asyncio.Redis if kind == "asyncio" else redis.Redis
        store = RedisStore(closing_at_end(made(unix_socket_path=str(path))))
        await check(closing_at_end(store), "cache:{a}:")


async def test_databases_are_kept_apart_and_notes_are_not(redis_server: RedisProcess, closing_at_end: Clients) -> None:
    """Publishing knows no databases; a note of another one names entries that nobody here has."""
    import redis.asyncio

    redis_server.flush()
    clients = [closing_at_end(redis.asyncio.Redis(port=redis_server.port, db=db)) for db in (0, 1)]
    first, second = (closing_at_end(RedisStore(client)) for client in clients)
    place = Place("cache:{a}:", "entry")
    write = Write(b"data", 5000, (await second.acquire(place, "token", 5000, b"")).generation or Generation(b"", 0))
    assert "written" == await second.commit(place, "token", write, "")
    assert (await first.read(place)).data is None
    await check(first, "cache:{a}:")
