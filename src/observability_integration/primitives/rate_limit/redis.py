"""A shared ledger in Redis, through whichever client the user has: asyncio or not, with decoded answers or not."""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import AsyncGenerator, Sequence
from typing import Any, NamedTuple, cast

from observability_integration.errors import ConfigurationError, MissingDependencyError
from observability_integration.redis_client import clients_of, is_async
from observability_integration.threads import DaemonThreads

from . import redis_script as script
from .buckets import CLAIM_SECONDS, Limit, Verdict
from .shared import Answer, News, Terms

logger = logging.getLogger("observability_integration")

_LIMITS: tuple[Limit, ...] = ("provider", "requests", "tokens")
_CONNECT_SECONDS = 1.0  # for what the guard has given up waiting for long ago

_threads = DaemonThreads(max_threads=4, name="observability-rate-limit")


class RedisLedger:
    """A `SharedLedger` on a client that the caller made and keeps.

    Args:
        name: of the limit; processes that give the same one share it.
        client: a redis-py client, for a single server, Sentinel's master or a cluster.

    Raises:
        ConfigurationError: `client` is not a client.
    """

    def __init__(self, name: str, client: Any) -> None:
        self._awaits = is_async(client)
        self.key = f"ratelimit:{{{name}}}:state"
        self._given = client

    async def take(self, line: str, terms: Terms, news: News, calls: Sequence[tuple[float, float]]) -> Answer:
        """See `SharedLedger.take`."""
        arguments: list[Any] = [
            line,
            *map(repr, terms),
            *(repr(amount) for amount in news[:2]),
            *("" if most is None else repr(most) for most in news[2:4]),
            round(news.closed_seconds * 1e6),
            round(CLAIM_SECONDS * 1e3),
        ]
        for tokens, waited_seconds in calls:
            arguments += (repr(tokens), round(waited_seconds * 1e3))
        said = await self._run(arguments)
        granted, wait, short, requests, tokens_left, closed = (_text(part) for part in said)
        verdict = Verdict(int(granted), float(wait), _LIMITS[int(short)])
        return Answer(verdict, _number(requests), _number(tokens_left), float(closed))

    async def aclose(self) -> None:
        """Nothing: the client is the caller's."""

    async def _run(self, arguments: Sequence[Any]) -> Any:
        try:
            return await self._execute("EVALSHA", script.SHA, 1, self.key, *arguments)
        except Exception as error:
            # redis-py takes the code off the message and makes a class of it.
            if type(error).__name__ != "NoScriptError" and not str(error).startswith("NOSCRIPT"):
                raise
        return await self._execute("EVAL", script.SOURCE, 1, self.key, *arguments)

    async def _execute(self, *command: Any) -> Any:
        client = await self._client()
        if self._awaits:
            return await client.execute_command(*command)
        answer = await _threads.run(client.execute_command, *command)
        return await answer if inspect.isawaitable(answer) else answer

    async def _client(self) -> Any:
        return self._given


class _Kept(NamedTuple):
    client: Any
    until_the_loop_ends: AsyncGenerator[None, None]


class RedisUrlLedger(RedisLedger):
    """A `SharedLedger` on clients of its own, one for each event loop it is used in, closed with the loop.

    Args:
        name: of the limit.
        url: e.g. ``redis://localhost:6379/0``.

    Raises:
        MissingDependencyError: the redis package is not installed.
        ConfigurationError: `url` is none that Redis is reached under.
    """

    def __init__(self, name: str, url: str) -> None:
        self._new = clients_of(url, _CONNECT_SECONDS)
        self._kept: dict[asyncio.AbstractEventLoop, _Kept] = {}
        super().__init__(name, self._new())

    async def _client(self) -> Any:
        loop = asyncio.get_running_loop()
        kept = self._kept.get(loop)
        if kept is None:
            self._kept = {used: kept for used, kept in self._kept.items() if not used.is_closed()}
            kept = self._kept[loop] = _Kept(self._new(), self._until_the_loop_ends(loop))
            await anext(kept.until_the_loop_ends)
        return kept.client

    async def _until_the_loop_ends(self, loop: asyncio.AbstractEventLoop) -> AsyncGenerator[None, None]:
        # asyncio closes the generators that a loop leaves behind, before the loop itself: the moment to close a client.
        try:
            yield
        finally:
            await self._kept.pop(loop).client.aclose()

    async def aclose(self) -> None:
        """Closes the connections of the running loop."""
        kept = self._kept.get(asyncio.get_running_loop())
        if kept is not None:
            await kept.until_the_loop_ends.aclose()


def shared_ledger(name: str, url: str | None, client: Any) -> RedisLedger | None:
    """The ledger behind a URL or a client; None when neither is given, or redis is not installed, which is logged.

    Raises:
        ConfigurationError: both are given, or what is given is no URL or no client.
    """
    if url is not None and client is not None:
        raise ConfigurationError("give one of redis_url and redis_client")
    if url is None:
        return None if client is None else RedisLedger(name, client)
    try:
        return RedisUrlLedger(name, url)
    except MissingDependencyError as error:
        logger.warning("Rate limit '%s': %s; each process limits by itself", name, error)
        return None


def _text(part: Any) -> str:
    return part.decode() if isinstance(part, bytes) else str(part)


def _number(said: str) -> float | None:
    return float(cast("Any", said)) if said else None
