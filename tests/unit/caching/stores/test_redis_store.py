"""Redis as a store: through every kind of client there is, and with every client the same."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import closing
from types import ModuleType
from typing import Any
from unittest.mock import AsyncMock, MagicMock, Mock

import pytest

from observability_integration.caching.policy import CachePolicy
from observability_integration.caching.stores import redis_scripts, redis_subscription
from observability_integration.caching.stores.choice import choose_store
from observability_integration.caching.stores.redis import RedisStore
from observability_integration.caching.stores.shared import (
    Acquired,
    Generation,
    Place,
    Reading,
    SharedStore,
    StoreBusy,
    Write,
)
from observability_integration.errors import ConfigurationError, MissingDependencyError
from observability_integration.redis_backend.clients import without_driver_info
from tests.processes import RedisProcess
from tests.redis_caches import ask_server

_PREFIX = "cache:{a:v1:123}:"
_PLACE = Place(_PREFIX, "n")


def _write(data: bytes) -> Write:
    return Write(data, 5000, Generation(b"0" * 16, 0))


def _generation(acquired: Acquired) -> Generation:
    assert acquired.generation is not None
    return acquired.generation


_KEY = _PREFIX + "n"

# Clients that need no redis package to stand for ----------------------------------------------------------------------


class SyncClient:
    """Called in threads, as the synchronous client is."""

    def __init__(self) -> None:
        self.asked: list[tuple[Any, ...]] = []
        self.threads: set[str] = set()
        self.answer: Callable[..., Any] = lambda *command: [b"data", b"0123456789abcdef:7"]

    def execute_command(self, *command: Any, **options: Any) -> Any:
        assert {"NEVER_DECODE": True} == options
        self.threads.add(threading.current_thread().name)
        self.asked.append(command)
        return self.answer(*command)


class AsyncClient(SyncClient):
    """As redis.asyncio is made."""

    async def execute_command(self, *command: Any, **options: Any) -> Any:
        return SyncClient.execute_command(self, *command, **options)


class WrappedClient(AsyncClient):
    """Somebody's tracing has replaced the method by one that does not look like a coroutine function."""

    def __init__(self) -> None:
        super().__init__()
        awaited = self.execute_command
        self.execute_command = lambda *command, **options: awaited(*command, **options)  # type: ignore[method-assign]


class AwaitableClient(SyncClient):
    """A wrapper nobody can see through: a plain method that returns a coroutine."""

    def execute_command(self, *command: Any, **options: Any) -> Any:
        async def answer() -> Any:
            return SyncClient.execute_command(self, *command, **options)

        return answer()


@pytest.mark.promise("C4")
@pytest.mark.parametrize("kind", [SyncClient, AsyncClient, WrappedClient, AwaitableClient])
async def test_clients_of_every_kind_are_asked_the_same(kind: type[SyncClient]) -> None:
    """One command reads the entry and what vouches for it."""
    client = kind()
    store = RedisStore(client)
    assert Reading(b"data", Generation(b"0123456789abcdef", 7)) == await store.read(_PLACE)
    assert [("MGET", _KEY, _PREFIX + "gen")] == client.asked
    await store.aclose()


@pytest.mark.promise("C4")
async def test_a_blocking_client_is_called_in_daemon_threads() -> None:
    """The loop goes on meanwhile, and a client that hangs does not keep the process from ending."""
    entered, release = threading.Event(), threading.Event()
    daemons: list[bool] = []

    def hang(*_: Any) -> Any:
        daemons.append(threading.current_thread().daemon)
        entered.set()
        release.wait()
        return [b"late", None]

    client = SyncClient()
    client.answer = hang
    asking = asyncio.create_task(RedisStore(client).read(_PLACE))
    while not entered.is_set():
        await asyncio.sleep(0)
    assert not asking.done()
    release.set()
    assert Reading(b"late", None) == await asking
    assert [True] == daemons


@pytest.mark.parametrize("kind", [AsyncClient, WrappedClient])
async def test_an_async_client_is_not_called_in_a_thread(kind: type[SyncClient]) -> None:
    """Its connections belong to the loop."""
    client = kind()
    await RedisStore(client).read(_PLACE)
    assert {threading.current_thread().name} == client.threads


async def test_a_write_that_nobody_wants_any_more_is_not_made_later() -> None:
    """While all threads hang, writes queue; made afterwards, they would undo the deletions that came in between."""
    release = threading.Event()
    entered = threading.Semaphore(0)
    made: list[str] = []

    def hang(command: str, *_: Any) -> Any:
        if command == "MGET":
            entered.release()
            release.wait()
            return [None, None]
        made.append(command)
        return 1

    client = SyncClient()
    client.answer = hang
    store = RedisStore(client)
    hanging = [asyncio.create_task(store.read(_PLACE)) for _ in range(16)]
    for _ in range(16):
        while not entered.acquire(blocking=False):
            await asyncio.sleep(0.001)
    unwanted = asyncio.create_task(store.put_late(_PLACE, _write(b"unwanted"), "", "me"))
    await asyncio.sleep(0)
    unwanted.cancel()
    with pytest.raises(asyncio.CancelledError):
        await unwanted
    wanted = asyncio.create_task(store.probe(_PREFIX))
    await asyncio.sleep(0)
    release.set()
    await wanted
    await asyncio.gather(*hanging)
    assert ["EVALSHA"] == made


def _client_raising(error: Exception) -> Any:
    client = AsyncMock()
    client.execute_command.side_effect = error
    return client


class MaxConnectionsError(ConnectionError):
    """Named as the client does it, and without a word."""


@pytest.mark.parametrize(
    "error",
    [
        ConnectionError("Too many connections"),
        ConnectionError("No connection available."),
        MaxConnectionsError(),
    ],
)
async def test_an_exhausted_pool_is_told_apart(error: Exception) -> None:
    """The store was never asked; it may be in perfect health."""
    with pytest.raises(StoreBusy):
        await RedisStore(_client_raising(error)).read(_PLACE)


async def test_other_errors_pass() -> None:
    """It is the guard that judges them."""
    error = ConnectionError("Connection refused")
    for ask in (lambda store: store.read(_PLACE), lambda store: store.probe(_PREFIX)):
        with pytest.raises(ConnectionError) as caught:
            await ask(RedisStore(_client_raising(error)))
        assert error is caught.value


class NoScriptError(Exception):
    """Named as the client does it."""


@pytest.mark.parametrize("error", [NoScriptError("No matching script."), Exception("NOSCRIPT No matching script.")])
async def test_a_script_that_redis_does_not_know_is_sent(error: Exception) -> None:
    """It forgets them when it is restarted, and a new master has never heard of them."""
    client = AsyncClient()

    def answer(command: str, *_: Any) -> Any:
        if command == "EVALSHA":
            raise error
        return 1

    client.answer = answer
    assert await RedisStore(client).renew(_PLACE, "token", 5)
    script = redis_scripts.RENEW
    assert [
        ("EVALSHA", script.sha, 1, _KEY + ":l", "token", 5),
        ("EVAL", script.source, 1, _KEY + ":l", "token", 5),
    ] == client.asked


@pytest.mark.parametrize("make", [Mock, MagicMock, AsyncMock])
async def test_mocks_pass_for_clients(make: Callable[[], Any]) -> None:
    """Tests of older code hand in mocks; what those answer is nobody's entry, and nothing is ever heard of them."""
    store = RedisStore(make())
    assert Reading(None, None) == await store.read(_PLACE)
    await (await store.listen(_PREFIX, lambda _: None, lambda: None)).aclose()


@pytest.mark.parametrize("client", ["redis://localhost", {}, object(), 5, SyncClient])
def test_what_is_no_client_is_refused(client: Any) -> None:
    """A URL or a class passed as a client would look like a Redis that never answers."""
    with pytest.raises(ConfigurationError, match="redis_client"):
        RedisStore(client)


async def test_who_asks_for_no_tags_does_not_ask() -> None:
    """Most entries have none."""
    client = AsyncClient()
    assert await RedisStore(client).vouches(_PREFIX, [], _write(b"").basis)
    assert [] == client.asked


# Real clients, and a real server --------------------------------------------------------------------------------------

WAYS = ["url", "asyncio", "asyncio text", "asyncio resp3", "sync", "sync text", "sync resp3"]

_real = [pytest.mark.needs_redis_package, pytest.mark.needs_redis_server]


def real(test: Any) -> Any:
    """A test that needs Redis."""
    for mark in _real:
        test = mark(test)
    return test


class Stores:
    """Makes stores on a server, and closes their clients."""

    def __init__(self, server: RedisProcess) -> None:
        self.server = server
        self._closing: list[Callable[[], Awaitable[None]]] = []

    def make(self, way: str, **options: Any) -> SharedStore:
        import redis.asyncio

        if way == "url":
            store = RedisStore(url=self.server.url, patience_seconds=2.0)
            self._closing.append(store.aclose)
            return store
        options = {
            "port": self.server.port,
            "decode_responses": "text" in way,
            "protocol": 3 if "3" in way else 2,
        } | options
        if "sync" in way.split():
            sync_client = redis.Redis(**options)

            async def close() -> None:
                sync_client.close()

            self._closing.append(close)
            return RedisStore(sync_client)
        client = redis.asyncio.Redis(**options)
        made = RedisStore(client)
        self._closing += made.aclose, client.aclose
        return made

    async def close(self) -> None:
        for close in self._closing:
            await close()


@pytest.fixture
async def stores(redis_server: RedisProcess) -> AsyncIterator[Stores]:
    """Stores on the server of the run, emptied."""
    redis_server.flush()
    stores = Stores(redis_server)
    yield stores
    await stores.close()


@real
@pytest.mark.promise("C4")
@pytest.mark.parametrize("way", WAYS)
async def test_a_lease_is_given_once_and_ends_with_the_entry(stores: Stores, way: str) -> None:
    """The whole protocol, with bytes that are no text, through every client."""
    store, data = stores.make(way), b"\xff\x00 version 16 by."
    assert Reading(None, None) == await store.read(_PLACE)
    leading = await store.acquire(_PLACE, "one", 5000, b"")
    assert (None, True, 0) == (leading.data, leading.leading, leading.lease_left_ms)
    made = Write(data, 5000, _generation(leading))
    seconds, micros = ask_server(stores.server, "TIME")
    assert 0 <= seconds * 1_000_000 + micros - leading.now_us < 5_000_000
    following = await store.acquire(_PLACE, "two", 5000, b"")
    assert not following.leading
    assert 0 < following.lease_left_ms <= 5000
    assert await store.renew(_PLACE, "one", 60_000)
    assert 5000 < (await store.acquire(_PLACE, "two", 5000, b"")).lease_left_ms <= 60_000
    assert not await store.renew(_PLACE, "two", 60_000)
    assert "lost" == await store.commit(_PLACE, "two", made._replace(data=b"not mine"), "")
    assert not await store.put_late(_PLACE, made._replace(data=b"late"), "", "me")
    assert "written" == await store.commit(_PLACE, "one", made, "")
    assert "lost" == await store.commit(_PLACE, "one", made._replace(data=b"twice"), "")
    assert Reading(data, made.basis) == await store.read(_PLACE)
    assert 0 < ask_server(stores.server, "PTTL", _KEY) <= 5000
    assert data == (await store.acquire(_PLACE, "three", 5000, b"")).data
    assert data == (await store.acquire(_PLACE, "three", 5000, b"another version.")).data
    again = await store.acquire(_PLACE, "three", 5000, data[:16])
    assert (None, True) == (again.data, again.leading)
    await store.release(_PLACE, "one", "")
    assert not (await store.acquire(_PLACE, "four", 5000, data[:16])).leading
    await store.release(_PLACE, "three", "")
    assert (await store.acquire(_PLACE, "four", 5000, data[:16])).leading
    await store.probe(_PREFIX)


@real
@pytest.mark.parametrize("way", ["url", "asyncio text"])
async def test_what_others_wrote_is_no_entry_of_ours(stores: Stores, way: str) -> None:
    """A key of another type, an empty one, a generation that is none: a miss each, and replaced by the next entry."""
    store = stores.make(way)
    for key in (_KEY, _KEY + ":l", _PREFIX + "gen", _PREFIX + "log", _PREFIX + "tag:t"):
        ask_server(stores.server, "RPUSH", key, "x")
    assert Reading(None, None) == await store.read(_PLACE)
    assert not await store.vouches(_PREFIX, ["t"], _write(b"").basis)
    assert not await store.renew(_PLACE, "one", 5000)
    leading = await store.acquire(_PLACE, "one", 5000, b"", ["t"])
    assert leading.leading
    assert await store.vouches(_PREFIX, ["t"], _generation(leading))
    assert "written" == await store.commit(_PLACE, "one", Write(b"entry", 5000, _generation(leading), ["t"]), "")
    await store.void(_PREFIX, "t", "", "me")
    assert not await store.vouches(_PREFIX, ["t"], _generation(leading))
    ask_server(stores.server, "SET", _KEY, "")
    for garbage in ("yesterday", "0" * 16 + ":" + "9" * 5000, "9" * 40, "0" * 16 + ":-1", "0" * 15 + ":1", ""):
        ask_server(stores.server, "SET", _PREFIX + "gen", garbage)
        assert Reading(None, None) == await store.read(_PLACE)
        await store.void(_PREFIX, "t", "", "me")
        assert (await store.acquire(_PLACE, "two", 5000, b"")).leading
    following = await store.acquire(_PLACE, "three", 5000, b"")
    assert not following.leading
    ask_server(stores.server, "SET", _KEY + ":l", b"without end:" + _generation(following).id)
    assert Acquired(None, following.generation, 0, False, -1) == (
        await store.acquire(_PLACE, "three", 5000, b"")
    )._replace(now_us=0)


@real
async def test_deleting_takes_the_leases_away(stores: Stores) -> None:
    """However many at once; what is being made is then not written."""
    store = stores.make("url")
    names = [f"{number:04}" for number in range(5000)]
    for name in (names[0], names[-1]):
        assert (await store.acquire(Place(_PREFIX, name), "one", 60_000, b"")).leading
    basis = (await store.read(_PLACE)).generation
    assert basis is not None
    assert await store.put_late(Place(_PREFIX, names[700]), Write(b"entry", 60_000, basis), "", "me")
    await store.put_late(Place(_PREFIX, "other"), Write(b"entry", 60_000, basis), "", "me")
    await store.delete(_PREFIX, names, names, "me")
    assert "lost" == await store.commit(Place(_PREFIX, names[0]), "one", Write(b"void", 60_000, basis), "")
    assert not await store.renew(Place(_PREFIX, names[-1]), "one", 60_000)
    assert [b"cache:{a:v1:123}:gen", b"cache:{a:v1:123}:log", b"cache:{a:v1:123}:other"] == sorted(
        ask_server(stores.server, "KEYS", "*")
    )
    assert (await store.read(_PLACE)).generation == basis._replace(number=5000)
    await store.delete(_PREFIX, [], [], "me")


@real
async def test_a_lease_holds_the_whole_token_and_the_generation(stores: Stores) -> None:
    """A token that begins like it is another one."""
    store = stores.make("url")
    leading = await store.acquire(_PLACE, "token", 60_000, b"")
    assert b"token:" + _generation(leading).id == ask_server(stores.server, "GET", _KEY + ":l")
    assert not await store.renew(_PLACE, "toke", 1)
    assert await store.renew(_PLACE, "token", 60_000)


@real
async def test_a_lease_may_be_asked_for_again(stores: Stores) -> None:
    """With the same token: the answer may have been lost."""
    store = stores.make("url")
    for life_ms in (5000, 60_000):
        assert (await store.acquire(_PLACE, "token", life_ms, b"")).leading
    assert not (await store.acquire(_PLACE, "toke", 5000, b"")).leading
    assert 5000 < ask_server(stores.server, "PTTL", _KEY + ":l") <= 60_000
    basis = _generation(await store.acquire(_PLACE, "token", 5000, b""))
    assert "written" == await store.commit(_PLACE, "token", Write(b"data", 5000, basis), "")


@real
async def test_a_lease_from_before_the_operation_was_cleared_is_void(stores: Stores) -> None:
    """What is being made under it is void; whoever asks now must not wait for that."""
    store = stores.make("url")
    before = await store.acquire(_PLACE, "before", 60_000, b"")
    await store.void(_PREFIX, None, "", "me")
    after = await store.acquire(_PLACE, "after", 60_000, b"")
    assert (True, True) == (before.leading, after.leading)
    assert not (await store.acquire(_PLACE, "later", 60_000, b"")).leading
    assert "lost" == await store.commit(_PLACE, "before", Write(b"void", 60_000, _generation(before)), "")
    assert "written" == await store.commit(_PLACE, "after", Write(b"data", 60_000, _generation(after)), "")


@real
async def test_a_server_that_cannot_write_says_so(redis_process: RedisProcess) -> None:
    """Full, or a replica: no lease is given, nothing is half done, and the probe does not take it for healthy."""
    stores = Stores(redis_process)
    store = stores.make("asyncio")
    made = Write(b"data", 60_000, _generation(await store.acquire(_PLACE, "one", 60_000, b"")))
    other = Place(_PREFIX, "m")
    for breaking, mending in (
        (("CONFIG", "SET", "maxmemory", "1"), ("CONFIG", "SET", "maxmemory", "0")),
        (("REPLICAOF", "127.0.0.1", "1"), ("REPLICAOF", "NO", "ONE")),
    ):
        ask_server(redis_process, *breaking)
        for ask in (
            lambda: store.acquire(other, "two", 60_000, b""),
            lambda: store.commit(_PLACE, "one", made, ""),
            lambda: store.put_late(other, made, "", "me"),
            lambda: store.probe(_PREFIX),
        ):
            with pytest.raises(Exception, match=r"(?i)maxmemory|replica"):
                await ask()
        ask_server(redis_process, *mending)
    assert (await store.read(_PLACE)).data is None
    assert "written" == await store.commit(_PLACE, "one", made, "")
    await stores.close()


@real
async def test_a_restarted_server_is_taught_again(redis_process: RedisProcess) -> None:
    """It has forgotten the scripts with everything else."""
    stores = Stores(redis_process)
    store = stores.make("asyncio")
    await store.probe(_PREFIX)
    ask_server(redis_process, "SCRIPT", "FLUSH")
    await store.probe(_PREFIX)
    assert (await store.acquire(_PLACE, "one", 60_000, b"")).leading
    await stores.close()


# Listening ------------------------------------------------------------------------------------------------------------


class Heard:
    """What was heard, as it came."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.came = asyncio.Event()

    def __call__(self, note: str) -> None:
        self.notes.append(note)
        self.came.set()

    def resumed(self) -> None:
        self("(resumed)")

    async def until(self, *notes: str) -> None:
        """Waits until exactly these have been heard, in this order."""
        async with asyncio.timeout(10.0):
            while self.notes != list(notes):
                self.came.clear()
                await self.came.wait()


def subscribers(server: RedisProcess) -> int:
    """How many connections of the server listen."""
    return len(ask_server(server, "CLIENT", "LIST", "TYPE", "pubsub").splitlines())


async def until_silent(server: RedisProcess) -> None:
    """Waits until nobody listens to the server any more."""
    async with asyncio.timeout(10.0):
        while await asyncio.to_thread(subscribers, server):
            await asyncio.sleep(0.01)


@real
@pytest.mark.promise("C4")
@pytest.mark.parametrize("way", WAYS)
async def test_everything_that_happens_is_heard(stores: Stores, way: str) -> None:
    """Each note once, by those who listen to the operation, and by nobody else."""
    store, heard, other = stores.make(way), Heard(), Heard()
    subscription = await store.listen(_PREFIX, heard, heard.resumed)
    another = await store.listen("cache:{b}:", other, other.resumed)
    basis = _generation(await store.acquire(_PLACE, "one", 60_000, b""))
    made = Write(b"data", 60_000, basis)
    await store.commit(_PLACE, "two", made, "never")
    await store.commit(_PLACE, "one", made, "written")
    await store.put_late(_PLACE, made, "never", "me")
    await store.delete(_PREFIX, ["n", "m"], ["deleted", "and more"], "me")
    await store.put_late(_PLACE, made, "late", "me")
    await store.acquire(_PLACE, "one", 60_000, b"data")
    await store.release(_PLACE, "two", "never")
    await store.release(_PLACE, "one", "released")
    await store.void(_PREFIX, "t", "tagged", "me")
    await store.void(_PREFIX, None, "cleared", "me")
    await store.void(_PREFIX, "t", "without a generation", "me")
    after = [f"\n{basis.id.decode()}:{number}" for number in (1, 2, 3)]
    await heard.until(
        *("written", "deleted" + after[0], "and more" + after[1], "late", "released"),
        *("tagged" + after[2], "cleared", "without a generation"),
    )
    assert [] == other.notes
    assert 1 == subscribers(stores.server)
    await subscription.aclose()
    await store.void("cache:{b}:", None, "b cleared", "me")
    await other.until("b cleared")
    await another.aclose()
    await until_silent(stores.server)


@real
@pytest.mark.parametrize("way", ["asyncio", "sync"])
async def test_all_who_use_a_client_share_one_connection(stores: Stores, way: str) -> None:
    """A program may have dozens of caches over its one client, and two of them with the same operation."""
    store = stores.make(way)
    twin = RedisStore(store._backend._given)  # type: ignore[attr-defined]
    heard = [Heard() for _ in range(3)]
    one, two, three = await asyncio.gather(
        store.listen(_PREFIX, heard[0], heard[0].resumed),
        twin.listen(_PREFIX, heard[1], heard[1].resumed),
        twin.listen("cache:{c}:", heard[2], heard[2].resumed),
    )
    assert 1 == subscribers(stores.server)
    late, new, newer = Heard(), Heard(), Heard()
    four, five, six = await asyncio.gather(
        twin.listen(_PREFIX, late, late.resumed),
        store.listen("cache:{d}:", new, new.resumed),
        twin.listen("cache:{d}:", newer, newer.resumed),
    )
    assert 1 == subscribers(stores.server)
    await store.void(_PREFIX, None, "note", "me")
    await store.void("cache:{d}:", None, "note", "me")
    for ear in (heard[0], heard[1], late, new, newer):
        await ear.until("note")
    await one.aclose()
    await one.aclose()
    await store.void(_PREFIX, None, "more", "me")
    await heard[1].until("note", "more")
    assert ["note"] == heard[0].notes
    for subscription in (two, three, four, five, six):
        await subscription.aclose()
    await until_silent(stores.server)
    again = await store.listen(_PREFIX, heard[0], heard[0].resumed)
    await store.void(_PREFIX, None, "again", "me")
    await heard[0].until("note", "again")
    await again.aclose()


@real
@pytest.mark.parametrize("way", ["url", "asyncio resp3", "sync"])
async def test_a_connection_that_is_lost_is_made_again(stores: Stores, way: str) -> None:
    """And those who listen are told that something may have escaped them."""
    store, heard = stores.make(way), Heard()
    subscription = await store.listen(_PREFIX, heard, heard.resumed)
    ask_server(stores.server, "CLIENT", "KILL", "TYPE", "pubsub")
    await heard.until("(resumed)")
    await store.void(_PREFIX, None, "note", "me")
    await heard.until("(resumed)", "note")
    await subscription.aclose()


@real
@pytest.mark.parametrize("way", ["url", "sync"])
async def test_listening_begins_when_the_server_is_there(
    redis_process: RedisProcess, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """Whoever asks while it is down waits, and may stop waiting."""
    monkeypatch.setattr(redis_subscription, "_PAUSE_SECONDS", 0.01)
    stores = Stores(redis_process)
    store, heard = stores.make(way), Heard()
    redis_process.kill()
    waiting = asyncio.create_task(store.listen(_PREFIX, heard, heard.resumed))
    leaving = asyncio.create_task(store.listen(_PREFIX, heard, heard.resumed))
    await asyncio.sleep(0.1)
    assert not waiting.done()
    leaving.cancel()
    redis_process.start()
    subscription = await waiting
    await store.void(_PREFIX, None, "note", "me")
    await heard.until("note")
    await subscription.aclose()
    assert leaving.cancelled()
    await stores.close()


@real
@pytest.mark.parametrize("way", ["url", "sync"])
async def test_a_peer_that_is_gone_without_a_word_is_noticed(
    redis_process: RedisProcess, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """A silent connection is asked for a sign of life; one that gives it is kept."""
    monkeypatch.setattr(redis_subscription, "_QUIET_SECONDS", 0.05)
    monkeypatch.setattr(redis_subscription, "_ANSWER_SECONDS", 0.3)
    stores = Stores(redis_process)
    store, heard = stores.make(way), Heard()
    subscription = await store.listen(_PREFIX, heard, heard.resumed)
    await asyncio.sleep(0.3)
    assert [] == heard.notes
    redis_process.pause()
    await asyncio.sleep(0.5)
    redis_process.resume()
    await heard.until("(resumed)")
    await subscription.aclose()
    await stores.close()


@real
@pytest.mark.parametrize("way", ["asyncio", "sync"])
async def test_listening_takes_no_connection_of_the_pool(stores: Stores, way: str) -> None:
    """A pool of one would be exhausted for good; and the client's timeouts are for answers, not for silence."""
    store, heard = stores.make(way, max_connections=1, socket_timeout=0.2), Heard()
    subscription = await store.listen(_PREFIX, heard, heard.resumed)
    await asyncio.sleep(0.4)
    await store.void(_PREFIX, None, "note", "me")
    await heard.until("note")
    await subscription.aclose()


@real
async def test_a_user_who_may_not_listen_may_keep_entries(stores: Stores) -> None:
    """Access rules for keys say nothing about channels, and Redis 7 forbids those that are not named."""
    ask_server(stores.server, "ACL", "SETUSER", "keeper", "on", ">secret", "resetchannels", "~*", "+@all")
    store = stores.make("asyncio", username="keeper", password="secret")
    basis = _generation(await store.acquire(_PLACE, "one", 60_000, b""))
    assert "written" == await store.commit(_PLACE, "one", Write(b"data", 60_000, basis), "note")
    heard = Heard()
    listening = asyncio.create_task(store.listen(_PREFIX, heard, heard.resumed))
    await asyncio.sleep(0.05)
    assert not listening.done()
    listening.cancel()
    ask_server(stores.server, "ACL", "DELUSER", "keeper")


@real
def test_a_loop_that_ends_leaves_nothing_behind(redis_server: RedisProcess) -> None:
    """Neither tasks nor sockets nor threads that read, though nobody has stopped listening."""
    import redis.asyncio

    async def listen(make: Callable[[], Any]) -> None:
        await make().listen(_PREFIX, lambda _: None, lambda: None)
        assert 1 == await asyncio.to_thread(subscribers, redis_server)

    with closing(redis.Redis(port=redis_server.port)) as client:
        for make in (
            lambda: RedisStore(url=redis_server.url, patience_seconds=2.0),
            lambda: RedisStore(redis.asyncio.Redis(port=redis_server.port)),
            lambda: RedisStore(client),
        ):
            asyncio.run(listen(make))
            asyncio.run(until_silent(redis_server))
    assert not any(redis_subscription._hubs.values())


@real
async def test_closing_a_store_of_its_own_ends_its_listening(stores: Stores) -> None:
    """Also of those who are still waiting to begin."""
    store = stores.make("url")
    await store.listen(_PREFIX, lambda _: None, lambda: None)
    await store.aclose()
    await until_silent(stores.server)
    await store.aclose()
    closed = RedisStore(url="redis://127.0.0.1:1/0", patience_seconds=1.0)
    waiting = asyncio.create_task(closed.listen(_PREFIX, lambda _: None, lambda: None))
    await asyncio.sleep(0.05)
    await closed.aclose()
    with pytest.raises(ConnectionError):
        await waiting


# Clients made from a URL ----------------------------------------------------------------------------------------------


@pytest.mark.needs_redis_package
@pytest.mark.parametrize("url", ["", "localhost:6379", "http://localhost", "redis://localhost:port"])
def test_what_is_no_redis_url_is_refused(url: str) -> None:
    """At once, and not when the first call is made; the message must not quote a password."""
    with pytest.raises(ConfigurationError, match="redis_url must be like"):
        RedisStore(url=url, patience_seconds=1.0)


def test_without_the_package_a_url_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A cache then works from memory, and says so."""
    monkeypatch.setitem(sys.modules, "redis.asyncio", None)
    with pytest.raises(MissingDependencyError, match="pip install redis"):
        RedisStore(url="redis://localhost", patience_seconds=1.0)
    assert choose_store("ask", CachePolicy(), url="redis://localhost", client=None, backend=None) is None
    assert "Cache 'ask': redis is not installed" in caplog.text


@real
async def test_connections_of_its_own_do_not_introduce_themselves(redis_process: RedisProcess) -> None:
    """What each of them says first is one more exchange within the budget of the first call."""
    stores = Stores(redis_process)
    store = stores.make("url")
    seen = commands(redis_process)
    await store.read(_PLACE)
    await (await store.listen(_PREFIX, lambda _: None, lambda: None)).aclose()
    assert {"mget", "subscribe"} == commands(redis_process) - seen
    await stores.close()


def commands(server: RedisProcess) -> set[str]:
    """Which commands the server has ever executed."""
    import redis

    with closing(redis.Redis(port=server.port, protocol=2)) as client:
        client.info("commandstats")
        stats: Any = client.info("commandstats")
    return {name.removeprefix("cmdstat_") for name in stats}


@pytest.mark.needs_redis_package
def test_older_packages_are_told_otherwise_not_to_introduce_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before there was one option for it there were two."""
    monkeypatch.setitem(sys.modules, "redis.driver_info", ModuleType("redis.driver_info"))
    assert {"driver_info": None} == without_driver_info()
    monkeypatch.setitem(sys.modules, "redis.driver_info", None)
    assert {"lib_name": None, "lib_version": None} == without_driver_info()
