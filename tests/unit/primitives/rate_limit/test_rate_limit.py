"""RateLimitPrimitive: what it reserves, waits for, refuses, settles, learns, counts and shows."""

from __future__ import annotations

import asyncio
import gc
import math
import sys
import weakref
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from observability_integration import WorkflowContext
from observability_integration.context import Deadline, reset_deadline, set_deadline
from observability_integration.errors import (
    CallRefusedError,
    ConcurrencyLimitError,
    ConfigurationError,
    RateLimitExceededError,
)
from observability_integration.primitives.rate_limit import RateLimitPrimitive
from observability_integration.testing import FakeClockLoop

LOOP_FACTORY = FakeClockLoop
pytestmark = [pytest.mark.once, pytest.mark.promise("Q1", "Q3")]

USED = {"usage": {"prompt_tokens": 30, "completion_tokens": 70}}


def now() -> float:
    return asyncio.get_running_loop().time()


async def answer(_: Any) -> Any:
    return USED


def limited(step: Any = answer, **options: Any) -> RateLimitPrimitive[Any, Any]:
    return RateLimitPrimitive(step, operation_name="ask", **options)


def left(primitive: RateLimitPrimitive[Any, Any]) -> tuple[float | None, float | None]:
    return primitive._limit.left()


async def refused(primitive: RateLimitPrimitive[Any, Any], request: Any = "", **context: Any) -> RateLimitExceededError:
    with pytest.raises(RateLimitExceededError) as caught:
        await primitive.execute(request, WorkflowContext(**context) if context else None)
    return caught.value


async def test_reserves_by_estimate_and_settles_by_usage() -> None:
    """Else an estimate that is too low would break the limit, and one that is too high would waste it."""
    inside = []

    async def ask(_: Any) -> Any:
        inside.append(left(primitive))
        return USED

    primitive = limited(ask, requests_per_minute=60, tokens_per_minute=6000)
    assert USED == await primitive.execute({"messages": [{"content": "x" * 400}], "max_tokens": 900})
    assert [(59, 5000)] == inside
    assert (59, 5900) == left(primitive)
    assert 100 == primitive.get_stats()["tokens"]


async def test_an_answer_that_does_not_say_what_it_used_keeps_the_estimate() -> None:
    """It has used something, and the estimate is the best that is known."""
    primitive = limited(lambda_of("text"), tokens_per_minute=6000, estimate_tokens=lambda _: 600)
    await primitive.execute("")
    assert (None, 5400) == left(primitive)


def lambda_of(value: Any) -> Any:
    async def call(_: Any) -> Any:
        if isinstance(value, BaseException):
            raise value
        return value

    return call


async def test_calls_that_were_not_made_are_put_back_and_failed_ones_are_not() -> None:
    """The provider counts a call that failed; a primitive further in that refused it never sent it."""
    primitive = limited(lambda_of(LookupError()), requests_per_minute=60, tokens_per_minute=6000)
    with pytest.raises(LookupError):
        await primitive.execute("x" * 400)
    assert (59, 5900) == left(primitive)
    inner = lambda_of(ConcurrencyLimitError("ask", "queue_full", 0.0, 1))
    primitive = limited(inner, requests_per_minute=60, tokens_per_minute=6000)
    with pytest.raises(CallRefusedError):
        await primitive.execute("x" * 400)
    assert (60, 6000) == left(primitive)


async def test_a_cancelled_call_stays_charged_and_a_cancelled_wait_costs_nothing() -> None:
    """The first has been sent, the second has not."""

    async def hang(_: Any) -> None:
        await asyncio.sleep(1e6)

    primitive = limited(hang, requests_per_minute=1)
    running, waiting = (asyncio.create_task(primitive.execute("")) for _ in range(2))
    await asyncio.sleep(30.0)
    assert 1 == primitive.waiting
    for task in (running, waiting):
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert 0 == primitive.waiting
    assert 0.5 == pytest.approx(left(primitive)[0])
    assert {"admitted": 1, "waited": 0, "refused": 0}.items() <= primitive.get_stats().items()


async def test_how_long_a_call_waits() -> None:
    """As long as it is given, as its deadline allows, and a minute without either; never in vain."""
    primitive = limited(requests_per_minute=1)
    await primitive.execute("")
    assert 60.0 == pytest.approx((await refused(primitive, deadline=Deadline.after(59.0))).retry_after_seconds)
    token = set_deadline(Deadline.after(10.0))
    assert "requests" == (await refused(primitive)).limit
    reset_deadline(token)
    await primitive.execute("")
    assert 60.0 == pytest.approx(now())
    waiting = asyncio.create_task(primitive.execute(""))
    await asyncio.sleep(0)
    assert 120.0 == pytest.approx((await refused(primitive)).retry_after_seconds)
    await primitive.execute("", WorkflowContext(deadline=Deadline.after(200.0)))
    await waiting
    impatient = limited(requests_per_minute=1, max_wait_seconds=0)
    await impatient.execute("")
    assert 60.0 == pytest.approx((await refused(impatient, deadline=Deadline.after(200.0))).retry_after_seconds)


async def test_a_call_that_can_never_fit_says_so() -> None:
    """Its message must name the knob, and never the prompt."""
    error = await refused(limited(tokens_per_minute=100), "secret " * 100)
    assert (None, "tokens", "ask") == (error.retry_after_seconds, error.limit, error.operation)
    assert "tokens_per_minute" in str(error)
    assert "secret" not in str(error)


async def test_a_failing_estimator_fails_no_call(metrics: Any) -> None:
    """It is counted, and the default taken."""
    primitive = limited(tokens_per_minute=6000, estimate_tokens=lambda _: math.nan)
    await primitive.execute("")
    assert 1 == metrics("telemetry.faults", site="rate_limit.estimate_tokens")


class TooMany(Exception):
    """As SDKs have it."""

    status_code = 429

    def __init__(self, **headers: str) -> None:
        super().__init__()
        self.response = SimpleNamespace(headers={name.replace("_", "-"): value for name, value in headers.items()})


async def test_a_429_makes_the_others_wait() -> None:
    """One is enough: the others would get the same answer. It passes through unchanged itself."""
    answers = iter([TooMany(retry_after="20")])

    async def ask(_: Any) -> str:
        for error in answers:
            raise error
        return "answer"

    primitive = limited(ask, requests_per_minute=6000)
    with pytest.raises(TooMany):
        await primitive.execute("")
    assert 20.0 == pytest.approx((await refused(primitive, deadline=Deadline.after(10.0))).retry_after_seconds)
    assert "answer" == await primitive.execute("")
    assert 20.0 == pytest.approx(now())


async def test_learns_limits_from_answers_and_from_hooks() -> None:
    """Where no limit was given, the provider's holds; what it has left is all there is."""
    headers = {"x-ratelimit-limit-requests": "100", "x-ratelimit-remaining-requests": "7"}
    primitive = limited(lambda_of(SimpleNamespace(headers=headers, usage=None)))
    assert "rate limit ask (as the provider says per minute)" in primitive.describe()
    await primitive.execute("")
    assert (100, None) == (primitive.requests_per_minute, primitive.tokens_per_minute)
    assert (7, None) == left(primitive)
    primitive.learn_from({"x-ratelimit-limit-tokens": "5000", "x-ratelimit-remaining-tokens": "0"})
    primitive.learn_from(None)
    assert (7, 0) == left(primitive)
    assert "rate limit ask (100 requests and 5000 tokens per minute)" in primitive.describe()
    deaf = limited(lambda_of(SimpleNamespace(headers=headers)), requests_per_minute=500, learn=False)
    await deaf.execute("")
    assert (499, None) == left(deaf)


async def test_what_the_provider_says_holds_over_what_is_put_back() -> None:
    """It has charged its own estimate, which is what it goes by: what was left over here is not left over there."""
    headers = {"x-ratelimit-remaining-tokens": "500"}
    primitive = limited(lambda_of({"headers": headers, **USED}), tokens_per_minute=6000)
    await primitive.execute("x" * 4000)
    assert (None, 500) == left(primitive)


class Odd:
    """An answer that raises when it is read."""

    @property
    def usage(self) -> Any:
        raise RuntimeError


async def test_an_odd_answer_fails_no_call(metrics: Any) -> None:
    """It is the caller's to make sense of it."""
    odd = Odd()
    assert odd is await limited(lambda_of(odd), tokens_per_minute=6000).execute("")
    assert 1 == metrics("telemetry.faults", site="rate_limit.usage")

    async def odd_chunks(_: Any) -> AsyncIterator[Any]:
        yield odd

    async with limited(odd_chunks, tokens_per_minute=6000).stream("") as stream:
        assert [odd] == [chunk async for chunk in stream]
    assert 2 == metrics("telemetry.faults", site="rate_limit.usage")


async def chunks(_: Any) -> AsyncIterator[Any]:
    yield "text"
    yield {"usage": {"prompt_tokens": 30, "completion_tokens": 1}}
    yield {"usage": {"prompt_tokens": 30, "completion_tokens": 70}}


async def test_a_stream_is_one_call_and_settled_at_its_end() -> None:
    """By the usage that its chunks report in sum."""
    primitive = limited(chunks, requests_per_minute=60, tokens_per_minute=6000)
    async with primitive.stream("x" * 4000) as stream:
        assert (59, 5000) == left(primitive)
        assert 3 == len([chunk async for chunk in stream])
        assert (59, 5900) == left(primitive)
    assert 100 == primitive.get_stats()["tokens"]


async def test_a_stream_that_is_left_keeps_what_was_reserved() -> None:
    """What it reported so far is not yet all."""
    primitive = limited(chunks, requests_per_minute=60, tokens_per_minute=6000)
    async with primitive.stream("x" * 4000) as stream:
        await anext(stream)
        await anext(stream)
    assert (59, 5000) == left(primitive)
    abandoned = await primitive.stream("x" * 4000).__aenter__()
    await anext(abandoned)
    del abandoned
    gc.collect()
    assert (58, 4000) == left(primitive)
    await asyncio.sleep(0)


async def test_a_stream_is_refused_and_learns_as_a_call_does() -> None:
    """And one that was never opened costs nothing."""

    async def fails(_: Any) -> AsyncIterator[Any]:
        raise TooMany(retry_after="20")
        yield

    primitive = limited(fails, requests_per_minute=60, max_wait_seconds=1)
    with pytest.raises(TooMany):
        async with primitive.stream("") as stream:
            await anext(stream)
    with pytest.raises(RateLimitExceededError) as caught:
        async with primitive.stream(""):
            pass
    assert 20.0 == pytest.approx(caught.value.retry_after_seconds)
    assert {"admitted": 1, "refused": 1}.items() <= primitive.get_stats().items()


async def test_what_is_counted(metrics: Any) -> None:
    """Each call once, by how it got in; waits of those that waited; tokens; what is left, also as time goes by."""
    primitive = limited(requests_per_minute=6, tokens_per_minute=6000, burst_seconds=10.0, max_wait_seconds=20.0)
    assert 0 == metrics("rate_limit.calls", operation="ask", outcome="refused")
    await primitive.execute("")
    await primitive.execute("")
    await refused(primitive, deadline=Deadline.after(0.5))
    assert 1 == metrics("rate_limit.calls", operation="ask", outcome="admitted")
    assert 1 == metrics("rate_limit.calls", operation="ask", outcome="waited")
    assert 1 == metrics("rate_limit.calls", operation="ask", outcome="refused")
    assert 1 == metrics("rate_limit.wait", operation="ask")
    assert 200 == metrics("rate_limit.tokens", operation="ask")
    await asyncio.sleep(1.5)
    assert 0.1 == pytest.approx(metrics("rate_limit.remaining", operation="ask", limit="requests"))
    await asyncio.sleep(15.0)
    assert 1 == metrics("rate_limit.remaining", operation="ask", limit="requests")
    assert 1000 == metrics("rate_limit.remaining", operation="ask", limit="tokens")


async def test_the_span_of_a_call(tracing: Any) -> None:
    """One, current during the wait and the call, with how long it waited and how it ended."""

    async def ask(question: str) -> str:
        assert "rate_limit ask" == tracing.current.name
        if question == "fail":
            raise LookupError
        return "answer"

    primitive = limited(ask, requests_per_minute=60, burst_seconds=0.0, max_wait_seconds=5.0)
    await primitive.execute("", WorkflowContext("w-1"))
    with pytest.raises(LookupError):
        await primitive.execute("fail")
    await refused(primitive, deadline=Deadline.after(0.5))
    task = asyncio.create_task(primitive.execute(""))
    await asyncio.sleep(0.1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [] == tracing.unended()
    first, second, third, fourth = tracing.spans
    assert ("success", 0.0, "w-1") == tuple(
        first.attributes[key] for key in ("outcome", "rate_limit.wait_seconds", "workflow.id")
    )
    assert ("error", pytest.approx(1.0)) == (second.attributes["outcome"], second.attributes["rate_limit.wait_seconds"])
    assert isinstance(second.error, LookupError)
    assert ("refused", "requests") == (third.attributes["outcome"], third.attributes["rate_limit.limit"])
    assert isinstance(third.error, RateLimitExceededError)
    assert ("cancelled", None) == (fourth.attributes["outcome"], fourth.error)


async def test_without_the_redis_package_each_process_limits_by_itself(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The same code runs where redis is not installed, and one line says what that means."""
    monkeypatch.setitem(sys.modules, "redis.asyncio", None)
    primitive = limited(requests_per_minute=1, max_wait_seconds=0, redis_url="redis://localhost")
    await primitive.execute("")
    await refused(primitive)
    assert ["redis" in record.getMessage() for record in caplog.records] == [True]


@pytest.mark.parametrize(
    "options",
    [
        {"requests_per_minute": 1, "redis_client": object(), "redis_url": "redis://localhost"},
        {"learn": False},
    ],
)
def test_wrong_arguments(options: dict[str, Any]) -> None:
    """Refused when it is made, and not at the first call in production."""
    with pytest.raises(ConfigurationError):
        limited(**options)


async def test_nothing_is_kept_alive() -> None:
    """A limiter that nobody uses any more is collected, though it was about to look at what is left."""
    primitive = limited(requests_per_minute=1)
    await primitive.execute("")
    await primitive.aclose()
    alive = weakref.ref(primitive)
    assert "ask" == primitive.name
    del primitive
    gc.collect()
    assert alive() is None
    await asyncio.sleep(2.0)
