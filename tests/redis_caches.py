"""Caches over a Redis of the tests', through every kind of client there is."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from typing import Any

import pytest

from observability_integration.caching.policy import CachePolicy
from observability_integration.primitives import CachePrimitive
from tests.processes import RedisProcess

CLIENTS = ["asyncio", "asyncio text", "sync", "sync text"]
WAYS = [*CLIENTS, "url"]

# The server is well; on a machine that is busy with other things it may take longer to show that it is.
PATIENT = CachePolicy(backend_budget_seconds=2.0, ttl_jitter=0.0)

# The retries of a synchronous client end within some 4 seconds, and at once when the server is back.
_THREADS_SECONDS = 10.0

Caches = Callable[..., CachePrimitive[Any, Any]]

_NO_ENTRY = re.compile(r"\}:(?:gen|log|probe|tag:.*|.*:l)$")


@pytest.fixture
async def caches() -> AsyncIterator[Caches]:
    """Makes caches that reach a server in one way or another; all are closed at the end."""
    import redis
    import redis.asyncio

    class Synchronous(redis.Redis):
        under_way = 0

        def execute_command(self, *args: Any, **options: Any) -> Any:
            with lock:
                Synchronous.under_way += 1
            try:
                return super().execute_command(*args, **options)
            finally:
                with lock:
                    Synchronous.under_way -= 1

    lock = threading.Lock()
    made: list[CachePrimitive[Any, Any]] = []
    clients: list[Any] = []

    def make(way: str, server: RedisProcess, *args: Any, **kwargs: Any) -> CachePrimitive[Any, Any]:
        if way == "url":
            kwargs["redis_url"] = server.url
        else:
            # As users make them: with the retries, timeouts and pools that the package sees fit.
            kind = redis.asyncio.Redis if way.startswith("asyncio") else Synchronous
            kwargs["redis_client"] = kind(port=server.port, decode_responses=way.endswith("text"))
            clients.append(kwargs["redis_client"])
        kwargs.setdefault("policy", PATIENT)
        made.append(CachePrimitive(*args, **kwargs))
        return made[-1]

    yield make
    for cache in made:
        await cache.aclose()
    # A thread that is still trying when its client is closed leaves its socket open.
    give_up = time.monotonic() + _THREADS_SECONDS
    while Synchronous.under_way and time.monotonic() < give_up:
        await asyncio.sleep(0.01)
    for client in clients:
        if isinstance(client, redis.Redis):
            client.close()
        else:
            await client.aclose()
    # What was left open warns while the test is not over.
    made.clear()
    clients.clear()


class Calls:
    """A call that counts how often it is made."""

    def __init__(self, *values: Any) -> None:
        self.made = 0
        self._values = values

    async def __call__(self, *_: Any) -> Any:
        self.made += 1
        return self._values[min(self.made, len(self._values)) - 1]


def ask_server(server: RedisProcess, *command: Any) -> Any:
    """What the server answers."""
    import redis

    with closing(redis.Redis(port=server.port)) as client:
        return client.execute_command(*command)


def keys_in(server: RedisProcess) -> list[str]:
    """The keys of all entries, without those of leases, of tags and of the generation."""
    keys = sorted(key.decode() for key in ask_server(server, "KEYS", "*"))
    return [key for key in keys if not _NO_ENTRY.search(key)]


def clients_of(server: RedisProcess) -> int:
    """How many connections the server has, apart from the one that asks."""
    return len(ask_server(server, "CLIENT", "LIST", "TYPE", "normal").splitlines()) - 1
