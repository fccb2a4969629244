"""RetryPrimitive: what is attempted again, after which wait, how often, and what is told of it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from observability_integration import WorkflowContext, events
from observability_integration.context import Deadline
from observability_integration.errors import ConfigurationError, StreamInterruptedError
from observability_integration.primitives.base import ChunkStream
from observability_integration.primitives.hedge import HedgePrimitive
from observability_integration.primitives.lifting import LambdaPrimitive
from observability_integration.primitives.retry import RetryPrimitive
from observability_integration.primitives.timeout import TimeoutPrimitive
from observability_integration.resilience.backoff import Backoff
from observability_integration.resilience.retry_budget import RetryBudget
from observability_integration.testing import FakeClockLoop, set_testing

LOOP_FACTORY = FakeClockLoop
pytestmark = pytest.mark.promise("Y1")

EXACT = Backoff(base_seconds=1.0, factor=2.0, max_seconds=8.0, jitter="none")


class ServerSays(Exception):
    """What a provider's SDK raises, by shape."""

    def __init__(self, status_code: int, headers: dict[str, str] | None = None, retries: int = 0) -> None:
        super().__init__("told")
        self.status_code = status_code
        self.response = type("Response", (), {"headers": headers or {}, "status_code": status_code})()
        sent = {"x-stainless-retry-count": str(retries)}
        self.request = type("Request", (), {"headers": sent})()


class Target:
    """Raises what it is given, one after the other, then answers."""

    def __init__(self, *errors: BaseException) -> None:
        self.errors = list(errors)
        self.called_at: list[float] = []

    async def __call__(self, question: Any) -> str:
        self.called_at.append(asyncio.get_running_loop().time())
        await asyncio.sleep(0)
        if self.errors:
            raise self.errors.pop(0)
        return f"answer to {question}"

    def gaps(self) -> list[float]:
        """Seconds between attempts."""
        return [round(after - before, 6) for before, after in zip(self.called_at, self.called_at[1:], strict=False)]


def retry(step: Any, **knobs: Any) -> RetryPrimitive[Any, Any]:
    return RetryPrimitive(step, **{"backoff": EXACT, "operation_name": "ask", **knobs})


def counted(metrics: Any) -> dict[str, Any]:
    outcomes = ("successful_without_retry", "successful_with_retry", "failed_without_retry", "failed_with_retry")
    found = {name: metrics("retry.operations", operation="ask", outcome=name) for name in (*outcomes, "cancelled")}
    return {name: value for name, value in found.items() if value}


async def test_an_answer_at_once_is_passed_on(metrics: Any, tracing: Any) -> None:
    """The usual way costs one attempt, and is counted as one."""
    target = Target()
    assert "answer to 1" == await retry(target).execute(1)
    assert {"successful_without_retry": 1} == counted(metrics)
    assert 1 == metrics("retry.attempts", operation="ask")
    span = tracing.named("retry ask")
    assert (1, "success", []) == (span.attributes["retry.attempts"], span.attributes["outcome"], span.events)
    assert [] == tracing.unended()


async def test_what_may_pass_is_attempted_again_after_growing_waits(metrics: Any, tracing: Any) -> None:
    """Two faults that pass, then an answer: each attempt is counted, and the operation once."""
    target = Target(ServerSays(500), ConnectionResetError())
    assert "answer to 1" == await retry(target).execute(1)
    assert [1.0, 2.0] == target.gaps()
    assert {"successful_with_retry": 1} == counted(metrics)
    assert 3 == metrics("retry.attempts", operation="ask")
    assert 1 == metrics("retry.retries", operation="ask", fault="transient")
    assert 1 == metrics("retry.retries", operation="ask", fault="connection")
    assert ["retry", "retry"] == tracing.named("retry ask").events


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ServerSays(400), "not_retryable"),
        (ServerSays(401), "not_retryable"),
        (TimeoutError(), "not_retryable"),
        (StreamInterruptedError("ask", 3, "no_finish_reason"), "not_retryable"),
        (ValueError("the user's own"), "not_retryable"),
        (ServerSays(429, {"retry-after": "61"}), "retry_after"),
    ],
    ids=lambda value: getattr(value, "status_code", type(value).__name__) if isinstance(value, Exception) else value,
)
async def test_what_would_not_help_is_not_done(error: Exception, reason: str, metrics: Any, tracing: Any) -> None:
    """The error is the provider's own, unchanged, after one attempt and without a wait."""
    target = Target(error)
    with pytest.raises(type(error)) as caught:
        await retry(target).execute(1)
    assert error is caught.value
    assert 1 == len(target.called_at)
    assert {"failed_without_retry": 1} == counted(metrics)
    assert 1 == metrics("retry.gave_up", operation="ask", reason=reason)
    assert (error, "error") == (tracing.named("retry ask").error, tracing.named("retry ask").attributes["outcome"])


async def test_attempts_are_bounded_and_the_last_error_passes_unchanged(metrics: Any) -> None:
    """Three attempts are three, not four."""
    faults = [ServerSays(503) for _ in range(5)]
    target = Target(*faults)
    with pytest.raises(ServerSays) as caught:
        await retry(target).execute(1)
    assert faults[2] is caught.value
    assert [1.0, 2.0] == target.gaps()
    assert {"failed_with_retry": 1} == counted(metrics)
    assert 1 == metrics("retry.gave_up", operation="ask", reason="attempts")


async def test_retry_after_is_the_least_that_is_waited() -> None:
    """A provider that says 2 s is not asked after 1.99 s; nor, with a crowd refused in one instant, by all at 2.0 s."""
    target = Target(ServerSays(429, {"retry-after": "2"}))
    await retry(target).execute(1)
    (gap,) = target.gaps()
    assert 2.0 <= gap <= 2.2


@pytest.mark.parametrize("where", ["context", "around"])
async def test_a_wait_that_would_not_end_in_time_is_not_begun(where: str, metrics: Any) -> None:
    """With 2.5 s left, the wait of 1 s is made and that of 2 s is not: the caller hears of the fault at 1 s."""
    target = Target(*(ServerSays(503) for _ in range(5)))
    loop = asyncio.get_running_loop()
    began = loop.time()
    step: Any = retry(target)
    context = WorkflowContext(deadline=Deadline.after(2.5)) if where == "context" else None
    if where == "around":
        step = TimeoutPrimitive(step, 2.5)
    with pytest.raises(ServerSays):
        await step.execute(1, context)
    assert 1.0 == pytest.approx(loop.time() - began)
    assert 1 == metrics("retry.gave_up", operation="ask", reason="deadline")


async def test_a_budget_stops_a_storm_and_says_so_once(
    metrics: Any, caplog: pytest.LogCaptureFixture, heard: list[events.Event]
) -> None:
    """1,000 calls of a target that always fails cause at most 200 more attempts: not 2,000."""
    target = Target(*(ServerSays(503) for _ in range(5000)))
    primitive = retry(target)
    outcomes = await asyncio.gather(*(primitive.execute(n) for n in range(1000)), return_exceptions=True)
    assert all(isinstance(outcome, ServerSays) for outcome in outcomes)
    assert 1000 < len(target.called_at) <= 1200
    assert 1000 < metrics("retry.attempts", operation="ask") <= 1200
    assert 800 <= metrics("retry.gave_up", operation="ask", reason="budget")
    assert ["retry.budget_exhausted"] == [event.name for event in heard]
    assert 1 == sum("budget" in record.getMessage() for record in caplog.records)


async def test_a_budget_can_be_shared_or_left_out() -> None:
    """One budget for two primitives bounds them together; without one, all attempts are made."""
    shared = RetryBudget(ratio=0.5, min_per_second=0.0, burst=1.0, over_operations=10)
    targets = [Target(*(ServerSays(503) for _ in range(9))) for _ in range(2)]
    for target in targets:
        with pytest.raises(ServerSays):
            await retry(target, budget=shared).execute(1)
    assert 3 == sum(len(target.called_at) for target in targets)
    unbounded = Target(*(ServerSays(503) for _ in range(9)))
    with pytest.raises(ServerSays):
        await retry(unbounded, budget=None, max_attempts=9).execute(1)
    assert 9 == len(unbounded.called_at)


@pytest.mark.parametrize("observed", [False, True], ids=["bare", "traced"])
@pytest.mark.parametrize("streams", [False, True], ids=["executes", "streams"])
async def test_attempts_pay_nothing_into_a_budget_that_is_shared(streams: bool, observed: bool, request: Any) -> None:
    """Else a fault would bring in tokens by being tried again, where the call has a budgeted one inside of it."""
    if observed:
        request.getfixturevalue("tracing")
    budget = RetryBudget(clock=lambda: 0.0)
    hedged = HedgePrimitive(Target(*[ServerSays(503)] * 2), delay_seconds=9.0, budget=budget)
    call = retry(retry(hedged, budget=budget, max_attempts=1), budget=budget)
    for _ in range(40):
        budget.withdraw()
    before = budget.balance
    if streams:
        async with call.stream(1) as chunks:
            assert ["answer to 1"] == [chunk async for chunk in chunks]
    else:
        assert "answer to 1" == await call.execute(1)
    assert pytest.approx(before + budget.earned - 2) == budget.balance


async def test_all_who_share_a_budget_hear_of_its_end() -> None:
    """It may be another's own."""
    first = retry(Target(), operation_name="first")
    shares = retry(Target(*[ServerSays(503)] * 100), operation_name="second", budget=first.budget, max_attempts=99)
    heard: list[Any] = []
    unsubscribe = events.subscribe(lambda event: heard.append(event.attributes["operation"]), "retry.budget_exhausted")
    with pytest.raises(ServerSays):
        await shares.execute(1)
    unsubscribe()
    assert ["first", "second"] == heard


async def test_a_classifier_is_asked_first() -> None:
    """Users know their own errors."""
    target = Target(LookupError("mine"))
    primitive = retry(target, classifier=lambda error: "transient" if isinstance(error, LookupError) else None)
    assert "answer to 1" == await primitive.execute(1)


async def test_cancelled_while_waiting(metrics: Any, tracing: Any) -> None:
    """The wait between attempts ends with the caller's patience."""
    target = Target(ServerSays(503))
    task = asyncio.create_task(retry(target).execute(1))
    await asyncio.sleep(0.5)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert {"cancelled": 1} == counted(metrics)
    assert 1 == len(target.called_at)
    assert "cancelled" == tracing.named("retry ask").attributes["outcome"]
    assert [] == tracing.unended()


async def test_an_sdk_that_retries_by_itself_is_warned_of_once(caplog: pytest.LogCaptureFixture) -> None:
    """They use up the attempts that were configured here, and wait as they like."""
    target = Target(*(ServerSays(503, retries=2) for _ in range(6)))
    primitive = retry(target)
    for _ in range(2):
        with pytest.raises(ServerSays):
            await primitive.execute(1)
    assert 1 == sum("max_retries=0" in record.getMessage() for record in caplog.records)
    assert 1 == sum("use up its attempts" in record.getMessage() for record in caplog.records)
    assert "told" not in caplog.text
    assert all(record.levelno == logging.WARNING for record in caplog.records)


async def test_in_tests_nobody_waits() -> None:
    """`set_testing` is for suites that want to see the failure, not the waits."""
    target = Target(*(ServerSays(503) for _ in range(9)))
    with set_testing(attempts=2), pytest.raises(ServerSays):
        await retry(target).execute(1)
    assert [0.0] == target.gaps()


def test_describe() -> None:
    """The chain shows how often it attempts what."""

    async def call(_: Any) -> None: ...

    assert "retry call (3 attempts)\n  call" == RetryPrimitive(call).describe()
    assert ("call", 3) == (RetryPrimitive(call).name, RetryPrimitive(call).max_attempts)


# Streams


def streaming(*attempts: list[Any], opened: list[int] | None = None) -> Callable[[Any], AsyncIterator[Any]]:
    """Each attempt's chunks; an exception among them is raised in its place."""
    left = list(attempts)

    async def stream(_: Any) -> AsyncIterator[Any]:
        if opened is not None:
            opened.append(1)
        try:
            for chunk in left.pop(0):
                await asyncio.sleep(0)
                if isinstance(chunk, BaseException):
                    raise chunk
                yield chunk
        finally:
            if opened is not None:
                opened.append(-1)

    return stream


ROLE = {"choices": [{"delta": {"role": "assistant"}}]}


async def read(primitive: Any, seen: list[Any] | None = None) -> list[Any]:
    seen = [] if seen is None else seen
    async with primitive.stream("q") as chunks:
        async for chunk in chunks:
            seen.append(chunk)
    return seen


async def test_a_stream_is_attempted_again_before_its_first_content(metrics: Any, tracing: Any) -> None:
    """The role frame of the attempt that failed is not seen: it would name another answer."""
    opened: list[int] = []
    primitive = retry(streaming([ROLE, ServerSays(503)], [ROLE, "a", "b"], opened=opened))
    assert [ROLE, "a", "b"] == await read(primitive)
    assert [1, -1, 1, -1] == opened
    assert {"successful_with_retry": 1} == counted(metrics)
    assert [] == tracing.unended()


async def test_a_stream_that_breaks_after_content_is_interrupted(metrics: Any, tracing: Any) -> None:
    """Nothing is attempted again behind the back of a reader who has seen half of an answer."""
    broken = ConnectionResetError()
    primitive = retry(streaming(["a", "b", broken], ["c"]))
    seen: list[Any] = []
    with pytest.raises(StreamInterruptedError) as caught:
        await read(primitive, seen)
    assert (["a", "b"], 2, "cut") == (seen, caught.value.chunks, caught.value.reason)
    assert broken is caught.value.__cause__
    assert {"failed_without_retry": 1} == counted(metrics)
    assert [] == tracing.unended()


async def test_a_fault_of_the_users_code_in_a_stream_stays_what_it_is() -> None:
    """It broke off by itself, not on the way."""
    primitive = retry(streaming(["a", LookupError("mine")]))
    with pytest.raises(LookupError, match="mine"):
        await read(primitive)


async def test_streams_without_content(metrics: Any) -> None:
    """An empty stream ends, and one of frames alone hands them out."""
    assert [] == await read(retry(streaming([])))
    assert [ROLE, ROLE] == await read(retry(streaming([ROLE, ROLE])))
    assert [ROLE] * 1000 == await read(retry(streaming([ROLE] * 1000)))
    assert {"successful_without_retry": 3} == counted(metrics)


async def test_a_fault_of_closing_does_not_hide_the_fault() -> None:
    """What failed is attempted again, whatever its clean-up does."""

    class Clumsy(ChunkStream):
        async def __aenter__(self) -> Any:
            return self

        def __aiter__(self) -> Any:
            return self

        async def __anext__(self) -> Any:
            raise ServerSays(503)

        async def __aexit__(self, *_: Any) -> None:
            raise RuntimeError("while closing")

    whole = LambdaPrimitive(Target())
    streams = iter([Clumsy(), whole.stream("q")])
    whole.stream = lambda *_: next(streams)  # type: ignore[method-assign]
    assert ["answer to q"] == await read(retry(whole))


async def test_a_stream_that_nobody_read_is_not_counted(metrics: Any, tracing: Any) -> None:
    """Nothing was asked for."""
    async with retry(streaming(["a"])).stream("q"):
        pass
    assert {} == counted(metrics)
    assert [] == tracing.unended()


async def test_attempts_at_a_stream_are_bounded(metrics: Any) -> None:
    """As many as at a call."""
    opened: list[int] = []
    primitive = retry(streaming(*([ServerSays(503)] for _ in range(9)), opened=opened))
    with pytest.raises(ServerSays):
        await read(primitive)
    assert 6 == len(opened)
    assert 1 == metrics("retry.gave_up", operation="ask", reason="attempts")


async def test_a_reader_who_leaves_closes_what_is_inside(metrics: Any, tracing: Any) -> None:
    """Nothing stays open behind a reader who has seen enough."""
    opened: list[int] = []
    async with retry(streaming(["a", "b", "c"], opened=opened)).stream("q") as chunks:
        async for _ in chunks:
            break
    assert [1, -1] == opened
    assert {"successful_without_retry": 1} == counted(metrics)
    assert "closed" == tracing.named("retry ask").attributes["outcome"]
    assert [] == tracing.unended()


async def test_a_new_knob_holds_for_the_next_attempt() -> None:
    """A service that attempts less under load must not have to build its chain anew."""
    work = Target(*[ConnectionError()] * 9)
    retry = RetryPrimitive(work, 1, backoff=Backoff(base_seconds=0.1))
    retry.max_attempts, retry.budget, retry.backoff = 3, None, Backoff(base_seconds=0.2)
    with pytest.raises(ConnectionError):
        await retry.execute("question")
    assert (2, None, 0.2) == (len(work.gaps()), retry.budget, retry.backoff.base_seconds)
    with pytest.raises(ConfigurationError, match=r"^max_attempts"):
        retry.max_attempts = 0
