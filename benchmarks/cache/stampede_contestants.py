"""Caches that keep processes from making the same call, each set up as its documentation has it.

Each function imports its library when called and raises ImportError when that is not installed.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

OURS, CASHEWS, AIOCACHE, DOGPILE, ASYNC_LRU = "ours", "cashews", "aiocache", "dogpile.cache", "async-lru"
TTL_SECONDS = 60
_DOGPILE_LOCK_SECONDS = 10  # it has no default; without one, nobody ever follows a process that died


class Options(NamedTuple):
    """What is to be done.

    Attributes:
        contestant: by whom.
        port: where Redis is.
        work_seconds: how long the call takes.
        lease_seconds: how long a lock lasts; None for what the library has by default.
        locks: whether processes are to be kept from making the same call; False for the library at its plainest.
        fails: whether the call fails.
        callers: how many ask at once.
        cancelled: how many of them, the first ones, are cancelled while they wait.
        in_turn: whether each asks something else after the one before it, instead of all the same at once.
    """

    contestant: str
    port: int
    work_seconds: float
    lease_seconds: float | None = None
    locks: bool = True
    fails: bool = False
    callers: int = 5
    cancelled: int = 0
    in_turn: bool = False


def say(**what: Any) -> None:
    """Tells the process that watches."""
    # In one piece: several threads may have something to say.
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


class Work:
    """The call. Questions that begin with a blank warm up: they are answered at once and not counted."""

    def __init__(self, options: Options) -> None:
        self._seconds = options.work_seconds
        self._fails = options.fails
        self.last_seconds = 0.0

    async def answer(self, question: str) -> str:
        """Answers after the time it takes."""
        seconds = self._begin(question)
        started = time.perf_counter()
        await asyncio.sleep(seconds)
        return self._end(question, started)

    def answer_in_thread(self, question: str) -> str:
        """The same for a library that knows no event loop."""
        seconds = self._begin(question)
        started = time.perf_counter()
        time.sleep(seconds)
        return self._end(question, started)

    def _begin(self, question: str) -> float:
        if question.startswith(" "):
            return 0.0
        say(call=threading.get_native_id())
        return self._seconds

    def _end(self, question: str, started: float) -> str:
        self.last_seconds = time.perf_counter() - started
        if self._fails and not question.startswith(" "):
            raise LookupError(question)
        return f"answer to {question}"


Ask = Callable[[str], Awaitable[Any]]


def ours(options: Options, work: Work) -> Ask:
    """One cache over a Redis given by its URL."""
    from observability_integration.caching.policy import CachePolicy
    from observability_integration.primitives import CachePrimitive

    policy = CachePolicy() if options.lease_seconds is None else CachePolicy(lease_seconds=options.lease_seconds)
    cache: CachePrimitive[Any, Any] = CachePrimitive(
        redis_url=f"redis://127.0.0.1:{options.port}/0", ttl_seconds=TTL_SECONDS, operation_name="ask", policy=policy
    )
    return lambda question: cache.get_or_compute(question, lambda: work.answer(question))


def cashews(options: Options, work: Work) -> Ask:
    """The decorator; its lock lasts as long as the entry, so that a lease makes the entry short-lived too."""
    from cashews import Cache

    cache = Cache()
    cache.setup(f"redis://127.0.0.1:{options.port}/0")

    @cache(ttl=options.lease_seconds or TTL_SECONDS, key="ask:{question}", lock=options.locks)
    async def ask(question: str) -> Any:
        return await work.answer(question)

    return ask


def aiocache(options: Options, work: Work) -> Ask:
    """The decorator against stampedes, or the plain one."""
    from aiocache import Cache, cached, cached_stampede

    lease = {} if options.lease_seconds is None else {"lease": options.lease_seconds}
    decorator = (
        cached_stampede(**lease, **_aiocache(Cache, options)) if options.locks else cached(**_aiocache(Cache, options))
    )

    @decorator
    async def ask(question: str) -> Any:
        return await work.answer(question)

    return ask


def _aiocache(cache: Any, options: Options) -> dict[str, Any]:
    return {
        "ttl": TTL_SECONDS,
        "key_builder": lambda _, question: f"ask:{question}",
        "cache": cache.REDIS,
        "endpoint": "127.0.0.1",
        "port": options.port,
    }


def dogpile(options: Options, work: Work) -> Ask:
    """A region with a lock in Redis. It knows no event loop: each caller is a thread."""
    from dogpile.cache import make_region

    region = make_region().configure(
        "dogpile.cache.redis",
        expiration_time=TTL_SECONDS,
        arguments={
            "host": "127.0.0.1",
            "port": options.port,
            "redis_expiration_time": 2 * TTL_SECONDS,
            "distributed_lock": True,
            "thread_local_lock": False,
            "lock_timeout": options.lease_seconds or _DOGPILE_LOCK_SECONDS,
        },
    )
    threads = ThreadPoolExecutor(options.callers)

    @region.cache_on_arguments()
    def ask(question: str) -> Any:
        return work.answer_in_thread(question)

    return lambda question: asyncio.get_running_loop().run_in_executor(threads, ask, question)


def async_lru(_: Options, work: Work) -> Ask:
    """The decorator: in memory, each process for itself."""
    from async_lru import alru_cache

    @alru_cache(ttl=TTL_SECONDS)
    async def ask(question: str) -> Any:
        return await work.answer(question)

    return ask


CONTESTANTS: dict[str, Callable[[Options, Work], Ask]] = {
    OURS: ours,
    CASHEWS: cashews,
    AIOCACHE: aiocache,
    DOGPILE: dogpile,
    ASYNC_LRU: async_lru,
}
