"""The semantics of timeouts and deadlines, row by row, on a clock that jumps."""

from __future__ import annotations

import asyncio
import builtins
import gc
import inspect
import logging
import math
import pickle
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import pytest

from observability_integration import WorkflowContext
from observability_integration.context import Deadline, current_deadline, remaining, reset_deadline, set_deadline
from observability_integration.errors import ConfigurationError, ObservabilityError, PrimitiveTimeoutError
from observability_integration.primitives import TimeoutPrimitive, WorkflowPrimitive
from observability_integration.primitives import timeout as timeout_module
from observability_integration.testing import FakeClockLoop

LOOP_FACTORY = FakeClockLoop

QUESTION = "what is the secret ingredient?"


def now() -> float:
    return asyncio.get_running_loop().time()


def advance(seconds: float) -> None:
    """What a call that blocks the loop does to its clock."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, FakeClockLoop)
    loop.advance(seconds)


class Work:
    """Scripted work, which notes what is done to it.

    Args:
        seconds: how long it takes if it is left alone.
        result: what it returns, or raises, then.
        cleanup_seconds: how long it takes to clean up after a cancel.
        cleanup_result: what it returns, or raises, then; None lets the cancel go on.
        ignores: how many cancels it ignores before that.
    """

    def __init__(
        self,
        seconds: float = 1.0,
        result: Any = "answer",
        *,
        cleanup_seconds: float = 0.0,
        cleanup_result: Any = None,
        ignores: int = 0,
    ) -> None:
        self.seconds = seconds
        self.result = result
        self.cleanup_seconds = cleanup_seconds
        self.cleanup_result = cleanup_result
        self.ignores = ignores
        self.starts = 0
        self.cancelled_at: list[float] = []
        self.ended_at = math.nan

    async def __call__(self, question: str = QUESTION) -> Any:
        self.starts += 1
        try:
            return self._give(await self._sleep(self.seconds, self.result))
        except asyncio.CancelledError:
            result = await self._sleep(self.cleanup_seconds, self.cleanup_result)
            if result is None:
                raise
            return self._give(result)
        finally:
            self.ended_at = now()

    async def _sleep(self, seconds: float, result: Any) -> Any:
        until = now() + seconds
        while now() < until:
            try:
                await asyncio.sleep(until - now())
            except asyncio.CancelledError:
                self.cancelled_at.append(now())
                if len(self.cancelled_at) > self.ignores:
                    raise
        return result

    @staticmethod
    def _give(result: Any) -> Any:
        if isinstance(result, BaseException):
            raise result
        return result


class Bounded(NamedTuple):
    primitive: TimeoutPrimitive[Any, Any]
    call: Callable[[], Awaitable[Any]]


Bound = Callable[..., Bounded]


@pytest.fixture(params=["wrapper form", "model form"])
def bound(request: pytest.FixtureRequest) -> Bound:
    """Puts work under a timeout, in either form."""

    def wrapper(work: Any, timeout_seconds: float, grace: float | None = 5.0, **options: Any) -> Bounded:
        primitive: Any = TimeoutPrimitive(work, timeout_seconds, grace, "ask", **options)
        return Bounded(primitive, lambda: primitive.execute(QUESTION))

    def model(work: Any, timeout_seconds: float, grace: float | None = 5.0, **options: Any) -> Bounded:
        primitive: Any = TimeoutPrimitive(
            timeout_seconds=timeout_seconds, grace_period=grace, operation_name="ask", **options
        )
        return Bounded(primitive, lambda: primitive.execute_with_timeout(lambda: work(QUESTION)))

    return wrapper if request.param == "wrapper form" else model


async def timed_out(call: Awaitable[Any]) -> PrimitiveTimeoutError:
    """The error that `call` is expected to end in."""
    with pytest.raises(PrimitiveTimeoutError) as caught:
        await call
    return caught.value


# ---- the work ends before the limit


@pytest.mark.promise("T2")
async def test_value_in_time(bound: Bound, metrics: Any, tracing: Any) -> None:
    """Work that ends in time returns its value, at its own time, and is a success."""
    primitive, call = bound(Work(9.9), 10.0)
    assert "answer" == await call()
    assert now() == 9.9
    assert 1 == metrics("timeout.successes", operation="ask")
    assert 0 == metrics("timeout.failures", operation="ask", kind="total")
    assert 1 == metrics("timeout.execution", operation="ask")
    assert 1 == metrics("timeout.utilization", operation="ask")
    assert 0.0 == metrics("timeout.rate", operation="ask")
    assert {"timeout.limit_seconds": 10.0, "outcome": "success"} == tracing.named("timeout ask").attributes
    assert 1 == primitive.get_stats()["successes"]


@pytest.mark.promise("T2")
@pytest.mark.parametrize("error", [ValueError("own"), builtins.TimeoutError("own"), TimeoutError()])
async def test_own_error_in_time(bound: Bound, metrics: Any, tracing: Any, error: Exception) -> None:
    """An error of the work passes unchanged, its own TimeoutError too: an error, neither success nor timeout."""
    primitive, call = bound(Work(1.0, error), 10.0)
    with pytest.raises(type(error)) as caught:
        await call()
    assert error is caught.value
    assert 1 == metrics("timeout.errors", operation="ask", error_type=type(error).__name__)
    assert 0 == metrics("timeout.successes", operation="ask")
    assert 0 == metrics("timeout.failures", operation="ask", kind="total")
    assert metrics("timeout.rate", operation="ask") is None
    span = tracing.named("timeout ask")
    assert ("error", error) == (span.attributes["outcome"], span.error)
    assert 0 == primitive.get_stats()["total"]


@pytest.mark.promise("T2")
async def test_timeout_from_further_in_is_the_works_own_error(metrics: Any) -> None:
    """An inner timeout that fired by itself says so; the outer limit, which has not passed, does not take the blame."""
    inner = TimeoutPrimitive(Work(60.0), 3.0, operation_name="inner")
    outer = TimeoutPrimitive(inner, 10.0, operation_name="outer")
    error = await timed_out(outer.execute(QUESTION))
    assert ("inner", "total", "own") == (error.operation, error.kind, error.deadline_source)
    assert now() == 3.0
    kind = "observability_integration.errors.PrimitiveTimeoutError"
    assert 1 == metrics("timeout.errors", operation="outer", error_type=kind)
    assert 0 == metrics("timeout.failures", operation="outer", kind="total")


@pytest.mark.promise("T2")
async def test_value_that_is_there_when_the_limit_passes(bound: Bound, metrics: Any) -> None:
    """A value that came in the very turn of the loop in which the limit passed is not thrown away."""
    value: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    asyncio.get_running_loop().call_at(10.0, value.set_result, "answer")

    async def waits(_: str) -> str:
        return await value

    _, call = bound(waits, 10.0)
    assert "answer" == await call()
    assert 1 == metrics("timeout.successes", operation="ask")


@pytest.mark.promise("B4")
async def test_work_that_cancels_itself(bound: Bound, metrics: Any, tracing: Any) -> None:
    """A CancelledError raised by the work itself goes on unchanged, is no timeout, and does not mark the caller."""
    _, call = bound(Work(1.0, asyncio.CancelledError("by itself")), 10.0)
    with pytest.raises(asyncio.CancelledError):
        await call()
    task = asyncio.current_task()
    assert task is not None
    assert 0 == task.cancelling()
    assert 1 == metrics("timeout.cancellations", operation="ask")
    assert 0 == metrics("timeout.failures", operation="ask", kind="total")
    assert "cancelled" == tracing.named("timeout ask").attributes["outcome"]


# ---- the limit passes


@pytest.mark.promise("T1", "T3")
async def test_clean_end_at_the_limit(bound: Bound, metrics: Any, tracing: Any) -> None:
    """At the limit the work is cancelled once; when it ends at once, so does the caller's wait."""
    work = Work(60.0)
    primitive, call = bound(work, 10.0)
    error = await timed_out(call())
    assert 10.0 == now()
    assert [10.0] == work.cancelled_at
    assert ("ask", 10.0, 10.0) == (error.operation, error.timeout_seconds, error.elapsed_seconds)
    assert ("total", "clean", "own") == (error.kind, error.cleanup, error.deadline_source)
    assert error.__cause__ is None
    assert 1 == metrics("timeout.failures", operation="ask", kind="total")
    assert 0 == metrics("timeout.successes", operation="ask")
    assert 1.0 == metrics("timeout.rate", operation="ask")
    assert 1 == metrics("timeout.cleanup", operation="ask", cleanup="clean")
    assert 1 == metrics("timeout.execution", operation="ask")
    span = tracing.named("timeout ask")
    assert ["timeout.cancel_sent"] == span.events
    assert error is span.error
    assert {
        "timeout.limit_seconds": 10.0,
        "outcome": "timeout",
        "timeout.kind": "total",
        "timeout.cleanup": "clean",
    } == span.attributes
    assert 1 == primitive.get_stats()["failures"]


@pytest.mark.promise("T3")
async def test_clean_up_in_the_grace_is_waited_for(bound: Bound) -> None:
    """Clean-up that takes less than the grace is let finish, undisturbed by a second cancel."""
    work = Work(60.0, cleanup_seconds=4.0)
    _, call = bound(work, 10.0, 5.0)
    error = await timed_out(call())
    assert ("clean", 14.0, 14.0) == (error.cleanup, error.elapsed_seconds, now())
    assert [10.0] == work.cancelled_at


@pytest.mark.promise("T3")
async def test_clean_up_that_fails_is_the_cause(bound: Bound, metrics: Any) -> None:
    """An error in the clean-up must not hide the timeout, nor be lost."""
    failure = ValueError("rollback failed")
    _, call = bound(Work(60.0, cleanup_seconds=1.0, cleanup_result=failure), 10.0)
    error = await timed_out(call())
    assert ("failed", failure) == (error.cleanup, error.__cause__)
    assert 1 == metrics("timeout.cleanup", operation="ask", cleanup="failed")


@pytest.mark.promise("T3")
async def test_late_result_is_dropped_and_counted(bound: Bound, metrics: Any, tracing: Any) -> None:
    """A value returned in answer to the cancel came too late: the caller hears of the timeout, the metrics of both."""
    _, call = bound(Work(60.0, cleanup_seconds=2.0, cleanup_result="half an answer"), 10.0)
    error = await timed_out(call())
    assert "late_result" == error.cleanup
    assert 1 == metrics("timeout.late_results", operation="ask")
    assert 1 == metrics("timeout.failures", operation="ask", kind="total")
    assert 0 == metrics("timeout.successes", operation="ask")
    assert tracing.named("timeout ask").attributes["timeout.late"] is True


@pytest.mark.promise("T3")
async def test_late_result_is_returned_on_request(bound: Bound, metrics: Any, tracing: Any) -> None:
    """Whoever prefers a late value to none gets it, as a success that is marked as late."""
    _, call = bound(Work(60.0, cleanup_seconds=2.0, cleanup_result="half an answer"), 10.0, late_result="return")
    assert "half an answer" == await call()
    assert 1 == metrics("timeout.late_results", operation="ask")
    assert 1 == metrics("timeout.successes", operation="ask")
    assert 0 == metrics("timeout.failures", operation="ask", kind="total")
    assert "success" == tracing.named("timeout ask").attributes["outcome"]


@pytest.mark.promise("T1")
async def test_stuck_clean_up_is_broken_off_by_a_second_cancel(bound: Bound) -> None:
    """Clean-up that would take for ever ends with the grace, and is not left behind if it obeys the second cancel."""
    work = Work(60.0, cleanup_seconds=3600.0)
    _, call = bound(work, 10.0, 5.0)
    error = await timed_out(call())
    assert ("clean", 15.0) == (error.cleanup, now())
    assert [10.0, 15.0] == work.cancelled_at


@pytest.mark.promise("T1", "T4")
@pytest.mark.parametrize(
    ("end", "told"), [("value", "with a value"), (ValueError("too late"), "ValueError"), (None, "cancelled")]
)
async def test_work_that_ignores_every_cancel_is_abandoned(
    bound: Bound, metrics: Any, tracing: Any, caplog: pytest.LogCaptureFixture, end: Any, told: str
) -> None:
    """The caller has control back at limit + grace whatever the work does; what is left is counted till its end."""
    caplog.set_level(logging.INFO, "observability_integration")
    work = Work(60.0, asyncio.CancelledError() if end is None else end, ignores=99)
    _, call = bound(work, 10.0, 5.0)
    error = await timed_out(call())
    assert 15.0 == now()
    assert ("abandoned", 15.0) == (error.cleanup, error.elapsed_seconds)
    assert [10.0, 15.0] == work.cancelled_at
    assert 1 == metrics("timeout.abandoned", operation="ask")
    assert 1 == metrics("timeout.abandoned_active", operation="ask")
    assert 1 == metrics("timeout.cleanup", operation="ask", cleanup="abandoned")
    assert "abandoned" == tracing.named("timeout ask").attributes["timeout.cleanup"]
    assert ["Operation 'ask' did not end when it was cancelled, and was left running"] == caplog.messages
    assert math.isnan(work.ended_at)

    await asyncio.sleep(60.0)
    assert 60.0 == work.ended_at
    assert 0 == metrics("timeout.abandoned_active", operation="ask")
    assert 1 == metrics("timeout.abandoned", operation="ask")
    assert f"Abandoned work of operation 'ask' ended 45.00s later ({told})" == caplog.messages[-1]


@pytest.mark.promise("T1")
async def test_no_grace_leaves_at_once(bound: Bound) -> None:
    """With a grace of 0 the work gets its cancel and one turn of the loop; slow clean-up goes on without the caller."""
    work = Work(60.0, cleanup_seconds=4.0)
    _, call = bound(work, 10.0, 0)
    error = await timed_out(call())
    assert ("abandoned", 10.0) == (error.cleanup, now())
    await asyncio.sleep(10.0)
    assert ([10.0], 14.0) == (work.cancelled_at, work.ended_at)


async def test_no_grace_and_quick_clean_up(bound: Bound) -> None:
    """Work that obeys at once is not reported as left behind, even without a grace."""
    _, call = bound(Work(60.0), 10.0, 0)
    assert "clean" == (await timed_out(call())).cleanup


async def test_endless_grace_waits(bound: Bound) -> None:
    """A grace of None waits for the clean-up as long as it takes, for those who must never leave work behind."""
    work = Work(60.0, cleanup_seconds=86_400.0)
    _, call = bound(work, 10.0, None)
    error = await timed_out(call())
    assert ("clean", 86_410.0) == (error.cleanup, now())
    assert [10.0] == work.cancelled_at


async def test_work_that_blocked_the_loop(bound: Bound, metrics: Any, caplog: pytest.LogCaptureFixture) -> None:
    """No limit can fire while the loop is blocked: the value is delivered, counted as late, and the cause told once."""

    async def blocks(_: str) -> str:
        advance(30.0)
        return "answer"

    primitive, call = bound(blocks, 10.0)
    assert "answer" == await call()
    assert "answer" == await call()
    assert 2 == metrics("timeout.late_results", operation="ask")
    assert 2 == primitive.get_stats()["successes"]
    (message,) = caplog.messages
    assert "the event loop was blocked" in message
    assert "call blocking code in a thread" in message


# ---- grace_mode="finish"


@pytest.mark.promise("T6")
async def test_finish_mode_lets_the_work_finish(bound: Bound, metrics: Any, caplog: pytest.LogCaptureFixture) -> None:
    """The older contract: what finishes in the grace is a success, with a warning, and was never cancelled."""
    work = Work(14.0)
    primitive, call = bound(work, 10.0, 5.0, grace_mode="finish")
    assert "answer" == await call()
    assert ([], 14.0) == (work.cancelled_at, now())
    assert ["Operation 'ask' finished after its limit of 10s, within the grace (14.00s)"] == caplog.messages
    assert 1 == metrics("timeout.late_results", operation="ask")
    assert 1 == primitive.get_stats()["successes"]


async def test_finish_mode_within_the_limit(bound: Bound, metrics: Any, caplog: pytest.LogCaptureFixture) -> None:
    """In time is in time, in this mode too: no warning, nothing late."""
    _, call = bound(Work(9.0), 10.0, 5.0, grace_mode="finish")
    assert "answer" == await call()
    assert metrics("timeout.late_results", operation="ask") is None
    assert [] == caplog.messages


async def test_finish_mode_passes_a_late_error_on(bound: Bound) -> None:
    """Work that fails in the grace has failed by itself: its own error, unchanged."""
    error = ValueError("own")
    _, call = bound(Work(12.0, error), 10.0, 5.0, grace_mode="finish")
    with pytest.raises(ValueError, match="own") as caught:
        await call()
    assert error is caught.value


@pytest.mark.promise("T1", "T6")
async def test_finish_mode_ends_at_limit_and_grace(bound: Bound, metrics: Any) -> None:
    """The first cancel comes at limit + grace, and then the caller is free at once."""
    work = Work(60.0)
    _, call = bound(work, 10.0, 5.0, grace_mode="finish")
    error = await timed_out(call())
    assert (15.0, [15.0]) == (now(), work.cancelled_at)
    assert (10.0, 15.0, "clean") == (error.timeout_seconds, error.elapsed_seconds, error.cleanup)
    assert 1 == metrics("timeout.failures", operation="ask", kind="total")


async def test_finish_mode_does_not_wait_for_clean_up(bound: Bound) -> None:
    """The grace was spent on finishing, so nothing is left of it for clean-up."""
    _, call = bound(Work(60.0, cleanup_seconds=3.0), 10.0, 5.0, grace_mode="finish")
    error = await timed_out(call())
    assert ("abandoned", 15.0) == (error.cleanup, now())
    await asyncio.sleep(5.0)


# ---- the caller is cancelled


class Cancelled(NamedTuple):
    at: float
    task: asyncio.Task[Any]


async def cancel(call: Awaitable[Any], *moments: float) -> Cancelled:
    """Runs `call` in a task that is cancelled at these moments, and sees it end in exactly that."""
    task = asyncio.ensure_future(call)
    assert isinstance(task, asyncio.Task)
    for moment in moments:
        asyncio.get_running_loop().call_at(moment, task.cancel)
    await asyncio.wait({task})
    assert task.cancelled()
    assert len(moments) == task.cancelling()
    return Cancelled(now(), task)


@pytest.mark.promise("T5")
async def test_caller_cancelled_as_it_calls(bound: Bound, metrics: Any, tracing: Any) -> None:
    """A cancellation in the very turn of the call gets out, and the work gets it at its first await."""
    work = Work()
    _, call = bound(work, 10.0)
    task = asyncio.ensure_future(call())
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait({task})
    assert task.cancelled()
    assert [0.0] == work.cancelled_at
    assert 1 == metrics("timeout.cancellations", operation="ask")
    assert [] == tracing.unended()


@pytest.mark.promise("T5")
async def test_caller_cancelled_before_the_limit(bound: Bound, metrics: Any, tracing: Any) -> None:
    """The work is cancelled and its clean-up waited for; then the cancellation goes on, and is no timeout."""
    work = Work(60.0, cleanup_seconds=3.0)
    primitive, call = bound(work, 10.0, 5.0)
    assert 7.0 == (await cancel(call(), 4.0)).at
    assert [4.0] == work.cancelled_at
    assert 1 == metrics("timeout.cancellations", operation="ask")
    assert 0 == metrics("timeout.failures", operation="ask", kind="total")
    assert 0 == primitive.get_stats()["total"]
    span = tracing.named("timeout ask")
    assert ("cancelled", []) == (span.attributes["outcome"], span.events)


@pytest.mark.promise("T5")
@pytest.mark.parametrize("cleanup", [ValueError("rollback failed"), "half an answer"])
async def test_cancellation_wins_over_whatever_the_clean_up_says(bound: Bound, cleanup: Any) -> None:
    """A cancelled caller hears of its cancellation, not of an error or value in the clean-up; nor does asyncio."""
    complaints: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    _, call = bound(Work(60.0, cleanup_seconds=1.0, cleanup_result=cleanup), 10.0)
    assert 5.0 == (await cancel(call(), 4.0)).at
    gc.collect()
    assert [] == complaints


@pytest.mark.promise("T5")
async def test_cancelled_caller_waits_no_longer_than_the_grace(bound: Bound, metrics: Any) -> None:
    """Work that ignores its cancel cannot keep a cancelled caller either."""
    _, call = bound(Work(60.0, ignores=99), 10.0, 5.0)
    assert 9.0 == (await cancel(call(), 4.0)).at
    assert 1 == metrics("timeout.abandoned_active", operation="ask")
    await asyncio.sleep(60.0)
    assert 0 == metrics("timeout.abandoned_active", operation="ask")


@pytest.mark.promise("T5")
async def test_cancelled_twice_leaves_at_once(bound: Bound, metrics: Any) -> None:
    """A second cancellation says that nobody has time for clean-up."""
    work = Work(60.0, ignores=99)
    _, call = bound(work, 10.0, 5.0)
    assert 6.0 == (await cancel(call(), 4.0, 6.0)).at
    assert [4.0, 6.0] == work.cancelled_at
    assert 1 == metrics("timeout.abandoned", operation="ask")
    await asyncio.sleep(60.0)


@pytest.mark.promise("T5")
async def test_cancelled_in_the_grace(bound: Bound, metrics: Any, tracing: Any) -> None:
    """The cancellation wins over our timeout, and does not break off the clean-up that is under way."""
    work = Work(60.0, cleanup_seconds=4.0)
    primitive, call = bound(work, 10.0, 5.0)
    assert 14.0 == (await cancel(call(), 12.0)).at
    assert [10.0] == work.cancelled_at
    assert 0 == metrics("timeout.failures", operation="ask", kind="total")
    assert 1 == metrics("timeout.cancellations", operation="ask")
    assert 0 == primitive.get_stats()["total"]
    assert "cancelled" == tracing.named("timeout ask").attributes["outcome"]


@pytest.mark.promise("T1", "T5")
async def test_cancelled_in_the_grace_does_not_lengthen_it(bound: Bound) -> None:
    """Limit + grace stays the bound when the caller is cancelled on the way."""
    _, call = bound(Work(60.0, ignores=99), 10.0, 5.0)
    assert 15.0 == (await cancel(call(), 12.0)).at
    await asyncio.sleep(60.0)


@pytest.mark.promise("T5")
async def test_cancelled_twice_in_the_grace(bound: Bound) -> None:
    """In the grace, too, a second cancellation is obeyed at once."""
    _, call = bound(Work(60.0, ignores=99), 10.0, 5.0)
    assert 13.0 == (await cancel(call(), 12.0, 13.0)).at
    await asyncio.sleep(60.0)


@pytest.mark.promise("T5")
async def test_cancelled_in_an_endless_grace(bound: Bound) -> None:
    """With an endless grace a cancelled caller waits for the clean-up too; cancelled again, it leaves."""
    work = Work(60.0, cleanup_seconds=1000.0)
    _, call = bound(work, 10.0, None)
    assert 1010.0 == (await cancel(call(), 12.0)).at
    _, call = bound(Work(60.0, ignores=99), 10.0, None)
    assert 1025.0 == (await cancel(call(), 1022.0, 1025.0)).at
    await asyncio.sleep(60.0)


@pytest.mark.promise("T5", "T6")
async def test_cancelled_while_the_work_finishes(bound: Bound) -> None:
    """In the finish mode a cancellation between limit and limit + grace is passed on to the work at once."""
    work = Work(14.0)
    _, call = bound(work, 10.0, 5.0, grace_mode="finish")
    assert 12.0 == (await cancel(call(), 12.0)).at
    assert [12.0] == work.cancelled_at


# ---- deadlines


@pytest.mark.promise("T7")
async def test_deadline_is_inherited(metrics: Any, tracing: Any) -> None:
    """Inside, the smaller of the own limit and what remains further out counts; the outer reports what it set."""
    seen: list[float | None] = []

    async def work(_: str) -> str:
        await asyncio.sleep(2.0)
        seen.append(remaining())
        return await TimeoutPrimitive(Work(60.0), 30.0, operation_name="inner").execute(QUESTION)

    error = await timed_out(TimeoutPrimitive(work, 10.0, operation_name="outer").execute(QUESTION))
    assert [8.0] == seen
    assert 10.0 == now()
    assert ("outer", "total", "own") == (error.operation, error.kind, error.deadline_source)
    assert 1 == metrics("timeout.failures", operation="outer", kind="total")
    assert "timeout outer > timeout inner" in tracing.tree()
    assert 8.0 == tracing.named("timeout inner").attributes["timeout.limit_seconds"]


@pytest.mark.promise("T7")
async def test_smaller_limit_inside_is_its_own() -> None:
    """A limit that is smaller than what remains further out is not touched by it."""
    seen: list[float | None] = []

    async def work(_: str) -> str:
        seen.append(remaining())
        await asyncio.sleep(1.0)
        return "answer"

    inner = TimeoutPrimitive(work, 5.0)
    assert "answer" == await TimeoutPrimitive(inner, 10.0).execute(QUESTION)
    assert [5.0] == seen


@pytest.mark.promise("T7")
async def test_no_deadline_is_left_in_force() -> None:
    """What a primitive sets for its work is not seen by its caller, during the call or after it."""
    task = asyncio.ensure_future(TimeoutPrimitive(Work(5.0), 10.0).execute(QUESTION))
    await asyncio.sleep(1.0)
    assert current_deadline() is None
    await task
    assert current_deadline() is None


@pytest.mark.promise("T7")
@pytest.mark.parametrize("grace", [0, 5.0])
async def test_of_equal_deadlines_the_outer_is_reported(metrics: Any, grace: float) -> None:
    """Two limits that pass in the same moment make one timeout, of the outer one, at that moment."""
    inner = TimeoutPrimitive(Work(60.0), 10.0, grace, "inner")
    error = await timed_out(TimeoutPrimitive(inner, 10.0, 5.0, "outer").execute(QUESTION))
    assert ("outer", "total", "own", 10.0) == (error.operation, error.kind, error.deadline_source, now())
    assert 0 == metrics("timeout.failures", operation="inner", kind="total")


@pytest.mark.promise("T7")
async def test_whoever_notices_first_the_deadline_is_the_one_that_set_it(metrics: Any) -> None:
    """That an inner timer happens to run a moment before the outer one must not change what is reported, by anyone."""

    async def raises_for(deadline: Deadline, cleanup: Any) -> None:
        raise PrimitiveTimeoutError(
            "inner", 1.0, 1.0, kind="deadline", cleanup=cleanup, deadline_source="inherited", deadline=deadline
        )

    async def work(_: str) -> None:
        deadline = current_deadline()
        assert deadline is not None
        await raises_for(deadline, "abandoned")

    middle = TimeoutPrimitive(work, 30.0, operation_name="middle")
    error = await timed_out(TimeoutPrimitive(middle, 10.0, operation_name="outer").execute(QUESTION))
    assert ("outer", "total", "own", "abandoned") == (
        error.operation,
        error.kind,
        error.deadline_source,
        error.cleanup,
    )
    cause = error.__cause__
    assert isinstance(cause, PrimitiveTimeoutError)
    assert ("middle", "deadline", "inherited", "abandoned") == (
        cause.operation,
        cause.kind,
        cause.deadline_source,
        cause.cleanup,
    )
    assert 1 == metrics("timeout.failures", operation="outer", kind="total")
    assert 1 == metrics("timeout.failures", operation="middle", kind="deadline")


@pytest.mark.promise("T7")
async def test_refused_when_nothing_remains(metrics: Any, tracing: Any) -> None:
    """Work is not begun when nobody can wait for it any more; the outer limit, which has passed, is reported."""
    work = Work()
    inner = TimeoutPrimitive(work, 30.0, operation_name="inner")

    async def late(_: str) -> Any:
        advance(10.0)  # the loop is blocked to the very end of the outer limit
        return await inner.execute(QUESTION)

    error = await timed_out(TimeoutPrimitive(late, 10.0, operation_name="outer").execute(QUESTION))
    assert ("outer", "own", "clean") == (error.operation, error.deadline_source, error.cleanup)
    refused = error.__cause__
    assert isinstance(refused, PrimitiveTimeoutError)
    assert ("inner", "deadline", "refused", "inherited") == (
        refused.operation,
        refused.kind,
        refused.cleanup,
        refused.deadline_source,
    )
    assert 0 == work.starts
    assert 1 == metrics("timeout.failures", operation="inner", kind="deadline")
    assert [] == tracing.unended()


@pytest.mark.promise("T7")
async def test_deadline_of_the_context(metrics: Any) -> None:
    """A deadline that travels in the context is obeyed, and is reported as somebody else's."""
    context = WorkflowContext(deadline=Deadline.after(4.0))
    assert 4.0 == context.remaining()
    primitive = TimeoutPrimitive(Work(60.0), 10.0, operation_name="ask")
    error = await timed_out(primitive.execute(QUESTION, context))
    assert 4.0 == now()
    assert ("deadline", "inherited", 4.0) == (error.kind, error.deadline_source, error.timeout_seconds)
    assert context.deadline is error.deadline
    assert 1 == metrics("timeout.failures", operation="ask", kind="deadline")
    assert 0.0 == context.remaining()
    refused = await timed_out(primitive.execute(QUESTION, context))
    assert "refused" == refused.cleanup


@pytest.mark.promise("T7")
async def test_nearest_of_two_inherited_deadlines() -> None:
    """The deadline in force and the one in the context both bind; the nearer one ends the call."""
    for in_force, in_context in ((3.0, 5.0), (5.0, 3.0)):
        began = now()
        token = set_deadline(Deadline.after(in_force))
        context = WorkflowContext(deadline=Deadline.after(in_context))
        assert 3.0 == context.remaining()
        try:
            await timed_out(TimeoutPrimitive(Work(60.0), 10.0).execute(QUESTION, context))
        finally:
            reset_deadline(token)
        assert 3.0 == now() - began


@pytest.mark.promise("T6", "T7")
async def test_deadline_cuts_the_time_to_finish(caplog: pytest.LogCaptureFixture) -> None:
    """The finish mode may stretch its own limit, but nobody else's deadline."""
    context = WorkflowContext(deadline=Deadline.after(12.0))
    primitive = TimeoutPrimitive(Work(14.0), 10.0, 5.0, "ask", grace_mode="finish")
    error = await timed_out(primitive.execute(QUESTION, context))
    assert 12.0 == now()
    assert ("deadline", "inherited", 12.0) == (error.kind, error.deadline_source, error.timeout_seconds)

    context = WorkflowContext(deadline=Deadline.after(12.0))
    quicker = TimeoutPrimitive(Work(11.0), 10.0, 5.0, "ask", grace_mode="finish")
    assert "answer" == await quicker.execute(QUESTION, context)
    assert "finished after its limit of 10s" in caplog.text


@pytest.mark.promise("T6", "T7")
@pytest.mark.parametrize(("deadline", "free_at"), [(12.0, 15.0), (6.0, 11.0)])
async def test_clean_up_after_a_deadline_in_the_finish_mode(deadline: float, free_at: float) -> None:
    """Cut short by a deadline, the work gets what is left of limit and grace to clean up, at most the grace."""
    context = WorkflowContext(deadline=Deadline.after(deadline))
    primitive = TimeoutPrimitive(Work(60.0, ignores=99), 10.0, 5.0, grace_mode="finish")
    assert "abandoned" == (await timed_out(primitive.execute(QUESTION, context))).cleanup
    assert free_at == now()
    await asyncio.sleep(60.0)


@pytest.mark.promise("T6", "T7")
async def test_finish_mode_hands_its_whole_time_on() -> None:
    """What is inside may use the grace too, since the work may."""
    seen: list[float | None] = []

    async def work(_: str) -> None:
        seen.append(remaining())

    await TimeoutPrimitive(work, 10.0, 5.0, grace_mode="finish").execute(QUESTION)
    assert [15.0] == seen


# ---- fallback


async def plan_b(question: str) -> str:
    assert question == QUESTION
    await asyncio.sleep(1.0)
    return "plan b"


async def test_fallback_takes_over_from_our_timeout(metrics: Any) -> None:
    """When our clock ran out, the fallback answers; the timeout is counted all the same."""
    primitive: TimeoutPrimitive[str, str] = TimeoutPrimitive(Work(60.0), 10.0, operation_name="ask", fallback=plan_b)
    assert "plan b" == await primitive.execute(QUESTION)
    assert 11.0 == now()
    assert 1 == metrics("timeout.failures", operation="ask", kind="total")


async def test_fallback_does_not_hide_other_errors() -> None:
    """The work's own error, a TimeoutError among them, is no reason for the fallback."""
    primitive: TimeoutPrimitive[str, str] = TimeoutPrimitive(Work(1.0, TimeoutError("own")), 10.0, fallback=plan_b)
    with pytest.raises(builtins.TimeoutError, match="own"):
        await primitive.execute(QUESTION)


async def test_fallback_is_not_for_a_timeout_from_further_in() -> None:
    """An inner timeout, even of an operation with the very same name, is the work's own error."""
    inner = TimeoutPrimitive(Work(60.0), 3.0, operation_name="ask")
    primitive = TimeoutPrimitive(inner, 10.0, operation_name="ask", fallback=plan_b)
    error = await timed_out(primitive.execute(QUESTION))
    assert (3.0, 3.0) == (error.timeout_seconds, now())


async def test_no_fallback_after_an_inherited_deadline() -> None:
    """When a deadline from further out has passed, there is no time for a fallback."""
    primitive = TimeoutPrimitive(Work(60.0), 10.0, fallback=plan_b)
    error = await timed_out(primitive.execute(QUESTION, WorkflowContext(deadline=Deadline.after(4.0))))
    assert ("inherited", 4.0) == (error.deadline_source, now())


async def test_error_of_the_fallback_passes() -> None:
    """A fallback that fails fails the call, with its own error."""

    async def fails(_: str) -> str:
        raise LookupError("no plan b")

    with pytest.raises(LookupError, match="no plan b"):
        await TimeoutPrimitive(Work(60.0), 10.0, fallback=fails).execute(QUESTION)


# ---- the model form's own ways


async def test_awaitable_instead_of_a_function() -> None:
    """`execute_with_timeout` also takes a coroutine or future, as `wait_for` does."""
    primitive: Any = TimeoutPrimitive(timeout_seconds=10.0)
    assert "answer" == await primitive.execute_with_timeout(Work(1.0)())
    future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
    assert 10.0 == (await timed_out(primitive.execute_with_timeout(future))).timeout_seconds
    assert future.cancelled()


async def test_coroutine_that_is_never_begun_is_closed() -> None:
    """A refused call must not leave a coroutine for Python to warn about (warnings are errors here)."""
    primitive: Any = TimeoutPrimitive(timeout_seconds=10.0)
    work = Work()
    coroutine = work()
    token = set_deadline(Deadline.after(0.0))
    try:
        assert "refused" == (await timed_out(primitive.execute_with_timeout(coroutine))).cleanup
    finally:
        reset_deadline(token)
    assert (inspect.CORO_CLOSED, 0) == (inspect.getcoroutinestate(coroutine), work.starts)


async def test_function_that_returns_no_awaitable() -> None:
    """A synchronous function has already blocked the loop; it is refused with the reason."""
    primitive: Any = TimeoutPrimitive(timeout_seconds=10.0)
    with pytest.raises(ConfigurationError, match="needs an async func"):
        await primitive.execute_with_timeout(lambda: "answer")


async def test_operations_are_counted_apart(metrics: Any) -> None:
    """One primitive may serve several operations: the metrics tell them apart, the stats sum them up."""
    primitive: Any = TimeoutPrimitive(timeout_seconds=10.0)
    await primitive.execute_with_timeout(Work(1.0), "first")
    await primitive.execute_with_timeout(Work(1.0), "first")
    await timed_out(primitive.execute_with_timeout(Work(60.0), "second"))
    assert 2 == metrics("timeout.successes", operation="first")
    assert 1 == metrics("timeout.failures", operation="second", kind="total")
    assert {
        "operation": "operation",
        "successes": 2,
        "failures": 1,
        "total": 3,
        "timeout_rate": 1 / 3,
        "timeout_seconds": 10.0,
        "grace_period_seconds": 5.0,
    } == primitive.get_stats()


async def test_names_that_are_no_names_are_capped(metrics: Any) -> None:
    """A caller that makes a name out of every request must not fill the memory or the metrics."""
    primitive: Any = TimeoutPrimitive(timeout_seconds=10.0, operation_name="many")
    for number in range(300):
        await primitive.execute_with_timeout(Work(0.0), f"request {number}")
    assert 300 == primitive.get_stats()["successes"]
    assert 1 == metrics("timeout.successes", operation="request 254")
    assert metrics("timeout.successes", operation="request 255") is None
    assert 45 == metrics("timeout.successes", operation="many")


# ---- construction


BAD_LIMITS = [0, 0.0, -1, -0.5, math.nan, math.inf, -math.inf, True, False, "30", None, b"1", [1.0]]


@pytest.mark.parametrize("value", BAD_LIMITS)
def test_bad_limit_is_refused(value: Any) -> None:
    """What is no finite number above 0 is refused at once: nan would mean "no limit", and True one second."""
    expected = f"^timeout_seconds must be > 0, got {value!r}$".replace("[", r"\[")
    with pytest.raises(ValueError, match=expected) as caught:
        TimeoutPrimitive(Work(), value)
    assert isinstance(caught.value, ConfigurationError)
    with pytest.raises(ConfigurationError, match="timeout_seconds must be > 0"):
        TimeoutPrimitive(timeout_seconds=value)


@pytest.mark.parametrize("knob", ["first_chunk_seconds", "idle_seconds"])
@pytest.mark.parametrize("value", [value for value in BAD_LIMITS if value is not None])
def test_bad_stream_limit_is_refused(knob: str, value: Any) -> None:
    """The clocks for streams are checked like the limit; None, their default, switches them off."""
    options: dict[str, Any] = {knob: value}
    with pytest.raises(ConfigurationError, match=f"{knob} must be > 0"):
        TimeoutPrimitive(Work(), 10.0, **options)


@pytest.mark.parametrize("value", [-1, math.nan, math.inf, True, "5", [1.0]])
def test_bad_grace_is_refused(value: Any) -> None:
    """A grace is a finite number from 0, or None."""
    with pytest.raises(ConfigurationError, match="grace_period_seconds must be a finite number >= 0 or None"):
        TimeoutPrimitive(Work(), 10.0, value)
    with pytest.raises(ConfigurationError, match="grace_period_seconds must be a finite number >= 0 or None"):
        TimeoutPrimitive(timeout_seconds=10.0, grace_period=value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"primitive": Work(), "grace_period": 5.0}, "grace_period belongs to the form without a primitive"),
        ({"grace_period": 1.0, "grace_period_seconds": 2.0}, "give one of them"),
        ({"fallback": plan_b}, "need a primitive to wrap"),
        ({"first_chunk_seconds": 1.0}, "need a primitive to wrap"),
        ({"idle_seconds": 1.0}, "need a primitive to wrap"),
        ({"grace_mode": "wait"}, "grace_mode must be 'cleanup' or 'finish', got 'wait'"),
        ({"late_result": "keep"}, "late_result must be 'raise' or 'return', got 'keep'"),
        ({"grace_mode": "finish", "grace_period": None}, "needs a grace period"),
    ],
)
def test_keywords_that_do_not_belong_together(arguments: dict[str, Any], message: str) -> None:
    """Mixing the two forms, or unknown modes, is refused with what belongs together."""
    with pytest.raises(ConfigurationError, match=message):
        TimeoutPrimitive(timeout_seconds=10.0, **arguments)


def test_grace_under_either_name() -> None:
    """The grace has one meaning under both of its names."""
    assert 2.0 == TimeoutPrimitive(timeout_seconds=1.0, grace_period=2.0).grace_period_seconds
    named: Any = {"timeout_seconds": 1.0, "grace_period_seconds": 2.0}
    assert 2.0 == TimeoutPrimitive(**named).grace_period_seconds
    assert 5.0 == TimeoutPrimitive(timeout_seconds=1.0).grace_period_seconds
    assert TimeoutPrimitive(timeout_seconds=1.0, grace_period=None).grace_period_seconds is None


async def test_each_form_keeps_to_its_method() -> None:
    """A primitive that wraps nothing cannot be executed, and says what to use instead."""
    primitive: TimeoutPrimitive[str, str] = TimeoutPrimitive(timeout_seconds=10.0)
    with pytest.raises(ConfigurationError, match="use execute_with_timeout"):
        await primitive.execute(QUESTION)
    with pytest.raises(ConfigurationError, match="nothing to stream from"):
        primitive.stream(QUESTION)


def test_name_and_description() -> None:
    """The operation is named after what is wrapped, unless told otherwise, and the chain shows limits and fallback."""

    async def ask(_: str) -> str:
        return "answer"

    primitive = TimeoutPrimitive(ask, 30.0, fallback=plan_b)
    assert "ask" == primitive.name
    assert "timeout ask (30s, grace 5.0s)\n  ask\n  fallback: plan_b" == primitive.describe()
    assert "outer" == TimeoutPrimitive(primitive, 60.0, operation_name="outer").name
    assert "operation" == TimeoutPrimitive(timeout_seconds=1.0).name


# ---- the error


def test_error_is_what_callers_of_either_kind_catch() -> None:
    """Ours by its base, a TimeoutError (hence an OSError) for whoever does not know us, and under its older name."""
    assert issubclass(PrimitiveTimeoutError, ObservabilityError)
    assert issubclass(PrimitiveTimeoutError, builtins.TimeoutError)
    assert issubclass(PrimitiveTimeoutError, OSError)
    assert timeout_module.TimeoutError is PrimitiveTimeoutError
    assert timeout_module.PrimitiveTimeoutError is PrimitiveTimeoutError


@pytest.mark.promise("T9", "X4")
async def test_message_names_the_knob_and_never_the_input(bound: Bound, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever reads the error learns which argument to change; the question stays out of it and out of the log."""
    _, call = bound(Work(60.0, ignores=99), 10.0, 5.0)
    error = await timed_out(call())
    assert (
        "Operation 'ask' exceeded timeout of 10s (kind: total, elapsed: 15.00s, cleanup: abandoned); "
        "raise timeout_seconds to allow more"
    ) == str(error)
    await asyncio.sleep(60.0)
    assert QUESTION not in caplog.text
    assert (10.0, 15.0) == (error.timeout, error.elapsed)


@pytest.mark.promise("T9")
@pytest.mark.parametrize(
    ("kind", "source", "knob"),
    [
        ("total", "own", "raise timeout_seconds"),
        ("attempt", "own", "raise timeout_seconds"),
        ("first_chunk", "own", "raise first_chunk_seconds"),
        ("idle", "own", "raise idle_seconds"),
        ("deadline", "inherited", "raise the deadline set further out"),
        ("total", "inherited", "raise the deadline set further out"),
    ],
)
def test_every_kind_names_its_knob(kind: Any, source: Any, knob: str) -> None:
    """Each clock has its own argument, and a deadline from further out has none here."""
    assert knob in str(PrimitiveTimeoutError("ask", 1.0, 2.0, kind=kind, deadline_source=source))


def test_error_survives_pickling() -> None:
    """A process pool hands errors over pickled; all but the deadline, which means nothing elsewhere, must arrive."""
    error = PrimitiveTimeoutError(
        "ask", 1.5, 2.5, kind="deadline", cleanup="failed", deadline_source="inherited", deadline=Deadline(1.0)
    )
    copy = pickle.loads(pickle.dumps(error))
    assert type(error) is type(copy)
    assert {**vars(error), "deadline": None} == vars(copy)
    assert str(error) == str(copy)


async def test_stats_of_the_wrapper_form() -> None:
    """Stats count only successes and timeouts; the rate is absent of division by zero before the first call."""
    primitive = TimeoutPrimitive(Work(1.0), 10.0, 2.5, "ask")
    assert (0, 0.0) == (primitive.get_stats()["total"], primitive.get_stats()["timeout_rate"])
    await primitive.execute(QUESTION)
    hanging: WorkflowPrimitive[str, str] = TimeoutPrimitive(Work(60.0), 1.0)
    await timed_out(hanging.execute(QUESTION))
    assert {
        "operation": "ask",
        "successes": 1,
        "failures": 0,
        "total": 1,
        "timeout_rate": 0.0,
        "timeout_seconds": 10.0,
        "grace_period_seconds": 2.5,
    } == primitive.get_stats()
    assert (1, 0) == (primitive._total_successes, primitive._total_failures)


async def test_ids_of_the_workflow_are_on_the_span(tracing: Any) -> None:
    """A span of a call that was given a context can be found by the workflow's ids."""
    context = WorkflowContext(workflow_id="w-1", session_id="s-1")
    await TimeoutPrimitive(Work(1.0), 10.0, operation_name="ask").execute(QUESTION, context)
    attributes = tracing.named("timeout ask").attributes
    assert ("w-1", "s-1") == (attributes["workflow.id"], attributes["session.id"])
