"""The shared store in Redis.

Everything that an operation has is in one slot, so a cluster serves it like a single server. Answers are bytes, also
from clients made with ``decode_responses=True``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

from observability_integration.redis_backend import RedisBackend, Script
from observability_integration.redis_backend.clients import PerLoop

from . import redis_scripts as scripts
from .redis_reads import ReadLine, drop_ended_lines, has_line
from .redis_subscription import drop_ended_hubs, leave, subscribe
from .shared import Acquired, Place, Reading, StoreBusy, Subscription

_NAMES_AT_ONCE = 500  # two keys each; Lua hands some 8,000 values to a function at most
_PROBE_TTL_MS = 1000
_PATIENCE_SECONDS = 0.5  # ten times what an access may take by default; a late read is then made without the line


class _Session(NamedTuple):
    """What a store has in one event loop."""

    client: Any
    line: ReadLine | None


class RedisStore:
    """A `SharedStore` on the caller's client or its own ones; reads may share a connection (see `redis_reads`).

    Args:
        client: a redis-py client of any kind; the caller keeps and closes it.
        patience_seconds: after how long without an answer the connection for reads is taken to be dead; also the limit
            for connecting with `url`.
        url: instead of a client, e.g. ``redis://localhost:6379/0``.

    Raises:
        MissingDependencyError: a URL is given and the redis package is not installed.
        ConfigurationError: both or neither are given, or what is given is no URL or no client.
    """

    def __init__(
        self, client: Any = None, patience_seconds: float = _PATIENCE_SECONDS, *, url: str | None = None
    ) -> None:
        self._backend = RedisBackend(client, url, connect_seconds=patience_seconds, as_bytes=True, busy_error=StoreBusy)
        self._patience = patience_seconds
        self._owns_clients = url is not None
        self._has_sessions = self._owns_clients or has_line(client)
        self._sessions: PerLoop[_Session] = PerLoop(self._end, lambda _: None)

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
        return Acquired(data, _moment(cleared), now_us, bool(leading), left_ms)

    async def end_lease(self, place: Place, longest_ms: int) -> None:
        """See `SharedStore.end_lease`."""
        await self._run(scripts.END_LEASE, (_lease(place),), longest_ms)

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
            sent = notes if start + _NAMES_AT_ONCE >= len(names) else ()
            await self._run(scripts.DELETE, keys, _channel(prefix), *sent)

    async def mark(self, prefix: str, tag: str | None, life_ms: int, note: str) -> None:
        """Writes the server's time: one short key, however many entries it voids."""
        key = _clear_mark(prefix) if tag is None else _tag_mark(prefix, tag)
        await self._run(scripts.MARK, (key,), life_ms, _channel(prefix), note)

    async def probe(self, prefix: str) -> None:
        """Runs a script, because a server that runs none is of no use; over a new connection, if it is ours."""
        line = self._line()
        if line is not None:
            line.give_up()
        await self._backend.reconnect()
        await self._run(scripts.PROBE, (prefix + "probe",), _PROBE_TTL_MS)

    async def listen(self, prefix: str, hear: Callable[[str], None], resumed: Callable[[], None]) -> Subscription:
        """See `SharedStore.listen`; returns when Redis has confirmed it, however long that takes."""
        client = await self._client()
        return await subscribe(client, _channel(prefix), hear, resumed, awaits=self._backend.is_async)

    async def aclose(self) -> None:
        """Closes the connections that were opened for the running loop."""
        try:
            await self._sessions.aclose()
        finally:
            await self._backend.aclose()

    async def _execute(self, *command: Any) -> Any:
        await self._client()
        return await self._backend.execute(*command)

    async def _run(self, script: Script, keys: Sequence[str], *args: Any) -> Any:
        await self._client()
        return await self._backend.run(script, keys, *args)

    async def _client(self) -> Any:
        client = await self._backend.client()
        if self._has_sessions:
            session = self._sessions.get()
            if session is not None and session.client is not client:  # a read came while this was being closed
                await self._sessions.aclose()
                session = None
            if session is None:
                await self._sessions.open(lambda: self._begin(client))
        return client

    def _line(self) -> ReadLine | None:
        session = self._sessions.get()
        return None if session is None else session.line

    def _begin(self, client: Any) -> _Session:
        drop_ended_lines()
        drop_ended_hubs()
        line = ReadLine.join(client, _read, _reading, self._patience) if has_line(client) else None
        return _Session(client, line)

    async def _end(self, session: _Session) -> None:
        try:
            if session.line is not None:
                await session.line.leave()
        finally:
            if self._owns_clients:
                await leave(session.client)


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
    # Only the scripts should write marks; any other value counts as none.
    return int(mark) if isinstance(mark, bytes) and mark.isdigit() else 0
