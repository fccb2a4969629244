"""Twenty mistakes that tools of this kind have made before, each kept out by a test of what a user would see."""

from __future__ import annotations

import asyncio
import builtins
import inspect
import logging
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

import observability_integration
from observability_integration import (
    WorkflowContext,
    initialize_observability,
    observability_status,
    shutdown_observability,
)
from observability_integration.errors import ConfigurationError
from observability_integration.primitives import (
    CachePrimitive,
    LLMCallPrimitive,
    PrimitiveTimeoutError,
    RouterPrimitive,
    TimeoutPrimitive,
)
from observability_integration.primitives.timeout import TimeoutError as OlderTimeoutError
from tests.otlp_receiver import OtlpReceiver
from tests.processes import RedisProcess
from tests.scrapes import Scrape, scrape
from tests.scripts import run_script


@pytest.fixture(autouse=True)
def switched_off_afterwards() -> Iterator[None]:
    """Nothing stays on."""
    yield
    shutdown_observability(0.0)


class _Counted:
    """A call that counts how often it is made."""

    def __init__(self) -> None:
        self.calls = 0

    async def __call__(self, question: str) -> str:
        self.calls += 1
        await asyncio.sleep(0)
        return f"answer to {question}"


def _scrape() -> Scrape:
    return scrape(observability_status().prometheus_url)


@pytest.mark.needs_otel
def test_true_must_not_be_returned_over_a_port_that_nobody_serves() -> None:
    """The log said where to scrape, the function said True, and the connection was refused."""
    assert initialize_observability(prometheus_port=0) is True
    port = observability_status().prometheus_port
    with socket.create_connection(("127.0.0.1", port or 0), timeout=5):
        pass
    assert 1 == len(_scrape().series("target_info"))


def test_the_shutdown_function_can_be_imported_from_the_package() -> None:
    """It was missing there; the import error was swallowed, and the last batch was lost at every exit."""
    assert observability_integration.shutdown_observability is shutdown_observability


@pytest.mark.needs_otel
async def test_both_rate_gauges_reach_the_scrape() -> None:
    """Their callbacks returned tuples, so that each scrape logged an error and showed neither; a second cache's rate
    was dropped without a word because the first had taken the name.
    """
    initialize_observability(prometheus_port=0)
    caches = [CachePrimitive(_Counted(), str, operation_name=name) for name in ("rated once", "rated twice")]
    for cache in caches:
        await cache.execute("a")
    await caches[1].execute("a")
    await TimeoutPrimitive(_Counted(), 5.0, operation_name="rated").execute("a")
    found = _scrape()
    assert 0.0 == found.value("cache_hit_rate", operation="rated once")
    assert 0.5 == found.value("cache_hit_rate", operation="rated twice")
    assert 0.0 == found.value("timeout_rate", operation="rated")


@pytest.mark.needs_otel
async def test_names_carry_no_unit_twice_and_seconds_have_buckets_of_seconds() -> None:
    """Savings appeared as ..._usd_USD_total, and with bounds meant for milliseconds every call fell into one bucket."""
    initialize_observability(prometheus_port=0)
    router: RouterPrimitive[str, str] = RouterPrimitive({"fast": _Counted()}, lambda question, context: "fast")
    await CachePrimitive(router, str, operation_name="named").execute("a")
    found = _scrape()
    assert found.value("router_cost_savings_usd_total", route="fast") is not None
    assert found.value("cache_cost_savings_usd_total", operation="named") is not None
    assert "_USD" not in found.text
    bounds = [float(le) for le in found.buckets("router_execution_seconds", route="fast")][:-1]
    assert (0.01, 120.0) == (bounds[0], bounds[-1])
    assert 10 < len(bounds)


@pytest.mark.needs_redis_package
@pytest.mark.needs_redis_server
@pytest.mark.promise("C4")
async def test_an_async_redis_client_must_not_make_every_call_a_hit(redis_server: RedisProcess) -> None:
    """A coroutine was taken for a value: five hits, a rate of 100 %, money saved, and five calls all the same."""
    from redis.asyncio import Redis

    async with Redis.from_url(redis_server.url) as client:
        call = _Counted()
        cache = CachePrimitive(call, str, redis_client=client, operation_name="async client")
        assert ["answer to a"] * 5 == [await cache.execute("a") for _ in range(5)]
        stats = cache.get_stats()
        assert (1, 4, 1) == (call.calls, stats["hits"], stats["misses"])
        # From Redis too, not from this process's memory alone.
        other = CachePrimitive(call, str, redis_client=client, operation_name="async client")
        assert "answer to a" == await other.execute("a")
        assert (1, 1) == (call.calls, other.get_stats()["hits"])


@pytest.mark.needs_redis_package
@pytest.mark.needs_redis_server
@pytest.mark.promise("C1", "C4")
async def test_a_client_that_decodes_must_not_count_hits_that_were_calls(redis_server: RedisProcess) -> None:
    """Text has no decode(): the hit was counted, then the value could not be read, then the call was made."""
    from redis import Redis

    client = Redis.from_url(redis_server.url, decode_responses=True)
    call = _Counted()
    for _ in range(5):  # a cache of its own each time, so that only Redis can answer
        cache = CachePrimitive(call, str, redis_client=client, operation_name="decoding client")
        assert "answer to a" == await cache.execute("a")
        stats = cache.get_stats()
        assert (stats["hits"], stats["misses"]) in ((0, 1), (1, 0))
    assert 1 == call.calls
    await asyncio.to_thread(client.close)


@pytest.mark.promise("C3")
async def test_two_questions_must_not_get_one_answer() -> None:
    """Blanks became underscores in the key, and "a b" was answered with the answer to "a_b"."""
    cache = CachePrimitive(_Counted(), str, operation_name="apart")
    for question in ("a b", "a_b", "a\nb", "a" * 300, "a" * 300 + "b"):
        assert f"answer to {question}" == await cache.execute(question)
    assert 5 == cache.get_stats()["misses"]


@pytest.mark.promise("C2")
async def test_fifty_equal_questions_at_once_are_one_call() -> None:
    """A popular question whose entry had expired was sent to the provider fifty times, and billed fifty times."""
    call = _Counted()
    cache = CachePrimitive(call, str, operation_name="stampede")
    assert {"answer to a"} == set(await asyncio.gather(*(cache.execute("a") for _ in range(50))))
    assert 1 == call.calls
    assert 49 == cache.get_stats()["hits"]


@pytest.mark.needs_redis_package
@pytest.mark.needs_redis_server
@pytest.mark.promise("C4", "C5")
async def test_a_synchronous_client_must_not_hold_up_the_loop_when_redis_hangs(redis_process: RedisProcess) -> None:
    """A blocking client was called on the loop, without a timeout: one stopped Redis stopped every request."""
    from redis import Redis

    client = Redis.from_url(redis_process.url)
    cache = CachePrimitive(_Counted(), str, redis_client=client, operation_name="hanging")
    await cache.execute("warm")
    redis_process.pause()
    try:
        turns = 0

        async def others() -> None:
            nonlocal turns
            while True:
                await asyncio.sleep(0.001)
                turns += 1

        beside = asyncio.create_task(others())
        began = time.monotonic()
        assert "answer to a" == await cache.execute("a")
        assert time.monotonic() - began < 2.0
        beside.cancel()
        assert 5 < turns, "nothing else ran while Redis was waited for"
    finally:
        redis_process.resume()
        await cache.aclose()
        await asyncio.to_thread(client.close)


@pytest.mark.needs_redis_package
@pytest.mark.needs_redis_server
@pytest.mark.promise("C3")
async def test_a_ttl_below_a_second_and_a_key_of_another_process_work(redis_server: RedisProcess) -> None:
    """A ttl of 0.5 s became 0, which Redis refuses; and keys made by hash() or from addresses differ in each process."""
    from redis.asyncio import Redis

    async with Redis.from_url(redis_server.url) as client:
        cache = CachePrimitive(_Counted(), str, 0.5, client, operation_name="short")
        await cache.execute("a")
        (key,) = [key async for key in client.scan_iter(match="cache:short:*")]
        assert 0 < await client.pttl(key) <= 500

    script = """
        from observability_integration.caching.keys import KeySpace
        print(KeySpace("op", None).digest({"b": 1, "a": ["x", 2.5, None]}).hex())
    """
    assert 1 == len({run_script(script, PYTHONHASHSEED=seed) for seed in ("1", "2")})

    keyed_by_address = CachePrimitive(_Counted(), lambda question: object(), operation_name="addresses")
    assert "answer to a" == await keyed_by_address.execute("a")
    assert 0 == keyed_by_address.get_stats()["total"], "an object has no key, so it must not pass for a lookup"


async def test_without_redis_there_is_still_a_cache() -> None:
    """It only passed the calls through, and counted each as a miss, so that an alert on the hit rate never ended."""
    call = _Counted()
    cache = CachePrimitive(call, str, operation_name="memory")
    await cache.execute("a")
    await cache.execute("a")
    assert (1, 0.5) == (call.calls, cache.get_stats()["hit_rate"])


@pytest.mark.promise("T1", "T3")
async def test_a_grace_must_not_make_a_limit_of_10_ms_one_of_5_s() -> None:
    """The grace was added to the limit: nothing was cancelled, or told, before both had passed."""
    told_after = 0.0

    async def work(_: str) -> None:
        nonlocal told_after
        began = time.monotonic()
        try:
            await asyncio.Event().wait()
        finally:
            told_after = time.monotonic() - began

    began = time.monotonic()
    with pytest.raises(PrimitiveTimeoutError):
        await TimeoutPrimitive(work, 0.01).execute("a")
    assert time.monotonic() - began < 2.0
    assert 0.005 < told_after < 2.0


@pytest.mark.promise("T2")
async def test_a_timeout_of_the_work_is_not_reported_as_ours() -> None:
    """An HTTP client gave up after 0 s, and the message said: exceeded timeout of 10 s."""

    async def client_gives_up(_: str) -> None:
        raise builtins.TimeoutError("read timed out")

    bounded = TimeoutPrimitive(client_gives_up, 10.0)
    with pytest.raises(builtins.TimeoutError) as caught:
        await bounded.execute("a")
    assert not isinstance(caught.value, PrimitiveTimeoutError)
    assert "read timed out" == str(caught.value)
    assert 0 == bounded.get_stats()["failures"]


def test_our_timeout_error_is_a_timeout_error() -> None:
    """`except TimeoutError` did not catch it."""
    assert OlderTimeoutError is PrimitiveTimeoutError
    assert issubclass(OlderTimeoutError, builtins.TimeoutError)


@pytest.mark.promise("T2")
async def test_an_ordinary_failure_is_no_success() -> None:
    """Whatever did not time out was a success; a provider that refused every call had a rate of 100 %."""

    async def refused(_: str) -> None:
        raise PermissionError

    bounded = TimeoutPrimitive(refused, 10.0)
    with pytest.raises(PermissionError):
        await bounded.execute("a")
    stats = bounded.get_stats()
    assert (0, 0, 0.0) == (stats["successes"], stats["failures"], stats["timeout_rate"])


@pytest.mark.promise("R1")
async def test_an_async_routing_function_is_awaited() -> None:
    """Its coroutine was compared with the names of the routes, so that everything went to the default."""

    async def choose(question: str, context: Any) -> str:
        await asyncio.sleep(0)
        return "premium"

    async def premium(question: str) -> str:
        return "premium answer"

    router: RouterPrimitive[str, str] = RouterPrimitive({"fast": _Counted(), "premium": premium}, choose)
    assert "premium answer" == await router.execute("a")


@pytest.mark.needs_otel
@pytest.mark.promise("S4", "S5")
async def test_neither_the_order_nor_a_restart_silences_a_primitive() -> None:
    """Built before the start it was silent for ever; after shutdown and start True was returned and nothing exported."""
    bounded = TimeoutPrimitive(_Counted(), 5.0, operation_name="any order")
    for _ in range(2):
        assert initialize_observability(prometheus_port=0)
        await bounded.execute("a")
        assert 1 == _scrape().value("timeout_successes_total", operation="any order")
        shutdown_observability()


@pytest.mark.promise("B1")
async def test_a_context_holds_something_and_primitives_compose() -> None:
    """The context was an empty class and the base a protocol without `>>`: the quick start did not run."""
    context = WorkflowContext(workflow_id="w", metadata={"user": "u"})
    assert ("w", {"user": "u"}) == (context.child("step").workflow_id, context.child("step").metadata)

    async def shout(text: str) -> str:
        return text.upper()

    sequence = TimeoutPrimitive(_Counted(), 5.0) >> shout
    assert "ANSWER TO A" == await sequence.execute("a", context)


@pytest.mark.promise("X4")
async def test_durations_do_not_follow_the_wall_clock_and_logs_hold_no_prompt(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A clock set back made durations negative; and the first 50 characters of each key, a prompt, stood in the log."""
    caplog.set_level(logging.DEBUG)
    clock = iter(range(1_000_000, 0, -1000))
    monkeypatch.setattr(time, "time", lambda: float(next(clock)))

    async def fails(question: str) -> str:
        raise ValueError(question)

    def key_fails(question: str) -> str:
        raise KeyError(question)

    flow = TimeoutPrimitive(CachePrimitive(_Counted(), str, operation_name="clock"), 5.0)
    await flow.execute("the secret question")
    await flow.execute("the secret question")
    with pytest.raises(ValueError, match="secret"):
        await CachePrimitive(fails, key_fails).execute("the secret question")
    assert 1 == flow.get_stats()["successes"] - 1
    assert "secret" not in caplog.text
    source = inspect.getsource(observability_integration.primitives.timeout)
    assert "time.time()" not in source


@pytest.mark.needs_otel
@pytest.mark.promise("M1", "X1")
async def test_what_is_measured_is_seen_from_outside() -> None:
    """With a mock in place of the meter every one of these mistakes passed: so look at the port and at the wire."""
    with OtlpReceiver() as receiver:
        initialize_observability(prometheus_port=0, otlp_endpoint=receiver.endpoint)
        call = LLMCallPrimitive[str, str](_Counted(), model="small")
        await TimeoutPrimitive(call, 5.0, operation_name="outside").execute("a")
        found = _scrape()
        shutdown_observability()
        chat, timeout = receiver.spans(2)
    assert 1 == found.value("timeout_successes_total", operation="outside")
    assert ("chat small", "timeout outside") == (chat.name, timeout.name)
    assert timeout.span_id == chat.parent_id


@pytest.mark.parametrize("ttl_seconds", [0, -1, float("nan"), float("inf"), True])
def test_a_ttl_that_keeps_nothing_is_refused(ttl_seconds: float) -> None:
    """It went to Redis as it was, and each write failed with a line in the log instead of once, at the start."""
    with pytest.raises(ConfigurationError, match="ttl_seconds"):
        CachePrimitive(_Counted(), str, ttl_seconds)
