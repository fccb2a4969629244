"""How a timeout is made in either form, what it tells of itself, and its error."""

from __future__ import annotations

import asyncio
import builtins
import gc
import inspect
import pickle
import weakref
from contextvars import Context, ContextVar, copy_context
from typing import Any

import pytest

from observability_integration import WorkflowContext
from observability_integration.context import Deadline, current_deadline, reset_deadline, set_deadline
from observability_integration.errors import ConfigurationError, ObservabilityError, PrimitiveTimeoutError
from observability_integration.primitives import LambdaPrimitive, TimeoutPrimitive, WorkflowPrimitive
from observability_integration.primitives.timeout import primitive as timeout_module
from observability_integration.testing import FakeClockLoop
from tests.scripted_work import QUESTION, Work, timed_out

LOOP_FACTORY = FakeClockLoop


async def plan_b(question: str) -> str:
    assert question == QUESTION
    await asyncio.sleep(1.0)
    return "plan b"


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"primitive": Work(), "grace_period": 5.0}, "grace_period belongs to the form without a primitive"),
        ({"grace_period": 1.0, "grace_period_seconds": 2.0}, "give one of them"),
        ({"fallback": plan_b}, "need a primitive to wrap"),
        ({"first_chunk_seconds": 1.0}, "need a primitive to wrap"),
        ({"idle_seconds": 1.0}, "need a primitive to wrap"),
        ({"grace_period": -1}, "grace_period"),
        ({"grace_mode": "finish", "grace_period": None}, "needs a grace period"),
    ],
)
def test_keywords_that_do_not_belong_together(arguments: dict[str, Any], message: str) -> None:
    """Mixing the two forms is refused with what belongs together; the form without a primitive checks its grace too."""
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
async def test_message_names_the_knob_and_never_the_input(caplog: pytest.LogCaptureFixture) -> None:
    """Whoever reads the error learns which argument to change; the question stays out of it and out of the log."""
    primitive = TimeoutPrimitive(Work(60.0, ignores=99), 10.0, 5.0, "ask")
    error = await timed_out(primitive.execute(QUESTION))
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


async def test_a_new_limit_holds_for_the_next_call() -> None:
    """A service that lowers its limit under load must not have to build its chain anew."""
    primitive = TimeoutPrimitive(LambdaPrimitive(asyncio.sleep), 10.0)
    primitive.timeout_seconds = 1.0
    assert 1.0 == primitive.timeout_seconds == primitive.get_stats()["timeout_seconds"]
    with pytest.raises(PrimitiveTimeoutError) as caught:
        await primitive.execute(5.0)
    assert 1.0 == caught.value.timeout_seconds
    with pytest.raises(ConfigurationError, match=r"^timeout_seconds must be > 0"):
        primitive.timeout_seconds = 0


async def test_a_loop_that_takes_no_context_for_a_task() -> None:
    """A loop of the user's has a `create_task` of its own, with the arguments of older versions."""

    class Old(asyncio.SelectorEventLoop):
        def create_task(self, coro: Any, *, name: str | None = None) -> asyncio.Task[Any]:  # type: ignore[override]
            return super().create_task(coro, name=name)

    async def work(_: Any) -> Deadline | None:
        return current_deadline()

    def run() -> Any:
        loop = Old()
        try:
            return loop.run_until_complete(TimeoutPrimitive(work, 30.0).execute("question"))
        finally:
            loop.close()

    assert await asyncio.to_thread(run) is not None
    assert current_deadline() is None


async def test_what_the_work_puts_into_its_context_goes_with_it() -> None:
    """The event loop keeps a cancelled timer until its time: it must not keep what the work left in its context."""
    held: ContextVar[object] = ContextVar("held")

    class Big:
        pass

    left: list[weakref.ref[Big]] = []

    async def work(_: Any) -> None:
        big = Big()
        left.append(weakref.ref(big))
        held.set(big)

    later = asyncio.get_running_loop().call_later(1.0, print)  # due before, so the loop drops none of the cancelled
    for _ in range(3):
        await TimeoutPrimitive(work, 30.0).execute("question")
    await asyncio.sleep(0)  # the loop is done with the last task
    gc.collect()
    assert [None, None, None] == [each() for each in left]
    later.cancel()


async def test_the_limit_fires_while_the_work_is_entered() -> None:
    """Work that runs the loop again, as notebooks do, is in its context when the limit passes."""
    loop = asyncio.get_running_loop()
    entered: list[Context] = []

    async def work(_: Any) -> None:
        entered.append(copy_context())
        await asyncio.sleep(100.0)

    seen: list[Context] = []
    call_later = loop.call_later

    def spy(*arguments: Any, context: Context | None = None) -> asyncio.TimerHandle:
        if context is not None:
            seen.append(context)
        return call_later(*arguments, context=context)

    loop.call_later = spy  # type: ignore[method-assign]
    try:
        with pytest.raises(PrimitiveTimeoutError):
            await TimeoutPrimitive(work, 1.0).execute("question")
    finally:
        del loop.call_later
    assert [0] == [len(context) for context in seen]  # empty, hence of no task
