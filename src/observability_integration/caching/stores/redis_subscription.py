"""Subscriptions in Redis: one connection for each client and event loop, for any number of channels.

The connection is made as the client's pool makes its own, but stands outside the pool: it would occupy a place there
for good, and it has other timeouts. It speaks RESP2, which has all that a subscribed connection needs. When it is lost
it is opened again, after ever longer pauses. When nothing has come for a while it is pinged, because a connection that
was cut without notice looks like a quiet one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import threading
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from observability_integration.redis_backend.backend import threads_of
from observability_integration.redis_backend.clients import cut, without_driver_info
from observability_integration.redis_backend.guard import backoff_seconds
from observability_integration.tasks import cancel_until_done, drop_left, set_done, spawn_detached, wait_done
from observability_integration.threads import DaemonThreads

from .plain import Silence
from .shared import Subscription

logger = logging.getLogger("observability_integration")

_QUIET_SECONDS = 5.0  # silence after which the server is pinged
_ANSWER_SECONDS = 5.0  # how long the answer, or opening a connection, may take
_PAUSE_SECONDS = 0.1  # before the first attempt to connect again; doubled for each that fails
_PAUSE_MAX_SECONDS = 10.0
_OTHERWISE = ("retry", "maint", "oss_cluster")  # options of the pool's connections that this one is made without

_hubs: WeakKeyDictionary[Any, dict[asyncio.AbstractEventLoop, _Hub]] = WeakKeyDictionary()


async def subscribe(
    client: Any, channel: str, hear: Callable[[str], None], resumed: Callable[[], None], *, awaits: bool
) -> Subscription:
    """Subscribes to `channel`, from when this returns; see `SharedStore.listen`.

    Args:
        client: a client for a single server, a Sentinel's master or a cluster. A stand-in without connections never
            receives a note.
        channel: its name.
        hear: called with each note.
        resumed: called when listening goes on after a gap.
        awaits: whether the client is asynchronous.
    """
    if not _has_connections(client):
        return Silence()
    loop = asyncio.get_running_loop()
    here = _hubs.setdefault(client, {})
    hub = here.get(loop)
    if hub is None:
        hub = here[loop] = _Hub(client, awaits)
    listener = _Listener(hub, channel, hear, resumed)
    try:
        await hub.add(listener)
        await listener.ready
    except BaseException:
        hub.remove(listener)
        raise
    return listener


async def leave(client: Any) -> None:
    """Ends all subscriptions through this client in the running event loop."""
    hub = _hubs.get(client, {}).get(asyncio.get_running_loop())
    if hub is not None:
        await hub.aclose()


def drop_ended_hubs() -> None:
    """Drops the subscriptions of event loops that were closed before them."""
    for here in list(_hubs.values()):
        for hub in [hub for loop, hub in list(here.items()) if loop.is_closed()]:
            hub.drop()


class _Listener:
    """One subscription to one channel."""

    def __init__(self, hub: _Hub, channel: str, hear: Callable[[str], None], resumed: Callable[[], None]) -> None:
        self.channel = channel
        self.hear = hear
        self.resumed = resumed
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._hub = hub

    async def aclose(self) -> None:
        """Stops listening; the last listener closes the connection."""
        last = self._hub.remove(self)
        if last is not None:
            await wait_done(last, _ANSWER_SECONDS)


class _Hub:
    """All listeners through one client in one event loop."""

    def __init__(self, client: Any, awaits: bool) -> None:
        self._client = client
        self._awaits = awaits
        self._listeners: dict[str, list[_Listener]] = {}
        self._wire: _Wire | None = None
        self._asked: set[str] = set()  # channels asked for on this connection
        self._confirmed: set[str] = set()  # and those that Redis has confirmed
        self._loop = asyncio.get_running_loop()
        self._task = spawn_detached(self._loop, self._run(), name="cache channel")  # kept by `_hubs`
        self._task.add_done_callback(self._ended)

    def _ended(self, _: object = None) -> None:
        here = _hubs.get(self._client, {})
        if here.get(self._loop) is self:
            del here[self._loop]

    async def add(self, listener: _Listener) -> None:
        """Adds a listener."""
        self._listeners.setdefault(listener.channel, []).append(listener)
        if self._wire is None:
            return  # asked for as soon as there is a connection
        if listener.channel in self._confirmed:
            listener.ready.set_result(None)
        elif listener.channel not in self._asked:
            self._asked.add(listener.channel)
            with contextlib.suppress(Exception):  # a broken connection is noticed where it is read
                await self._wire.send("SUBSCRIBE", listener.channel)

    def remove(self, listener: _Listener) -> asyncio.Task[None] | None:
        """Removes a listener; if it was the last, returns the task that ends with the connection."""
        listeners = self._listeners.get(listener.channel, [])
        if listener in listeners:
            listeners.remove(listener)
        if not listeners:
            # A channel without listeners is left with the connection: as a rule they all end together.
            self._listeners.pop(listener.channel, None)
        if self._listeners:
            return None
        self._ended()
        cancel_until_done(self._task)
        return self._task

    async def aclose(self) -> None:
        """Removes all listeners."""
        for listener in [
            listener for listeners in self._listeners.values() for listener in listeners if not listener.ready.done()
        ]:
            listener.ready.set_exception(ConnectionError("the client is being closed"))
        self._ended()
        cancel_until_done(self._task)
        await wait_done(self._task, _ANSWER_SECONDS)

    def drop(self) -> None:
        """Drops the connection and the task of an event loop that is closed."""
        self._ended()
        if self._wire is not None:
            self._wire.cut()
        drop_left(self._task)

    async def _run(self) -> None:
        failures = 0
        while True:
            try:
                await self._listen()
            except Exception as error:  # noqa: BLE001 - whatever it was, there is no other way than to try again
                logger.debug("Listening to Redis broke off: %s", type(error).__name__)
            failures = 0 if self._confirmed else failures + 1
            self._confirmed.clear()
            await asyncio.sleep(backoff_seconds(failures, _PAUSE_SECONDS, _PAUSE_MAX_SECONDS))

    async def _listen(self) -> None:
        connection = await _connection_of(self._client, self._awaits)
        wire: _Wire = _AwaitedWire(connection) if self._awaits else _ThreadedWire(connection, threads_of(self._client))
        try:
            await wire.open()
            self._wire = wire
            self._asked = set(self._listeners)
            await wire.send("SUBSCRIBE", *self._asked)
            asked = False
            while True:
                message = await wire.receive(_ANSWER_SECONDS if asked else _QUIET_SECONDS)
                if message is not None:
                    asked = False
                    self._take(message)
                elif asked:
                    raise TimeoutError
                else:
                    asked = True
                    await wire.send("PING")
        finally:
            self._wire = None
            await wire.close()

    def _take(self, message: Any) -> None:
        kind, *rest = message  # a PING is answered with fewer parts
        if kind not in (b"message", b"subscribe"):
            return
        channel = rest[0].decode()
        listeners = tuple(self._listeners.get(channel, ()))
        if kind == b"message":
            for listener in listeners:
                listener.hear(rest[1].decode("utf-8", "replace"))
        else:
            self._confirmed.add(channel)
            for listener in listeners:
                if listener.ready.done():
                    listener.resumed()
                else:
                    listener.ready.set_result(None)


class _Wire(Protocol):
    """A connection of the client's kind."""

    async def open(self) -> None: ...
    async def send(self, *command: str) -> None: ...
    async def receive(self, seconds: float) -> Any: ...  # None: nothing came
    async def close(self) -> None: ...
    def cut(self) -> None: ...  # the event loop is closed


class _AwaitedWire:
    """A connection of an asynchronous client."""

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    async def open(self) -> None:
        await self._connection.connect()

    async def send(self, *command: str) -> None:
        await self._connection.send_command(*command)

    async def receive(self, seconds: float) -> Any:
        return await self._connection.read_response(timeout=seconds)

    async def close(self) -> None:
        await self._connection.disconnect(nowait=True)

    def cut(self) -> None:
        cut(self._connection)


class _ThreadedWire:
    """A connection of a synchronous client, read by a daemon thread of its own."""

    def __init__(self, connection: Any, threads: DaemonThreads) -> None:
        self._connection = connection
        self._threads = threads
        self._loop = asyncio.get_running_loop()
        self._came: deque[Any] = deque()
        self._coming: asyncio.Future[None] = self._loop.create_future()
        self._closed = False

    async def open(self) -> None:
        threading.Thread(target=self._read, name="observability-redis-channel", daemon=True).start()
        await self.receive(None)

    def _read(self) -> None:
        try:
            self._connection.connect()
            self._hand("open")
            while not self._closed:
                self._hand(self._connection.read_response())
        except Exception as error:  # noqa: BLE001 - passed on to the reader
            with contextlib.suppress(RuntimeError):  # the loop is closed: no task waits
                self._hand(error)
        finally:
            self._connection.disconnect()

    def _hand(self, item: Any) -> None:
        self._loop.call_soon_threadsafe(self._take, item)

    def _take(self, item: Any) -> None:
        self._came.append(item)
        set_done(self._coming)

    async def send(self, *command: str) -> None:
        await self._threads.run(self._connection.send_command, *command)

    async def receive(self, seconds: float | None) -> Any:
        if not self._came:
            self._coming = self._loop.create_future()
            if not await wait_done(self._coming, seconds):
                return None
        item = self._came.popleft()
        if isinstance(item, Exception):
            raise item
        return item

    async def close(self) -> None:
        if not self._closed:
            self._closed = True
            await self._threads.run(self._connection.disconnect)  # which also wakes the thread that reads

    def cut(self) -> None:
        self._closed = True
        threading.Thread(target=self._connection.disconnect, name="observability-redis-channel", daemon=True).start()


def _has_connections(client: Any) -> bool:
    pool = getattr(client, "connection_pool", None)
    return isinstance(getattr(pool, "connection_kwargs", None), dict) or _is_cluster(client)


def _is_cluster(client: Any) -> bool:
    return hasattr(client.__class__, "get_nodes")


async def _connection_of(client: Any, awaits: bool) -> Any:
    maker = getattr(client, "connection_pool", None)
    if not awaits:
        return await threads_of(client).run(_make_connection, maker or client)
    if maker is None:
        await client.initialize()
        maker = _any_node(client)
    return _make_connection(maker)


def _any_node(cluster: Any) -> Any:
    # Nodes pass on to each other what is published. Another one each time, because one may be down.
    return random.choice(cluster.get_nodes())  # noqa: S311


def _make_connection(maker: Any) -> Any:
    if _is_cluster(maker):
        maker = maker.get_redis_connection(_any_node(maker)).connection_pool
    return make_connection(maker, 2 * _QUIET_SECONDS, _ANSWER_SECONDS)


def make_connection(pool: Any, answer_seconds: float | None, opening_seconds: float) -> Any:
    """A connection as the pool makes its own (not open yet), but outside of it.

    Args:
        pool: a client's pool, or a node of a cluster.
        answer_seconds: how long an answer may take; None: for ever.
        opening_seconds: how long connecting may take.
    """
    options = {name: value for name, value in pool.connection_kwargs.items() if not name.startswith(_OTHERWISE)}
    options.update(without_driver_info(), protocol=2, decode_responses=False, health_check_interval=0)
    options.update(socket_timeout=answer_seconds, socket_connect_timeout=opening_seconds)
    return pool.connection_class(**options)
