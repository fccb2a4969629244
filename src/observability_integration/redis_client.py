"""Clients of Redis: the caller's own, checked, and ours, made so that whoever uses them decides about faults."""

from __future__ import annotations

import contextlib
import importlib
import inspect
import socket
from collections.abc import Callable
from typing import Any

from observability_integration.errors import ConfigurationError, MissingDependencyError


def is_async(client: Any) -> bool:
    """Whether the commands of a client are awaited.

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


def clients_of(url: str, connect_seconds: float) -> Callable[[], Any]:
    """What makes asynchronous clients, each for one event loop.

    Args:
        url: e.g. ``redis://localhost:6379/0``.
        connect_seconds: for connecting, > 0. Answers are not timed: whoever asks has a budget, and a second limit costs
            one more task for each command.

    Raises:
        MissingDependencyError: the redis package is not installed.
        ConfigurationError: `url` is none that Redis is reached under.
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
        # The client's own retries would hide a dead server for seconds: one attempt, and who asked decides. But what
        # fails because the server has closed an idle connection meanwhile says nothing, and is done on a new one.
        "retry": Retry(NoBackoff(), 1, (BrokenConnection,)),
        "protocol": 2,  # nothing here needs RESP3, which costs a new connection one more exchange
        **unannounced(),
    }

    def make() -> Any:
        return kind.from_url(url, **options)

    try:
        make()
    except (ValueError, TypeError, AttributeError):
        # What the client says may quote the password.
        raise ConfigurationError("redis_url must be like redis://, rediss:// or unix://...") from None
    return make


def cut_all(client: Any) -> None:
    """Ends all connections of one of our clients at once, also where the event loop is closed."""
    pool = client.connection_pool
    for connection in (*pool._available_connections, *pool._in_use_connections):
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


def unannounced() -> dict[str, Any]:
    """Options of a connection that does not introduce itself: it would read its version from the disk, in the loop."""
    try:
        importlib.import_module("redis.driver_info")
    except ImportError:  # older versions are told otherwise
        return {"lib_name": None, "lib_version": None}
    return {"driver_info": None}
