"""A shared ledger in Redis."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from observability_integration.errors import MissingDependencyError
from observability_integration.redis_backend import RedisBackend

from .buckets import CLAIM_SECONDS, Limit, Verdict
from .redis_script import TAKE
from .shared import Answer, LedgerUpdate, Limits

logger = logging.getLogger("observability_integration")

_LIMITS: tuple[Limit, ...] = ("provider", "requests", "tokens")  # in the order of the script's third answer


class RedisLedger:
    """A `SharedLedger` in Redis, in one hash.

    Args:
        name: of the limit; processes that give the same one share it.
        client: a redis-py client, which the caller keeps.
        url: instead of a client, e.g. ``redis://localhost:6379/0``.

    Attributes:
        key: of the hash.

    Raises:
        MissingDependencyError: a URL is given and the redis package is not installed.
        ConfigurationError: both or neither are given, or what is given is no URL or no client.
    """

    def __init__(self, name: str, client: Any = None, url: str | None = None) -> None:
        self.key = f"ratelimit:{{{name}}}:state"
        self._backend = RedisBackend(client, url)

    async def take(
        self, queue: str, limits: Limits, update: LedgerUpdate, calls: Sequence[tuple[float, float]]
    ) -> Answer:
        """See `SharedLedger.take`."""
        arguments: list[Any] = [
            queue,
            *map(repr, limits),
            *(repr(amount) for amount in update[:2]),
            *("" if most is None else repr(most) for most in update[2:4]),
            round(update.closed_seconds * 1e6),
            round(CLAIM_SECONDS * 1e3),
        ]
        for tokens, waited_seconds in calls:
            arguments += (repr(tokens), round(waited_seconds * 1e3))
        answer = await self._backend.run(TAKE, (self.key,), *arguments)
        granted, wait, short, requests, tokens_left, closed = (_text(part) for part in answer)
        verdict = Verdict(int(granted), float(wait), _LIMITS[int(short)])
        return Answer(verdict, _number(requests), _number(tokens_left), float(closed))

    async def aclose(self) -> None:
        """Closes the connections of the running loop, unless the client is the caller's."""
        await self._backend.aclose()


def shared_ledger(name: str, url: str | None, client: Any) -> RedisLedger | None:
    """Returns the ledger behind a URL or a client; None when neither is given, or redis is missing, which is logged.

    Raises:
        ConfigurationError: both are given, or what is given is no URL or no client.
    """
    if url is None and client is None:
        return None
    try:
        return RedisLedger(name, client, url)
    except MissingDependencyError as error:
        logger.warning("Rate limit '%s': %s; each process limits by itself", name, error)
        return None


def _text(part: Any) -> str:
    return part.decode() if isinstance(part, bytes) else str(part)


def _number(text: str) -> float | None:
    return float(text) if text else None
