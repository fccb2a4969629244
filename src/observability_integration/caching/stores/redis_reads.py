"""Reads over one connection: commands go out as they come, and their answers come back in the same order.

A pool lends a connection for one command at a time, and to borrow it, look whether it still stands and give it back
costs more than the command. Here a read is a plain future: whoever waits for it may leave at any moment.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, NamedTuple

from observability_integration.tasks import cancel_until_done, own, wait_done

from .shared import Place, Reading

_MOST_AWAITED = 64  # some hundred bytes each: so few hardly fill a buffer, and nobody waits until they are sent
_CLOSING_SECONDS = 5.0


class _Awaited(NamedTuple):
    since: float
    place: Place
    answer: asyncio.Future[Reading]


class ReadLine:
    """The reads through one client in the running event loop.

    Args:
        client: a ``redis.asyncio.Redis`` for one server, without a timeout for answers.
        command: what reads an entry.
        reading: what the answer says.
        otherwise: how an entry is read without the line; what a broken connection still owes is read like that.
        patience_seconds: after how long without an answer the connection is taken to be dead.
    """

    def __init__(
        self,
        client: Any,
        command: Callable[[Place], tuple[str, ...]],
        reading: Callable[[Any], Reading],
        otherwise: Callable[[Place], Awaitable[Reading]],
        patience_seconds: float,
    ) -> None:
        self._pool = client.connection_pool
        self._command = command
        self._reading = reading
        self._otherwise = otherwise
        self._patience = patience_seconds
        self._loop = asyncio.get_running_loop()
        self._connection: Any = None
        self._awaited: deque[_Awaited] = deque()
        self._task: asyncio.Task[None] | None = None
        self._closed = False

    def read(self, place: Place) -> asyncio.Future[Reading] | None:
        """Asks for an entry; None when the line is not up, which it then soon is if it can be, or has much to do."""
        connection, awaited, now = self._connection, self._awaited, self._loop.time()
        if connection is None or not connection.is_connected:
            self._open()
            return None
        if awaited:
            if now - awaited[0].since > self._patience:
                self._give_up()
                return None
            if len(awaited) >= _MOST_AWAITED:
                return None
        sending = connection.send_packed_command(connection.pack_command(*self._command(place)), check_health=False)
        if _at_once(sending):
            answer: asyncio.Future[Reading] = self._loop.create_future()
            awaited.append(_Awaited(now, place, answer))
            return answer
        # Whether the command went out nobody knows, and an answer to it would be taken for the next one's.
        self._give_up()
        return None

    def _give_up(self) -> None:
        self._connection = None
        if self._task is not None:
            cancel_until_done(self._task)

    def _open(self) -> None:
        if not self._closed and (self._task is None or self._task.done()):
            # In an empty context: the connection is no part of the call that happened to need it first.
            self._task = own(self._loop.create_task(self._run(), name="cache reads", context=contextvars.Context()))

    async def _run(self) -> None:
        connection = self._pool.connection_class(**self._pool.connection_kwargs)
        awaited = self._awaited = deque()
        try:
            await connection.connect()
            self._connection = connection
            while True:
                await self._receive(connection, awaited)
        finally:
            self._connection = None
            for owed in awaited:
                if owed.answer.done():
                    continue
                if self._closed:
                    owed.answer.set_exception(ConnectionError("closed"))
                else:
                    own(self._loop.create_task(self._read_otherwise(owed), name="cache reads"))
            await connection.disconnect(nowait=True)

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

    async def _read_otherwise(self, owed: _Awaited) -> None:
        try:
            reading = await self._otherwise(owed.place)
        except Exception as error:  # noqa: BLE001 - told to the one who asked
            if not owed.answer.done():
                owed.answer.set_exception(error)
        else:
            if not owed.answer.done():
                owed.answer.set_result(reading)

    async def aclose(self) -> None:
        """Closes the connection, for good."""
        self._closed = True
        if self._task is not None:
            cancel_until_done(self._task)
            await wait_done(self._task, _CLOSING_SECONDS)


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
