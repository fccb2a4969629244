"""Runs commands and Lua scripts in Redis, through whichever client there is.

Asynchronous clients are awaited. Synchronous ones are called in daemon threads, so they never block the event loop and
one that hangs does not keep the process alive. Single servers, Sentinel's masters and clusters are asked alike: all
keys of a command or script share a hash tag.
"""

from __future__ import annotations

import asyncio
import inspect
import threading
import weakref
from collections.abc import Callable, Sequence
from hashlib import sha1
from typing import Any, cast

from observability_integration.errors import ConfigurationError
from observability_integration.threads import DaemonThreads

from .clients import PerLoop, client_factory, close, cut_all, is_async

_CONNECT_SECONDS = 1.0  # the guard's budget is over long before, but an attempt to connect must end at some time
_MAX_THREADS = 16  # of one client: each call in a thread may hold a connection
# What redis-py says when its pool is exhausted; the class that says so differs by version.
_POOL_EXHAUSTED = ("Too many connections", "No connection available.")

# Each synchronous client has a pool of its own, whatever uses it: one that hangs leaves the others their threads.
_pools: weakref.WeakKeyDictionary[Any, DaemonThreads] = weakref.WeakKeyDictionary()
_pools_lock = threading.Lock()


def threads_of(client: Any) -> DaemonThreads:
    """Returns the threads in which the calls of a synchronous client run; they end with the client."""
    try:
        with _pools_lock:
            pool = _pools.get(client)
            if pool is None:
                pool = _pools[client] = DaemonThreads(_MAX_THREADS, "observability-redis")
                weakref.finalize(client, pool.stop).atexit = False
    except TypeError:  # a stand-in for a client that cannot be hashed or referred to weakly
        return DaemonThreads(_MAX_THREADS, "observability-redis")
    return pool


class Script:
    """A Lua script.

    Attributes:
        source: its text.
        sha: the SHA-1 of the text, under which Redis keeps the script once it has run.
    """

    __slots__ = ("sha", "source")

    def __init__(self, source: str) -> None:
        self.source = source
        self.sha = sha1(source.encode(), usedforsecurity=False).hexdigest()


class RedisBackend:
    """Redis 6 or later, through a client of the caller's or through clients of its own, one for each event loop.

    Args:
        client: a redis-py client, asynchronous or not; the caller keeps and closes it.
        url: e.g. ``redis://localhost:6379/0``; a client is made for each event loop and closed with it.
        connect_seconds: limit for connecting, > 0, for clients made here.
        as_bytes: whether answers are bytes also from clients made with ``decode_responses=True``.
        busy_error: raised where the client has no free connection, which says nothing about the server; by default the
            client's own error passes.

    Attributes:
        is_async: whether commands are awaited.

    Raises:
        MissingDependencyError: `url` is given and the redis package is not installed.
        ConfigurationError: both or neither are given, or what is given is no URL or no client.
    """

    def __init__(
        self,
        client: Any = None,
        url: str | None = None,
        *,
        connect_seconds: float = _CONNECT_SECONDS,
        as_bytes: bool = False,
        busy_error: type[Exception] | None = None,
    ) -> None:
        if (url is None) == (client is None):
            raise ConfigurationError("give one of redis_url and redis_client")
        self.is_async = True if client is None else is_async(client)
        self._given: Any = client
        self._make = None if url is None else client_factory(url, connect_seconds)
        self._clients: PerLoop[Any] = PerLoop(close, cut_all)
        self._options = {"NEVER_DECODE": True} if as_bytes else {}
        self._busy_error = busy_error
        self._threads = None if self.is_async else threads_of(client)

    async def client(self) -> Any:
        """Returns the caller's client, or ours for the running event loop."""
        return self._given if self._make is None else await self._clients.open(self._make)

    async def execute(self, *command: Any) -> Any:
        """Sends a command and returns the answer."""
        client: Any = self._given if self._make is None else await self._clients.open(self._make)
        try:
            if self.is_async:
                return await client.execute_command(*command, **self._options)
            answer = await self._in_thread(lambda: client.execute_command(*command, **self._options))
            return await answer if inspect.isawaitable(answer) else answer
        except Exception as error:
            exhausted = str(error) in _POOL_EXHAUSTED or type(error).__name__ == "MaxConnectionsError"
            if exhausted and self._busy_error is not None:
                raise self._busy_error from error
            raise

    async def run(self, script: Script, keys: Sequence[str], *args: Any) -> Any:
        """Runs a script: by its hash, and by its text where the server does not know it yet."""
        try:
            return await self.execute("EVALSHA", script.sha, len(keys), *keys, *args)
        except Exception as error:
            # redis-py takes the code off the message and makes a class of it.
            if type(error).__name__ != "NoScriptError" and not str(error).startswith("NOSCRIPT"):
                raise
        return await self.execute("EVAL", script.source, len(keys), *keys, *args)

    async def reconnect(self) -> None:
        """Closes our idle connections: they may have broken meanwhile, which the pool does not check."""
        if self._make is not None:
            await (await self.client()).connection_pool.disconnect(inuse_connections=False)

    async def aclose(self) -> None:
        """Closes our client of the running event loop."""
        await self._clients.aclose()

    def drop(self) -> None:
        """Cuts all connections of our clients at once, where nothing can be awaited."""
        self._clients.drop_all()

    async def _in_thread(self, call: Callable[[], Any]) -> Any:
        left = False

        def unless_left() -> Any:
            # A write that waited for a thread until its caller had left must not come after later ones.
            return None if left else call()

        try:
            return await cast("DaemonThreads", self._threads).run(unless_left)
        except asyncio.CancelledError:
            left = True
            raise
