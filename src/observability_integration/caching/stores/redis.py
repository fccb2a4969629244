"""The second level: Redis, through whichever client the user has.

Async clients are awaited, synchronous ones are called in daemon threads, so the loop is never blocked and a client that
hangs keeps nothing alive. Single servers, Sentinel's masters and clusters are asked alike: everything an operation has
is in one slot. Answers are bytes, also from clients made with ``decode_responses=True``.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from typing import Any, NamedTuple, TypeVar, cast

from observability_integration.redis_client import clients_of, cut_all, is_async
from observability_integration.threads import DaemonThreads

from . import redis_scripts as scripts
from .redis_reads import ReadLine, drop_ended_lines, has_line
from .redis_subscription import drop_ended_hubs, leave, subscribe
from .shared import Acquired, Place, Reading, StoreBusy, Subscription

T = TypeVar("T")
_NAMES_AT_ONCE = 500  # two keys each; Lua hands some 8,000 values to a function at most
_PROBE_TTL_MS = 1000
_PATIENCE_SECONDS = 0.5  # ten times what an access may take by default; whoever is late is read for otherwise
# What redis-py says when its pool is exhausted; the class that says so differs by version.
_POOL_EXHAUSTED = ("Too many connections", "No connection available.")
_threads = DaemonThreads(max_threads=16, name="observability-redis")


async def _in_thread(call: Callable[[], T]) -> T:
    left = False

    def unless_left() -> Any:
        # A write that waited for a thread until nobody wanted it any more must not come after later ones.
        return None if left else call()

    try:
        return cast("T", await _threads.run(unless_left))
    except asyncio.CancelledError:
        left = True
        raise


class _Kept(NamedTuple):
    """What a store has in one event loop."""

    client: Any
    line: ReadLine | None
    until_the_loop_ends: AsyncGenerator[None, None]


class RedisStore:
    """A `SharedStore` on a client that the caller made and keeps; reads may share a connection (see `redis_reads`).

    Args:
        client: a redis-py client of any kind.
        patience_seconds: after how long without an answer that connection is taken to be dead.

    Raises:
        ConfigurationError: `client` is not a client.
    """

    def __init__(self, client: Any, patience_seconds: float = _PATIENCE_SECONDS) -> None:
        self._awaits = is_async(client)
        self._given = client
        self._patience = patience_seconds
        self._keeps = has_line(client)
        self._kept: dict[asyncio.AbstractEventLoop, _Kept] = {}

    async def _client(self) -> Any:
        if not self._keeps:
            return self._given
        loop = asyncio.get_running_loop()
        kept = self._kept.get(loop)
        if kept is None:
            self._drop_ended()
            client = self._make()
            line = ReadLine.join(client, _read, _reading, self._patience) if has_line(client) else None
            kept = self._kept[loop] = _Kept(client, line, self._until_the_loop_ends(loop))
            await anext(kept.until_the_loop_ends)
        return kept.client

    def _make(self) -> Any:
        return self._given

    async def _let_go(self, client: Any) -> None:
        """Nothing: the client is the caller's."""

    def _drop(self, client: Any) -> None:
        """The same, without waiting."""

    def _drop_ended(self) -> None:
        """Lets go of what is left of loops that were closed without their generators."""
        for ended in [loop for loop in list(self._kept) if loop.is_closed()]:
            kept = self._kept.pop(ended, None)
            if kept is not None:
                self._drop(kept.client)
        drop_ended_lines()
        drop_ended_hubs()

    async def _until_the_loop_ends(self, loop: asyncio.AbstractEventLoop) -> AsyncGenerator[None, None]:
        # asyncio closes the generators that a loop leaves behind, before the loop itself: the moment to close a client.
        try:
            yield
        finally:
            kept = self._kept.pop(loop)
            try:
                if kept.line is not None:
                    await kept.line.leave()
            finally:
                await self._let_go(kept.client)

    def _line(self) -> ReadLine | None:
        kept = self._kept.get(asyncio.get_running_loop())
        return None if kept is None else kept.line

    async def _execute(self, *command: Any) -> Any:
        client = await self._client()
        try:
            if self._awaits:
                return await client.execute_command(*command, NEVER_DECODE=True)
            answer = await _in_thread(lambda: client.execute_command(*command, NEVER_DECODE=True))
            return await answer if inspect.isawaitable(answer) else answer
        except Exception as error:
            if str(error) in _POOL_EXHAUSTED or type(error).__name__ == "MaxConnectionsError":
                raise StoreBusy from error
            raise

    async def _run(self, script: scripts.Script, keys: Sequence[str], *args: Any) -> Any:
        try:
            return await self._execute("EVALSHA", script.sha, len(keys), *keys, *args)
        except Exception as error:
            # redis-py takes the code off the message and makes a class of it.
            if type(error).__name__ != "NoScriptError" and not str(error).startswith("NOSCRIPT"):
                raise
        return await self._execute("EVAL", script.source, len(keys), *keys, *args)

    def read(self, place: Place) -> Awaitable[Reading]:
        """A plain future once there is a connection for reads."""
        line = self._line()
        answer = None if line is None else line.read(place, self._read)
        return self._read(place) if answer is None else answer

    async def _read(self, place: Place) -> Reading:
        """MGET of the entry and the clear mark; what is no string is no entry."""
        return _reading(await self._execute(*_read(place)))

    async def marked_us(self, prefix: str, tags: Sequence[str]) -> int:
        """MGET of the marks."""
        if not tags:
            return 0
        marks = await self._execute("MGET", *(_tag_mark(prefix, tag) for tag in tags))
        return max(map(_moment, marks))

    async def acquire(self, place: Place, token: str, lease_ms: int, known: bytes) -> Acquired:
        """See `SharedStore.acquire`."""
        keys = place.key, _clear_mark(place.prefix), _lease(place), place.prefix + "gen"
        data, cleared, seconds, micros, leading, left_ms = await self._run(
            scripts.ACQUIRE, keys, token, lease_ms, known
        )
        now_us = int(seconds) * 1_000_000 + int(micros)
        return Acquired(data, _moment(cleared), now_us, bool(leading), max(0, left_ms))

    async def renew(self, place: Place, token: str, lease_ms: int) -> bool:
        """See `SharedStore.renew`."""
        return bool(await self._run(scripts.RENEW, (_lease(place),), token, lease_ms))

    async def commit(self, place: Place, token: str, data: bytes, ttl_ms: int, note: str) -> bool:
        """See `SharedStore.commit`."""
        keys = _lease(place), place.key
        return bool(await self._run(scripts.COMMIT, keys, token, data, ttl_ms, _channel(place.prefix), note))

    async def release(self, place: Place, token: str, note: str) -> None:
        """See `SharedStore.release`."""
        await self._run(scripts.RELEASE, (_lease(place),), token, _channel(place.prefix), note)

    async def put_late(self, place: Place, data: bytes, ttl_ms: int, note: str) -> bool:
        """See `SharedStore.put_late`."""
        keys = place.key, _lease(place)
        return bool(await self._run(scripts.PUT_LATE, keys, data, ttl_ms, _channel(place.prefix), note))

    async def delete(self, prefix: str, names: Sequence[str], notes: Sequence[str]) -> None:
        """DEL of entries and leases; the notes go out when the last are gone."""
        for start in range(0, len(names), _NAMES_AT_ONCE):
            places = [Place(prefix, name) for name in names[start : start + _NAMES_AT_ONCE]]
            keys = [key for place in places for key in (place.key, _lease(place))]
            said = notes if start + _NAMES_AT_ONCE >= len(names) else ()
            await self._run(scripts.DELETE, keys, _channel(prefix), *said)

    async def mark(self, prefix: str, tag: str | None, life_ms: int, note: str) -> None:
        """Writes the server's time: one short key, however many entries it voids."""
        key = _clear_mark(prefix) if tag is None else _tag_mark(prefix, tag)
        await self._run(scripts.MARK, (key,), life_ms, _channel(prefix), note)

    async def probe(self, prefix: str) -> None:
        """By a script, because a server that runs none is of no use; and reads go on over a new connection."""
        line = self._line()
        if line is not None:
            line.give_up()
        await self._run(scripts.PROBE, (prefix + "probe",), _PROBE_TTL_MS)

    async def listen(self, prefix: str, hear: Callable[[str], None], resumed: Callable[[], None]) -> Subscription:
        """See `SharedStore.listen`; returns when Redis has confirmed it, however long that takes."""
        return await subscribe(await self._client(), _channel(prefix), hear, resumed, awaits=self._awaits)

    async def aclose(self) -> None:
        """Closes the connections that were opened for the running loop."""
        kept = self._kept.get(asyncio.get_running_loop())
        if kept is not None:
            await kept.until_the_loop_ends.aclose()


class RedisUrlStore(RedisStore):
    """A `SharedStore` on clients of its own, one for each event loop it is used in.

    An async connection belongs to the loop that opened it, and a process may run several (a script that calls
    ``asyncio.run`` twice, a loop in a thread). A client is closed with its loop.

    Args:
        url: e.g. ``redis://localhost:6379/0``.
        timeout_seconds: for connecting, and for answers to reads, which are then asked for otherwise.

    Raises:
        MissingDependencyError: the redis package is not installed.
        ConfigurationError: `url` is none that Redis is reached under.
    """

    def __init__(self, url: str, timeout_seconds: float) -> None:
        self._new = clients_of(url, timeout_seconds)
        super().__init__(self._new(), timeout_seconds)
        self._keeps = True

    def _make(self) -> Any:
        return self._new()

    async def _let_go(self, client: Any) -> None:
        try:
            await leave(client)
        finally:
            try:
                await client.aclose()
            finally:
                self._drop(client)  # what a cancelled `aclose` has left open

    def _drop(self, client: Any) -> None:
        cut_all(client)

    async def probe(self, prefix: str) -> None:
        """The same on a new connection: those that were idle may have broken meanwhile, which the pool overlooks."""
        await (await self._client()).connection_pool.disconnect(inuse_connections=False)
        await super().probe(prefix)


def _read(place: Place) -> tuple[str, ...]:
    return "MGET", place.key, _clear_mark(place.prefix)


def _reading(found: list[Any] | None) -> Reading:
    if not isinstance(found, list):
        return Reading(None, 0)  # a stand-in for a client, which has no entries
    return Reading(found[0] or None, _moment(found[1]))


def _lease(place: Place) -> str:
    return place.key + ":l"


def _clear_mark(prefix: str) -> str:
    return prefix + "cleared"


def _tag_mark(prefix: str, tag: str) -> str:
    return f"{prefix}tag:{tag}"


def _channel(prefix: str) -> str:
    return prefix + "events"


def _moment(mark: Any) -> int:
    # Nobody but the scripts should write marks; what anybody else wrote is none.
    return int(mark) if isinstance(mark, bytes) and mark.isdigit() else 0
