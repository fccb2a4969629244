"""Clients of Redis: the caller's own, checked, and ours, one for each event loop."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import inspect
import socket
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import Any, Generic, NamedTuple, TypeVar

from observability_integration.errors import ConfigurationError, MissingDependencyError

T = TypeVar("T")


def is_async(client: Any) -> bool:
    """Tells whether the commands of a client are awaited.

    Args:
        client: a redis-py client of any kind.

    Raises:
        ConfigurationError: it is not a client.
    """
    execute = getattr(client, "execute_command", None)
    if not callable(execute) or isinstance(client, type):
        raise ConfigurationError(f"redis_client must be a Redis client, got {type(client).__name__}")
    # A wrapper around the method may hide what the class shows, and a stand-in may have it on the object only.
    return any(
        inspect.iscoroutinefunction(way) for way in (execute, getattr(client.__class__, "execute_command", None))
    )


def client_factory(url: str, connect_seconds: float) -> Callable[[], Any]:
    """Returns a function that makes asynchronous clients, each for one event loop.

    Args:
        url: e.g. ``redis://localhost:6379/0``.
        connect_seconds: limit for connecting, > 0. Answers have no limit here: every access has the budget of its
            guard, and a second limit costs one more task for each command.

    Raises:
        MissingDependencyError: the redis package is not installed.
        ConfigurationError: `url` is not a Redis URL.
    """
    try:
        from redis.asyncio import Redis
        from redis.asyncio.retry import Retry
        from redis.backoff import NoBackoff
        from redis.exceptions import ConnectionError as BrokenConnection
    except ImportError as error:
        raise MissingDependencyError("redis is not installed. Install with: pip install redis") from error
    kind: Any = Redis
    options: dict[str, Any] = {
        "socket_timeout": None,
        "socket_connect_timeout": connect_seconds,
        # The client's own retries would hide a dead server for seconds: the guard decides after one attempt. But a
        # command that fails because the server has closed an idle connection is sent again, on a new connection.
        "retry": Retry(NoBackoff(), 1, (BrokenConnection,)),
        "protocol": 2,  # nothing here needs RESP3, which costs a new connection one more exchange
        **without_driver_info(),
    }

    def make() -> Any:
        return kind.from_url(url, **options)

    try:
        make()
    except (ValueError, TypeError, AttributeError):
        # The client's message may quote the password.
        raise ConfigurationError("redis_url must be like redis://, rediss:// or unix://...") from None
    return make


def without_driver_info() -> dict[str, Any]:
    """Returns options of a connection that does not send its version, which it would read from disk in the loop."""
    try:
        importlib.import_module("redis.driver_info")
    except ImportError:  # older versions have other options for it
        return {"lib_name": None, "lib_version": None}
    return {"driver_info": None}


async def close(client: Any) -> None:
    """Closes one of our clients, and cuts the connections that a cancelled ``aclose`` leaves open."""
    try:
        await client.aclose()
    finally:
        cut_all(client)


def cut_all(client: Any) -> None:
    """Ends all connections of one of our clients at once, also where the event loop is closed."""
    pool = client.connection_pool
    for name in ("_available_connections", "_in_use_connections"):
        for connection in tuple(getattr(pool, name, ())):
            cut(connection)


def cut(connection: Any) -> None:
    """Ends an asynchronous connection at once, also one whose event loop is closed."""
    writer = getattr(connection, "_writer", None)
    if writer is None:
        return
    connection._reader = connection._writer = None
    with contextlib.suppress(Exception):  # a closed loop refuses, and the socket stays open until it is collected
        writer.transport.abort()
    with contextlib.suppress(Exception):  # closed already
        writer.get_extra_info("socket").shutdown(socket.SHUT_RDWR)


class _Kept(NamedTuple, Generic[T]):
    item: T
    until_the_loop_ends: AsyncGenerator[None, None]


class PerLoop(Generic[T]):
    """One object for each event loop, closed with its loop.

    A connection belongs to the loop that opened it, and a process may run several loops: a script that calls
    ``asyncio.run`` twice, a loop in a thread.

    Args:
        close: closes an object, in its loop.
        drop: lets go of an object whose loop was closed before it, without waiting.
    """

    def __init__(self, close: Callable[[T], Awaitable[object]], drop: Callable[[T], object]) -> None:
        self._close = close
        self._drop = drop
        self._kept: dict[asyncio.AbstractEventLoop, _Kept[T]] = {}

    def get(self) -> T | None:
        """Returns the object of the running loop, if it has one."""
        kept = self._kept.get(asyncio.get_running_loop())
        return None if kept is None else kept.item

    async def open(self, make: Callable[[], T]) -> T:
        """Returns the object of the running loop; `make` makes it if there is none."""
        loop = asyncio.get_running_loop()
        kept = self._kept.get(loop)
        if kept is None:
            for ended in [known for known in list(self._kept) if known.is_closed()]:
                self._discard(ended)
            kept = self._kept[loop] = _Kept(make(), self._until_the_loop_ends(loop))
            await anext(kept.until_the_loop_ends)
        return kept.item

    async def aclose(self) -> None:
        """Closes the object of the running loop."""
        kept = self._kept.get(asyncio.get_running_loop())
        if kept is not None:
            await kept.until_the_loop_ends.aclose()

    def drop_all(self) -> None:
        """Drops the objects of all loops."""
        for loop in list(self._kept):
            self._discard(loop)

    def _discard(self, loop: asyncio.AbstractEventLoop) -> None:
        kept = self._kept.pop(loop, None)
        if kept is not None:
            self._drop(kept.item)

    async def _until_the_loop_ends(self, loop: asyncio.AbstractEventLoop) -> AsyncGenerator[None, None]:
        # asyncio closes the generators that a loop leaves behind before it closes the loop: the moment to close this.
        try:
            yield
        finally:
            kept = self._kept.pop(loop, None)
            if kept is not None:
                await self._close(kept.item)
