"""Reads through a user's client share a connection where nobody can mind, and go through the client elsewhere."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing
from functools import wraps
from typing import Any

import pytest

from observability_integration.caching.stores import redis_reads, redis_subscription
from observability_integration.caching.stores.redis import RedisStore
from observability_integration.caching.stores.redis_reads import has_line
from observability_integration.caching.stores.shared import Place, Reading
from tests.processes import RedisProcess
from tests.redis_caches import ask_server, clients_of

redis = pytest.importorskip("redis")
pytest.importorskip("redis.asyncio.sentinel")

pytestmark = [pytest.mark.once, pytest.mark.needs_redis_package, pytest.mark.needs_redis_server]

_PLACE = Place("cache:{given}:", "entry")
_ENTRY = Reading(b"data", None)
_SOON_SECONDS = 5.0

Open = Callable[..., Any]


@pytest.fixture
async def opened(redis_process: RedisProcess) -> AsyncIterator[Open]:
    """Makes asynchronous clients on a server that has one entry; they are closed at the end."""
    ask_server(redis_process, "SET", _PLACE.key, "data")
    clients: list[Any] = []

    def make(kind: Any = redis.asyncio.Redis, **options: Any) -> Any:
        clients.append(kind(port=redis_process.port, **options))
        return clients[-1]

    yield make
    for client in clients:
        await client.aclose()


async def up(store: RedisStore) -> None:
    """Returns when reads share a connection."""
    async with asyncio.timeout(_SOON_SECONDS):
        while True:
            answer = store.read(_PLACE)
            await answer
            if isinstance(answer, asyncio.Future):
                return
            await asyncio.sleep(0.01)


def listeners_of(server: RedisProcess) -> int:
    """How many connections listen."""
    return len(ask_server(server, "CLIENT", "LIST", "TYPE", "pubsub").splitlines())


async def settled(server: RedisProcess, connections: int, count: Callable[[RedisProcess], int] = clients_of) -> None:
    """Returns when the server has so many connections."""
    give_up = time.monotonic() + _SOON_SECONDS
    while (now := await asyncio.to_thread(count, server)) != connections:
        assert time.monotonic() < give_up, f"{now} connections, not {connections}"
        await asyncio.sleep(0.01)


def received(server: RedisProcess) -> int:
    """How many connections the server has ever had, with the one that asks."""
    return ask_server(server, "INFO", "stats")["total_connections_received"]


# Who has a line -------------------------------------------------------------------------------------------------------


class Subclass(redis.asyncio.Redis):  # type: ignore[misc, name-defined]
    """Somebody's own client."""


class Pool(redis.asyncio.ConnectionPool):  # type: ignore[misc, name-defined]
    """Somebody's own pool."""


class Connection(redis.asyncio.Connection):  # type: ignore[misc, name-defined]
    """Somebody's own connection."""


def _from_pool(pool: Any) -> Any:
    return redis.asyncio.Redis(connection_pool=pool)


def _wrapped() -> Any:
    client = redis.asyncio.Redis()
    send = client.execute_command

    @wraps(send)
    async def traced(*command: Any, **options: Any) -> Any:
        return await send(*command, **options)

    client.execute_command = traced
    return client


_LINED: dict[str, Callable[[], Any]] = {
    "tcp": lambda: redis.asyncio.Redis(),
    "tls": lambda: redis.asyncio.Redis(ssl=True),
    "unix socket": lambda: redis.asyncio.Redis(unix_socket_path="/nowhere"),
    "resp3": lambda: redis.asyncio.Redis(protocol=3),
    "url": lambda: redis.asyncio.Redis.from_url("redis://127.0.0.1/3"),
    "waiting pool": lambda: _from_pool(redis.asyncio.BlockingConnectionPool()),
    "large pool": lambda: redis.asyncio.Redis(max_connections=2**31),
}
_UNLINED: dict[str, Callable[[], Any]] = {
    "sync": lambda: redis.Redis(),
    "cluster": lambda: redis.asyncio.RedisCluster(host="127.0.0.1", port=1),
    "sentinel": lambda: redis.asyncio.sentinel.Sentinel([("127.0.0.1", 1)]).master_for("main"),
    "stand-in": lambda: object(),
    "subclass": lambda: Subclass(),
    "wrapped": _wrapped,
    "own pool": lambda: _from_pool(Pool()),
    "own connection": lambda: _from_pool(redis.asyncio.ConnectionPool(connection_class=Connection)),
    "single connection": lambda: redis.asyncio.Redis(single_connection_client=True),
    "small pool": lambda: redis.asyncio.Redis(max_connections=10),
    "small waiting pool": lambda: _from_pool(redis.asyncio.BlockingConnectionPool(max_connections=10)),
    "credentials": lambda: redis.asyncio.Redis(
        credential_provider=redis.credentials.UsernamePasswordCredentialProvider("a", "b")
    ),
    "sets up connections": lambda: redis.asyncio.Redis(redis_connect_func=lambda connection: None),
}


@pytest.mark.parametrize("kind", [*_LINED, *_UNLINED])
async def test_who_has_a_line(kind: str) -> None:
    """Whoever has counted or changed something about commands or connections finds that it holds for reads too."""
    assert (kind in _LINED) == has_line((_LINED | _UNLINED)[kind]())


def _instrumented(send: Any) -> Any:
    async def traced(self: Any, *command: Any, **options: Any) -> Any:
        traced.seen.append(command[0])  # type: ignore[attr-defined]
        return await send(self, *command, **options)

    traced.seen = []  # type: ignore[attr-defined]
    return wraps(send)(traced)


async def test_tracing_that_comes_later_sees_every_read(opened: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """It replaces the method of the class when the connection may long be open."""
    store = RedisStore(opened())
    await up(store)
    traced = _instrumented(redis.asyncio.Redis.execute_command)
    monkeypatch.setattr(redis.asyncio.Redis, "execute_command", traced)
    assert [_ENTRY] * 2 == [await store.read(_PLACE), await store.read(_PLACE)]
    assert ["MGET", "MGET"] == traced.seen
    assert not has_line(opened())
    monkeypatch.undo()
    await up(store)
    await store.aclose()


async def test_a_small_pool_is_all_there_is(opened: Open, redis_process: RedisProcess) -> None:
    """The bound is a promise to the server."""
    store = RedisStore(opened(max_connections=1))
    for _ in range(5):
        answer = store.read(_PLACE)
        assert not isinstance(answer, asyncio.Future)
        assert _ENTRY == await answer
        assert 1 == await asyncio.to_thread(clients_of, redis_process)
    await store.aclose()


# What the line is like ------------------------------------------------------------------------------------------------


async def test_all_stores_of_a_client_share_it(opened: Open, redis_process: RedisProcess) -> None:
    """However many operations are cached; it is closed with the last of them, and the client is not."""
    client = opened()
    stores = [RedisStore(client) for _ in range(5)]
    for store in stores:
        await up(store)
    await settled(redis_process, 2)
    for store in stores[1:]:
        await store.aclose()
    assert isinstance(stores[0].read(_PLACE), asyncio.Future)
    await stores[0].aclose()
    await settled(redis_process, 1)
    assert b"data" == await client.get(_PLACE.key)
    assert 1 == await asyncio.to_thread(clients_of, redis_process)


async def test_a_store_that_is_dropped_lets_go_of_it(opened: Open, redis_process: RedisProcess) -> None:
    """A cache for every request must not cost a connection each, closed or not."""
    client = opened()
    for _ in range(3):
        await up(RedisStore(client))
    gc.collect()
    await settled(redis_process, 1)


@pytest.mark.parametrize("protocol", [2, 3])
async def test_silence_is_no_fault(opened: Open, redis_process: RedisProcess, protocol: int) -> None:
    """The client's timeout is for answers that are due, and nobody asks a line for signs of life."""
    store = RedisStore(opened(socket_timeout=0.05, health_check_interval=0.05, protocol=protocol))
    await up(store)
    pings = ask_server(redis_process, "INFO", "commandstats").get("cmdstat_ping", {}).get("calls", 0)
    await asyncio.sleep(0.2)
    answers = [store.read(_PLACE) for _ in range(3)]
    assert all(isinstance(answer, asyncio.Future) for answer in answers)
    assert [_ENTRY] * 3 == await asyncio.gather(*answers)
    now = ask_server(redis_process, "INFO", "commandstats").get("cmdstat_ping", {}).get("calls", 0)
    assert pings == now
    await store.aclose()


async def test_an_idle_line_is_closed(
    opened: Open, redis_process: RedisProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody tells when the client is closed; whoever reads again, has it again."""
    monkeypatch.setattr(redis_reads, "_IDLE_SECONDS", 0.1)
    client = opened()
    store = RedisStore(client)
    await up(store)
    await client.aclose()
    await settled(redis_process, 0)
    await up(store)
    await store.aclose()


async def test_reads_that_are_rare_open_no_line(
    opened: Open, redis_process: RedisProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would be closed again before the next one."""
    monkeypatch.setattr(redis_reads, "_IDLE_SECONDS", 0.02)
    store = RedisStore(opened())
    before = received(redis_process)
    for _ in range(5):
        answer = store.read(_PLACE)
        assert not isinstance(answer, asyncio.Future)
        assert _ENTRY == await answer
        await asyncio.sleep(0.05)
    assert before + 2 == received(redis_process)  # the client's, and the one that asks
    await store.aclose()


async def test_a_line_that_nobody_read_over_has_not_failed(
    opened: Open, redis_process: RedisProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is opened again without a pause, however often that happens."""
    monkeypatch.setattr(redis_reads, "_IDLE_SECONDS", 0.1)
    store = RedisStore(opened())
    for _ in range(3):
        for _ in range(2):
            answer = store.read(_PLACE)
            assert not isinstance(answer, asyncio.Future)
            assert _ENTRY == await answer
        await settled(redis_process, 2)
        await settled(redis_process, 1)
    await store.aclose()


async def test_reads_go_on_when_the_client_is_closed(opened: Open) -> None:
    """As all commands of a closed client do: it connects again."""
    client = opened()
    store = RedisStore(client)
    await up(store)
    for end in (client.aclose, client.connection_pool.disconnect):
        await end()
        assert _ENTRY == await store.read(_PLACE)
        await up(store)
    await store.aclose()


async def test_a_server_that_stands_still_holds_up_nobody(opened: Open, redis_process: RedisProcess) -> None:
    """It is connected to, and does not greet; the client's retries are not those of the line."""
    ask_server(redis_process, "ACL", "SETUSER", "reader", "on", ">secret", "~*", "+@all")
    store = RedisStore(opened(username="reader", password="secret", socket_connect_timeout=0.2))
    assert _ENTRY == await store.read(_PLACE)
    await up(store)
    await store.probe(_PLACE.prefix)
    redis_process.pause()
    reading = asyncio.ensure_future(store.read(_PLACE))
    line: Any = store._line()  # pyright: ignore[reportPrivateUsage]
    while line._task.done():
        await asyncio.sleep(0.01)
        reading.cancel()
        reading = asyncio.ensure_future(store.read(_PLACE))
    opening = line._task
    await asyncio.wait([opening], timeout=2.0)
    assert opening.done()
    started = time.monotonic()
    await store.aclose()
    assert time.monotonic() - started < 1.0
    redis_process.resume()
    assert _ENTRY == await reading


async def test_a_line_that_is_refused_is_not_tried_at_every_read(opened: Open, redis_process: RedisProcess) -> None:
    """The server may have as many clients as it takes, and reads through the pool work."""
    client = opened()
    assert await client.get(_PLACE.key)
    ask_server(redis_process, "CONFIG", "SET", "maxclients", 1)
    store = RedisStore(client)
    started = time.monotonic()
    reads = 0
    while time.monotonic() - started < 0.5:
        assert _ENTRY == await store.read(_PLACE)
        reads += 1
        await asyncio.sleep(0.001)
    refused = (await client.info("stats"))["rejected_connections"]
    assert 1 <= refused <= 4 < reads
    await store.aclose()


# How loops end --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["url", "client"])
def test_a_loop_that_ends_takes_its_line_along(way: str, redis_process: RedisProcess) -> None:
    """Though nobody has closed the store; and the next loop has one of its own."""
    ask_server(redis_process, "SET", _PLACE.key, "data")
    url = RedisStore(url=redis_process.url, patience_seconds=2.0)

    async def read() -> None:
        if way == "url":
            await up(url)
            return
        client = redis.asyncio.Redis(port=redis_process.port)
        await up(RedisStore(client))
        await client.aclose()

    for _ in range(2):
        asyncio.run(read())
        gc.collect()
        asyncio.run(settled(redis_process, 0))
    assert not any(line for here in redis_reads._lines.values() for line in here)  # pyright: ignore[reportPrivateUsage]


@pytest.fixture
def no_collection() -> Iterator[None]:
    """What is only let go of when it is collected is not."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.mark.usefixtures("no_collection")
@pytest.mark.parametrize("turns", range(1, 10))
async def test_closing_that_is_cancelled_leaves_nothing_open(turns: int, redis_process: RedisProcess) -> None:
    """Whichever of its steps it is cancelled in: connections for commands, for reads and for listening."""
    store = RedisStore(url=redis_process.url, patience_seconds=2.0)
    await store.listen(_PLACE.prefix, lambda _: None, lambda: None)
    await asyncio.gather(*(store.probe(_PLACE.prefix) for _ in range(3)))
    ask_server(redis_process, "SET", _PLACE.key, "data")
    await up(store)
    closing = asyncio.create_task(store.aclose())
    for _ in range(turns):
        await asyncio.sleep(0)
    closing.cancel()
    await asyncio.wait([closing])
    await settled(redis_process, 0)
    await settled(redis_process, 0, listeners_of)


@pytest.mark.parametrize("way", ["url", "client", "sync"])
# The sockets are shut down, and asyncio says so of each when it is collected.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_loops_that_are_closed_in_the_middle_are_let_go_of(
    way: str, redis_process: RedisProcess, caplog: pytest.LogCaptureFixture
) -> None:
    """Without the care that `asyncio.run` takes; by the next loop, and with all that they had open."""
    url = RedisStore(url=redis_process.url, patience_seconds=2.0)
    ask_server(redis_process, "SET", _PLACE.key, "data")

    async def use() -> None:
        if way == "sync":
            store = RedisStore(synchronous)
        elif way == "url":
            store = url
        else:
            client = redis.asyncio.Redis(port=redis_process.port)
            store = RedisStore(client)
        await store.listen(_PLACE.prefix, lambda _: None, lambda: None)
        if way != "sync":
            await up(store)
        if way == "client":
            await client.connection_pool.disconnect()

    async def last() -> None:
        await url.read(_PLACE)
        await settled(redis_process, 1)
        await settled(redis_process, 0, listeners_of)

    with closing(redis.Redis(port=redis_process.port)) as synchronous:
        for _ in range(3):
            loop = asyncio.new_event_loop()
            loop.run_until_complete(use())
            loop.close()
        asyncio.run(last())
    assert not url._sessions._kept  # pyright: ignore[reportPrivateUsage]
    assert not redis_reads._running  # pyright: ignore[reportPrivateUsage]
    assert not any(redis_subscription._hubs.values())  # pyright: ignore[reportPrivateUsage]
    gc.collect()
    assert not caplog.records
