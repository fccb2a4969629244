"""Twenty failures that systems of this kind have shown in use, each looked for where it would be seen: on the port, on
the wire, in the server's keys, in the log.
"""

from __future__ import annotations

import asyncio
import builtins
import logging
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

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
from observability_integration.primitives.timeout import TimeoutError as NamedAsBefore
from observability_integration.testing import FakeClockLoop
from tests.otlp_receiver import OtlpReceiver
from tests.processes import RedisProcess, free_port
from tests.redis_caches import Caches, Calls, ask_server, caches, keys_in
from tests.scrapes import Scrape, scrape
from tests.scripts import run_script

__all__ = ["caches"]

needs_redis = [pytest.mark.needs_redis_package, pytest.mark.needs_redis_server]


def with_redis(test: Callable[..., Any]) -> Callable[..., Any]:
    """Marks a test that talks to a real server."""
    for mark in needs_redis:
        test = mark(test)
    return test


@pytest.fixture(autouse=True)
def switched_off_afterwards(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The environment of whoever runs the suite decides nothing, and nothing stays on."""
    monkeypatch.delenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", raising=False)
    yield
    shutdown_observability(0.0)


@pytest.fixture
def on() -> Callable[[], Scrape]:
    """Telemetry is on; calling this scrapes the real port."""
    assert initialize_observability("defects", prometheus_port=0)
    return lambda: scrape(observability_status().prometheus_url)


async def echo(question: str) -> str:
    await asyncio.sleep(0)
    return f"answer to {question}"


async def asked(cache: CachePrimitive[Any, Any], *questions: str) -> list[str]:
    return [await cache.execute(question) for question in questions]


@pytest.mark.needs_otel
@pytest.mark.promise("S1", "M1")
async def test_a_true_must_not_stand_for_a_closed_port() -> None:
    """It said True and named an address where nobody listened: ask that very port, and find that very call."""
    port = free_port()
    assert initialize_observability(prometheus_port=port) is True
    await TimeoutPrimitive(echo, 5.0, operation_name="defect port").execute("hi")
    found = scrape(f"http://localhost:{port}/metrics")
    assert 1 == found.value("timeout_successes_total", operation="defect port")


@pytest.mark.needs_otel
@pytest.mark.promise("S7")
def test_what_was_measured_last_must_not_be_lost_at_exit() -> None:
    """The function that flushes could not be imported from the package, nobody called it: the last batch was lost."""
    with OtlpReceiver() as receiver:
        run_script(
            """
            import asyncio, sys
            from observability_integration import initialize_observability, shutdown_observability
            from observability_integration.primitives import TimeoutPrimitive

            async def work(x):
                return x

            assert callable(shutdown_observability)
            initialize_observability(enable_prometheus=False, otlp_endpoint=sys.argv[1])
            asyncio.run(TimeoutPrimitive(work, 5.0, operation_name="defect exit").execute(1))
            """,
            receiver.endpoint,
        )
        assert ["timeout defect exit"] == [span.name for span in receiver.spans(1)]


@pytest.mark.needs_otel
@pytest.mark.promise("M7")
async def test_the_ratio_gauges_must_be_on_the_wire(on: Callable[[], Scrape], caplog: pytest.LogCaptureFixture) -> None:
    """Both were registered and neither was ever shown; every scrape logged an error instead."""
    cache = CachePrimitive(echo, str, operation_name="defect gauges")
    bounded = TimeoutPrimitive(hang, 0.01, 0.0, operation_name="defect gauges")
    assert on().value("cache_hit_rate", operation="defect gauges") is None
    await asked(cache, "a", "a", "a", "b")
    with pytest.raises(PrimitiveTimeoutError):
        await bounded.execute("a")
    found = on()
    assert 0.5 == found.value("cache_hit_rate", operation="defect gauges")
    assert 1.0 == found.value("timeout_rate", operation="defect gauges")
    assert "gauge" == found.families["cache_hit_rate"].type == found.families["timeout_rate"].type
    assert [] == [record for record in caplog.records if record.levelno >= logging.ERROR]


async def hang(question: str) -> str:
    await asyncio.Event().wait()
    return question


@pytest.mark.needs_otel
@pytest.mark.promise("M1")
async def test_dollars_must_not_be_named_twice_nor_seconds_be_sorted_by_milliseconds(on: Callable[[], Scrape]) -> None:
    """The scrape said ``..._usd_USD_total``; and with bounds of 5, 10, 25 … every call of seconds was in one bucket."""
    router = RouterPrimitive[str, str](
        {"defect cheap": echo, "defect dear": echo},
        lambda question: "defect cheap",
        default="defect dear",
        cost_per_route={"defect cheap": 0.001, "defect dear": 0.01},
    )
    cache = CachePrimitive(router, str, cost_per_call=0.25, operation_name="defect names")
    await asked(cache, "a", "a")
    found = on()
    assert 0.009 == found.value("router_cost_savings_usd_total", route="defect cheap")
    assert 0.25 == found.value("cache_cost_savings_usd_total", operation="defect names")
    assert "usd_usd" not in found.text.lower()
    buckets = found.buckets("router_execution_seconds", route="defect cheap")
    bounds = sorted(map(float, buckets))
    assert 10 <= len([bound for bound in bounds if 0.01 <= bound <= 60])
    assert (0.01, 120.0) == (bounds[0], bounds[-2])
    lookups = sorted(map(float, found.buckets("cache_latency_seconds", operation="defect names", hit="true")))
    assert lookups[0] < 0.001 < lookups[-2] <= 1.0


@with_redis
@pytest.mark.needs_otel
@pytest.mark.promise("C1", "C4")
async def test_an_async_redis_client_must_not_make_every_call_count_as_a_hit(
    redis_server: RedisProcess, caches: Caches, on: Callable[[], Scrape]
) -> None:
    """A coroutine that nobody awaited was taken for a value: a rate of 100 %, dollars saved, and the model called."""
    calls = Calls("answer")
    name = "defect async"
    first = caches("asyncio", redis_server, calls, str, operation_name=name, cost_per_call=0.01)
    await asked(first, "a", "b", "c", "d", "e")
    found = on()
    assert (5, 0) == (calls.made, found.value("cache_hits_total", operation=name))
    assert (5, 0) == tuple(
        found.value(f"cache_{what}_total", operation=name) for what in ("misses", "cost_savings_usd")
    )
    # Another process's cache would find them in Redis alone.
    second = caches("asyncio", redis_server, calls, str, operation_name=name, cost_per_call=0.01)
    assert ["answer"] * 5 == await asked(second, "a", "b", "c", "d", "e")
    found = on()
    assert (5, 5) == (calls.made, found.value("cache_hits_total", operation=name))
    assert 0.05 == found.value("cache_cost_savings_usd_total", operation=name)


@with_redis
@pytest.mark.promise("C1", "C4")
@pytest.mark.parametrize("way", ["sync text", "asyncio text"])
async def test_a_client_that_decodes_must_not_count_hits_that_it_cannot_read(
    way: str, redis_server: RedisProcess, caches: Caches
) -> None:
    """Text was decoded a second time, which failed after the hit had been counted and led to the call all the same."""
    calls = Calls({"answer": [1, 2]})
    name = f"defect {way}"
    stats = []
    for _ in range(4):
        cache = caches(way, redis_server, calls, str, operation_name=name)
        assert {"answer": [1, 2]} == await cache.execute("a")
        stats.append((cache.get_stats()["hits"], cache.get_stats()["misses"]))
    assert [(0, 1), (1, 0), (1, 0), (1, 0)] == stats
    assert 1 == calls.made


@with_redis
@pytest.mark.promise("C3")
async def test_two_questions_must_not_share_an_answer(redis_server: RedisProcess, caches: Caches) -> None:
    """Blanks and line ends became underscores and long keys were cut: one user got the answer to another's question."""
    questions = ["a b", "a_b", "a\nb", "a  b", "a" * 250, "a" * 250 + "b", "A B", "", " "]
    for _ in range(2):  # the second time from Redis
        cache = caches("asyncio", redis_server, echo, str, operation_name="defect apart")
        assert [f"answer to {question}" for question in questions] == await asked(cache, *questions)
    assert len(questions) == cache.get_stats()["hits"]
    assert len(questions) == len([key for key in keys_in(redis_server) if key.startswith("cache:defect apart:")])


@pytest.mark.promise("C2")
async def test_fifty_equal_misses_at_once_must_not_be_fifty_calls() -> None:
    """An entry that everybody wants expired, and the provider got the same question fifty times over."""
    calls = Calls("answer")
    cache = CachePrimitive(calls, str, operation_name="defect stampede")
    assert ["answer"] * 50 == await asyncio.gather(*(cache.execute("a") for _ in range(50)))
    assert 1 == calls.made
    assert (49, 1) == (cache.get_stats()["hits"], cache.get_stats()["misses"])


@with_redis
@pytest.mark.promise("C4", "C5")
async def test_a_synchronous_client_must_not_hold_up_the_loop(redis_process: RedisProcess, caches: Caches) -> None:
    """It was called on the loop, without a limit: a Redis that stopped answering stopped every request."""
    cache = caches("sync", redis_process, echo, str, operation_name="defect blocked", policy=None)
    await cache.execute("before")
    turns = 0

    async def everybody_else() -> None:
        nonlocal turns
        while True:
            await asyncio.sleep(0.001)
            turns += 1

    redis_process.pause()
    others = asyncio.create_task(everybody_else())
    try:
        async with asyncio.timeout(10):
            assert "answer to a" == await cache.execute("a")
        assert turns > 3
        waited = turns
        for number in range(100):
            await cache.execute(f"later {number}")
        assert turns - waited < 1000, "each call waited for a store that is known to be out of use"
    finally:
        others.cancel()
        redis_process.resume()


@with_redis
@pytest.mark.promise("C3", "C6")
async def test_a_short_ttl_and_another_process_must_not_make_the_cache_useless(
    redis_server: RedisProcess, caches: Caches
) -> None:
    """Less than a second became 0, which Redis refuses; keys made with hash() or an address fit one process only."""
    cache = caches("asyncio", redis_server, echo, str, 0.7, operation_name="defect ttl")
    await cache.execute("a")
    (key,) = [key for key in keys_in(redis_server) if key.startswith("cache:defect ttl:")]
    assert 0 < ask_server(redis_server, "PTTL", key) <= 700
    with pytest.raises(ConfigurationError, match="ttl_seconds"):
        CachePrimitive(echo, str, 0)

    script = """
        import asyncio, sys
        from observability_integration.primitives import CachePolicy, CachePrimitive

        async def work(request):
            return "computed"

        async def main():
            policy = CachePolicy(backend_budget_seconds=2.0)
            cache = CachePrimitive(redis_url=sys.argv[1], operation_name="defect processes", policy=policy)
            await cache.get_or_compute({"model": "m", "tags": {"x", "y"}, "n": 1.5}, lambda: "computed")
            print(cache.get_stats()["hits"])
            await cache.aclose()

        asyncio.run(main())
    """
    assert ["0", "1", "1"] == [
        run_script(script, redis_server.url, PYTHONHASHSEED=seed).strip() for seed in ("1", "2", "3")
    ]

    # What has nothing but an address to tell it apart has no key: the call is made, nothing is kept or counted.
    addresses = CachePrimitive(echo, lambda question: object(), operation_name="defect addresses")
    assert ["answer to a", "answer to b"] == await asked(addresses, "a", "b")
    assert 0 == addresses.get_stats()["total"]


@pytest.mark.needs_otel
@pytest.mark.promise("C1", "S10")
async def test_a_missing_redis_must_not_mean_no_cache(on: Callable[[], Scrape]) -> None:
    """Every call passed through and counted as a miss: the model was paid each time, the hit rate always alerted."""
    calls = Calls("answer")
    cache = CachePrimitive(redis_url=f"redis://127.0.0.1:{free_port()}/0", operation_name="defect missing")
    for _ in range(4):
        assert "answer" == await cache.get_or_compute("a", calls)
    await cache.aclose()
    assert 1 == calls.made
    assert 0.75 == on().value("cache_hit_rate", operation="defect missing")


@pytest.mark.promise("T1", "T3")
def test_a_limit_of_10_ms_must_not_be_one_of_5_seconds() -> None:
    """The grace was simply added: nobody told the work at its limit, and there was no time for it to clean up after."""

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        told: list[float] = []

        async def tidy(question: str) -> None:
            try:
                await asyncio.Event().wait()
            finally:
                told.append(loop.time())
                await asyncio.sleep(3.0)
                told.append(loop.time())

        with pytest.raises(PrimitiveTimeoutError):
            await TimeoutPrimitive(hang, 0.01, operation_name="defect grace").execute("a")
        assert pytest.approx(0.01) == loop.time()
        began = loop.time()
        with pytest.raises(PrimitiveTimeoutError) as caught:
            await TimeoutPrimitive(tidy, 0.01, operation_name="defect grace").execute("a")
        assert [pytest.approx(0.01), pytest.approx(3.01)] == [moment - began for moment in told]
        assert "clean" == caught.value.cleanup

    with asyncio.Runner(loop_factory=FakeClockLoop) as runner:
        runner.run(scenario())


@pytest.mark.needs_otel
@pytest.mark.promise("T2")
async def test_a_timeout_of_the_work_must_not_be_reported_as_ours(on: Callable[[], Scrape]) -> None:
    """An HTTP client gave up at once, and the message blamed a limit of 10 s that had never been reached."""
    error = builtins.TimeoutError("read timed out")

    async def client_gives_up(question: str) -> None:
        raise error

    with pytest.raises(builtins.TimeoutError) as caught:
        await TimeoutPrimitive(client_gives_up, 10.0, operation_name="defect inner").execute("a")
    assert error is caught.value
    found = on()
    assert 1 == found.value("timeout_errors_total", operation="defect inner", error_type="TimeoutError")
    assert 0 == found.value("timeout_failures_total", operation="defect inner", kind="total")


@pytest.mark.promise("T9")
async def test_our_timeout_must_be_caught_by_those_who_catch_timeouts() -> None:
    """It was a class of its own that ``except TimeoutError`` let pass, in the middle of the night."""
    seen: list[BaseException] = []
    try:
        await TimeoutPrimitive(hang, 0.01, 0.0, operation_name="defect class").execute("a")
    except builtins.TimeoutError as error:
        seen.append(error)
    (error,) = seen
    assert isinstance(error, NamedAsBefore)
    assert "defect class" in str(error)
    assert "timeout_seconds" in str(error)


@pytest.mark.needs_otel
@pytest.mark.promise("T2", "M7")
async def test_a_refused_call_must_not_count_as_a_success(on: Callable[[], Scrape]) -> None:
    """Whatever did not time out was a success, so a provider that refused everybody looked perfectly well."""

    async def refused(question: str) -> None:
        raise PermissionError

    bounded = TimeoutPrimitive(refused, 10.0, operation_name="defect refused")
    for _ in range(3):
        with pytest.raises(PermissionError):
            await bounded.execute("a")
    found = on()
    assert 3 == found.value("timeout_errors_total", operation="defect refused", error_type="PermissionError")
    assert 0 == found.value("timeout_successes_total", operation="defect refused")
    assert found.value("timeout_rate", operation="defect refused") is None
    assert 0 == bounded.get_stats()["total"]


@pytest.mark.needs_otel
@pytest.mark.promise("R1")
async def test_an_async_routing_function_must_not_send_everything_to_the_default(on: Callable[[], Scrape]) -> None:
    """Its coroutine is no route's name: nobody awaited it, and the expensive route was never taken again."""

    async def choose(question: str, context: WorkflowContext) -> str:
        await asyncio.sleep(0)
        return "defect deep"

    async def deep(question: str) -> str:
        return "deep"

    router = RouterPrimitive[str, str]({"defect flat": echo, "defect deep": deep}, choose, default="defect flat")
    assert "deep" == await router.execute("a")
    found = on()
    assert 1 == found.value("router_decisions_total", route="defect deep", reason="routing_function")
    assert 0 == found.value("router_decisions_total", route="defect flat", reason="invalid_route_fallback")


@pytest.mark.needs_otel
@pytest.mark.promise("S4", "S5")
async def test_neither_order_nor_restart_must_silence_a_primitive() -> None:
    """Built before the start it never reported; after a restart True came back and nothing was exported any more."""
    bounded = TimeoutPrimitive(echo, 5.0, operation_name="defect order")
    cache = CachePrimitive(bounded, str, operation_name="defect order")
    await cache.execute("before")
    for life in range(3):
        assert initialize_observability(prometheus_port=0) is True
        await asked(cache, f"{life}", f"{life}")
        found = scrape(observability_status().prometheus_url)
        assert 1 == found.value("timeout_successes_total", operation="defect order")
        assert 1 == found.value("cache_hits_total", operation="defect order")
        shutdown_observability()


@pytest.mark.promise("B1", "B2", "B5")
async def test_contexts_must_hold_something_and_primitives_must_compose() -> None:
    """The context was an empty class and there was no ``>>``, so that the quick start failed at its first line."""
    context = WorkflowContext(workflow_id="w-1", session_id="s-1", metadata={"tenant": "t"})
    context.state["seen"] = 1
    assert ("w-1", {"tenant": "t"}, {"seen": 1}) == (context.workflow_id, context.metadata, context.state)

    async def prepare(question: str) -> str:
        return question.strip()

    async def tenant(answer: str, context: WorkflowContext) -> str:
        return f"{answer} for {context.metadata['tenant']}"

    model = CachePrimitive(TimeoutPrimitive(echo, 5.0), lambda question, context: question, 60.0)
    router = RouterPrimitive[str, str]({"fast": model}, lambda question, context: "fast")
    workflow = prepare >> router >> tenant
    assert "answer to hi for t" == await workflow.execute(" hi ", context)
    assert "timeout" in workflow.describe()


@with_redis
@pytest.mark.needs_otel
@pytest.mark.promise("X4")
async def test_a_clock_set_back_must_not_falsify_durations_nor_may_prompts_leak(
    redis_server: RedisProcess, caches: Caches, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Durations came from the wall clock; and the first characters of each prompt stood in keys and in log lines."""
    caplog.set_level(logging.DEBUG)
    secret = "my diagnosis is confidential"

    async def failing(request: Any) -> str:
        raise ValueError(secret)

    def broken_key(request: Any) -> str:
        raise KeyError(secret)

    request = {"model": "m", "messages": [{"role": "user", "content": secret}]}
    with OtlpReceiver() as receiver:
        assert initialize_observability(prometheus_port=0, otlp_endpoint=receiver.endpoint)
        cache = caches(
            "asyncio", redis_server, LLMCallPrimitive(echo), lambda request: request, operation_name="defect"
        )
        bounded = TimeoutPrimitive(cache, 5.0, operation_name="defect clock")
        broken = CachePrimitive(LLMCallPrimitive[Any, str](failing), broken_key, operation_name="defect leak")
        wall = time.time()
        with monkeypatch.context() as patch:
            patch.setattr(time, "time", lambda: wall - 1000 * time.monotonic())
            await bounded.execute(request)
            with pytest.raises(ValueError, match="diagnosis"):
                await broken.execute(request)
        found = scrape(observability_status().prometheus_url)
        shutdown_observability()
        receiver.spans(5)
        sent = receiver.bodies
    assert 0 <= (found.value("timeout_execution_seconds_sum", operation="defect clock") or -1) < 5
    keys = keys_in(redis_server)
    assert [key for key in keys if key.startswith("cache:defect:")]
    for leaked in ("diagnosis", "confidential"):
        assert leaked not in caplog.text
        assert leaked not in found.text
        assert leaked.encode() not in sent
        assert leaked not in "".join(keys)


@pytest.mark.needs_otel
@pytest.mark.promise("M1", "X1")
async def test_what_is_counted_must_be_what_arrives() -> None:
    """Every test had a mock for a meter, so that most of the above went unseen: here a call leaves by both doors."""
    with OtlpReceiver() as receiver:
        assert initialize_observability("defects", prometheus_port=0, otlp_endpoint=receiver.endpoint)
        call = LLMCallPrimitive[Any, Any](echo, model="defect model", provider="defect provider")
        bounded = TimeoutPrimitive(call, 5.0, operation_name="defect doors")
        cache = CachePrimitive(bounded, str, operation_name="defect doors")
        router = RouterPrimitive[str, str](
            {"defect door": cache}, lambda question: "defect door", default="defect door", name="doors"
        )
        for question in ("a", "b", "a"):
            await router.execute(question)
        found = scrape(observability_status().prometheus_url)
        shutdown_observability()
        spans = receiver.spans(3 + 3 + 2 + 2)

    names = [span.name for span in spans]
    counted = {
        "router doors": found.value("router_decisions_total", route="defect door", reason="routing_function"),
        "cache defect doors": sum(found.series("cache_latency_seconds_count", operation="defect doors").values()),
        "timeout defect doors": found.value("timeout_successes_total", operation="defect doors"),
        "chat defect model": sum(
            found.series("gen_ai_client_operation_duration_seconds_count", gen_ai_request_model="defect model").values()
        ),
    }
    assert {"router doors": 3, "cache defect doors": 3, "timeout defect doors": 2, "chat defect model": 2} == counted
    assert counted == {name: names.count(name) for name in counted}
    by_id = {span.span_id: span for span in spans}
    for span in spans:
        if span.name == "chat defect model":
            timeout = by_id[span.parent_id]
            cache_span = by_id[timeout.parent_id]
            outermost = by_id[cache_span.parent_id]
            assert ["timeout defect doors", "cache defect doors", "router doors", ""] == [
                *(timeout.name, cache_span.name, outermost.name, outermost.parent_id)
            ]
