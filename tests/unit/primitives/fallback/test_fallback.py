"""FallbackPrimitive: who is asked next, who is not, and what is told of it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from observability_integration import WorkflowContext, events
from observability_integration.context import Deadline
from observability_integration.errors import (
    AllTargetsFailedError,
    CircuitOpenError,
    ConfigurationError,
    PrimitiveTimeoutError,
    StreamInterruptedError,
)
from observability_integration.primitives.fallback import FallbackPrimitive
from observability_integration.primitives.retry import RetryPrimitive
from observability_integration.primitives.streams import StreamRestart
from observability_integration.primitives.timeout import TimeoutPrimitive
from observability_integration.resilience.last_resort import last_resort
from observability_integration.testing import FakeClockLoop
from tests.unit.primitives.retry.test_retry import ROLE, ServerSays, streaming

LOOP_FACTORY = FakeClockLoop
pytestmark = pytest.mark.promise("F1")


class Target:
    """Answers with its name, or raises; notes who asked as a last resort."""

    def __init__(self, name: str, *errors: BaseException, seconds: float = 0.0) -> None:
        self.name = name
        self.errors = list(errors)
        self.seconds = seconds
        self.asked: list[bool | None] = []

    async def __call__(self, question: Any) -> str:
        self.asked.append(last_resort.get())
        await asyncio.sleep(self.seconds)
        if self.errors:
            raise self.errors.pop(0)
        return f"{self.name}: {question}"


def fallback(*targets: Target, **knobs: Any) -> FallbackPrimitive[Any, Any]:
    return FallbackPrimitive({target.name: target for target in targets}, operation_name="ask", **knobs)


def served(metrics: Any) -> dict[str, Any]:
    found = {name: metrics("fallback.served", operation="ask", target=name) for name in "abc"}
    return {name: value for name, value in found.items() if value}


async def test_the_first_is_asked_first(metrics: Any, tracing: Any) -> None:
    """As long as it answers, nobody else is asked."""
    first, second = Target("a"), Target("b")
    assert "a: 1" == await fallback(first, second).execute(1)
    assert ([False], []) == (first.asked, second.asked)
    assert {"a": 1} == served(metrics)
    assert 0 == metrics("fallback.served", operation="ask", target="b")
    span = tracing.named("fallback ask")
    assert ("a", "success", []) == (span.attributes["fallback.target"], span.attributes["outcome"], span.events)


@pytest.mark.parametrize(
    ("error", "fault"),
    [
        (TimeoutError(), "timeout"),
        (ServerSays(503), "overloaded"),
        (ServerSays(500), "transient"),
        (ServerSays(429), "rate_limited"),
        (ConnectionResetError(), "connection"),
        (StreamInterruptedError("a", 3, "no_finish_reason"), "stream_cut"),
        (CircuitOpenError("a", 3.0), "refused"),
        (LookupError(), "unknown"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_the_next_is_asked_when_another_can_serve(
    error: Exception, fault: str, metrics: Any, tracing: Any
) -> None:
    """At once, with the same input; and the answer is the other's own."""
    first, second = Target("a", error), Target("b")
    assert "b: 1" == await fallback(first, second).execute(1)
    assert [True] == second.asked
    assert {"b": 1} == served(metrics)
    assert 1 == metrics("fallback.failovers", operation="ask", target="a", fault=fault)
    assert ["fallback.failover"] == tracing.named("fallback ask").events


@pytest.mark.parametrize("status", [400, 401, 404])
async def test_what_nobody_should_be_asked_passes_unchanged(status: int, metrics: Any) -> None:
    """A content filter is not routed around, and a wrong key is not hidden."""
    error = ServerSays(status)
    first, second = Target("a", error), Target("b")
    with pytest.raises(ServerSays) as caught:
        await fallback(first, second).execute(1)
    assert error is caught.value
    assert [] == second.asked
    assert 1 == metrics("fallback.failed", operation="ask", reason="fault")
    assert 0 == metrics("fallback.failed", operation="ask", reason="exhausted")


class TooLong(ServerSays):
    def __init__(self) -> None:
        super().__init__(400)
        self.code = "context_length_exceeded"


@pytest.mark.parametrize(
    ("windows", "answers"),
    [
        ({}, "b: 1"),
        ({"a": 8000}, "b: 1"),
        ({"a": 8000, "b": 8000}, "c: 1"),
        ({"a": 8000, "b": 4000, "c": 16000}, "c: 1"),
        ({"a": 8000, "b": 8000, "c": 8000}, None),
    ],
)
async def test_a_request_that_is_too_long_goes_where_it_may_fit(windows: dict[str, int], answers: str | None) -> None:
    """To the next with a larger window, or one that is not known; where there is none the error passes."""
    error = TooLong()
    targets = Target("a", error), Target("b"), Target("c")
    primitive = fallback(*targets, context_windows=windows)
    if answers is None:
        with pytest.raises(TooLong) as caught:
            await primitive.execute(1)
        assert error is caught.value
        assert ([], []) == (targets[1].asked, targets[2].asked)
    else:
        assert answers == await primitive.execute(1)


async def test_all_failed_tells_of_each(metrics: Any, tracing: Any) -> None:
    """One error, with every target's name, kind of fault and own exception; the last is its cause."""
    errors = ServerSays(503), TimeoutError(), ConnectionResetError()
    with pytest.raises(AllTargetsFailedError) as caught:
        await fallback(*(Target(name, error) for name, error in zip("abc", errors, strict=True))).execute(1)
    told = [("a", "overloaded", errors[0]), ("b", "timeout", errors[1]), ("c", "connection", errors[2])]
    assert told == [tuple(failure) for failure in caught.value.failures]
    assert errors[2] is caught.value.__cause__
    assert 1 == metrics("fallback.failed", operation="ask", reason="exhausted")
    assert ("error", caught.value) == (
        tracing.named("fallback ask").attributes["outcome"],
        tracing.named("fallback ask").error,
    )
    assert [] == tracing.unended()


async def test_a_lone_target_keeps_its_own_error() -> None:
    """There is nothing to put together."""
    error = ServerSays(503)
    with pytest.raises(ServerSays) as caught:
        await fallback(Target("a", error)).execute(1)
    assert error is caught.value


async def test_nothing_is_asked_beyond_the_deadline(metrics: Any) -> None:
    """Who has no time left has no use for another answer."""
    first, second = Target("a", ServerSays(503), seconds=5.0), Target("b")
    with pytest.raises(ServerSays):
        await fallback(first, second).execute(1, WorkflowContext(deadline=Deadline.after(5.0)))
    assert [] == second.asked
    assert 1 == metrics("fallback.failed", operation="ask", reason="deadline")
    with pytest.raises(PrimitiveTimeoutError):
        await TimeoutPrimitive(fallback(Target("a", ServerSays(503), seconds=5.0), second), 5.0).execute(1)
    assert [] == second.asked


async def test_the_policy_can_be_changed() -> None:
    """For one kind of fault, and no other."""
    policy: Any = {"auth": "next", "timeout": "raise"}
    assert "b: 1" == await fallback(Target("a", ServerSays(401)), Target("b"), policy=policy).execute(1)
    with pytest.raises(TimeoutError):
        await fallback(Target("a", TimeoutError()), Target("b"), policy=policy).execute(1)


async def test_a_classifier_is_asked_first() -> None:
    """Users know their own errors."""
    primitive = fallback(Target("a", LookupError()), Target("b"), classifier=lambda error: "content_filter")
    with pytest.raises(LookupError):
        await primitive.execute(1)


async def test_the_last_resort_of_nested_fallbacks() -> None:
    """A target is the last that is left only if no fallback around it has another."""
    inner = fallback(Target("a", TimeoutError()), last := Target("b", TimeoutError()))
    await FallbackPrimitive([inner, Target("c")]).execute(1)
    assert [False] == last.asked
    inner = fallback(first := Target("a", TimeoutError()), last := Target("b"))
    await FallbackPrimitive([Target("c", TimeoutError()), inner]).execute(1)
    assert ([False], [True]) == (first.asked, last.asked)
    inner = fallback(alone := Target("a"))
    await FallbackPrimitive([Target("c", TimeoutError()), inner]).execute(1)
    assert [True] == alone.asked
    assert last_resort.get() is None


async def test_a_turn_that_lasts_is_an_event(heard: list[events.Event], caplog: pytest.LogCaptureFixture) -> None:
    """Three answers in a row by another target are news; a single fault, and each further answer, are not."""
    primitive = fallback(Target("a", ServerSays(503), *[], seconds=0.0), Target("b"))
    await primitive.execute(1)
    await primitive.execute(1)
    assert [] == heard
    primitive = fallback(Target("a", *(ServerSays(503) for _ in range(5))), Target("b"))
    for _ in range(9):
        await primitive.execute(1)
    assert ["fallback.failed_over", "fallback.returned"] == [event.name for event in heard]
    assert {"operation": "ask", "served_by": "b", "instead_of": "a", "fault": "overloaded"} == dict(heard[0].attributes)
    assert 2 == len(caplog.records)


async def test_cancelled(tracing: Any) -> None:
    """Nobody else is asked for who has gone."""
    first, second = Target("a", seconds=5.0), Target("b")
    task = asyncio.create_task(fallback(first, second).execute(1))
    await asyncio.sleep(1.0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert [] == second.asked
    assert "cancelled" == tracing.named("fallback ask").attributes["outcome"]
    assert [] == tracing.unended()


@pytest.mark.parametrize(
    ("knobs", "told"),
    [
        ({"policy": {"nonsense": "next"}}, "nonsense"),
        ({"context_windows": {"z": 5}}, "'z'"),
    ],
)
def test_wrong_knobs_are_refused(knobs: dict[str, Any], told: str) -> None:
    """The message names what is wrong."""
    with pytest.raises(ConfigurationError, match=told):
        fallback(Target("a"), **knobs)


def test_no_targets_are_refused() -> None:
    """There is nobody to ask."""
    with pytest.raises(ConfigurationError, match="at least one target"):
        FallbackPrimitive([])


def test_names() -> None:
    """Two of one name are told apart, and `describe` shows all."""

    async def call(_: Any) -> None: ...

    named = [RetryPrimitive(call, operation_name=name) for name in ("a 3", "a", "a", "a")]
    assert ["a 3", "a", "a 2", "a 3 2"][:3] == [name for name, _ in FallbackPrimitive(named).steps()][:3]
    assert 4 == len(FallbackPrimitive(named).steps())
    assert "fallback\n  call: call\n  call 2: call" == FallbackPrimitive([call, call]).describe().replace(
        "FallbackPrimitive", "fallback"
    )


# Streams


def streams(*attempts: list[Any], **knobs: Any) -> FallbackPrimitive[Any, Any]:
    named = {name: streaming(chunks, chunks) for name, chunks in zip("abc", attempts, strict=False)}
    return FallbackPrimitive(named, operation_name="ask", **knobs)


async def read(primitive: Any, seen: list[Any] | None = None) -> list[Any]:
    seen = [] if seen is None else seen
    async with primitive.stream("q") as chunks:
        async for chunk in chunks:
            seen.append(chunk)
    return seen


async def test_a_stream_fails_over_unseen_before_its_first_content(metrics: Any, tracing: Any) -> None:
    """The reader sees one answer, and nothing of the other."""
    assert [ROLE, "x"] == await read(streams([ROLE, ServerSays(503)], [ROLE, "x"]))
    assert {"b": 1} == served(metrics)
    assert 1 == metrics("fallback.failovers", operation="ask", target="a", fault="overloaded")
    assert [] == tracing.unended()


async def test_a_stream_that_breaks_after_content_is_interrupted(metrics: Any, tracing: Any) -> None:
    """Two answers are never spliced."""
    seen: list[Any] = []
    with pytest.raises(StreamInterruptedError) as caught:
        await read(streams(["a", "b", ConnectionResetError()], ["x"]), seen)
    assert (["a", "b"], "cut", 2) == (seen, caught.value.reason, caught.value.chunks)
    assert {} == served(metrics)
    assert 1 == metrics("fallback.failed", operation="ask", reason="fault")
    assert [] == tracing.unended()


async def test_a_reader_who_asked_for_it_gets_a_restart(metrics: Any) -> None:
    """What comes after it is a whole answer."""
    primitive = streams([ROLE, "a", "b", ConnectionResetError()], [ROLE, "x", "y"])
    primitive.restart_streams = True  # as the keyword, and from the next fault on
    assert [ROLE, "a", "b", StreamRestart("b", "connection", 3), ROLE, "x", "y"] == await read(primitive)
    assert 1 == metrics("fallback.stream.restarts", operation="ask")
    assert {"b": 1} == served(metrics)


async def test_a_restart_is_no_way_around_a_filter() -> None:
    """The provider refused to go on; so do we."""
    with pytest.raises(ServerSays):
        await read(streams(["a", ServerSays(401)], ["x"], restart_streams=True))


async def test_all_streams_failed() -> None:
    """As with a call."""
    with pytest.raises(AllTargetsFailedError):
        await read(streams([ServerSays(503)], [ServerSays(503)]))
    with pytest.raises(AllTargetsFailedError):
        await read(streams(["a", TimeoutError()], [ServerSays(503)], restart_streams=True))


async def test_execute_on_streams_takes_the_whole_answer_from_the_next() -> None:
    """Nothing was shown of the answer that was cut, so nothing is lost."""
    assert "xy" == await streams(["a", "b", ConnectionResetError()], ["x", "y"]).execute("q")


async def test_an_empty_answer_was_served(metrics: Any) -> None:
    """A stream that ended whole has no content to show, and is an answer all the same."""
    assert [] == await read(streams([], ["x"]))
    assert {"a": 1} == served(metrics)


async def test_a_reader_who_leaves(metrics: Any, tracing: Any) -> None:
    """With content in hand it was served; without, nobody was."""
    async with streams(["a", "b"], ["x"]).stream("q") as chunks:
        async for _ in chunks:
            break
    assert {"a": 1} == served(metrics)
    async with streams(["a", "b"], ["x"]).stream("q"):
        pass
    assert {"a": 1} == served(metrics)
    assert [] == tracing.unended()
