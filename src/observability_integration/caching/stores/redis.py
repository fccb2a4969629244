"""The second level: Redis, through whichever client the user has.

Async clients are awaited, synchronous ones are called in daemon threads, so the loop is never blocked and a client that
hangs keeps nothing alive. Answers may be bytes or text (``decode_responses=True``).
"""

from __future__ import annotations

import asyncio
import inspect
import weakref
from collections.abc import AsyncIterator
from typing import Any, Protocol, cast

from observability_integration.errors import MissingDependencyError
from observability_integration.tasks import DaemonThreads

_SCAN_COUNT = 500
_threads = DaemonThreads(max_threads=16, name="observability-redis")


class SharedStore(Protocol):
    """What the cache needs of a store that processes share."""

    async def get(self, key: str) -> bytes | str | None:
        """The entry, or None."""
        ...

    async def set(self, key: str, value: bytes, ttl_milliseconds: int) -> None:
        """Keeps an entry for so long."""
        ...

    async def delete(self, *keys: str) -> None:
        """Forgets entries."""
        ...

    async def clear(self, prefix: str) -> None:
        """Forgets every entry whose key starts with `prefix`."""
        ...

    async def ping(self) -> None:
        """Returns if the store answers, raises if not."""
        ...

    async def aclose(self) -> None:
        """Lets go of connections that the store opened itself."""
        ...


def _is_async_client(client: Any) -> bool:
    modules = (cls.__module__ for cls in type(client).__mro__)
    return any(module.startswith("redis.asyncio") for module in modules)


class RedisStore:
    """A `SharedStore` on a client that the caller made and keeps."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._async = _is_async_client(client)

    async def _call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        func = getattr(self._client, method)
        if self._async or inspect.iscoroutinefunction(func):
            return await func(*args, **kwargs)
        result = await _threads.run(lambda: func(*args, **kwargs))
        return await result if inspect.isawaitable(result) else result

    async def get(self, key: str) -> bytes | str | None:
        """GET."""
        return cast("bytes | str | None", await self._call("get", key))

    async def set(self, key: str, value: bytes, ttl_milliseconds: int) -> None:
        """SET key value PX ttl."""
        await self._call("set", key, value, px=ttl_milliseconds)

    async def delete(self, *keys: str) -> None:
        """DEL."""
        await self._call("delete", *keys)

    async def ping(self) -> None:
        """PING."""
        await self._call("ping")

    async def clear(self, prefix: str) -> None:
        """SCAN for the prefix and DEL what it finds; other keys are not touched."""
        pattern = "".join(f"[{char}]" if char in "*?[" else "\\\\" if char == "\\" else char for char in prefix) + "*"
        batch: list[str] = []
        async for key in self._scan(pattern):
            batch.append(key)
            if len(batch) == _SCAN_COUNT:
                await self.delete(*batch)
                batch = []
        if batch:
            await self.delete(*batch)

    async def _scan(self, pattern: str) -> AsyncIterator[str]:
        found = self._client.scan_iter(match=pattern, count=_SCAN_COUNT)
        if hasattr(found, "__aiter__"):
            async for key in found:
                yield key
        else:
            for key in await _threads.run(lambda: list(found)):
                yield key

    async def aclose(self) -> None:
        """Nothing: the client is the caller's."""


class RedisUrlStore(RedisStore):
    """A `SharedStore` on clients of its own, one for each event loop it is used in.

    An async connection belongs to the loop that opened it, and a process may run several (a script that calls
    ``asyncio.run`` twice, a loop in a thread).

    Args:
        url: e.g. ``redis://localhost:6379/0``.
        timeout_seconds: for connecting and for each answer.

    Raises:
        MissingDependencyError: the redis package is not installed.
    """

    def __init__(self, url: str, timeout_seconds: float) -> None:
        try:
            import redis.asyncio
            import redis.asyncio.retry
            import redis.backoff
        except ImportError as error:
            raise MissingDependencyError("redis is not installed. Install with: pip install redis") from error
        self._redis = redis
        self._url = url
        self._timeout = timeout_seconds
        self._clients: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, Any] = weakref.WeakKeyDictionary()
        super().__init__(self._make())  # also checks the URL, and is replaced by one client a loop
        self._async = True

    def _make(self) -> Any:
        # The client's own retries would hide a dead server for seconds; one attempt, and the cache decides.
        retry = self._redis.asyncio.retry.Retry(self._redis.backoff.NoBackoff(), 0)
        return self._redis.asyncio.Redis.from_url(
            self._url, socket_timeout=self._timeout, socket_connect_timeout=self._timeout, retry=retry
        )

    async def _call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        loop = asyncio.get_running_loop()
        client = self._clients.get(loop)
        if client is None:
            client = self._clients[loop] = self._make()
        return await getattr(client, method)(*args, **kwargs)

    async def aclose(self) -> None:
        """Closes the connections of the running loop."""
        client = self._clients.pop(asyncio.get_running_loop(), None)
        if client is not None:
            await client.aclose()
