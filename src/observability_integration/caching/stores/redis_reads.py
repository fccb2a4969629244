"""Reads over one pipelined connection: commands go out as they come, and their answers come back in the same order.

A pool lends a connection for one command at a time, and to borrow it, check it and give it back costs more than the
command. Here a read is a plain future, which its caller may leave at any moment.

All stores that read through one client in one event loop share the line. A read that comes soon after another opens it,
so reads too rare to use it never do. It is closed with the last store, with the loop, or when no read has come for a
while: a client does not tell that it was closed, and an idle connection may be cut without notice.

Not every client has a line. Its connection stands outside the pool, so reads go through the client where the caller
would notice: a bounded number of connections, connections that the caller sets up, credentials that expire, and methods
that tracing has replaced. The line also uses parts of redis-py that are not public; where one of them is missing, reads
go through the client as well.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from types import FunctionType
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary, ref

from observability_integration.redis_backend.clients import cut
from observability_integration.tasks import cancel_until_done, drop_left, keep_alive, spawn_detached, wait_done

from .redis_subscription import make_connection
from .shared import Place, Reading

logger = logging.getLogger("observability_integration")

_MAX_AWAITED = 64  # some hundred bytes each: so few hardly fill a buffer, so sending does not wait
_OPENING_SECONDS = 5.0  # for clients that state no limit
_IDLE_SECONDS = 30.0  # without a read, after which the line is closed; reads further apart do not open it either
_PAUSE_SECONDS = 0.1  # after a line that brought no answer at all; doubled for each such one
_PAUSE_MAX_SECONDS = 10.0
_CLOSING_SECONDS = 5.0
_SETS_UP = ("credential_provider", "redis_connect_func")  # options with which the caller sets up connections

_CLIENT_MODULE = "redis.asyncio.client"

# The parts of redis-py that are used here and in `redis_backend.clients` and are not public, or not the same in all
# versions: of a pool, and of a connection with the parameters of its methods.
_POOL_PARTS = ("connection_class", "connection_kwargs", "_available_connections", "_in_use_connections")
_CONNECTION_PARTS: dict[str, tuple[str, ...]] = {
    "_reader": (),
    "_writer": (),
    "is_connected": (),
    "connect": (),
    "disconnect": ("nowait",),
    "pack_command": (),
    "send_packed_command": ("check_health",),
    "read_response": ("disable_decoding",),
}

_reported: set[str] = set()  # parts that are missing, of which the log has a line
_lines: WeakKeyDictionary[Any, dict[asyncio.AbstractEventLoop, ReadLine]] = WeakKeyDictionary()
# Event loops hold their tasks weakly. Not `keep_alive`: tasks of a loop that was closed can be dropped from here.
_running: dict[asyncio.Task[None], ReadLine] = {}


class _Awaited(NamedTuple):
    """A read that was sent and has no answer yet."""

    since: float
    place: Place
    answer: asyncio.Future[Reading]
    fallback: Callable[[Place], Awaitable[Reading]]


class ReadLine:
    """The reads through one client in the running event loop.

    Args:
        client: one that `has_line`; not kept alive by this.
        command: returns the command that reads an entry.
        reading: parses the answer.
    """

    def __init__(self, client: Any, command: Callable[[Place], tuple[str, ...]], reading: Callable[[Any], Reading]):
        self._client: Callable[[], Any] = ref(client)
        self._command = command
        self._reading = reading
        self._loop = asyncio.get_running_loop()
        self._connection: Any = None
        self._awaited: deque[_Awaited] = deque()
        self._task: asyncio.Task[None] | None = None
        self._idle: asyncio.TimerHandle | None = None
        self._users = 0
        self._patience = 0.0
        self._closed = False
        self._last_read = self._loop.time()  # the read that finds no line yet
        self._useless = False
        self._failures = 0
        self._not_before = 0.0

    @classmethod
    def join(
        cls,
        client: Any,
        command: Callable[[Place], tuple[str, ...]],
        reading: Callable[[Any], Reading],
        patience_seconds: float,
    ) -> ReadLine | None:
        """Returns the line of the client in the running event loop, for one more store, which has to `leave` it.

        Args:
            client: see above.
            command: see above.
            reading: see above.
            patience_seconds: after how long without an answer the connection is taken to be dead; the longest counts.

        Returns:
            None if a part of redis-py is missing that the line needs; the log says so once.
        """
        here = _lines.setdefault(client, {})
        for loop in [loop for loop in here if loop.is_closed()]:
            del here[loop]
        loop = asyncio.get_running_loop()
        line = here.get(loop)
        if line is None:
            missing = missing_part(client.connection_pool)
            if missing is not None:
                _report(missing)
                return None
            line = here[loop] = cls(client, command, reading)
        line._users += 1
        line._patience = max(line._patience, patience_seconds)
        return line

    async def leave(self) -> None:
        """Closes the connection for good, unless other stores use it."""
        self._users -= 1
        if self._users:
            return
        self._closed = True
        _lines.get(self._client(), {}).pop(self._loop, None)
        if self._task is not None:
            cancel_until_done(self._task)
            await wait_done(self._task, _CLOSING_SECONDS)

    def read(self, place: Place, fallback: Callable[[Place], Awaitable[Reading]]) -> asyncio.Future[Reading] | None:
        """Reads an entry; None when the line is busy, or is not open.

        In the latter case it opens, if it can and this is not the first read in a while.

        Args:
            place: of the entry.
            fallback: reads without the line; used for reads that a broken connection leaves unanswered.
        """
        connection, awaited, now = self._connection, self._awaited, self._loop.time()
        if connection is None or not connection.is_connected:
            self._open(now)
            return None
        if awaited:
            if now - awaited[0].since > self._patience:
                self.give_up()
                return None
            if len(awaited) >= _MAX_AWAITED:
                return None
        if not _sends_itself(self._client()):
            return None
        sending = connection.send_packed_command(connection.pack_command(*self._command(place)), check_health=False)
        if _sent_whole(sending):
            answer: asyncio.Future[Reading] = self._loop.create_future()
            awaited.append(_Awaited(now, place, answer, fallback))
            self._last_read = now
            return answer
        # The command may have gone out in part, and an answer to it would be taken for that of the next one.
        self.give_up()
        return None

    def give_up(self) -> None:
        """Ends the connection; the next read opens another one."""
        self._connection = None
        if self._task is not None:
            cancel_until_done(self._task)

    def drop(self) -> None:
        """Drops the connection and the task of an event loop that is closed."""
        self._closed = True
        self._awaited.clear()
        cut(self._connection)
        if self._task is not None:
            drop_left(self._task)

    def _open(self, now: float) -> None:
        rare = now - self._last_read > _IDLE_SECONDS
        self._last_read = now
        if rare or self._closed or now < self._not_before or not (self._task is None or self._task.done()):
            return
        client = self._client()
        if has_line(client):
            task = self._task = spawn_detached(self._loop, self._run(client.connection_pool), name="cache reads")
            _running[task] = self
            task.add_done_callback(_ended)

    async def _run(self, pool: Any) -> None:
        opening_seconds = _opening_seconds(pool.connection_kwargs)
        connection = make_connection(pool, None, opening_seconds)
        del pool  # the connection may outlive the client, but must not keep it alive
        awaited = self._awaited = deque()
        self._useless = True
        try:
            # A server that stands still is connected to, and then does not answer the greeting.
            opening = self._loop.call_later(opening_seconds, self.give_up)
            try:
                await connection.connect()
            finally:
                opening.cancel()
            self._connection = connection
            self._end_if_idle()
            while True:
                await self._receive(connection, awaited)
                self._useless = False
        finally:
            self._connection = None
            if self._idle is not None:
                self._idle.cancel()
            self._failures = self._failures + 1 if self._useless else 0
            pause = min(_PAUSE_MAX_SECONDS, _PAUSE_SECONDS * 2 ** min(self._failures, 16)) if self._useless else 0.0
            self._not_before = self._loop.time() + pause
            for unanswered in awaited:
                if unanswered.answer.done():
                    continue
                if self._closed:
                    unanswered.answer.set_exception(ConnectionError("closed"))
                else:
                    reading = keep_alive(self._loop.create_task(_fall_back(unanswered), name="cache reads"))
                    # It ends when the caller leaves: a client may wait and retry for long.
                    unanswered.answer.add_done_callback(partial(_end, reading))
            await connection.disconnect(nowait=True)

    def _end_if_idle(self) -> None:
        left = self._last_read + _IDLE_SECONDS - self._loop.time()
        if left <= 0:
            self._useless = False  # it was open, and no read came
            self.give_up()
        else:
            self._idle = self._loop.call_later(left, self._end_if_idle)

    async def _receive(self, connection: Any, awaited: deque[_Awaited]) -> None:
        try:
            found: Any = await connection.read_response(disable_decoding=True)
        except Exception as error:
            if not connection.is_connected or not awaited:
                raise
            answer = awaited.popleft().answer
            if not answer.done():
                answer.set_exception(error)  # the server refuses this command; the connection is in order
        else:
            answer = awaited.popleft().answer
            if not answer.done():
                answer.set_result(self._reading(found))


def drop_ended_lines() -> None:
    """Drops the lines of event loops that were closed before them."""
    for task, line in list(_running.items()):
        if task.get_loop().is_closed():
            _running.pop(task, None)
            line.drop()


def has_line(client: Any) -> bool:
    """Tells whether reads through this client may share a connection: it is redis-py's own, and unchanged."""
    if type(client).__module__ != _CLIENT_MODULE:
        return False
    import redis.asyncio  # the caller, who has such a client, has imported it

    package: Any = redis.asyncio
    if type(client) is not package.Redis or client.single_connection_client:
        return False
    pool = client.connection_pool
    standard = package.Connection, package.SSLConnection, package.UnixDomainSocketConnection
    return (
        type(pool) in (package.ConnectionPool, package.BlockingConnectionPool)
        and pool.connection_class in standard
        and not any(pool.connection_kwargs.get(option) for option in _SETS_UP)
        # A pool smaller than the package would make it is a promise to the server, which the line would break.
        and pool.max_connections >= type(pool)().max_connections
        and _sends_itself(client)
    )


def _sends_itself(client: Any) -> bool:
    # A method that replaces the original, on the object or on the class, is from another module.
    if client is None or "execute_command" in client.__dict__:
        return False
    method = client.__class__.execute_command
    return type(method) is FunctionType and method.__globals__["__name__"] == _CLIENT_MODULE


def missing_part(pool: Any) -> str | None:
    """Returns the first part that redis-py lacks for a line through this pool, if any."""
    for part in _POOL_PARTS:
        if not hasattr(pool, part):
            return part
    connection = make_connection(pool, None, _OPENING_SECONDS)
    for part, parameters in _CONNECTION_PARTS.items():
        if not hasattr(connection, part):
            return part
        if parameters and not inspect.signature(getattr(connection, part)).parameters.keys() >= set(parameters):
            return f"{part}({', '.join(parameters)})"
    return None


def _report(part: str) -> None:
    if part not in _reported:
        _reported.add(part)
        logger.warning(
            "This version of redis has no %s; the cache reads through the connection pool, at its cost", part
        )


def _opening_seconds(options: dict[str, Any]) -> float:
    return options.get("socket_connect_timeout") or options.get("socket_timeout") or _OPENING_SECONDS


def _ended(task: asyncio.Task[None]) -> None:
    _running.pop(task, None)
    if not task.cancelled():
        task.exception()  # unanswered reads fall back


def _end(reading: asyncio.Task[None], _: asyncio.Future[Reading]) -> None:
    cancel_until_done(reading)


async def _fall_back(unanswered: _Awaited) -> None:
    answer = unanswered.answer
    try:
        reading = await unanswered.fallback(unanswered.place)
    except Exception as error:  # noqa: BLE001 - passed on to the caller
        if not answer.done():
            answer.set_exception(error)
    else:
        if not answer.done():
            answer.set_result(reading)


def _sent_whole(sending: Coroutine[Any, Any, None]) -> bool:
    """Tells whether the command was sent as a whole, without having to wait."""
    try:
        sending.send(None)
    except StopIteration:
        return True
    except Exception:  # noqa: BLE001 - the connection is broken
        return False
    sending.close()
    return False
