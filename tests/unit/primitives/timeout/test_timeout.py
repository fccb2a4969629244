"""The semantics of a timeout, row by row, on a clock that jumps."""

from __future__ import annotations

import asyncio
import builtins
import contextvars
import gc
import logging
import math
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import pytest

from observability_integration.primitives import TimeoutPrimitive
from observability_integration.testing import FakeClockLoop
from tests.scripted_work import QUESTION, Work, advance, now, timed_out

LOOP_FACTORY = FakeClockLoop


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


# ---- what a call costs


async def test_a_call_in_flight_holds_few_objects() -> None:
    """Full collections grow with them: a variable that a lambda uses, or a copy of the context, counts in each call."""
    loop = asyncio.get_running_loop()
    gate = loop.create_future()

    async def waits(_: Any) -> Any:
        return await gate

    async def held(call: Callable[[Any], Awaitable[Any]]) -> int:
        gc.collect()
        before = len(gc.get_objects())
        # In empty contexts: the variables that earlier tests have left in this one would count as objects of copies.
        tasks = [loop.create_task(call(None), context=contextvars.Context()) for _ in range(200)]  # type: ignore[arg-type]
        for _ in range(3):
            await asyncio.sleep(0)
        after = len(gc.get_objects())
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        return after - before

    primitive: TimeoutPrimitive[Any, Any] = TimeoutPrimitive(waits, 30.0)
    assert (await held(primitive.execute) - await held(waits)) / 200 < 15


async def test_a_span_that_is_current_elsewhere_is_current_for_the_start_only(tracing: Any, monkeypatch: Any) -> None:
    """Where an application keeps the current span in no context variable, it is put back once the work is started."""
    current: list[str] = []

    def activate(_: object) -> str:
        current.append("activated")
        return "no token of a context variable"

    monkeypatch.setattr(tracing, "activate", activate)
    monkeypatch.setattr(tracing, "deactivate", current.append)
    assert "answer" == await TimeoutPrimitive(Work(1.0), 10.0).execute(QUESTION)
    assert ["activated", "no token of a context variable"] == current
