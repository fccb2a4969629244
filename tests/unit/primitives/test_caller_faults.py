"""A mistake of one caller stays with that caller, in every primitive, called or streamed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from observability_integration.errors import AllTargetsFailedError, StreamInterruptedError
from observability_integration.primitives import (
    Aimd,
    Breaker,
    BreakerPolicy,
    CircuitBreakerPrimitive,
    ConcurrencyLimitPrimitive,
    FallbackPrimitive,
    HedgePrimitive,
    LLMCallPrimitive,
    LLMTarget,
    RetryBudget,
    RetryPrimitive,
    TimeoutPrimitive,
    pipeline,
)
from observability_integration.primitives.streams import StreamRestart
from observability_integration.testing import FakeClockLoop

LOOP_FACTORY = FakeClockLoop
pytestmark = [pytest.mark.once, pytest.mark.promise("K2", "F1", "Y1", "H2")]

FORMS = pytest.mark.parametrize("streams", [False, True], ids=["execute", "stream"])
MISTAKES = pytest.mark.parametrize(
    "mistake",
    [
        TypeError,
        KeyError,
        AttributeError,
        ValueError,
        NameError,
        ModuleNotFoundError,
        NotImplementedError,
        lambda: UnicodeEncodeError("utf-8", "\ud800", 0, 1, "surrogates not allowed"),
    ],
    ids=lambda mistake: mistake().__class__.__name__,
)


class Provider:
    """Raises the mistake of a question that is one, else the fault that it has, else answers."""

    def __init__(self, fault: Callable[[], Exception] | None = None, seconds: float = 0.0) -> None:
        self.fault = fault
        self.seconds = seconds
        self.asked: list[Any] = []
        self.cancelled = 0

    async def __call__(self, question: Any) -> str:
        self.asked.append(question)
        try:
            await asyncio.sleep(self.seconds)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        if isinstance(question, Exception):
            raise question
        if self.fault is not None:
            raise self.fault()
        return "fine"


async def ask(primitive: Any, question: Any, streams: bool) -> Any:
    """The answer of a primitive."""
    if not streams:
        return await primitive.execute(question)
    async with primitive.stream(question) as chunks:
        return "".join([chunk async for chunk in chunks])


async def raised(primitive: Any, question: Any, streams: bool) -> Exception:
    """The error of a primitive."""
    try:
        await ask(primitive, question, streams)
    except Exception as error:
        return error
    raise AssertionError("it has answered")


def breaker(step: Any, **knobs: Any) -> CircuitBreakerPrimitive[Any, Any]:
    clock = asyncio.get_running_loop().time
    return CircuitBreakerPrimitive(
        step, **{"breaker": Breaker(BreakerPolicy(jitter=0.0), clock=clock), "target": "t", **knobs}
    )


@FORMS
@MISTAKES
async def test_retry(mistake: Callable[[], Exception], streams: bool, metrics: Any) -> None:
    """The same words fail in the same way: another attempt, and its token, would be for nothing."""
    budget, provider, error = RetryBudget(clock=lambda: 0.0), Provider(), mistake()
    primitive = RetryPrimitive(provider, budget=budget, operation_name="ask")
    assert error is await raised(primitive, error, streams)
    assert ([error], budget.burst) == (provider.asked, budget.balance)
    assert 1 == metrics("retry.gave_up", operation="ask", reason="not_retryable")


@FORMS
@MISTAKES
async def test_fallback(mistake: Callable[[], Exception], streams: bool, metrics: Any) -> None:
    """The error is told as it is, from the first target or from a later one, and no further target is asked."""
    first, second, third = Provider(), Provider(), Provider()
    primitive = FallbackPrimitive({"first": first, "second": second, "third": third}, operation_name="ask")
    error = mistake()
    assert error is await raised(primitive, error, streams)
    assert (1, 0) == (len(first.asked), len(second.asked))
    broken = RetryPrimitive(Provider(ConnectionError), 1)

    async def down(_: Any) -> None:
        raise ConnectionError

    primitive = FallbackPrimitive({"down": down, "second": second, "third": third}, operation_name="ask")
    assert error is await raised(primitive, error, streams)
    assert (1, 0) == (len(second.asked), len(third.asked))
    assert 2 == metrics("fallback.failed", operation="ask", reason="fault")
    assert ConnectionError is type(await raised(broken, "q", streams))


@FORMS
async def test_a_policy_may_route_around_it(streams: bool) -> None:
    """Where the targets are programs of different people, the next may well serve."""
    primitive = FallbackPrimitive([Provider(TypeError), Provider()], policy={"caller": "next"})
    assert "fine" == await ask(primitive, "q", streams)
    both = FallbackPrimitive([Provider(TypeError), Provider(KeyError)], policy={"caller": "next"})
    error = await raised(both, "q", streams)
    assert isinstance(error, AllTargetsFailedError)
    assert ["caller", "caller"] == [failure.fault for failure in error.failures]


@FORMS
@MISTAKES
async def test_circuit_breaker(mistake: Callable[[], Exception], streams: bool, metrics: Any) -> None:
    """However many make it, the circuit stays closed for all others; failures before and after it still count."""
    provider = Provider(ConnectionError)
    primitive = breaker(provider)
    for _ in range(2):
        await raised(primitive, "q", streams)
    for _ in range(20):
        error = mistake()
        assert error is await raised(primitive, error, streams)
    assert (2, 2) == (primitive.breaker.counts().consecutive_failures, primitive.breaker.counts().calls)
    assert 20 == metrics("circuit_breaker.calls", target="t", outcome="ignored")
    await raised(primitive, "q", streams)
    assert "open" == primitive.state


@FORMS
async def test_a_probe_that_ends_so_gives_no_verdict(streams: bool) -> None:
    """It has not reached the target: the circuit neither closes nor stays open for longer, and the next call probes."""
    provider = Provider(ConnectionError)
    primitive = breaker(provider)
    for _ in range(3):
        await raised(primitive, "q", streams)
    await asyncio.sleep(21.0)
    error = TypeError()
    assert error is await raised(primitive, error, streams)
    assert ("half_open", False) == (primitive.state, primitive.breaker.counts().probing)
    provider.fault = None
    assert "fine" == await ask(primitive, "q", streams)
    assert "closed" == primitive.state


@FORMS
@MISTAKES
async def test_adaptive_limit(mistake: Callable[[], Exception], streams: bool) -> None:
    """It says nothing of how much the provider can bear."""
    primitive = ConcurrencyLimitPrimitive(Provider(), Aimd(10))
    for _ in range(5):
        await raised(primitive, mistake(), streams)
    assert 10 == primitive.limiter.limit


@FORMS
@MISTAKES
async def test_hedge(mistake: Callable[[], Exception], streams: bool) -> None:
    """The first call ends with it while the second is in flight: the second ends at once, and the error is told."""
    first, second, error = Provider(seconds=3.0), Provider(seconds=60.0), mistake()
    primitive = HedgePrimitive(first, second, delay_seconds=1.0)
    assert error is await raised(primitive, error, streams)
    await asyncio.sleep(0)
    assert (3.0, 1, 1) == (asyncio.get_running_loop().time(), len(second.asked), second.cancelled)


@FORMS
async def test_a_mistake_in_the_hedge_alone_leaves_the_first_call_its_time(streams: bool) -> None:
    """The second target may be a program of its own; the first call is under way, and is paid for already."""
    primitive = HedgePrimitive(Provider(seconds=3.0), Provider(TypeError), delay_seconds=1.0)
    assert "fine" == await ask(primitive, "q", streams)


@FORMS
@MISTAKES
async def test_pipeline(mistake: Callable[[], Exception], streams: bool) -> None:
    """Four callers make it, and the fifth, who makes none, gets an answer from the first target."""
    first, second = Provider(), Provider()
    targets = [LLMTarget(call=first, name="first"), LLMTarget(call=second, name="second")]
    primitive = pipeline(targets, max_concurrency=2, requests_per_minute=600)
    for _ in range(4):
        error = mistake()
        assert error is await raised(primitive, error, streams)
    assert (4, 0) == (len(first.asked), len(second.asked))
    assert "fine" == await ask(primitive, "q", streams)
    assert [] == second.asked


# ---- after the answer has begun


def streamed(*chunks: Any) -> Callable[[Any], AsyncIterator[Any]]:
    async def stream(_: Any) -> AsyncIterator[Any]:
        for chunk in chunks:
            await asyncio.sleep(0)
            if isinstance(chunk, Exception):
                raise chunk
            yield chunk

    return stream


async def read(primitive: Any) -> list[Any]:
    """All that a reader sees: the chunks, and the error at the end."""
    seen: list[Any] = []
    try:
        async with primitive.stream("q") as chunks:
            async for chunk in chunks:
                seen.append(chunk)
    except Exception as error:
        seen.append(error)
    return seen


ROLE = {"choices": [{"delta": {"role": "assistant"}}]}


LAYERS: dict[str, Callable[[Any], Any]] = {
    "retry": RetryPrimitive,
    "fallback": lambda step: FallbackPrimitive([step, streamed("b")]),
    "retry, breaker": lambda step: RetryPrimitive(breaker(step)),
    "fallback, retry, breaker": lambda step: FallbackPrimitive([RetryPrimitive(breaker(step)), streamed("b")]),
}


@pytest.mark.parametrize("layer", LAYERS)
@MISTAKES
async def test_a_stream_that_breaks_after_content_is_interrupted(mistake: Callable[[], Exception], layer: str) -> None:
    """What the provider sent could not be read to its end: as with any other cut, the reader is told so."""
    error = mistake()
    first, last = await read(LAYERS[layer](streamed("a", error)))
    assert ("a", StreamInterruptedError, "cut") == (first, type(last), last.reason)
    cause = last.__cause__
    while isinstance(cause, StreamInterruptedError):
        cause = cause.__cause__
    assert error is cause


@MISTAKES
async def test_readers_who_asked_for_a_restart_get_it(mistake: Callable[[], Exception]) -> None:
    """The next target has the whole answer."""
    primitive = FallbackPrimitive([streamed("a", mistake()), streamed("b")], restart_streams=True)
    first, restart, second = await read(primitive)
    assert ("a", "b") == (first, second)
    assert ("malformed", 1) == (restart.fault, restart.chunks)
    assert isinstance(restart, StreamRestart)


@pytest.mark.parametrize("inner", [lambda step: step, RetryPrimitive, breaker], ids=["bare", "retry", "breaker"])
@pytest.mark.parametrize("chunk", [ROLE, ""], ids=["a role", "an empty text"])
async def test_a_chunk_without_content_is_a_response_too(chunk: Any, inner: Callable[[Any], Any]) -> None:
    """The reader has seen nothing yet, so the next target answers, whatever holds the chunks back further in."""
    assert ["b"] == await read(FallbackPrimitive([inner(streamed(chunk, TypeError())), streamed("b")]))
    slow = HedgePrimitive(inner(streamed(chunk, TypeError())), streamed("b"), delay_seconds=0.0)
    assert ["b"] == await read(slow)


@pytest.mark.parametrize("chunks", [(ROLE,), ("a",), ("a", "b"), (None,)], ids=repr)
async def test_the_breaker_counts_it(chunks: tuple[Any, ...], metrics: Any) -> None:
    """With the first chunk the target has answered; three that cannot be read open its circuit."""
    primitive = breaker(streamed(*chunks, KeyError()))
    for _ in range(3):
        assert isinstance((await read(primitive))[-1], KeyError)
    assert "open" == primitive.state
    assert 3 == metrics("circuit_breaker.calls", target="t", outcome="failure")


async def test_a_mistake_of_the_reader_is_not_the_targets() -> None:
    """It is raised in the block, and goes past the stream."""
    primitive = breaker(streamed("a", "b"))
    for _ in range(5):
        with pytest.raises(KeyError):
            async with primitive.stream("q") as chunks:
                raise KeyError(await anext(chunks))
    assert ("closed", 0) == (primitive.state, primitive.breaker.counts().failures)


EXECUTING: dict[str, Callable[[Any], Any]] = {
    "bare": lambda step: step,
    "retry, breaker": lambda step: RetryPrimitive(breaker(step)),
    "clocks": lambda step: TimeoutPrimitive(step, 9.0, first_chunk_seconds=5.0, idle_seconds=5.0),
    "breaker, clocks": lambda step: breaker(TimeoutPrimitive(step, 9.0, idle_seconds=5.0)),
    "an LLM call": LLMCallPrimitive,
    "hedge": lambda step: HedgePrimitive(step, streamed("b"), delay_seconds=9.0),
}


@pytest.mark.parametrize("inner", EXECUTING)
@pytest.mark.parametrize("chunk", [ROLE, "", "a"], ids=["a role", "an empty text", "a text"])
@MISTAKES
async def test_execute_that_reads_a_stream(mistake: Callable[[], Exception], chunk: Any, inner: str) -> None:
    """Nothing was shown of the answer, so a whole one comes from the next target."""
    primitive = FallbackPrimitive([EXECUTING[inner](streamed(chunk, mistake())), streamed("b")])
    assert "b" == await primitive.execute("q")


async def test_execute_that_reads_a_stream_and_fails_before_its_first_chunk() -> None:
    """There the mistake is the caller's."""
    for inner in EXECUTING.values():
        error = TypeError()
        assert error is await raised(FallbackPrimitive([inner(streamed(error)), streamed("b")]), "q", streams=False)


async def test_the_breaker_counts_what_execute_has_read() -> None:
    """As it counts what a reader has seen."""
    primitive = breaker(TimeoutPrimitive(streamed("a", KeyError()), 9.0, idle_seconds=5.0))
    for _ in range(3):
        await raised(primitive, "q", streams=False)
    assert "open" == primitive.state
