"""A process that misses the message of an invalidation serves the void entry for the rest of its TTL at the most.

Once the entry is stale, Redis has the last word, in every way in which a stale entry may be served. Two caches with
clients of their own stand for two processes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from observability_integration.caching import entry_options
from observability_integration.caching.policy import CachePolicy
from observability_integration.primitives import CachePrimitive
from tests.processes import RedisProcess
from tests.redis_caches import ask_server

redis = pytest.importorskip("redis")
pytest.importorskip("redis.asyncio")

pytestmark = [
    pytest.mark.once,
    pytest.mark.needs_redis_package,
    pytest.mark.needs_redis_server,
    pytest.mark.promise("C8", "C10"),
]

_TTL_SECONDS = 0.3
_SOON_SECONDS = 5.0

Cache = CachePrimitive[Any, Any]


class _Call:
    """A call that answers the first time; then it fails, is late, or takes over the stale value, as its form says."""

    def __init__(self, form: str, old: Any) -> None:
        self.made = 0
        self._form = form
        self._old = old

    async def __call__(self, *_: Any) -> Any:
        self.made += 1
        if self.made == 1:
            return self._old
        if self._form in ("soft", "hard"):
            await asyncio.sleep(1.0)
        if self._form == "conditional":
            try:
                return entry_options().not_modified()
            except LookupError:
                return "new"
        if self._form in ("error", "throttled", "get_or_compute"):
            raise ConnectionResetError
        return "new"

    async def stream(self, _: Any) -> AsyncIterator[str]:
        self.made += 1
        if self.made > 1:
            raise ConnectionResetError
        yield self._old


_POLICIES: dict[str, dict[str, Any]] = {
    "error": {"stale_if_error_seconds": 60.0},
    "throttled": {"stale_if_error_seconds": 60.0, "stale_if_error_throttle_seconds": 60.0},
    "get_or_compute": {"stale_if_error_seconds": 60.0},
    "revalidate": {"stale_while_revalidate_seconds": 60.0},
    "soft": {"stale_if_error_seconds": 60.0, "soft_timeout_seconds": 0.05},
    "hard": {"stale_if_error_seconds": 60.0, "hard_timeout_seconds": 0.6},
    "stream": {"stale_if_error_seconds": 60.0},
    "stream revalidate": {"stale_while_revalidate_seconds": 60.0},
    "conditional": {"stale_if_error_seconds": 60.0},
}


class _Process:
    """One of two processes that share a Redis: a cache for each form, and what it serves there."""

    def __init__(self, client: Any, old: Any = "old") -> None:
        self.client = client
        self.calls = {form: _Call(form, old) for form in _POLICIES}
        self.caches = {form: self._make(form) for form in _POLICIES}

    def _make(self, form: str) -> Cache:
        knobs = CachePolicy(
            backend_budget_seconds=1.0,
            backend_retry_seconds=0.02,
            backend_retry_max_seconds=0.05,
            ttl_jitter=0.0,
            **_POLICIES[form],
        )
        call: Any = self.calls[form].stream if form.startswith("stream") else self.calls[form]
        wrapped: Any = () if form == "get_or_compute" else (call, lambda question: question)
        tags: Any = {} if form == "get_or_compute" else {"tags": ["a tag"]}
        return CachePrimitive(
            *wrapped, ttl_seconds=_TTL_SECONDS, redis_client=self.client, operation_name=form, policy=knobs, **tags
        )

    async def ask(self, form: str) -> Any:
        """What a caller gets: an answer, or the name of an error."""
        cache = self.caches[form]
        try:
            if form == "get_or_compute":
                return await cache.get_or_compute("question", self.calls[form], tags=["a tag"])
            if form.startswith("stream"):
                async with cache.stream("question") as chunks:
                    return "".join([chunk async for chunk in chunks])
            return await cache.execute("question")
        except Exception as error:
            return type(error).__name__

    async def ask_all(self) -> dict[str, Any]:
        return dict(zip(_POLICIES, await asyncio.gather(*map(self.ask, _POLICIES)), strict=True))

    async def listens(self) -> None:
        """Returns when it hears what is published."""
        await _soon(lambda: all(_channel(cache).start() for cache in self.caches.values()))

    async def uses_redis(self) -> None:
        """Returns when it has found Redis again."""

        def back() -> bool:
            return all(cache._engine._tiers.shared.check() for cache in self.caches.values())  # type: ignore[union-attr]

        await _soon(back)

    async def aclose(self) -> None:
        for cache in self.caches.values():
            await cache.aclose()
        await self.client.aclose()


def _channel(cache: Cache) -> Any:
    return cache._engine._channel


async def _soon(holds: Callable[[], bool]) -> None:
    give_up = time.monotonic() + _SOON_SECONDS
    while not holds():
        assert time.monotonic() < give_up
        await asyncio.sleep(0.01)


Make = Callable[..., _Process]


@pytest.fixture
async def process(redis_process: RedisProcess) -> AsyncIterator[Make]:
    """Makes processes; all are closed at the end."""
    made: list[_Process] = []

    def make(old: Any = "old", **options: Any) -> _Process:
        made.append(_Process(redis.asyncio.Redis(port=redis_process.port, **options), old))
        return made[-1]

    yield make
    redis_process.resume()
    for one in made:
        await one.aclose()


_INVALIDATIONS: dict[str, Callable[[Cache], Awaitable[None]]] = {
    "key": lambda cache: cache.invalidate("question"),
    "tag": lambda cache: cache.invalidate(tag="a tag"),
    "clear": lambda cache: cache.clear(),
}

_WAYS = ["killed", "no right to publish", "no right to subscribe", "too slow", "restarted"]


def _user(server: RedisProcess, name: str, *rights: str) -> dict[str, str]:
    ask_server(server, "ACL", "SETUSER", name, "on", ">secret", "~*", "&*", "+@all", *rights)
    return {"username": name, "password": "secret"}


@pytest.mark.unmeasured
@pytest.mark.parametrize("invalidation", list(_INVALIDATIONS))
@pytest.mark.parametrize("way", _WAYS)
async def test_what_is_void_never_stands_in(
    redis_process: RedisProcess, process: Make, way: str, invalidation: str
) -> None:
    """However the message was missed, whatever was invalidated, in whichever form the stale entry would be served."""
    mute = _user(redis_process, "mute", "-publish") if way == "no right to publish" else {}
    deaf = _user(redis_process, "deaf", "resetchannels") if way == "no right to subscribe" else {}
    one, other = process(**mute), process(**deaf)
    assert {"old"} == set((await one.ask_all()).values())
    for form, call in other.calls.items():
        call.made = 1  # the first call was the other's
        assert "old" == await other.ask(form)
    began = time.monotonic()
    if way != "no right to subscribe":
        await other.listens()
    if way == "killed":
        await asyncio.to_thread(ask_server, redis_process, "CLIENT", "KILL", "TYPE", "pubsub")
    elif way == "too slow":
        ask_server(redis_process, "CONFIG", "SET", "client-output-buffer-limit", "pubsub 1 0 0")
    for form in _POLICIES:
        if form == "throttled":  # it has failed already, and is served stale for a while
            await asyncio.sleep(_TTL_SECONDS - (time.monotonic() - began) + 0.05)
            assert "old" == await other.ask(form)
    for cache in one.caches.values():
        await _INVALIDATIONS[invalidation](cache)
    if way == "restarted":
        await asyncio.to_thread(redis_process.restart)
        await other.ask("error")
        await other.uses_redis()
    served = await other.ask_all()
    assert {
        "error": "ConnectionResetError",
        "throttled": "ConnectionResetError",
        "get_or_compute": "ConnectionResetError",
        "revalidate": "new",
        "soft": "new",
        "hard": "PrimitiveTimeoutError",
        "stream": "ConnectionResetError",
        "stream revalidate": "ConnectionResetError",
        "conditional": "new",
    } == served


@pytest.mark.parametrize("invalidation", list(_INVALIDATIONS))
@pytest.mark.parametrize("policy", ["error", "soft", "hard", "stream"])
async def test_what_becomes_void_during_the_call_does_not_stand_in(
    redis_process: RedisProcess, process: Make, policy: str, invalidation: str
) -> None:
    """The entry was in order when the call began, and the message is missed: Redis is asked again."""
    knobs = CachePolicy(
        backend_budget_seconds=1.0,
        ttl_jitter=0.0,
        stale_if_error_seconds=60.0,
        soft_timeout_seconds=0.3 if policy == "soft" else None,
        hard_timeout_seconds=0.6 if policy == "hard" else None,
    )
    began, go_on = asyncio.Event(), asyncio.Event()
    made = 0

    async def call(_: str) -> str:
        nonlocal made
        made += 1
        if made == 1:
            return "old"
        began.set()
        await go_on.wait()
        if policy == "soft":
            return "new"
        raise ConnectionResetError

    async def stream(question: str) -> AsyncIterator[str]:
        yield await call(question)

    clients = [redis.asyncio.Redis(port=redis_process.port) for _ in range(2)]
    one, other = (
        CachePrimitive[Any, Any](
            stream if policy == "stream" else call,
            lambda question: question,
            ttl_seconds=_TTL_SECONDS,
            redis_client=client,
            operation_name=policy,
            policy=knobs,
            tags=["a tag"],
        )
        for client in clients
    )

    async def ask() -> Any:
        try:
            if policy != "stream":
                return await other.execute("question")
            async with other.stream("question") as chunks:
                return "".join([chunk async for chunk in chunks])
        except Exception as error:
            return type(error).__name__

    assert "old" == await ask()
    await _soon(lambda: bool(_channel(other).start()))
    await asyncio.sleep(_TTL_SECONDS)
    asking = asyncio.create_task(ask())
    await began.wait()
    await asyncio.to_thread(ask_server, redis_process, "CLIENT", "KILL", "TYPE", "pubsub")
    await _INVALIDATIONS[invalidation](one)
    if policy in ("soft", "hard"):
        await asyncio.sleep(0.7)
    assert asking.done() == (policy == "hard")
    go_on.set()
    expected = {"soft": "new", "hard": "PrimitiveTimeoutError"}
    assert expected.get(policy, "ConnectionResetError") == await asking
    flights: Any = other._engine._flights
    await _soon(lambda: not flights._in_flight)  # the call goes on after a hard timeout
    for cache in (one, other):
        await cache.aclose()
    for client in clients:
        await client.aclose()


async def test_a_stale_stream_is_served_at_once_while_another_replaces_it(redis_process: RedisProcess) -> None:
    """A reader that comes while the refresh runs is not made to wait for it."""
    go_on = asyncio.Event()
    made = 0

    async def stream(_: str) -> AsyncIterator[str]:
        nonlocal made
        made += 1
        if made > 1:
            await go_on.wait()
        yield f"answer {made}"

    client = redis.asyncio.Redis(port=redis_process.port)
    knobs = CachePolicy(backend_budget_seconds=1.0, ttl_jitter=0.0, stale_while_revalidate_seconds=60.0)
    cache = CachePrimitive[Any, Any](
        stream, lambda question: question, ttl_seconds=_TTL_SECONDS, redis_client=client, policy=knobs
    )

    async def ask() -> str:
        async with cache.stream("question") as chunks:
            return "".join([chunk async for chunk in chunks])

    assert "answer 1" == await ask()
    await asyncio.sleep(_TTL_SECONDS)
    assert ["answer 1"] * 3 == [await ask() for _ in range(3)]
    go_on.set()
    await _soon(lambda: made == 2)
    await cache.aclose()
    await client.aclose()


_STANDS_IN = dict.fromkeys(_POLICIES, "old")


@pytest.mark.parametrize("away", ["stopped", "killed"])
async def test_a_stale_entry_stands_in_while_redis_is_away(
    redis_process: RedisProcess, process: Make, away: str
) -> None:
    """That is what it is for: the two are often away together."""
    one = process()
    assert _STANDS_IN == await one.ask_all()
    if away == "stopped":
        redis_process.pause()
    else:
        redis_process.kill()
    await asyncio.sleep(_TTL_SECONDS)
    assert _STANDS_IN == await one.ask_all()
    again = await one.ask_all()
    assert _STANDS_IN == {**again, "revalidate": "old"}
    assert "new" == again["revalidate"]


async def test_a_stale_entry_stands_in_when_redis_confirms_it(redis_process: RedisProcess, process: Make) -> None:
    """Also after a gap, and to a process that has only read it."""
    one, other = process(), process()
    assert _STANDS_IN == await one.ask_all()
    for call in other.calls.values():
        call.made = 1
    assert _STANDS_IN == await other.ask_all()
    await asyncio.to_thread(ask_server, redis_process, "CLIENT", "KILL", "TYPE", "pubsub")
    await asyncio.sleep(_TTL_SECONDS)
    assert _STANDS_IN == await one.ask_all()
    served = await other.ask_all()
    assert _STANDS_IN == {**served, "revalidate": "old", "hard": "old"}
    assert {served["revalidate"], served["hard"]} <= {"old", "new"}  # the other has replaced it, or is about to


async def test_what_was_never_in_redis_stands_in_while_no_invalidation_was_missed(
    redis_process: RedisProcess, process: Make
) -> None:
    """A tuple is kept in memory only; others may invalidate what they like, as long as the messages come."""
    one, other = process(old=("old",)), process()
    forms = [form for form in _POLICIES if not form.startswith("stream")]

    async def ask() -> set[Any]:
        return {await one.ask(form) for form in forms}

    assert {("old",)} == await ask()
    await one.listens()
    await asyncio.sleep(_TTL_SECONDS)
    for cache in other.caches.values():
        await cache.invalidate("another")
        await cache.invalidate(tag="another")

    def heard() -> bool:
        # A key is a value's and a stream's.
        expected = {form: 2 if form == "get_or_compute" else 3 for form in forms}
        return expected == {form: _channel(one.caches[form])._heard.number for form in forms}

    await _soon(heard)
    assert {("old",)} == await ask()
    await asyncio.to_thread(ask_server, redis_process, "CLIENT", "KILL", "TYPE", "pubsub")
    for cache in other.caches.values():
        await cache.invalidate("question")
    await asyncio.sleep(_TTL_SECONDS)  # what was kept anew is fresh until then
    served = await ask()
    assert not served & {("old",)}
