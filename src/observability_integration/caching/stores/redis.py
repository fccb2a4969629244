"""The shared store in Redis.

Everything that an operation has is in one slot, so a cluster serves it like a single server. Answers are bytes, also
from clients made with ``decode_responses=True``.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from os import urandom
from typing import Any, NamedTuple

from observability_integration.redis_backend import RedisBackend, Script
from observability_integration.redis_backend.clients import PerLoop

from . import redis_scripts as scripts
from .redis_reads import ReadLine, drop_ended_lines, has_line
from .redis_subscription import drop_ended_hubs, leave, subscribe
from .shared import (
    FOR_EVER_MS,
    Acquired,
    Committed,
    Generation,
    Place,
    Reading,
    StoreBusy,
    Subscription,
    Write,
    parse_generation,
)

_NAMES_AT_ONCE = 500  # two keys each; Lua hands some 8,000 values to a function at most
_CALL_MS = 3_600_000  # longer than any call: what a call found at its beginning is still there at its end
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
        """MGET of the entry and the generation; what is no string is no entry."""
        return _reading(await self._execute(*_read(place)))

    async def vouches(self, prefix: str, tags: Sequence[str], basis: Generation) -> bool:
        """MGET of the keys of the tags."""
        if not tags:
            return True
        found = await self._execute("MGET", *(_tag(prefix, tag) for tag in tags))
        known = [parse_generation(each) for each in found]
        return all(each is not None and each.id == basis.id and each.number <= basis.number for each in known)

    async def acquire(
        self, place: Place, token: str, lease_ms: int, known: bytes, tags: Sequence[str] = ()
    ) -> Acquired:
        """See `SharedStore.acquire`."""
        keys = place.key, _generation(place.prefix), _lease(place), *(_tag(place.prefix, tag) for tag in tags)
        args = token, lease_ms, known, urandom(8).hex(), _CALL_MS
        data, generation, seconds, micros, leading, left_ms = await self._run(scripts.ACQUIRE, keys, *args)
        now_us = int(seconds) * 1_000_000 + int(micros)
        return Acquired(data, parse_generation(generation), now_us, bool(leading), left_ms)

    async def end_lease(self, place: Place, longest_ms: int) -> None:
        """See `SharedStore.end_lease`."""
        await self._run(scripts.END_LEASE, (_lease(place),), longest_ms)

    async def renew(self, place: Place, token: str, lease_ms: int) -> bool:
        """See `SharedStore.renew`."""
        return bool(await self._run(scripts.RENEW, (_lease(place),), token, lease_ms))

    async def commit(self, place: Place, token: str, write: Write, note: str) -> Committed:
        """See `SharedStore.commit`."""
        committed: int = await self._write(scripts.COMMIT, place, token, write, note)
        return "written" if committed > 0 else "void" if committed < 0 else "lost"

    async def release(self, place: Place, token: str, note: str) -> None:
        """See `SharedStore.release`."""
        await self._run(scripts.RELEASE, (_lease(place),), token, _channel(place.prefix), note)

    async def put_late(self, place: Place, write: Write, note: str, origin: str) -> bool:
        """See `SharedStore.put_late`."""
        return bool(
            await self._write(
                scripts.PUT_LATE, place, _logged(place.name), write, note, _padded(origin, scripts.ORIGIN_CHARS)
            )
        )

    async def _write(self, script: Script, place: Place, first: str, write: Write, *rest: str) -> Any:
        # `rest` is the note, and for some scripts more, which comes last.
        prefix, basis = place.prefix, write.basis
        keys = _lease(place), place.key, _generation(prefix), _log(prefix), *(_tag(prefix, tag) for tag in write.tags)
        life_ms = min(2 * write.ttl_ms, FOR_EVER_MS)  # longer than the entry, and so not to be set with each entry
        args = first, write.data, write.ttl_ms, _channel(prefix), rest[0], basis.id, basis.number, life_ms
        return await self._run(script, keys, *args, *rest[1:])

    async def delete(self, prefix: str, names: Sequence[str], notes: Sequence[str], origin: str) -> None:
        """Deletes entries and leases; the note of each follows at once."""
        for start in range(0, len(names), _NAMES_AT_ONCE):
            some = names[start : start + _NAMES_AT_ONCE]
            places = [Place(prefix, name) for name in some]
            keys = [key for place in places for key in (place.key, _lease(place))]
            await self._invalidate(prefix, keys, some, notes[start : start + _NAMES_AT_ONCE], origin)

    async def void(self, prefix: str, tag: str | None, note: str, origin: str) -> None:
        """Deletes the key of the tag, or the generation: however many entries are void."""
        if tag is None:
            await self._evaluate(scripts.CLEAR, (_generation(prefix), _log(prefix)), _channel(prefix), note)
        else:
            await self._invalidate(prefix, [_tag(prefix, tag)], [tag], [note], origin)

    async def _invalidate(
        self, prefix: str, keys: Sequence[str], names: Sequence[str], notes: Sequence[str], origin: str
    ) -> None:
        logged = "".join(map(_logged, names))
        args = _channel(prefix), _padded(origin, scripts.ORIGIN_CHARS), _CALL_MS, logged, *notes
        await self._evaluate(scripts.INVALIDATE, (_generation(prefix), _log(prefix), *keys), *args)

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

    async def _evaluate(self, script: Script, keys: Sequence[str], *args: Any) -> None:
        # By its text: a server that stands still does what it was sent when it goes on, but is not asked twice then.
        await self._client()
        await self._backend.execute("EVAL", script.source, len(keys), *keys, *args)

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
    return "MGET", place.key, _generation(place.prefix)


def _reading(found: list[Any] | None) -> Reading:
    if not isinstance(found, list):
        return Reading(None, None)  # a stand-in for a client, which has no entries
    return Reading(found[0] or None, parse_generation(found[1]))


def _lease(place: Place) -> str:
    return place.key + ":l"


def _generation(prefix: str) -> str:
    return prefix + "gen"


def _log(prefix: str) -> str:
    return prefix + "log"


def _tag(prefix: str, tag: str) -> str:
    return f"{prefix}tag:{tag}"


def _logged(name: str) -> str:
    return _padded(name, scripts.ITEM_CHARS)


def _padded(text: str, chars: int) -> str:
    return f"{text:-<{chars}.{chars}}"


def _channel(prefix: str) -> str:
    return prefix + "events"
