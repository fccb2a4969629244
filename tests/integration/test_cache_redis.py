"""The cache and a real Redis that is well: every kind of client, what stands in the server, and who shares what.

What happens when Redis is not well stands in test_cache_redis_faults.py.
"""

from __future__ import annotations

import asyncio
import gc
import json
import math
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest

from observability_integration.caching.policy import CachePolicy
from observability_integration.errors import ConfigurationError
from observability_integration.primitives import GLOBAL, CachePrimitive
from tests.processes import RedisProcess
from tests.redis_caches import CLIENTS, PATIENT, WAYS, Caches, Calls, ask_server, caches, clients_of, keys_in
from tests.scripts import run_script

__all__ = ["caches"]

pytestmark = [pytest.mark.once, pytest.mark.unmeasured, pytest.mark.needs_redis_package, pytest.mark.needs_redis_server]

# Everything that JSON can hold, and hence Redis.
VALUES = [
    "text",
    "",
    "ünïcödé 🎈",
    "\x00\n\"'\\",
    None,
    True,
    0,
    -(2**62),
    0.1,
    -0.0,
    [],
    {},
    {"role": "assistant", "content": [{"text": "hi", "n": 1}, [1.5, None, False]]},
    "long " * 20_000,
]


@pytest.fixture
def server(redis_server: RedisProcess) -> RedisProcess:
    """The server of the whole run, emptied."""
    redis_server.flush()
    return redis_server


def same(first: Any, second: Any) -> bool:
    """Equal, type by type."""
    return json.dumps(first) == json.dumps(second) and type(first) is type(second)


# Clients of every kind ------------------------------------------------------------------------------------------------


@pytest.mark.promise("C4", "C7")
@pytest.mark.parametrize("way", WAYS)
async def test_every_client_returns_what_the_call_returned(way: str, server: RedisProcess, caches: Caches) -> None:
    """A hit from Redis, read by a process that never made the call, must equal what the call returned, type by type."""
    writer, reader = caches(way, server), caches(way, server)
    for number, value in enumerate(VALUES):
        assert same(value, await writer.get_or_compute(number, Calls(value)))
    for number, value in enumerate(VALUES):
        unneeded = Calls("never")
        assert same(value, await reader.get_or_compute(number, unneeded))
        assert 0 == unneeded.made
    assert (0, len(VALUES)) == (writer.get_stats()["hits"], writer.get_stats()["misses"])
    assert (len(VALUES), 0) == (reader.get_stats()["hits"], reader.get_stats()["misses"])
    assert len(VALUES) == len(keys_in(server))


@pytest.mark.promise("C4")
async def test_a_value_written_by_one_client_is_read_by_every_other(server: RedisProcess, caches: Caches) -> None:
    """A fleet need not be of one mind about its client: what stands in Redis is the same for all."""
    value = {"content": ["ünï", 1, 2.5, None]}
    for written_by in WAYS:
        await caches(written_by, server).get_or_compute(written_by, Calls(value))
    for read_by in WAYS:
        cache = caches(read_by, server)
        unneeded = Calls("never")
        assert [value] * len(WAYS) == [await cache.get_or_compute(written_by, unneeded) for written_by in WAYS]
        assert 0 == unneeded.made


@pytest.mark.promise("C1", "C4")
@pytest.mark.parametrize("way", CLIENTS)
async def test_every_client_leads_to_the_same_counters(
    way: str, server: RedisProcess, caches: Caches, metrics: Callable[..., Any]
) -> None:
    """Numbers on a dashboard must not depend on the client: hits of both levels, misses, savings and their metrics."""
    calls = Calls("answer")

    def cache() -> CachePrimitive[Any, Any]:
        return caches(
            way, server, calls, lambda prompt, context: prompt, cost_per_call=0.25, operation_name=f"count {way}"
        )

    first, second = cache(), cache()
    for prompt in ("a", "b", "a", "a"):
        assert "answer" == await first.execute(prompt)
    for prompt in ("a", "c", "a"):
        assert "answer" == await second.execute(prompt)
    assert 3 == calls.made
    expected = {"operation": f"count {way}", "hit_rate": 0.5, "hits": 2, "misses": 2, "total": 4}
    assert {**expected, "cost_savings_usd": 0.5} == first.get_stats()
    expected |= {"hit_rate": 2 / 3, "hits": 2, "misses": 1, "total": 3}
    assert {**expected, "cost_savings_usd": 0.5} == second.get_stats()
    labels = {"operation": f"count {way}"}
    assert 4 == metrics("cache.hits", **labels)
    assert 3 == metrics("cache.misses", **labels)
    assert 1.0 == metrics("cache.cost_savings_usd", **labels)
    assert 4 / 7 == metrics("cache.hit_rate", **labels)
    assert 4 == metrics("cache.latency", **labels, hit="true")
    assert 3 == metrics("cache.latency", **labels, hit="false")
    assert 1 == metrics("cache.backend_up", **labels)
    assert metrics("cache.backend_errors", **labels, error_type="TimeoutError") is None


@pytest.mark.promise("C7")
@pytest.mark.parametrize("value", [(1, 2), math.nan, 2**70, {1, 2}, 1 + 2j])
async def test_what_cannot_be_written_is_never_changed_by_redis(
    value: Any, server: RedisProcess, caches: Caches
) -> None:
    """A tuple that comes back as a list breaks its reader far away: such values stay in memory, and Redis has none."""
    cache = caches("asyncio", server)
    calls = Calls(value)
    returned = [await cache.get_or_compute("key", calls) for _ in range(3)]
    assert [repr(value)] * 3 == [repr(one) for one in returned]
    assert 1 == calls.made
    assert [] == keys_in(server)


@pytest.mark.promise("C7")
@pytest.mark.parametrize("way", WAYS)
async def test_callers_share_no_mutable_value(way: str, server: RedisProcess, caches: Caches) -> None:
    """One caller who adds to a list must not change the answer of the next one, wherever it came from."""
    first, second = caches(way, server), caches(way, server)
    for cache in (first, first, second, second):
        returned = await cache.get_or_compute("key", Calls(["a"]))
        assert ["a"] == returned
        returned.append("mine")


@pytest.mark.promise("C4")
@pytest.mark.parametrize("way", WAYS)
async def test_the_loop_goes_on_while_redis_hangs(way: str, redis_process: RedisProcess, caches: Caches) -> None:
    """A synchronous client waits for its answer with its whole thread; if that were the loop's, everybody would."""
    cache = caches(way, redis_process, policy=CachePolicy(backend_budget_seconds=0.1))
    await cache.get_or_compute("before", Calls("answer"))
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.001)
            ticks += 1

    ticking = asyncio.create_task(tick())
    redis_process.pause()
    try:
        assert "answer" == await cache.get_or_compute("paused", Calls("answer"))
    finally:
        redis_process.resume()
    assert 5 <= ticks  # of the 100 that fit into the time that the cache waits for Redis
    ticking.cancel()
    await asyncio.wait([ticking])


@pytest.mark.parametrize("way", WAYS)
async def test_a_burst_is_served_and_stored(
    way: str, server: RedisProcess, caches: Caches, caplog: pytest.LogCaptureFixture
) -> None:
    """Hundreds of callers at once get by with a few connections: opening one for each would take longer than asking."""
    cache = caches(way, server)
    returned = await asyncio.gather(*(cache.get_or_compute(number, Calls(number)) for number in range(300)))
    assert list(range(300)) == returned
    assert 300 == len(keys_in(server))
    assert clients_of(server) <= 16 + (not way.startswith("sync"))  # the others have one more, for reads alone
    assert [] == caplog.messages


# Time to live ---------------------------------------------------------------------------------------------------------


@pytest.mark.promise("C6")
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("ttl_seconds", [0.75, 3600.0, 86_400.5])
async def test_the_server_is_given_the_ttl_in_milliseconds(
    way: str, ttl_seconds: float, server: RedisProcess, caches: Caches
) -> None:
    """In whole seconds 0.75 would be never or not at all; and an entry without an end fills the server."""
    before = time.monotonic()
    await caches(way, server, ttl_seconds=ttl_seconds).get_or_compute("key", Calls("answer"))
    (key,) = keys_in(server)
    left = ask_server(server, "PTTL", key)
    took = 1000 * (time.monotonic() - before)
    assert 1000 * ttl_seconds - took - 1 <= left <= 1000 * ttl_seconds


@pytest.mark.promise("C6")
async def test_memory_never_outlives_redis(server: RedisProcess, caches: Caches) -> None:
    """A reader that keeps what it found for a life of its own would serve it twice as long as was promised."""
    writer, reader = caches("asyncio", server, ttl_seconds=0.4), caches("asyncio", server, ttl_seconds=3600.0)
    await writer.get_or_compute("key", Calls("old"))
    (key,) = keys_in(server)
    for _ in range(2):  # from Redis, then from memory
        assert "old" == await reader.get_or_compute("key", Calls("new"))
    while ask_server(server, "EXISTS", key):
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.01)
    assert "new" == await reader.get_or_compute("key", Calls("new"))


@pytest.mark.promise("C6")
async def test_an_endless_ttl_is_none(server: RedisProcess, caches: Caches) -> None:
    """A time to live too long for Redis's clock must be cut, not refused: the breaker would take it for a fault."""
    cache = caches("asyncio", server, ttl_seconds=1e300)
    assert "answer" == await cache.get_or_compute("key", Calls("answer"))
    (key,) = keys_in(server)
    assert 1000 * 86_400 * 365 * 100 < ask_server(server, "PTTL", key)


# Keys -----------------------------------------------------------------------------------------------------------------


@pytest.mark.promise("C3", "X4")
@pytest.mark.parametrize("way", CLIENTS)
async def test_no_prompt_reaches_the_server(
    way: str, redis_process: RedisProcess, caches: Caches, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever can list keys, or reads the slow log of the server, must learn the operation and nothing of a prompt."""
    ask_server(redis_process, "CONFIG", "SET", "slowlog-log-slower-than", "0")
    ask_server(redis_process, "CONFIG", "SET", "slowlog-max-len", "1000")
    cache = caches(way, redis_process, Calls("answer"), lambda prompt, context: prompt, operation_name="chat")
    prompts: list[Any] = ["a secret", {"messages": ["secret", 1]}, ("secret", b"secret"), {"secret"}]
    for prompt in prompts:
        assert "answer" == await cache.execute(prompt)
    keys = keys_in(redis_process)
    assert len(prompts) == len(keys)
    for key in keys:
        assert re.fullmatch(r"cache:chat:v3:\{[0-9a-f]{12}\}:[0-9a-f]{64}", key)
        assert ask_server(redis_process, "GET", key).endswith(msgspec.msgpack.encode("answer"))
    await cache.invalidate(prompts[0])
    await cache.clear()
    log = repr(ask_server(redis_process, "SLOWLOG", "GET", "1000"))
    assert "cache:chat:v3:" in log
    assert "secret" not in log + caplog.text


@pytest.mark.promise("C3")
async def test_operations_and_scopes_are_kept_apart(server: RedisProcess, caches: Caches) -> None:
    """The same prompt of another tenant, or to another operation, must never be answered from here."""
    names = [("chat", GLOBAL), ("chat:v1", GLOBAL), ("chat", "tenant 1"), ("chat", "tenant 2"), ("", "chat")]
    for operation, scope in names:
        cache = caches("asyncio", server, operation_name=operation or None, scope=scope)
        answer = [operation, str(scope)]
        assert answer == await cache.get_or_compute("prompt", Calls(answer))
    assert len(names) == len(keys_in(server))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["a*b", "a?b", "a[b]c", "a[^b]", "a\\b", "a\\*", "[", "]", "*", "ünï", "a:v1"])
async def test_clear_takes_its_own_keys_and_no_others(
    way: str, name: str, server: RedisProcess, caches: Caches
) -> None:
    """An operation may be called anything: in a pattern, its name must not come to mean somebody else's keys."""
    others = ["aXb", "ab", "abc", "a", "b", "a*", "aXbc", "session:1", "cache:", "cache:a:v1:", "cache:aXb:v1:0:1"]
    for other in others:
        ask_server(server, "SET", other, "not ours")
    operations = ("aXb", "aabc", "a", "a:v2", "anything", "{a}")
    for operation in operations:
        await caches(way, server, operation_name=operation).get_or_compute("key", Calls("kept"))
    cache = caches(way, server, operation_name=name)
    for number in range(3):
        await cache.get_or_compute(number, Calls("gone"))
    await cache.clear()
    for operation in operations:
        assert "kept" == await caches(way, server, operation_name=operation).get_or_compute("key", Calls("made again"))
    for other in others:
        assert b"not ours" == ask_server(server, "GET", other)
    for number in range(3):
        assert "new" == await caches(way, server, operation_name=name).get_or_compute(number, Calls("new"))


async def _quiet(server: RedisProcess) -> None:
    """Returns when nobody but the test asks the server for anything: on a busy machine callers may not wait for all."""
    asked_by_the_test = {"cmdstat_hello", "cmdstat_client|setinfo", "cmdstat_config|resetstat", "cmdstat_info"}
    while True:
        ask_server(server, "CONFIG", "RESETSTAT")
        await asyncio.sleep(0.02)
        if asked_by_the_test.issuperset(ask_server(server, "INFO", "commandstats")):
            return


@pytest.mark.parametrize("way", WAYS)
async def test_clearing_costs_the_same_however_much_there_is(way: str, server: RedisProcess, caches: Caches) -> None:
    """Walking through millions of keys would keep a server busy that others use: clearing deletes two keys."""
    cache = caches(way, server, operation_name="many")
    await asyncio.gather(*(cache.get_or_compute(number, Calls("gone")) for number in range(300)))
    await _quiet(server)
    ask_server(server, "CONFIG", "RESETSTAT")
    await cache.clear()
    said = ask_server(server, "INFO", "commandstats")
    assert 20 > sum(fields["calls"] for fields in said.values())
    assert not {"cmdstat_scan", "cmdstat_keys", "cmdstat_unlink"} & set(said)
    assert 1 == said["cmdstat_del"]["calls"]
    later = caches(way, server, operation_name="many")
    for number in (0, 299):
        assert "new" == await later.get_or_compute(number, Calls("new"))
        assert "new" == await cache.get_or_compute(number, Calls("never"))


# Sharing --------------------------------------------------------------------------------------------------------------


@pytest.mark.promise("C1")
@pytest.mark.parametrize("way", WAYS)
async def test_two_caches_share_through_redis(way: str, server: RedisProcess, caches: Caches) -> None:
    """Replicas share what one of them has paid for: the second asks Redis once, and its own memory from then on."""
    calls = Calls({"answer": 42})
    first, second = caches(way, server, cost_per_call=0.5), caches(way, server, cost_per_call=0.5)
    assert {"answer": 42} == await first.get_or_compute("key", calls)
    for _ in range(2):
        assert {"answer": 42} == await second.get_or_compute("key", calls)
        server.flush()
    assert 1 == calls.made
    assert (0, 1) == (first.get_stats()["hits"], first.get_stats()["misses"])
    assert (2, 0) == (second.get_stats()["hits"], second.get_stats()["misses"])
    assert 1.0 == second.get_stats()["cost_savings_usd"]


@pytest.mark.promise("C3")
async def test_two_processes_share_through_redis(server: RedisProcess, caches: Caches) -> None:
    """The hash of a set, or of anything else, must not depend on the process that makes it."""
    code = """
        import asyncio, sys
        from observability_integration.primitives import CachePrimitive

        async def main():
            cache = CachePrimitive(redis_url=sys.argv[1], operation_name="shared")
            key = {"models": {"small", "large", "huge"}, "temperature": 0.0, "prompt": "ünï"}
            print(await cache.get_or_compute(key, lambda: "from another process"))
            await cache.aclose()

        asyncio.run(main())
    """
    assert "from another process\n" == run_script(code, server.url, PYTHONHASHSEED="1")
    key = {"prompt": "ünï", "temperature": 0.0, "models": {"huge", "large", "small"}}
    unneeded = Calls("never")
    cache = caches("asyncio", server, operation_name="shared")
    assert "from another process" == await cache.get_or_compute(key, unneeded)
    assert 0 == unneeded.made


@pytest.mark.promise("C2", "B4")
@pytest.mark.parametrize("cancelled", [0, 25])
@pytest.mark.parametrize("way", WAYS)
async def test_fifty_equal_misses_are_one_call(way: str, cancelled: int, server: RedisProcess, caches: Caches) -> None:
    """One of them gives up, be it the one whose call it is: the others still get the answer, and Redis gets it too."""
    cache = caches(way, server, cost_per_call=1.0)
    started, go_on = asyncio.Event(), asyncio.Event()
    made = 0

    async def call() -> str:
        nonlocal made
        made += 1
        started.set()
        await go_on.wait()
        return "answer"

    callers = [asyncio.create_task(cache.get_or_compute("key", call)) for _ in range(50)]
    await started.wait()
    callers[cancelled].cancel()
    await asyncio.wait([callers[cancelled]])
    assert callers[cancelled].cancelled()
    go_on.set()
    returned = await asyncio.gather(*callers, return_exceptions=True)
    assert 49 == returned.count("answer")
    assert isinstance(returned[cancelled], asyncio.CancelledError)
    assert 1 == made
    # The one call is a miss, whoever asked for it; a hit is a value that was returned.
    hits = 49 if cancelled == 0 else 48
    assert (hits, 1) == (cache.get_stats()["hits"], cache.get_stats()["misses"])
    assert 1 == len(keys_in(server))
    assert "answer" == await caches(way, server).get_or_compute("key", Calls("never"))


# Forgetting -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
async def test_invalidating_reaches_redis(way: str, server: RedisProcess, caches: Caches) -> None:
    """A value that is wrong is wrong for every replica that has not read it yet, too."""
    cache, calls = caches(way, server), Calls("wrong", "right")
    await cache.get_or_compute("other", Calls("kept"))
    assert "wrong" == await cache.get_or_compute("key", calls)
    await cache.invalidate("key")
    assert 1 == len(keys_in(server))
    assert "right" == await caches(way, server).get_or_compute("key", calls)
    assert "right" == await cache.get_or_compute("key", calls)
    assert 2 == calls.made


@pytest.mark.promise("C8")
@pytest.mark.parametrize("everything", [False, True])
@pytest.mark.parametrize("way", WAYS)
async def test_invalidating_voids_the_call_under_way(
    way: str, everything: bool, server: RedisProcess, caches: Caches
) -> None:
    """A call that began before the change answers those who asked before it, and nobody afterwards, anywhere."""
    cache = caches(way, server)
    started, go_on = asyncio.Event(), asyncio.Event()

    async def call() -> str:
        started.set()
        await go_on.wait()
        return "old"

    asked = [asyncio.create_task(cache.get_or_compute("key", call)) for _ in range(2)]
    await started.wait()
    await (cache.clear() if everything else cache.invalidate("key"))
    assert "new" == await cache.get_or_compute("key", Calls("new"))
    go_on.set()
    assert ["old", "old"] == await asyncio.gather(*asked)
    for later in (cache, caches(way, server)):
        assert "new" == await later.get_or_compute("key", Calls("never"))
    (key,) = keys_in(server)
    assert ask_server(server, "GET", key).endswith(msgspec.msgpack.encode("new"))


@pytest.mark.promise("C8")
@pytest.mark.parametrize("way", WAYS)
async def test_a_voided_value_is_in_neither_level(way: str, server: RedisProcess, caches: Caches) -> None:
    """The same, when nobody has asked again: nothing is left that could be served later."""
    cache = caches(way, server)
    started, go_on = asyncio.Event(), asyncio.Event()

    async def call() -> str:
        started.set()
        await go_on.wait()
        return "old"

    asked = asyncio.create_task(cache.get_or_compute("key", call))
    await started.wait()
    await cache.invalidate("key")
    go_on.set()
    assert "old" == await asked
    assert [] == keys_in(server)
    assert "new" == await cache.get_or_compute("key", Calls("new"))


# Entries that nobody can read -----------------------------------------------------------------------------------------

GARBAGE = [
    b"\x02",
    b"\x02" + 60 * b"\xff",
    b"garbage",
    b"\xff\xfe\x00",
    b"null",
    b'"text"',
    b"[]",
    b'[1,"soon","value"]',
    b"[1,99999999999999]",
    b"[1,99999999999999,]",
    b'[1,99999999999999,"cut sho',
    b'[1,99999999999999,"value"] and more',
    b'[1,99999999999999,"value",4]',
    b'[2,99999999999999,"another version"]',
    b"\x80\x04\x95\x07\x00\x00\x00\x00\x00\x00\x00\x8c\x03pwn\x94.",
    b"[" * 5000,
]


@pytest.mark.promise("C5")
@pytest.mark.parametrize("way", WAYS)
async def test_garbage_under_our_keys_is_a_miss(
    way: str, server: RedisProcess, caches: Caches, metrics: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Another version, another program or a broken disk: the call is made, the entry is deleted and counted as a fault.

    It says nothing about the server, which stays in use. A key of another type is as good as none, and is replaced.
    """
    name = f"garbage {way}"
    calls = Calls("answer")
    await caches(way, server, operation_name=name).get_or_compute("key", calls)
    (key,) = keys_in(server)
    there_during_the_call: list[int] = []

    async def call() -> str:
        there_during_the_call.append(await asyncio.to_thread(ask_server, server, "EXISTS", key))
        return "answer"

    kinds: list[tuple[Any, ...]] = [("SET", key, data) for data in GARBAGE]
    kinds += [
        ("SET", key, b""),
        ("RPUSH", key, "of another type"),
        ("HSET", key, "of", "another type"),
        ("SADD", key, "x"),
    ]
    before = metrics("telemetry.faults", site="cache.decode") or 0
    for number, command in enumerate(kinds, 1):
        ask_server(server, "DEL", key)
        ask_server(server, *command)
        cache = caches(way, server, operation_name=name)
        assert "answer" == await cache.get_or_compute("key", call)
        assert (0, 1) == (cache.get_stats()["hits"], cache.get_stats()["misses"]), command
        assert number == len(there_during_the_call), command
        assert before + min(number, len(GARBAGE)) == metrics("telemetry.faults", site="cache.decode"), command
        assert ask_server(server, "GET", key).endswith(msgspec.msgpack.encode("answer")), command
    assert [0] * len(GARBAGE) == there_during_the_call[: len(GARBAGE)]
    assert 1 + len(kinds) == metrics("cache.misses", operation=name)
    assert 1 == metrics("cache.backend_up", operation=name)
    assert not [line for line in caplog.messages if "out of use" in line]


# The form with a URL --------------------------------------------------------------------------------------------------


@pytest.fixture
def collected() -> Iterator[None]:
    """What a test leaves unclosed warns before the test is over."""
    yield
    gc.collect()


@pytest.mark.parametrize("closed", [True, False])
def test_a_url_works_in_one_event_loop_after_another(closed: bool, server: RedisProcess, collected: None) -> None:
    """Scripts call `asyncio.run` more than once; a connection of the first loop is useless and noisy in the second."""
    cache: CachePrimitive[Any, Any] = CachePrimitive(redis_url=server.url, policy=PATIENT)

    async def ask(key: str, calls: Calls) -> list[Any]:
        try:
            returned = await asyncio.gather(*(cache.get_or_compute([key, number], calls) for number in range(20)))
            assert 1 <= clients_of(server)
            return returned
        finally:
            if closed:
                await cache.aclose()
                gc.collect()

    assert ["answer"] * 20 == asyncio.run(ask("first", Calls("answer")))
    assert 0 == clients_of(server)
    assert ["answer"] * 20 == asyncio.run(ask("second", Calls("answer")))
    assert 0 == clients_of(server)
    assert 40 == len(keys_in(server))


async def test_a_closed_cache_can_be_used_again(server: RedisProcess) -> None:
    """`aclose` lets go of connections, and closing twice, or before the first use, is harmless."""
    cache: CachePrimitive[Any, Any] = CachePrimitive(redis_url=server.url, policy=PATIENT)
    await cache.aclose()
    for number in range(2):
        assert number == await cache.get_or_compute(number, Calls(number))
        await cache.aclose()
        await cache.aclose()
        gc.collect()
    assert 2 == len(keys_in(server))


async def test_what_is_computed_may_be_a_function_of_any_kind(server: RedisProcess, caches: Caches) -> None:
    """An async function, or one that returns a value or an awaitable; a failure passes through and is not kept."""
    cache = caches("url", server)

    def fail() -> str:
        raise LookupError("not there")

    async def answer() -> str:
        return "answer"

    for compute in (answer, lambda: "answer", lambda: answer(), Calls("answer")):
        await cache.clear()
        for _ in range(2):
            with pytest.raises(LookupError, match="not there"):
                await cache.get_or_compute("key", fail)
        assert "answer" == await cache.get_or_compute("key", compute)
        assert "answer" == await cache.get_or_compute("key", fail)


def test_a_url_that_is_none_is_refused_at_once() -> None:
    """A slip of the pen must show when the program starts, and not as a cache that never hits."""
    with pytest.raises(ConfigurationError, match="redis_url"):
        CachePrimitive(redis_url="localhost:6379")
