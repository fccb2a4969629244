"""The rights that docs/deployment.md says a user of Redis needs: with these the cache works, and it uses each."""

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
from observability_integration.caching.stores.redis import RedisStore, RedisUrlStore
from observability_integration.errors import SharedCallError
from observability_integration.primitives import CachePrimitive
from tests.processes import RedisProcess
from tests.redis_caches import Calls, ask_server

pytestmark = [pytest.mark.once, pytest.mark.unmeasured, pytest.mark.needs_redis_package, pytest.mark.needs_redis_server]

_DEPLOYMENT = Path(__file__).parents[2] / "docs" / "deployment.md"
_POLICY = CachePolicy(backend_budget_seconds=2.0, lease_seconds=0.3, ttl_jitter=0.0)
_A_MOMENT_SECONDS = 5.0
# What the client says when it connects, and the test itself.
_NOT_THE_CACHES = {"acl", "auth", "client", "config", "hello", "info"}


def _documented() -> list[str]:
    text = _DEPLOYMENT.read_text(encoding="utf-8")
    found = re.search(r"^ACL SETUSER (.+)$", text, re.MULTILINE)
    assert found is not None
    return found[1].split()


def _used(server: RedisProcess) -> set[str]:
    stats = ask_server(server, "INFO", "commandstats")
    return {name.removeprefix("cmdstat_").partition("|")[0] for name in stats} - _NOT_THE_CACHES


def _asked(server: RedisProcess) -> int:
    """How often somebody was told how long a lease of another lasts."""
    calls: int = ask_server(server, "INFO", "commandstats")["cmdstat_pttl"]["calls"]
    return calls


def _denied(server: RedisProcess) -> list[str]:
    entries = [dict(zip(entry[::2], entry[1::2], strict=True)) for entry in ask_server(server, "ACL", "LOG")]
    objects = [entry[b"object"].decode() for entry in entries]
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
    name, *rights = _documented()
    ask_server(redis_process, "ACL", "SETUSER", name, *rights)
    (password,) = (right.removeprefix(">") for right in rights if right.startswith(">"))
    ask_server(redis_process, "CONFIG", "RESETSTAT")
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
        store = RedisUrlStore(url, 1.0) if way == "url" else RedisStore(client())
        await store.probe("cache:ask:")
        await store.aclose()
    assert [] == _denied(redis_process)
    assert {right.removeprefix("+") for right in rights if right.startswith("+")} == _used(redis_process)


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
