"""Traps of asyncio, one after the other: each is either walked around by a test, or fenced off by a look at the source.

Most of them were found in other libraries, by people who lost a night over them.
"""

from __future__ import annotations

import ast
import asyncio
import builtins
import contextlib
import gc
import inspect
import math
import threading
from collections.abc import AsyncIterator, Iterator
from contextvars import ContextVar
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import observability_integration
from observability_integration.context import Deadline
from observability_integration.errors import ConfigurationError, PrimitiveTimeoutError
from observability_integration.primitives import LambdaPrimitive, ParallelPrimitive, TimeoutPrimitive
from observability_integration.testing import FakeClockLoop

LOOP_FACTORY = FakeClockLoop

ROOT = Path(inspect.getfile(observability_integration)).parent
# The demo is an application of its own, whose tasks are nobody's calls.
SOURCES = [path for path in sorted(ROOT.rglob("*.py")) if "demo" not in path.relative_to(ROOT).parts]


@cache
def nodes() -> list[tuple[str, ast.AST]]:
    """Every node of the source that the fences look at, and where it stands."""
    return [
        (f"{path.relative_to(ROOT)}:{getattr(node, 'lineno', 0)}", node)
        for path in SOURCES
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute | ast.ImportFrom | ast.Expr)
    ]


def uses(*names: str, module: str = "asyncio") -> list[str]:
    """Where the source names one of these, as `asyncio.name`, or imports it from asyncio."""
    found = []
    for where, node in nodes():
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == module:
            named = [node.attr]
        elif isinstance(node, ast.ImportFrom) and node.module == module:
            named = [alias.name for alias in node.names]
        else:
            continue
        found += [f"{where} {name}" for name in named if name in names]
    return found


def now() -> float:
    return asyncio.get_running_loop().time()


async def hang(_: Any = None) -> Any:
    await asyncio.Event().wait()


@contextlib.contextmanager
def complaints() -> Iterator[list[str]]:
    """What the event loop complains of: "exception was never retrieved" and the like."""
    told: list[str] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context["message"]))
    yield told
    gc.collect()


def test_the_source_is_looked_at() -> None:
    """The fences below are worth nothing if they look at nothing."""
    assert len(SOURCES) > 30
    assert uses("CancelledError")


@pytest.mark.promise("B4")
def test_trap_1_wait_for_is_not_used() -> None:
    """On 3.11 `asyncio.wait_for` swallows a cancellation that comes as the inner future completes: it is not used."""
    assert [] == uses("wait_for")


@pytest.mark.promise("B4", "T5")
@pytest.mark.parametrize("turns", range(6))
async def test_trap_1_cancelled_as_the_work_completes(turns: int) -> None:
    """A cancellation in any of the turns in which the work's end makes its way to the caller gets out."""
    value: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def work(_: str) -> str:
        return await value

    task = asyncio.ensure_future(TimeoutPrimitive(work, 10.0).execute("question"))
    for _ in range(5):
        await asyncio.sleep(0)
    value.set_result("answer")
    for _ in range(turns):
        await asyncio.sleep(0)
    was_live = task.cancel()
    await asyncio.wait({task})
    assert was_live == task.cancelled()
    assert was_live == (turns < 2)


@pytest.mark.promise("T3")
async def test_trap_2_swallowed_cancel_is_no_success(metrics: Any) -> None:
    """Work that swallows its cancel and returns would pass for a success, late and uncounted; it is a timeout."""

    async def swallows(_: str) -> str:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(60.0)
        return "late"

    with pytest.raises(PrimitiveTimeoutError) as caught:
        await TimeoutPrimitive(swallows, 10.0, operation_name="ask").execute("question")
    assert "late_result" == caught.value.cleanup
    assert 1 == metrics("timeout.late_results", operation="ask")


@pytest.mark.promise("T2")
async def test_trap_3_foreign_timeout_error(metrics: Any) -> None:
    """A TimeoutError of a client library, after no time at all, must not be counted as our limit having passed."""
    foreign = builtins.TimeoutError("read timed out")

    async def fails(_: str) -> str:
        raise foreign

    with pytest.raises(builtins.TimeoutError) as caught:
        await TimeoutPrimitive(fails, 10.0, operation_name="ask").execute("question")
    assert foreign is caught.value
    assert 0 == metrics("timeout.failures", operation="ask", kind="total")
    assert 1 == metrics("timeout.errors", operation="ask", error_type="TimeoutError")


def test_trap_4_a_timeout_error_is_an_os_error() -> None:
    """`except OSError` catches our timeout, because TimeoutError is one: kept for compatibility, so it must be said."""
    assert issubclass(PrimitiveTimeoutError, OSError)
    assert "``OSError``" in (PrimitiveTimeoutError.__doc__ or "")


@pytest.mark.promise("B4")
def test_trap_5_uncancel_has_one_place() -> None:
    """A cancel of the caller's own task must be undone, and is easily undone wrongly: we cancel child tasks.

    But for the one wait in which the source must stay in its reader's task (see `TailTimeout`), which is cancelled at
    every turn in test_cancel_every_tick.
    """
    found = [where for where, node in nodes() if isinstance(node, ast.Attribute) and node.attr == "uncancel"]
    assert ["primitives/llm/tail.py"] == [where.partition(":")[0] for where in found]
    assert [] == uses("TaskGroup")  # leaves cancelling() == 1 behind on 3.11


@pytest.mark.promise("B4")
async def test_trap_5_timeouts_leave_no_mark_on_the_caller() -> None:
    """After a timeout, or a failure in parallel, the caller's task counts no cancellation that nobody asked for."""
    task = asyncio.current_task()
    assert task is not None
    with pytest.raises(PrimitiveTimeoutError):
        await TimeoutPrimitive(hang, 10.0).execute("question")

    async def fails(_: str) -> None:
        raise LookupError

    with pytest.raises(LookupError):
        await ParallelPrimitive([hang, fails]).execute("question")
    assert 0 == task.cancelling()


@pytest.mark.promise("B4")
async def test_trap_5_works_in_the_clean_up_of_a_cancelled_task() -> None:
    """In a `finally` of a cancelled task, where cancelling() is 1 already, a timeout is still a timeout."""
    seen: list[object] = []

    async def cancelled() -> None:
        task = asyncio.current_task()
        assert task is not None
        try:
            await hang()
        finally:
            try:
                await TimeoutPrimitive(hang, 10.0).execute("question")
            except PrimitiveTimeoutError as error:
                seen.append(error.cleanup)
            seen.append(await TimeoutPrimitive(LambdaPrimitive(asyncio.sleep), 10.0).execute(1.0))
            seen.append(task.cancelling())

    task = asyncio.ensure_future(cancelled())
    await asyncio.sleep(1.0)
    task.cancel()
    await asyncio.wait({task})
    assert task.cancelled()
    assert ["clean", None, 1] == seen


@pytest.mark.parametrize("value", [0, math.nan, True])
def test_trap_6_limits_that_mean_something_else(value: float) -> None:
    """`asyncio.timeout` takes 0, nan and True for odd things, and can swallow a cancel at 0: refused, and not used."""
    with pytest.raises(ConfigurationError):
        TimeoutPrimitive(hang, value)
    assert [] == uses("timeout", "timeout_at")


@pytest.mark.promise("T7")
async def test_trap_7_nested_equal_deadlines() -> None:
    """Of two limits that pass at once, one must own the timeout, or none or both are reported: it is the outer one."""
    inner = TimeoutPrimitive(hang, 10.0, operation_name="inner")
    with pytest.raises(PrimitiveTimeoutError) as caught:
        await TimeoutPrimitive(inner, 10.0, operation_name="outer").execute("question")
    assert ("outer", 10.0) == (caught.value.operation, now())


@pytest.mark.promise("T3")
async def test_trap_8_error_in_the_clean_up_does_not_hide_the_timeout() -> None:
    """A `finally` that raises replaces the CancelledError, and with it the timeout; ours is raised from that error."""

    async def cleans_up_badly(_: str) -> None:
        try:
            await hang()
        finally:
            raise ValueError("translated")

    with pytest.raises(PrimitiveTimeoutError) as caught:
        await TimeoutPrimitive(cleans_up_badly, 10.0).execute("question")
    assert isinstance(caught.value.__cause__, ValueError)


async def test_trap_9_blocked_loop_is_told(metrics: Any, caplog: pytest.LogCaptureFixture) -> None:
    """Code that blocks the loop makes every timer late and passes for a success; it is counted and its cause told."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, FakeClockLoop)

    async def blocks(_: str) -> str:
        loop.advance(40.0)
        return "answer"

    assert "answer" == await TimeoutPrimitive(blocks, 10.0, operation_name="ask").execute("question")
    assert 1 == metrics("timeout.late_results", operation="ask")
    assert "event loop was blocked" in caplog.text


@pytest.mark.promise("B1")
def test_trap_10_synchronous_callables_are_refused() -> None:
    """A thread cannot be stopped and a blocked loop cannot be interrupted, so a synchronous callable is no step."""
    with pytest.raises(ConfigurationError, match="run_in_thread=True"):
        TimeoutPrimitive(lambda question: question, 10.0)  # type: ignore[arg-type,return-value]


@pytest.mark.promise("T1", "T4")
async def test_trap_10_a_thread_is_left_behind_and_says_so(metrics: Any) -> None:
    """With `run_in_thread` the caller is freed in time; the thread, which goes on, is reported while it runs."""
    asked, release = threading.Event(), threading.Event()

    def blocks(_: str) -> None:
        asked.set()
        release.wait()

    step = LambdaPrimitive(blocks, run_in_thread=True)
    try:
        with pytest.raises(PrimitiveTimeoutError) as caught:
            await TimeoutPrimitive(step, 10.0, operation_name="thread").execute("question")
        assert ("abandoned", 10.0) == (caught.value.cleanup, now())
        assert 1 == metrics("timeout.abandoned_active", operation="thread")
    finally:
        release.set()
    while metrics("timeout.abandoned_active", operation="thread"):
        await asyncio.sleep(0)
    assert asked.is_set()


async def test_trap_11_shielded_work_goes_on_unseen() -> None:
    """What the work puts behind `asyncio.shield` survives the cancel; the timeout cannot know, and says so."""
    done: list[float] = []

    async def inner() -> None:
        await asyncio.sleep(20.0)
        done.append(now())

    async def shields(_: str) -> None:
        await asyncio.shield(inner())

    with pytest.raises(PrimitiveTimeoutError) as caught:
        await TimeoutPrimitive(shields, 10.0).execute("question")
    assert ("clean", 10.0) == (caught.value.cleanup, now())
    await asyncio.sleep(15.0)
    assert [20.0] == done
    assert "asyncio.shield" in (TimeoutPrimitive.__doc__ or "")


@pytest.mark.promise("B4")
async def test_trap_12_work_that_raises_cancelled_error() -> None:
    """`task.cancelled()` is true for work that raised CancelledError by itself; that is neither ours nor a timeout."""

    async def gives_up(_: str) -> None:
        raise asyncio.CancelledError("no more")

    task = asyncio.current_task()
    assert task is not None
    primitive = TimeoutPrimitive(gives_up, 10.0)
    with pytest.raises(asyncio.CancelledError, match="no more"):
        await primitive.execute("question")
    assert (0, 0) == (task.cancelling(), primitive.get_stats()["failures"])


@pytest.mark.promise("T8")
async def test_trap_13_no_timer_runs_around_a_yield() -> None:
    """A timer held across a `yield` cancels the reader's own awaits: ours run only while a chunk is waited for."""

    async def numbers(_: str) -> AsyncIterator[int]:
        for number in range(3):
            await asyncio.sleep(1.0)
            yield number

    primitive: Any = TimeoutPrimitive(numbers, 5.0, idle_seconds=2.0, first_chunk_seconds=2.0)
    got = []
    async with primitive.stream("question") as chunks:
        async for number in chunks:
            got.append(number)
            await asyncio.sleep(100.0)
    assert [0, 1, 2] == got
    assert [] == uses("timeout", "timeout_at")


@pytest.mark.promise("X3")
async def test_trap_14_the_whole_stream_runs_in_one_task() -> None:
    """A task for each step changes the context under a generator, whose `ContextVar.reset` then fails, and kills it."""
    variable: ContextVar[int] = ContextVar("variable", default=0)
    tasks = set()

    async def numbers(_: str) -> AsyncIterator[int]:
        token = variable.set(1)
        try:
            for number in range(3):
                tasks.add(asyncio.current_task())
                await asyncio.sleep(1.0)
                yield number + variable.get()
        finally:
            variable.reset(token)

    primitive: Any = TimeoutPrimitive(numbers, 5.0, idle_seconds=2.0)
    got = []
    async with primitive.stream("question") as chunks:
        async for number in chunks:
            got.append(number)
            await asyncio.sleep(3.0)  # a gap between two steps
    assert [1, 2, 3] == got
    assert 1 == len(tasks)


@pytest.mark.promise("T1", "T4")
async def test_trap_15_retries_on_cancelled_error(metrics: Any) -> None:
    """A retry loop that catches CancelledError ignores an edge-triggered cancel for ever: the caller leaves it."""
    stop = asyncio.Event()

    async def retries(_: str) -> None:
        while not stop.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await stop.wait()

    with pytest.raises(PrimitiveTimeoutError) as caught:
        await TimeoutPrimitive(retries, 10.0, 5.0, "retries").execute("question")
    assert ("abandoned", 15.0) == (caught.value.cleanup, now())
    assert 1 == metrics("timeout.abandoned_active", operation="retries")
    stop.set()
    while metrics("timeout.abandoned_active", operation="retries"):
        await asyncio.sleep(0)


def test_trap_16_no_task_is_started_and_forgotten() -> None:
    """The loop holds its tasks weakly, so one that nobody holds may vanish halfway: each is awaited, held or owned."""
    started = ("create_task", "ensure_future")
    assert [] == [
        where
        for where, node in nodes()
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Call)
        and ast.unparse(node.value.func).endswith(started)
    ]


@pytest.mark.promise("T4")
async def test_trap_16_abandoned_work_is_held_and_its_error_retrieved() -> None:
    """Abandoned work survives a garbage collection, and its error at the end does not make asyncio complain."""
    ended: list[float] = []

    async def stubborn(_: str) -> None:
        until = now() + 60.0
        while now() < until:
            with contextlib.suppress(asyncio.CancelledError):
                await asyncio.sleep(until - now())
        ended.append(now())
        raise ValueError("nobody asked")

    with complaints() as told:
        with pytest.raises(PrimitiveTimeoutError):
            await TimeoutPrimitive(stubborn, 10.0, 5.0).execute("question")
        gc.collect()
        await asyncio.sleep(60.0)
        assert [60.0] == ended
        gc.collect()
    assert [] == told


def test_trap_17_only_the_loops_clock_decides() -> None:
    """Wall clocks jump, and the monotonic one stops in suspend: limits and deadlines know the loop's clock alone."""
    clocks = uses("time", "monotonic", "perf_counter", "time_ns", "monotonic_ns", "perf_counter_ns", module="time")
    timed = ("primitives/timeout", "resilience/bounded", "tasks.py", "context.py")
    read = {(where.partition(":")[0], where.rpartition(" ")[2]) for where in clocks if where.startswith(timed)}
    # Of a workflow, perf_counter tells the age, and monotonic is the clock of every loop, before there is one.
    assert {("context.py", "perf_counter"), ("context.py", "monotonic")} == read
    assert "suspended" in (Deadline.__doc__ or "")
