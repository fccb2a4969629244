"""The proxy, the cluster and the sentinel that other tests break do what those tests rely on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.processes import RedisProcess
from tests.redis_caches import ask_server
from tests.redis_cluster import SLOTS, RedisCluster
from tests.redis_sentinel import SERVICE, SentinelGroup
from tests.tcp_proxy import TcpProxy

pytestmark = [pytest.mark.once, pytest.mark.unmeasured, pytest.mark.needs_redis_server]

_DELAY_SECONDS = 0.1
_SILENCE_SECONDS = 0.1


class Client:
    """A connection that says PING."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def to(cls, proxy: TcpProxy) -> Client:
        return cls(*await asyncio.open_connection("127.0.0.1", proxy.port))

    async def ask(self) -> bytes:
        self._writer.write(b"PING\r\n")
        return await self.hear()

    async def hear(self) -> bytes:
        return await self._reader.read(64)

    async def aclose(self) -> None:
        self._writer.transport.abort()
        await asyncio.sleep(0)


@pytest.fixture
async def proxy(redis_server: RedisProcess) -> AsyncIterator[TcpProxy]:
    """In front of the server of the whole run."""
    async with TcpProxy(redis_server.port) as standing:
        yield standing


@pytest.fixture
async def client(proxy: TcpProxy) -> AsyncIterator[Client]:
    """A connection through the proxy, by which the server has been heard."""
    connected = await Client.to(proxy)
    assert b"+PONG\r\n" == await connected.ask()
    yield connected
    await connected.aclose()


async def test_a_delay_holds_in_each_direction_and_ends(proxy: TcpProxy, client: Client) -> None:
    """A slow network is slow both ways, also for connections that were open before, and some day it is quick again."""
    proxy.delay(_DELAY_SECONDS)
    started = time.monotonic()
    assert b"+PONG\r\n" == await client.ask()
    assert 2 * _DELAY_SECONDS <= time.monotonic() - started
    await proxy.pass_on()
    started = time.monotonic()
    assert b"+PONG\r\n" == await client.ask()
    assert time.monotonic() - started < _DELAY_SECONDS


@pytest.mark.parametrize("count", [0, 3, 8])
async def test_a_reply_is_cut_and_the_connection_reset(count: int, proxy: TcpProxy, client: Client) -> None:
    """A client must meet the first bytes of a reply and then an error, not the polite end of a connection."""
    proxy.cut_after(count)
    heard = []

    async def ask_on() -> None:
        while True:
            heard.append(await client.ask())
            assert heard[-1]  # an empty answer would be that polite end

    with pytest.raises(ConnectionResetError):
        await ask_on()
    assert b"+PONG\r\n+PONG\r\n"[:count] == b"".join(heard)
    await proxy.pass_on()
    again = await Client.to(proxy)
    assert b"+PONG\r\n" == await again.ask()
    await again.aclose()


async def test_what_is_swallowed_is_never_answered(proxy: TcpProxy, client: Client) -> None:
    """The silent server: connections are accepted and kept, and nothing comes; a mended one resets what is amiss."""
    proxy.swallow()
    second = await Client.to(proxy)
    waiting = [asyncio.create_task(each.ask()) for each in (client, second)]
    _, pending = await asyncio.wait(waiting, timeout=_SILENCE_SECONDS)
    assert set(waiting) == pending
    await proxy.pass_on()
    for each in waiting:
        with pytest.raises(ConnectionResetError):
            await each
    third = await Client.to(proxy)
    assert b"+PONG\r\n" == await third.ask()
    for connected in (second, third):
        await connected.aclose()


async def test_refused_is_refused_and_can_be_mended(proxy: TcpProxy, client: Client) -> None:
    """Old connections are reset, new ones refused, and the port is the same afterwards."""
    await proxy.refuse()
    with pytest.raises(ConnectionResetError):
        await client.hear()
    with pytest.raises(ConnectionRefusedError):
        await Client.to(proxy)
    await proxy.pass_on()
    again = await Client.to(proxy)
    assert b"+PONG\r\n" == await again.ask()
    await again.aclose()


async def test_a_server_that_is_gone_resets_its_clients(redis_process: RedisProcess) -> None:
    """The proxy must not keep a client waiting for a server that it cannot reach itself."""
    redis_process.kill()
    async with TcpProxy(redis_process.port) as proxy:
        client = await Client.to(proxy)
        with pytest.raises(ConnectionResetError):
            await client.ask()
        await client.aclose()


@pytest.mark.needs_redis_package
def test_a_slot_moves_and_clients_are_told(tmp_path: Path) -> None:
    """Clients of a cluster must meet ASK while a slot is on its way and MOVED afterwards, and no key may be lost."""
    import redis

    cluster = RedisCluster(tmp_path)
    try:
        slot = cluster.slot_of("{tag}")
        source = cluster.owner_of(slot)
        for name in "abcd":
            source.ask("SET", "{tag}" + name, name)
        with cluster.moving_slot("{tag}"):
            assert [2, 2] == sorted(node.ask("CLUSTER", "COUNTKEYSINSLOT", slot) for node in cluster.nodes)[1:]
            with pytest.raises(redis.exceptions.AskError):
                source.ask("GET", "{tag}absent")
        target = cluster.owner_of(slot)
        assert target is not source
        with pytest.raises(redis.exceptions.MovedError):
            source.ask("GET", "{tag}a")
        assert [b"a", b"b", b"c", b"d"] == [target.ask("GET", "{tag}" + name) for name in "abcd"]
        assert ["{tag}a", "{tag}b", "{tag}c", "{tag}d"] == cluster.all_keys()
        # Every slot has its owner, the last as well as the first.
        assert [0, 2] == [cluster.nodes.index(cluster.owner_of(each)) for each in (0, SLOTS - 1)]
        cluster.flush()
        assert [] == cluster.all_keys()
    finally:
        cluster.stop()


@pytest.mark.needs_redis_package
def test_a_sentinel_makes_the_replica_the_master(tmp_path: Path) -> None:
    """What was written is still there, clients are sent elsewhere, and those who stay are refused."""
    from redis import ReadOnlyError
    from redis.sentinel import Sentinel

    group = SentinelGroup(tmp_path)
    try:
        first = group.master
        ask_server(first, "SET", "key", "value")
        assert 1 == ask_server(first, "WAIT", 1, 5000)
        group.failover()
        second = group.master
        assert first.port != second.port
        assert ("127.0.0.1", second.port) == Sentinel([group.address]).discover_master(SERVICE)
        assert b"value" == ask_server(second, "GET", "key")
        with pytest.raises(ReadOnlyError):
            ask_server(first, "SET", "key", "other")
    finally:
        group.stop()
