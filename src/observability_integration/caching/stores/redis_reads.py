"""Reads over one connection: commands go out as they come, and their answers come back in the same order.

A pool lends a connection for one command at a time, and to borrow it, look whether it still stands and give it back
costs more than the command. Here a read is a plain future: whoever waits for it may leave at any moment.

All stores that read through one client in one event loop share the line. It is opened by a read that comes soon after
another, so that reads too rare to use it never open it; and closed with the last store, with the loop, or when nobody
has read for a while: a client tells nobody that it was closed, and an idle connection may be cut without a word.

Not every client has a line. Its connection stands outside the pool, so whoever has counted the connections, sets them
up or renews their credentials himself, or wants to see each command on its way (tracing replaces the method that sends
them), finds that reads go through the client like everything else.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from types import FunctionType
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary, ref

from observability_integration.redis_backend.clients import cut
from observability_integration.tasks import begin_apart, cancel_until_done, drop_left, own, wait_done

from .redis_subscription import make_connection
from .shared import Place, Reading

_MOST_AWAITED = 64  # some hundred bytes each: so few hardly fill a buffer, and nobody waits until they are sent
_OPENING_SECONDS = 5.0  # for clients that say nothing about it
_IDLE_SECONDS = 30.0  # without a read, after which the line is closed; reads further apart do not open it either
_PAUSE_SECONDS = 0.1  # after a line that brought no answer at all; doubled for each such one
_PAUSE_MAX_SECONDS = 10.0
_CLOSING_SECONDS = 5.0
_SETS_UP = ("credential_provider", "redis_connect_func")  # options of those who see to their connections themselves

_CLIENT_MODULE = "redis.asyncio.client"

_lines: WeakKeyDictionary[Any, dict[asyncio.AbstractEventLoop, ReadLine]] = WeakKeyDictionary()
# Event loops hold their tasks weakly. Not `own`: what a loop leaves here that is closed can be let go.
_running: dict[asyncio.Task[None], ReadLine] = {}


class _Awaited(NamedTuple):
    since: float
    place: Place
    answer: asyncio.Future[Reading]
    otherwise: Callable[[Place], Awaitable[Reading]]


class ReadLine:
    """The reads through one client in the running event loop.

    Args:
        client: one that `has_line`; not kept alive by this.
        command: what reads an entry.
        reading: what the answer says.
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
        self._last_read = self._loop.time()  # the one that finds no line yet
        self._of_no_use = False
        self._failures = 0
        self._not_before = 0.0

    @classmethod
    def join(
        cls,
        client: Any,
        command: Callable[[Place], tuple[str, ...]],
        reading: Callable[[Any], Reading],
        patience_seconds: float,
    ) -> ReadLine:
        """The line of the client in the running event loop, for one more who uses it and will `leave` it.

        Args:
            client: see above.
            command: see above.
            reading: see above.
            patience_seconds: after how long without an answer the connection is taken to be dead; the longest counts.
        """
        here = _lines.setdefault(client, {})
        for loop in [loop for loop in here if loop.is_closed()]:
            del here[loop]
        loop = asyncio.get_running_loop()
        line = here.get(loop)
        if line is None:
            line = here[loop] = cls(client, command, reading)
        line._users += 1
        line._patience = max(line._patience, patience_seconds)
        return line

    async def leave(self) -> None:
        """Closes the connection, for good, unless others use it."""
        self._users -= 1
        if self._users:
            return
        self._closed = True
        _lines.get(self._client(), {}).pop(self._loop, None)
        if self._task is not None:
            cancel_until_done(self._task)
            await wait_done(self._task, _CLOSING_SECONDS)

    def read(self, place: Place, otherwise: Callable[[Place], Awaitable[Reading]]) -> asyncio.Future[Reading] | None:
        """Asks for an entry; None when the line has much to do, or is not up.

        In that case it soon is, if it can be and this is not the first read in a while.

        Args:
            place: of the entry.
            otherwise: how it is read without the line; what a broken connection still owes is read like that.
        """
        connection, awaited, now = self._connection, self._awaited, self._loop.time()
        if connection is None or not connection.is_connected:
            self._open(now)
            return None
        if awaited:
            if now - awaited[0].since > self._patience:
                self.give_up()
                return None
            if len(awaited) >= _MOST_AWAITED:
                return None
        if not _sends_itself(self._client()):
            return None
        sending = connection.send_packed_command(connection.pack_command(*self._command(place)), check_health=False)
        if _at_once(sending):
            answer: asyncio.Future[Reading] = self._loop.create_future()
            awaited.append(_Awaited(now, place, answer, otherwise))
            self._last_read = now
            return answer
        # Whether the command went out nobody knows, and an answer to it would be taken for the next one's.
        self.give_up()
        return None

    def give_up(self) -> None:
        """Ends the connection; whoever reads next has another one opened."""
        self._connection = None
        if self._task is not None:
            cancel_until_done(self._task)

    def drop(self) -> None:
        """Lets go of everything; the event loop is closed."""
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
            task = self._task = begin_apart(self._loop, self._run(client.connection_pool), name="cache reads")
            _running[task] = self
            task.add_done_callback(_ended)

    async def _run(self, pool: Any) -> None:
        opening_seconds = _opening_seconds(pool.connection_kwargs)
        connection = make_connection(pool, None, opening_seconds)
        del pool  # the connection outlives a client that nobody has any more, but does not keep it
        awaited = self._awaited = deque()
        self._of_no_use = True
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
                self._of_no_use = False
        finally:
            self._connection = None
            if self._idle is not None:
                self._idle.cancel()
            self._failures = self._failures + 1 if self._of_no_use else 0
            pause = min(_PAUSE_MAX_SECONDS, _PAUSE_SECONDS * 2 ** min(self._failures, 16)) if self._of_no_use else 0.0
            self._not_before = self._loop.time() + pause
            for owed in awaited:
                if owed.answer.done():
                    continue
                if self._closed:
                    owed.answer.set_exception(ConnectionError("closed"))
                else:
                    reading = own(self._loop.create_task(_read_otherwise(owed), name="cache reads"))
                    # With whoever has left, it ends too: a client may wait and try again for long.
                    owed.answer.add_done_callback(partial(_end, reading))
            await connection.disconnect(nowait=True)

    def _end_if_idle(self) -> None:
        left = self._last_read + _IDLE_SECONDS - self._loop.time()
        if left <= 0:
            self._of_no_use = False  # it stood, and nobody asked
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
                answer.set_exception(error)  # what the server says is wrong with this one
        else:
            answer = awaited.popleft().answer
            if not answer.done():
                answer.set_result(self._reading(found))


def drop_ended_lines() -> None:
    """Lets go of the lines of event loops that were closed before them."""
    for task, line in list(_running.items()):
        if task.get_loop().is_closed():
            _running.pop(task, None)
            line.drop()


def has_line(client: Any) -> bool:
    """Whether reads through this client may share a connection: it is redis-py's own, and left as it was made."""
    if type(client).__module__ != _CLIENT_MODULE:
        return False
    import redis.asyncio  # whoever has such a client has imported it

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
    # What replaces the method, on the object or on the class, cannot hide in which module it was written.
    if client is None or "execute_command" in client.__dict__:
        return False
    method = client.__class__.execute_command
    return type(method) is FunctionType and method.__globals__["__name__"] == _CLIENT_MODULE


def _opening_seconds(options: dict[str, Any]) -> float:
    return options.get("socket_connect_timeout") or options.get("socket_timeout") or _OPENING_SECONDS


def _ended(task: asyncio.Task[None]) -> None:
    _running.pop(task, None)
    if not task.cancelled():
        task.exception()  # whoever asked is answered otherwise


def _end(reading: asyncio.Task[None], _: asyncio.Future[Reading]) -> None:
    cancel_until_done(reading)


async def _read_otherwise(owed: _Awaited) -> None:
    try:
        reading = await owed.otherwise(owed.place)
    except Exception as error:  # noqa: BLE001 - told to the one who asked
        if not owed.answer.done():
            owed.answer.set_exception(error)
    else:
        if not owed.answer.done():
            owed.answer.set_result(reading)


def _at_once(sending: Coroutine[Any, Any, None]) -> bool:
    """Whether all of it was sent, without having to wait."""
    try:
        sending.send(None)
    except StopIteration:
        return True
    except Exception:  # noqa: BLE001 - the connection is broken
        return False
    sending.close()
    return False
