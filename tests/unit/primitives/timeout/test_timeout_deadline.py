"""Deadlines, which bind everything inside, and the fallback for when time ran out."""

from __future__ import annotations

import asyncio
import builtins
from typing import Any

import pytest

from observability_integration import WorkflowContext
from observability_integration.context import Deadline, current_deadline, remaining, reset_deadline, set_deadline
from observability_integration.errors import PrimitiveTimeoutError
from observability_integration.primitives import TimeoutPrimitive
from observability_integration.testing import FakeClockLoop
from tests.scripted_work import QUESTION, Work, advance, now, timed_out

LOOP_FACTORY = FakeClockLoop


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
