"""Users bring Redis clients of every kind; here are the kinds that need no redis package to stand for."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any
from unittest.mock import AsyncMock, MagicMock, Mock

import pytest

from observability_integration.caching.policy import CachePolicy
from observability_integration.caching.stores.choice import choose_store
from observability_integration.caching.stores.redis import RedisStore
from observability_integration.caching.stores.shared import StoreBusy
from observability_integration.errors import ConfigurationError

_PREFIX = "cache:a:v1:123:"


class SyncClient:
    """Called in threads, as the synchronous client is; answers bytes."""

    def __init__(self) -> None:
        self.entries: dict[str, bytes] = {}
        self.lives: dict[str, int] = {}
        self.threads: set[str] = set()
        self.deleted: list[int] = []

    def get(self, key: str) -> Any:
        self.threads.add(threading.current_thread().name)
        return self.entries.get(key)

    def set(self, key: str, value: bytes, px: int) -> Any:
        self.entries[key] = value
        self.lives[key] = px
        return True

    def delete(self, *keys: Any) -> Any:
        self.deleted.append(len(keys))
        return sum(self.entries.pop(key.decode() if isinstance(key, bytes) else key, None) is not None for key in keys)

    def scan_iter(self, match: str, count: int) -> Iterator[Any]:
        assert match.endswith("*")
        return iter([key.encode() for key in self.entries if key.startswith(match[:-1])])


class TextClient(SyncClient):
    """As with `decode_responses=True`."""

    def get(self, key: str) -> Any:
        data = super().get(key)
        return None if data is None else data.decode()

    def scan_iter(self, match: str, count: int) -> Iterator[Any]:
        return (key.decode() for key in super().scan_iter(match, count))


class AsyncClient(SyncClient):
    """Coroutine functions."""

    async def get(self, key: str) -> Any:
        return SyncClient.get(self, key)

    async def set(self, key: str, value: bytes, px: int) -> Any:
        return SyncClient.set(self, key, value, px)

    async def delete(self, *keys: Any) -> Any:
        return SyncClient.delete(self, *keys)

    async def scan_iter(self, match: str, count: int) -> AsyncIterator[Any]:  # type: ignore[override]
        for key in SyncClient.scan_iter(self, match, count):
            yield key


class CommandClient(AsyncClient):
    """As redis.asyncio is made: plain methods that return what has to be awaited."""

    async def execute_command(self, method: Callable[..., Any], *args: Any) -> Any:
        return method(self, *args)

    def get(self, key: str) -> Any:
        return self.execute_command(SyncClient.get, key)

    def set(self, key: str, value: bytes, px: int) -> Any:
        return self.execute_command(SyncClient.set, key, value, px)

    def delete(self, *keys: Any) -> Any:
        return self.execute_command(SyncClient.delete, *keys)


class AwaitableClient(SyncClient):
    """A wrapper nobody can see through: plain methods, of which some return a coroutine."""

    def get(self, key: str) -> Any:
        async def answer() -> Any:
            return SyncClient.get(self, key)

        return answer()


@pytest.mark.promise("C4")
@pytest.mark.parametrize("kind", [SyncClient, TextClient, AsyncClient, CommandClient, AwaitableClient])
async def test_clients_of_every_kind_do_the_same(kind: type[SyncClient]) -> None:
    """Sync or async, bytes or text: what was written is read, with its life in milliseconds, and can be forgotten."""
    client = kind()
    store = RedisStore(client)
    assert await store.get(_PREFIX + "a") is None
    for number in range(1200):
        client.entries[_PREFIX + str(number)] = b"x"
    await store.set(_PREFIX + "a", b"[1]", 1500)
    await store.set("other", b"[2]", 1500)
    found = await store.get(_PREFIX + "a")
    assert found in (b"[1]", "[1]")
    assert 1500 == client.lives[_PREFIX + "a"]
    await store.delete(_PREFIX + "a", _PREFIX + "b")
    assert await store.get(_PREFIX + "a") is None
    client.deleted.clear()
    await store.clear(_PREFIX)
    assert ["other"] == list(client.entries)
    assert [500, 500, 200] == client.deleted
    await store.clear(_PREFIX)
    await store.aclose()


@pytest.mark.promise("C4")
async def test_a_blocking_client_is_called_in_daemon_threads() -> None:
    """The loop goes on meanwhile, and a client that hangs does not keep the process from ending."""
    entered, release = threading.Event(), threading.Event()
    daemons: list[bool] = []

    class Hanging(SyncClient):
        def get(self, key: str) -> Any:
            daemons.append(threading.current_thread().daemon)
            entered.set()
            release.wait()
            return b"late"

    asking = asyncio.create_task(RedisStore(Hanging()).get("key"))
    while not entered.is_set():
        await asyncio.sleep(0)
    assert not asking.done()
    release.set()
    assert b"late" == await asking
    assert [True] == daemons


async def test_an_async_client_is_not_called_in_a_thread() -> None:
    """Its connections belong to the loop."""
    client = CommandClient()
    await RedisStore(client).get("key")
    assert {threading.current_thread().name} == client.threads


async def test_a_write_that_nobody_wants_any_more_is_not_made_later() -> None:
    """While all threads hang, writes queue; made afterwards, they would undo the deletions that came in between."""
    release = threading.Event()
    entered = threading.Semaphore(0)
    made: list[str] = []

    class Hanging(SyncClient):
        def get(self, key: str) -> Any:
            entered.release()
            release.wait()

        def set(self, key: str, value: bytes, px: int) -> Any:
            made.append(key)

    store = RedisStore(Hanging())
    hanging = [asyncio.create_task(store.get("key")) for _ in range(16)]
    for _ in range(16):
        while not entered.acquire(blocking=False):
            await asyncio.sleep(0.001)
    unwanted = asyncio.create_task(store.set("unwanted", b"", 1))
    await asyncio.sleep(0)
    unwanted.cancel()
    with pytest.raises(asyncio.CancelledError):
        await unwanted
    wanted = asyncio.create_task(store.set("wanted", b"", 1))
    await asyncio.sleep(0)
    release.set()
    await wanted
    await asyncio.gather(*hanging)
    assert ["wanted"] == made


def _client_raising(error: Exception) -> Any:
    client = AsyncMock()
    client.get.side_effect = error
    return client


class ResponseError(Exception):
    """Named and worded as the client does it."""


@pytest.mark.parametrize(
    "error",
    [
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
        ResponseError("WRONGTYPE Operation against a key holding the wrong kind of value"),
    ],
)
async def test_what_cannot_be_read_is_an_entry_that_is_not_ours(error: Exception) -> None:
    """One such key must be thrown away, and not put the whole store out of use."""
    assert b"" == await RedisStore(_client_raising(error)).get("key")


@pytest.mark.parametrize("message", ["Too many connections", "No connection available."])
async def test_an_exhausted_pool_is_told_apart(message: str) -> None:
    """The store was never asked; it may be in perfect health."""
    with pytest.raises(StoreBusy):
        await RedisStore(_client_raising(ConnectionError(message))).get("key")


async def test_other_errors_pass() -> None:
    """It is the guard that judges them."""
    error = ConnectionError("Connection refused")
    with pytest.raises(ConnectionError) as caught:
        await RedisStore(_client_raising(error)).get("key")
    assert error is caught.value


@pytest.mark.parametrize("make", [Mock, MagicMock, AsyncMock])
async def test_mocks_pass_for_clients(make: Callable[[], Any]) -> None:
    """Tests of older code hand in mocks; what those answer is nobody's entry, and harmless."""
    client = make()
    client.get.return_value = b"data"
    store = RedisStore(client)
    assert b"data" == await store.get("key")
    await store.set("key", b"value", 1500)
    client.set.assert_called_once_with("key", b"value", px=1500)
    await store.delete("key")
    client.delete.assert_called_once_with("key")


async def test_the_prefix_is_taken_literally() -> None:
    """Operation names may hold what SCAN takes for wildcards; other people's keys must not match."""
    client = Mock()
    client.scan_iter.return_value = []
    await RedisStore(client).clear("a*b?c[d]e\\f^g-h:")
    client.scan_iter.assert_called_once_with(match="a[*]b[?]c[[]d]e\\\\f^g-h:*", count=500)


@pytest.mark.parametrize("client", ["redis://localhost", {}, object(), 5])
def test_what_is_no_client_is_refused(client: Any) -> None:
    """A URL passed as a client would look like a Redis that never answers."""
    with pytest.raises(ConfigurationError, match="redis_client"):
        RedisStore(client)


def test_at_most_one_store_can_be_chosen() -> None:
    """Of two, one would silently be ignored."""
    client, backend, policy = Mock(), Mock(), CachePolicy()
    assert choose_store("a", policy, url=None, client=None, backend=None) is None
    assert backend is choose_store("a", policy, url=None, client=None, backend=backend)
    assert isinstance(choose_store("a", policy, url=None, client=client, backend=None), RedisStore)
    with pytest.raises(ConfigurationError, match="one of redis_url, redis_client and backend"):
        choose_store("a", policy, url=None, client=client, backend=backend)
    with pytest.raises(ConfigurationError, match="one of"):
        choose_store("a", policy, url="redis://localhost", client=client, backend=None)
