"""The second level: Redis, through whichever client the user has.

Async clients are awaited, synchronous ones are called in daemon threads, so the loop is never blocked and a client that
hangs keeps nothing alive. Answers may be bytes or text (``decode_responses=True``).
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any, TypeVar, cast

from observability_integration.errors import ConfigurationError, MissingDependencyError
from observability_integration.tasks import DaemonThreads

from .shared import StoreBusy

T = TypeVar("T")
_SCAN_COUNT = 500
# What redis-py says when its pool is exhausted; the class that says so differs by version.
_POOL_EXHAUSTED = ("Too many connections", "No connection available.")
_NOT_OURS = b""  # stands for an entry that no cache can have written
_threads = DaemonThreads(max_threads=16, name="observability-redis")


async def _in_thread(call: Callable[[], T]) -> T:
    left = False

    def unless_left() -> Any:
        # A write that waited for a thread until nobody wanted it any more must not come after later ones.
        return None if left else call()

    try:
        return cast("T", await _threads.run(unless_left))
    except asyncio.CancelledError:
        left = True
        raise


class RedisStore:
    """A `SharedStore` on a client that the caller made and keeps.

    Raises:
        ConfigurationError: `client` is not a client.
    """

    def __init__(self, client: Any) -> None:
        if not callable(getattr(client, "get", None)) or not callable(getattr(client, "delete", None)):
            raise ConfigurationError(f"redis_client must be a Redis client, got {type(client).__name__}")
        self._given = client
        self._async = inspect.iscoroutinefunction(getattr(client.__class__, "execute_command", None))

    async def _client(self) -> Any:
        return self._given

    async def _call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        func = getattr(await self._client(), method)
        try:
            if self._async or inspect.iscoroutinefunction(func):
                return await func(*args, **kwargs)
            result = await _in_thread(lambda: func(*args, **kwargs))
            return await result if inspect.isawaitable(result) else result
        except Exception as error:
            if str(error) in _POOL_EXHAUSTED:
                raise StoreBusy from error
            raise

    async def get(self, key: str) -> bytes | str | None:
        """GET; what is no text where text was expected, or no string at all, is an entry that nobody can read."""
        try:
            return cast("bytes | str | None", await self._call("get", key))
        except UnicodeDecodeError:
            return _NOT_OURS
        except Exception as error:
            if str(error).startswith("WRONGTYPE"):
                return _NOT_OURS
            raise

    async def set(self, key: str, value: bytes, ttl_milliseconds: int) -> None:
        """SET key value PX ttl."""
        await self._call("set", key, value, px=ttl_milliseconds)

    async def delete(self, *keys: str) -> None:
        """DEL."""
        await self._call("delete", *keys)

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
        found = (await self._client()).scan_iter(match=pattern, count=_SCAN_COUNT)
        if hasattr(found, "__aiter__"):
            async for key in found:
                yield key
        else:
            for key in await _in_thread(lambda: list(found)):
                yield key

    async def aclose(self) -> None:
        """Nothing: the client is the caller's."""


class RedisUrlStore(RedisStore):
    """A `SharedStore` on clients of its own, one for each event loop it is used in.

    An async connection belongs to the loop that opened it, and a process may run several (a script that calls
    ``asyncio.run`` twice, a loop in a thread). A client is closed with its loop.

    Args:
        url: e.g. ``redis://localhost:6379/0``.
        timeout_seconds: for connecting and for each answer.

    Raises:
        MissingDependencyError: the redis package is not installed.
        ConfigurationError: `url` is none that Redis is reached under.
    """

    def __init__(self, url: str, timeout_seconds: float) -> None:
        try:
            from redis import __version__ as version
            from redis.asyncio import Redis
            from redis.asyncio.retry import Retry
            from redis.backoff import NoBackoff
        except ImportError as error:
            raise MissingDependencyError("redis is not installed. Install with: pip install redis") from error
        self._class: Any = Redis
        self._options: dict[str, Any] = {}
        with contextlib.suppress(ImportError):  # older versions have none
            from redis.driver_info import DriverInfo

            # Else every connection reads the package's version from the disk when it is opened, inside the loop.
            self._options["driver_info"] = DriverInfo(lib_version=version)
        # The client's own retries would hide a dead server for seconds; one attempt, and the cache decides.
        self._retry = Retry(NoBackoff(), 0)
        self._timeout = timeout_seconds
        self._url = url
        self._clients: dict[asyncio.AbstractEventLoop, tuple[Any, AsyncGenerator[None, None]]] = {}
        try:
            unused = self._make()
        except (ValueError, TypeError, AttributeError):
            # What the client says may quote the password.
            raise ConfigurationError("redis_url must be like redis://, rediss:// or unix://...") from None
        super().__init__(unused)

    def _make(self) -> Any:
        return self._class.from_url(
            self._url,
            socket_timeout=self._timeout,
            socket_connect_timeout=self._timeout,
            retry=self._retry,
            **self._options,
        )

    async def _client(self) -> Any:
        loop = asyncio.get_running_loop()
        kept = self._clients.get(loop)
        if kept is None:
            client = self._make()
            kept = self._clients[loop] = client, self._until_the_loop_ends(loop, client)
            await anext(kept[1])
        return kept[0]

    async def _until_the_loop_ends(self, loop: asyncio.AbstractEventLoop, client: Any) -> AsyncGenerator[None, None]:
        # asyncio closes the generators that a loop leaves behind, before the loop itself: the moment to close a client.
        try:
            yield
        finally:
            self._clients.pop(loop, None)
            await client.aclose()

    async def aclose(self) -> None:
        """Closes the connections of the running loop."""
        kept = self._clients.get(asyncio.get_running_loop())
        if kept is not None:
            await kept[1].aclose()
