"""The caches of the stampedes, each set up as documented.

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
_DOGPILE_LOCK_SECONDS = 10  # no default; without a timeout, the lock of a killed process stays


class Options(NamedTuple):
    """The options of a worker.

    Attributes:
        contestant: name of the cache.
        port: of Redis.
        work_seconds: duration of the call.
        lease_seconds: duration of a lock; None for the library's default.
        locks: whether the cache locks against stampedes between processes.
        fails: whether the call fails.
        callers: number of callers.
        cancelled: number of callers, the first ones, that are cancelled while they wait.
        in_turn: whether callers ask one after the other, each another question, instead of all at once the same one.
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
    """Sends a message to the parent process."""
    # One write per message, because several threads send.
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


class Work:
    """The call. Questions that start with a blank are for warm-up: answered at once and not counted."""

    def __init__(self, options: Options) -> None:
        self._seconds = options.work_seconds
        self._fails = options.fails
        self.last_seconds = 0.0

    async def answer(self, question: str) -> str:
        """Answers after the duration of the work."""
        seconds = self._begin(question)
        started = time.perf_counter()
        await asyncio.sleep(seconds)
        return self._end(question, started)

    def answer_in_thread(self, question: str) -> str:
        """Answers in a thread, for libraries without asyncio."""
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
    """`CachePrimitive` with a `redis_url`."""
    from observability_integration.caching.policy import CachePolicy
    from observability_integration.primitives import CachePrimitive

    policy = CachePolicy() if options.lease_seconds is None else CachePolicy(lease_seconds=options.lease_seconds)
    cache: CachePrimitive[Any, Any] = CachePrimitive(
        redis_url=f"redis://127.0.0.1:{options.port}/0", ttl_seconds=TTL_SECONDS, operation_name="ask", policy=policy
    )
    return lambda question: cache.get_or_compute(question, lambda: work.answer(question))


def cashews(options: Options, work: Work) -> Ask:
    """The decorator. Its lock lasts as long as the entry, so a lease also shortens the TTL."""
    from cashews import Cache

    cache = Cache()
    cache.setup(f"redis://127.0.0.1:{options.port}/0")

    @cache(ttl=options.lease_seconds or TTL_SECONDS, key="ask:{question}", lock=options.locks)
    async def ask(question: str) -> Any:
        return await work.answer(question)

    return ask


def aiocache(options: Options, work: Work) -> Ask:
    """The decorator `cached_stampede`, or `cached` without locks."""
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
    """A region with a lock in Redis. It has no asyncio interface, so each caller is a thread."""
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
    """The decorator, in the memory of each process."""
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
