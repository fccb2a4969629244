"""The rights that docs/deployment.md says a user of Redis needs: with these it works, and each of them is used."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from observability_integration.caching.policy import CachePolicy
from observability_integration.caching.stores import redis_subscription
from observability_integration.caching.stores.redis import RedisStore
from observability_integration.errors import SharedCallError
from observability_integration.primitives import CachePrimitive, RateLimitPrimitive
from observability_integration.primitives.circuit_breaker.redis import RedisBreakerStore
from observability_integration.primitives.circuit_breaker.verdict import Verdict
from tests.processes import RedisProcess
from tests.redis_caches import Calls, ask_server

pytestmark = [pytest.mark.once, pytest.mark.unmeasured, pytest.mark.needs_redis_package, pytest.mark.needs_redis_server]

_DEPLOYMENT = Path(__file__).parents[2] / "docs" / "deployment.md"
_POLICY = CachePolicy(backend_budget_seconds=2.0, lease_seconds=0.3, ttl_jitter=0.0)
_A_MOMENT_SECONDS = 5.0
# What the client says when it connects, and the test itself.
_NOT_THE_CACHES = {"acl", "auth", "client", "config", "hello", "info"}


def _documented(user: str) -> list[str]:
    text = _DEPLOYMENT.read_text(encoding="utf-8")
    found = re.search(rf"^ACL SETUSER ({user} .+)$", text, re.MULTILINE)
    assert found is not None
    return found[1].split()


def _grant(server: RedisProcess, user: str) -> tuple[str, set[str]]:
    """Makes the user, forgets what was used so far, and returns the password and the names of the commands."""
    name, *rights = _documented(user)
    ask_server(server, "ACL", "SETUSER", name, *rights)
    ask_server(server, "CONFIG", "RESETSTAT")
    (password,) = (right.removeprefix(">") for right in rights if right.startswith(">"))
    return password, {right.removeprefix("+") for right in rights if right.startswith("+")}


def _used(server: RedisProcess) -> set[str]:
    stats = ask_server(server, "INFO", "commandstats")
    return {name.removeprefix("cmdstat_").partition("|")[0] for name in stats} - _NOT_THE_CACHES


def _asked(server: RedisProcess) -> int:
    """How often somebody was told how long a lease of another lasts."""
    calls: int = ask_server(server, "INFO", "commandstats")["cmdstat_pttl"]["calls"]
    return calls


def _denied(server: RedisProcess) -> list[str]:
    objects = [entry[b"object"].decode() for entry in ask_server(server, "ACL", "LOG")]
    return [denied for denied in objects if denied.partition("|")[0] not in _NOT_THE_CACHES]


async def _soon(holds: Callable[[], bool]) -> None:
    give_up = time.monotonic() + _A_MOMENT_SECONDS
    while not await asyncio.to_thread(holds):
        assert time.monotonic() < give_up
        await asyncio.sleep(0.01)


@pytest.mark.promise("C8", "C9")
@pytest.mark.parametrize("way", ["url", "asyncio"])
async def test_the_documented_rights_are_enough_and_none_is_too_many(
    redis_process: RedisProcess, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """One right less, and something fails in silence: the others are not told, or leases are not renewed."""
    import redis.asyncio

    monkeypatch.setattr(redis_subscription, "_QUIET_SECONDS", 0.05)
    name = "cache"
    password, granted = _grant(redis_process, name)
    url = redis_process.url.replace("//", f"//{name}:{password}@")
    async with contextlib.AsyncExitStack() as ending:

        def client() -> Any:
            made = redis.asyncio.Redis(port=redis_process.port, username=name, password=password)
            ending.push_async_callback(made.aclose)
            return made

        def process() -> CachePrimitive[Any, Any]:
            form: dict[str, Any] = {"redis_url": url} if way == "url" else {"redis_client": client()}
            made: CachePrimitive[Any, Any] = CachePrimitive(**form, operation_name="ask", policy=_POLICY)
            ending.push_async_callback(made.aclose)
            return made

        one, other = process(), process()
        await _share_a_call(redis_process, one, other)
        await _forget(one, other)
        await _share_a_failure(redis_process, one, other)
        store = RedisStore(url=url, patience_seconds=1.0) if way == "url" else RedisStore(client())
        await store.probe("cache:ask:")
        await store.aclose()
    assert [] == _denied(redis_process)
    assert granted == _used(redis_process)


@pytest.mark.promise("K3")
async def test_the_rights_of_a_circuit_breaker(redis_process: RedisProcess) -> None:
    """In another database than 0: opened by one, seen by another, probed under a lease that is renewed and returned."""
    password, granted = _grant(redis_process, "breakers")
    store = RedisBreakerStore(redis_process.url.replace("//", f"//breakers:{password}@").removesuffix("0") + "1")
    async with store.link("t") as one, store.link("t") as other:
        await one.publish("one", Verdict("first", True, 1.0, 21.0), 60.0, keep=True)
        assert ["mine", "mine"] == [(await other.fetch("other", 5.0, 1)).lease for _ in range(2)]
        said = await other.publish("other", Verdict("second", False, 1.0, 21.0, after="first"), 60.0, keep=False)
        assert ("second", "free") == (said.verdict and said.verdict.id, said.lease)
    assert [] == _denied(redis_process)
    assert granted == _used(redis_process)


@pytest.mark.promise("Q2")
async def test_the_rights_of_a_rate_limit(redis_process: RedisProcess) -> None:
    """In another database than 0: calls of two processes, of which some wait in line, and the line goes again."""
    password, granted = _grant(redis_process, "limits")
    url = redis_process.url.replace("//", f"//limits:{password}@").removesuffix("0") + "1"

    async def ask(question: int) -> int:
        return question

    processes = [
        RateLimitPrimitive(ask, requests_per_minute=6000, burst_seconds=0.01, operation_name="ask", redis_url=url)
        for _ in range(2)
    ]
    assert [0, 1, 2, 3] == await asyncio.gather(*(processes[n % 2].execute(n) for n in range(4)))
    for process in processes:
        await process.aclose()
    assert [] == _denied(redis_process)
    assert granted == _used(redis_process)


async def _share_a_call(server: RedisProcess, one: CachePrimitive[Any, Any], other: CachePrimitive[Any, Any]) -> None:
    """A miss under a lease that is renewed, and a hit of the one who waits for it."""
    may_end = asyncio.Event()

    async def slow() -> int:
        await may_end.wait()
        return 0

    made = asyncio.ensure_future(one.get_or_compute("q", slow, tags=["t"]))
    await _soon(lambda: "set" in _used(server))
    waited = asyncio.ensure_future(other.get_or_compute("q", Calls("a second call")))
    await _soon(lambda: {"pexpire", "pttl", "subscribe", "ping"} <= _used(server))
    may_end.set()
    assert [0, 0] == [await made, await waited]


async def _forget(one: CachePrimitive[Any, Any], other: CachePrimitive[Any, Any]) -> None:
    """What one makes void the other forgets, because it is told; then one finds what the other has made."""
    calls = Calls(1, 2, 3)
    for number, forgetting in enumerate(("tag", "clear", "key")):
        if forgetting == "clear":
            await one.clear()
        else:
            await (one.invalidate(tag="t") if forgetting == "tag" else one.invalidate("q"))
        give_up = time.monotonic() + _A_MOMENT_SECONDS
        while await other.get_or_compute("q", calls, tags=["t"]) == number and time.monotonic() < give_up:
            await asyncio.sleep(0.01)
        assert number + 1 == calls.made == await one.get_or_compute("q", Calls("a second call"))


async def _share_a_failure(
    server: RedisProcess, one: CachePrimitive[Any, Any], other: CachePrimitive[Any, Any]
) -> None:
    """The one who waits is told."""
    started, may_fail = asyncio.Event(), asyncio.Event()

    async def failing() -> None:
        started.set()
        await may_fail.wait()
        raise ValueError

    failed = asyncio.ensure_future(one.get_or_compute("f", failing))
    await started.wait()
    asked = _asked(server)
    waited = asyncio.ensure_future(other.get_or_compute("f", Calls("a second call")))
    await _soon(lambda: _asked(server) > asked)  # it waits
    may_fail.set()
    with pytest.raises(SharedCallError):
        await waited
    with pytest.raises(ValueError):
        await failed
