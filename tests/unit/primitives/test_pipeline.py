"""`pipeline` and `LLMTarget`: the order, the defaults, and what may be said otherwise."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from observability_integration import WorkflowContext
from observability_integration.context import Deadline
from observability_integration.errors import (
    AllTargetsFailedError,
    CircuitOpenError,
    ConfigurationError,
    PrimitiveTimeoutError,
)
from observability_integration.primitives import (
    GLOBAL,
    CachePrimitive,
    Completion,
    LLMTarget,
    PipelineDefaults,
    RetryPrimitive,
    TimeoutPrimitive,
    pipeline,
)
from observability_integration.primitives.base import WorkflowPrimitive
from observability_integration.primitives.circuit_breaker.breaker import Breaker, BreakerPolicy
from observability_integration.primitives.concurrency.limit import ConcurrencyLimit
from observability_integration.resilience.backoff import Backoff
from observability_integration.resilience.retry_budget import RetryBudget
from observability_integration.testing import FakeClockLoop
from tests.unit.primitives.retry.test_retry import ServerSays

LOOP_FACTORY = FakeClockLoop
pytestmark = pytest.mark.promise("P1")

_PAGE = Path(__file__).parents[3] / "docs" / "failover.md"


async def small(question: Any) -> str:
    return f"small: {question}"


async def large(question: Any) -> AsyncIterator[str]:
    yield "large: "
    yield str(question)


def chain(step: WorkflowPrimitive[Any, Any]) -> str:
    """The names of the classes from the outside to the first target's call."""
    name = type(step).__name__.removesuffix("Primitive")
    inner = step.steps()
    return f"{name} {chain(inner[0][1])}" if inner else name


def test_the_order_is_the_recommended_one() -> None:
    """With everything that can be switched on; a limit is outside of what it limits."""
    whole = pipeline(
        [LLMTarget(call=small, max_concurrency=5, requests_per_minute=60), large],
        cache=lambda inner: CachePrimitive(inner, str, scope=GLOBAL),
    )
    assert "Cache Timeout Fallback Retry CircuitBreaker RateLimit ConcurrencyLimit Timeout LLMCall" == chain(whole)
    assert "Timeout Fallback Retry CircuitBreaker Timeout LLMCall" == chain(pipeline([small, large]))


def test_the_table_of_defaults_is_what_the_code_does() -> None:
    """Nobody looks a default up in the code."""
    table = _PAGE.read_text(encoding="utf-8").split("<!-- defaults:begin -->")[1].split("<!-- defaults:end -->")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| ([^|]+) \|", table, re.MULTILINE))
    usual = PipelineDefaults()
    assert list(PipelineDefaults.__dataclass_fields__) == list(rows)
    back, breaker = usual.backoff, usual.breaker
    told = {
        "backoff": f"{back.base_seconds} s, doubled each time, at most {back.max_seconds} s, {back.jitter} jitter; "
        f"a Retry-After of up to {back.max_retry_after_seconds} s",
        "breaker": f"open at {breaker.failure_ratio:.0%} of {breaker.minimum_calls} or more calls in "
        f"{breaker.window_seconds} s, or {breaker.consecutive_failures} failures in a row; for "
        f"{breaker.open_seconds} s, at most {breaker.max_open_seconds} s".replace("%", " %"),
    }
    assert 2.0 == back.factor
    assert {knob: told.get(knob, str(getattr(usual, knob))) for knob in rows} == rows
    assert 0.2 == RetryBudget().ratio


async def test_what_a_target_says_goes_before_what_the_pipeline_says() -> None:
    """And that before the defaults."""
    common = PipelineDefaults(max_attempts=2, timeout_seconds=40.0)
    whole: Any = pipeline(
        [
            LLMTarget(call=small, max_attempts=5, attempt_timeout_seconds=3.0, breaker=BreakerPolicy(open_seconds=1.0)),
            LLMTarget(call=large, first_chunk_seconds=1.5, backoff=Backoff(base_seconds=0.1)),
        ],
        defaults=common,
        idle_seconds=2.5,
    )
    assert 40.0 == whole.timeout_seconds
    (_, first), (_, second) = whole.steps()[0][1].steps()
    assert (5, 2) == (first.max_attempts, second.max_attempts)
    assert (0.5, 0.1) == (first.backoff.base_seconds, second.backoff.base_seconds)
    attempts = [step.steps()[0][1].steps()[0][1] for step in (first, second)]
    assert all(isinstance(attempt, TimeoutPrimitive) for attempt in attempts)
    assert [(3.0, None, None), (40.0, 1.5, 2.5)] == [
        (attempt.timeout_seconds, attempt.first_chunk_seconds, attempt.idle_seconds) for attempt in attempts
    ]


async def test_a_shared_budget_bounds_all_targets_together() -> None:
    """One storm, one budget."""
    budget = RetryBudget(ratio=0.5, min_per_second=0.0, burst=1.0, over_operations=10)
    attempts = 0

    async def down(_: Any) -> str:
        nonlocal attempts
        attempts += 1
        raise ServerSays(503)

    targets = [LLMTarget(call=down, name=name, retry_budget=budget) for name in "ab"]
    with pytest.raises(AllTargetsFailedError):
        await pipeline(targets).execute(1)
    assert 3 == attempts


async def test_a_breaker_and_a_limit_can_be_shared() -> None:
    """Two pipelines that lead to the same target see the same of it."""
    breaker, limit = Breaker(), ConcurrencyLimit(1)
    target = LLMTarget(call=small, breaker=breaker, max_concurrency=limit)
    first, second = pipeline([target]), pipeline([target])
    assert "small: 1" == await first.execute(1)
    breaker.force_open()
    for each in (first, second):
        with pytest.raises(CircuitOpenError):
            await each.execute(1)
    breaker.reset()
    permit = limit.try_acquire()  # held to the end
    with pytest.raises(PrimitiveTimeoutError):
        await second.execute(1, WorkflowContext(deadline=Deadline.after(0.5)))
    assert permit is not None


async def test_a_silent_target_that_does_not_stream_leaves_time_for_the_next() -> None:
    """Nothing can be seen of it before it ends, so it has half of the time."""

    async def silent(_: Any) -> str:
        await asyncio.sleep(1000.0)
        return "never"

    loop = asyncio.get_running_loop()
    began = loop.time()
    assert "small: 1" == await pipeline([silent, small], timeout_seconds=30.0).execute(1)
    assert 15.0 == loop.time() - began
    began = loop.time()
    with pytest.raises(PrimitiveTimeoutError):
        await pipeline([silent], timeout_seconds=30.0).execute(1)
    assert 30.0 == loop.time() - began


async def _silent(_: Any) -> AsyncIterator[str]:
    await asyncio.sleep(1000.0)
    yield "never"


@pytest.mark.parametrize("way", ["execute", "stream"])
async def test_a_short_total_leaves_time_for_the_next(way: str) -> None:
    """Also where it is shorter than the limit for the first chunk."""
    whole = pipeline([_silent, large], timeout_seconds=15.0)
    loop = asyncio.get_running_loop()
    began = loop.time()
    if way == "execute":
        assert "large: 1" == await whole.execute(1)
    else:
        async with whole.stream(1) as chunks:
            assert ["large: ", "1"] == [chunk async for chunk in chunks]
    assert 7.5 == loop.time() - began


@pytest.mark.parametrize("step", [_silent, lambda question: asyncio.sleep(1000.0)], ids=["streams", "does not"])
@pytest.mark.parametrize("timeout_seconds", [10.0, 60.0])
async def test_a_lone_target_that_hangs_opens_its_circuit(step: Any, timeout_seconds: float) -> None:
    """Its deadline ends every attempt: that it had time enough to answer is what counts against it."""
    whole = pipeline([LLMTarget(call=step, name="a")], timeout_seconds=timeout_seconds)
    for _ in range(3):
        with pytest.raises(PrimitiveTimeoutError):
            await whole.execute(1)
    with pytest.raises(CircuitOpenError):
        await whole.execute(1)


async def test_somebody_in_a_hurry_closes_nothing_to_others() -> None:
    """Deadlines that are too short for a healthy target say nothing about it."""

    async def healthy(_: Any) -> str:
        await asyncio.sleep(2.0)
        return "answer"

    whole = pipeline([healthy], timeout_seconds=60.0)
    for _ in range(5):
        with pytest.raises(PrimitiveTimeoutError):
            await whole.execute(1, WorkflowContext(deadline=Deadline.after(0.5)))
    assert "answer" == await whole.execute(1)


@pytest.mark.parametrize("way", ["execute", "stream"])
async def test_nobody_waits_in_line_while_another_target_is_idle(way: str) -> None:
    """Neither for a place, nor for a rate, nor for a provider that asks for more patience than there is time."""
    limit = ConcurrencyLimit(1)
    permit = limit.try_acquire()
    limited = ServerSays(429, {"retry-after": "8"})

    async def refuses(_: Any) -> str:
        raise limited

    loop = asyncio.get_running_loop()
    for first, seconds in (
        (LLMTarget(call=small, name="full", max_concurrency=limit), 5.0),
        (LLMTarget(call=refuses, name="limited"), 0.0),
    ):
        whole = pipeline([first, large], timeout_seconds=7.0)
        began = loop.time()
        if way == "execute":
            assert "large: 1" == await whole.execute(1)
        else:
            async with whole.stream(1) as chunks:
                assert "large: 1" == "".join([chunk async for chunk in chunks])
        assert seconds == loop.time() - began
    assert permit is not None


async def test_text_stays_text() -> None:
    """A target of one's own hands out what it always did; so it does in a stream."""
    assert "large: 1" == await pipeline([large]).execute(1)
    assert "small: 1" == await pipeline([small]).execute(1)
    async with pipeline([large]).stream(1) as chunks:
        assert ["large: ", "1"] == [chunk async for chunk in chunks]


async def test_a_primitive_is_taken_as_it_is() -> None:
    """Whoever has a chain of their own puts it in."""
    whole = pipeline([RetryPrimitive(small, operation_name="mine")])
    assert "small: 1" == await whole.execute(1)
    assert "mine" in whole.describe()


class _Client:
    """An SDK's client by shape, which notes what it is asked for."""

    base_url = "https://api.example.com/v1"
    api_key = "key"

    def __init__(self) -> None:
        self.asked: list[dict[str, Any]] = []
        self.options: dict[str, Any] = {}
        self.chat = SimpleNamespace(completions=SimpleNamespace(create=self._create))

    def with_options(self, **options: Any) -> _Client:
        self.options = options
        return self

    async def _create(self, **fields: Any) -> AsyncIterator[Any]:
        self.asked.append(fields)

        async def chunks() -> AsyncIterator[Any]:
            yield {"model": "m-1", "choices": [{"delta": {"content": "yes"}, "finish_reason": "stop"}]}

        return chunks()


async def test_openai_targets_ask_as_the_sdk_is_asked() -> None:
    """Text, messages or fields; always streamed, with usage, and without retries of the client's own."""
    client = _Client()
    target = LLMTarget.openai(client, "m", parameters={"temperature": 0.5})
    whole = pipeline([target])
    messages = [{"role": "user", "content": "hi"}]
    for request in ("hi", messages, {"messages": messages, "model": "other", "temperature": 0.1}):
        answer = await whole.execute(request)
        assert Completion("yes", "m-1", "stop") == answer
    fixed = {"model": "m", "stream": True, "stream_options": {"include_usage": True}, "messages": messages}
    assert [fixed | {"temperature": heat} for heat in (0.5, 0.5, 0.1)] == client.asked
    assert {"max_retries": 0} == client.options
    assert ("m", "openai", "https://api.example.com/v1") == (target.label(), target.provider, target.server_url)


async def test_a_key_that_changes_is_used() -> None:
    """Keys are rotated while a service runs; and no client is made anew as long as they are not."""
    client = _Client()
    whole = pipeline([LLMTarget.openai(client, "m")])
    made: list[Any] = []
    client.with_options = lambda **_: made.append(client.api_key) or client  # type: ignore[method-assign]
    for key in ("old", "old", "new"):
        client.api_key = key
        await whole.execute("q")
    assert ["old", "new"] == made


async def test_a_service_of_ones_own_hears_of_the_deadline() -> None:
    """And whoever is not, of nothing."""
    client = _Client()
    context = WorkflowContext(baggage={"tenant": "a"})
    for propagate in (True, False):
        target = LLMTarget.openai(client, "m", propagate=propagate)
        await pipeline([target], timeout_seconds=20.0).execute({"messages": [], "extra_headers": {"x": "y"}}, context)
    told, untold = (asked["extra_headers"] for asked in client.asked)
    assert {"x": "y", "X-Request-Deadline-Ms": "20000", "baggage": "tenant=a"} == told
    assert {"x": "y"} == untold


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: pipeline([]), "at least one target"),
        (lambda: pipeline([small, small]), "'small'"),
        (lambda: pipeline([small], timeout=3), "'timeout'"),
        (lambda: pipeline([small], timeout_seconds=float("nan")), "timeout_seconds"),
        (lambda: pipeline([LLMTarget(call=small, context_window=0)]), "context_windows"),
        (lambda: pipeline([LLMTarget(call=5)]), "async callable"),
        (lambda: LLMTarget.openai(object(), "m"), "chat.completions.create"),
        (lambda: LLMTarget.openai(type("OpenAI", (_Client,), {})(), "m"), "asynchronous"),
    ],
)
def test_wrong_knobs_are_refused(make: Any, told: str) -> None:
    """The message names what is wrong."""
    with pytest.raises(ConfigurationError, match=told):
        make()
