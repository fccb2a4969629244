"""What is accepted as a step, how steps are combined, and what travels with a call."""

from __future__ import annotations

import asyncio
import copy
import functools
import gc
import os
import pickle
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from collections.abc import AsyncIterator, Callable
from contextvars import ContextVar
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock, MagicMock, Mock

import pytest

from observability_integration import WorkflowContext, errors, events
from observability_integration.context import (
    Deadline,
    current_deadline,
    earliest,
    remaining,
    reset_deadline,
    set_deadline,
)
from observability_integration.errors import (
    ConfigurationError,
    MissingDependencyError,
    ObservabilityError,
    PrimitiveTimeoutError,
    StreamInterruptedError,
    StreamStalledError,
)
from observability_integration.primitives import (
    ConditionalPrimitive,
    LambdaPrimitive,
    ParallelPrimitive,
    RouterPrimitive,
    SequentialPrimitive,
    StreamingPrimitive,
    SwitchPrimitive,
    TimeoutPrimitive,
    WorkflowPrimitive,
)
from observability_integration.primitives.lifting import call_of, lift
from observability_integration.tasks import DaemonThreads, left_in_thread, own, spawn, wait_done
from observability_integration.testing import FakeClockLoop

LOOP_FACTORY = FakeClockLoop


def now() -> float:
    return asyncio.get_running_loop().time()


async def upper(text: str) -> str:
    return text.upper()


async def twice(text: str) -> str:
    return text * 2


async def with_context(text: str, context: WorkflowContext) -> str:
    return f"{text} {context.workflow_id}"


async def hang(_: Any) -> Any:
    await asyncio.Event().wait()


# ---- lifting: what is accepted wherever a primitive is


class Greeter:
    """An object with methods, and itself callable."""

    def __init__(self, greeting: str) -> None:
        self.greeting = greeting

    async def greet(self, name: str) -> str:
        return f"{self.greeting} {name}"

    async def __call__(self, name: str) -> str:
        return await self.greet(name)

    @staticmethod
    async def plain(name: str) -> str:
        return f"hi {name}"

    @classmethod
    async def of_class(cls, name: str) -> str:
        return f"{cls.__name__} {name}"


async def greet(greeting: str, name: str) -> str:
    return f"{greeting} {name}"


@pytest.mark.promise("B1")
@pytest.mark.parametrize(
    ("step", "name"),
    [
        (functools.partial(greet, "hello"), "greet"),
        (functools.partial(functools.partial(greet), "hello"), "greet"),
        (Greeter("hello").greet, "greet"),
        (Greeter("hello"), "Greeter"),
        (functools.partial(Greeter("hello")), "Greeter"),
        (AsyncMock(return_value="hello you"), "AsyncMock"),
        (LambdaPrimitive(functools.partial(greet, "hello"), name="named"), "named"),
    ],
    ids=["partial", "partial of a partial", "bound method", "object", "partial of an object", "mock", "primitive"],
)
async def test_any_async_callable_is_a_step(step: Any, name: str) -> None:
    """However an async function is dressed up, it is accepted, called with the input, and named recognisably."""
    assert "hello you" == await lift(step).execute("you")
    assert name == lift(step).name


@pytest.mark.promise("B1")
async def test_static_and_class_methods() -> None:
    """Methods of the class are functions like any other."""
    assert "hi you" == await lift(Greeter.plain).execute("you")
    assert "Greeter you" == await lift(Greeter.of_class).execute("you")


@pytest.mark.promise("B1")
async def test_mock_is_called_as_what_it_stands_for() -> None:
    """A mock has every attribute; it is executed only if its `execute` was set, and called otherwise."""
    call = AsyncMock(return_value="called")
    assert "called" == await lift(call).execute("x")
    call.assert_awaited_once_with("x")

    primitive = MagicMock()
    primitive.execute = AsyncMock(return_value="executed")
    context = WorkflowContext()
    assert "executed" == await lift(primitive).execute("x", context)
    primitive.execute.assert_awaited_once_with("x", context)


async def default_context(text: str, context: WorkflowContext | None = None) -> str:
    return f"{text} {context and context.workflow_id}"


async def short_context(text: str, ctx: Any = None) -> str:
    return f"{text} {ctx and ctx.workflow_id}"


async def of_any_name(text: str, whatever: WorkflowContext) -> str:
    return f"{text} {whatever.workflow_id}"


async def keyword_default(text: str, *, temperature: float = 0.2) -> str:
    return f"{text} {temperature}"


async def positional_default(text: str, temperature: float = 0.2) -> str:
    return f"{text} {temperature}"


async def anything(*args: Any, **kwargs: Any) -> str:
    return f"{len(args)} {len(kwargs)}"


@pytest.mark.promise("B1")
@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (with_context, "x w-1"),
        (default_context, "x w-1"),
        (short_context, "x w-1"),
        (of_any_name, "x w-1"),
        (keyword_default, "x 0.2"),
        (positional_default, "x 0.2"),
        (anything, "1 0"),
        (AsyncMock(return_value="no parameters of its own"), "no parameters of its own"),
        (functools.partial(with_context, context=WorkflowContext("own")), "x own"),
    ],
)
async def test_context_goes_to_those_who_take_it(step: Any, expected: str) -> None:
    """The context is passed to a second parameter that is required or named so, and never in place of a default."""
    assert expected == await lift(step).execute("x", WorkflowContext("w-1"))


@pytest.mark.promise("B1")
async def test_context_is_made_when_there_is_none() -> None:
    """A step that takes a context always gets one."""
    assert "x None" == await lift(with_context).execute("x")
    assert "x None" == await LambdaPrimitive(
        lambda x, context: f"{x} {context.workflow_id}", run_in_thread=True
    ).execute("x")


@pytest.mark.promise("B1")
async def test_object_with_an_execute() -> None:
    """Another library's primitive, whether its `execute` is a method or an attribute, is taken as it is."""

    class Theirs:
        async def execute(self, input_data: str, context: Any) -> str:
            return f"{input_data} {type(context).__name__}"

    async def execute(input_data: str, context: Any) -> str:
        return f"{input_data} {type(context).__name__}"

    assert "x WorkflowContext" == await lift(Theirs()).execute("x")
    assert "x WorkflowContext" == await lift(SimpleNamespace(execute=execute)).execute("x")
    assert "Theirs" == lift(Theirs()).name


@pytest.mark.promise("B1")
async def test_async_generators_are_streaming_steps() -> None:
    """An async generator, as a function, a method or an object, streams."""

    class Letters:
        async def method(self, text: str) -> AsyncIterator[str]:
            for letter in text:
                yield letter

        async def __call__(self, text: str) -> AsyncIterator[str]:
            for letter in text:
                yield letter

    for step in (Letters().method, Letters(), functools.partial(Letters.method, Letters())):
        lifted = lift(step)  # type: ignore[arg-type]
        assert isinstance(lifted, StreamingPrimitive)
        async with lifted.stream("ab") as chunks:
            assert ["a", "b"] == [chunk async for chunk in chunks]


def synchronous(text: str) -> str:
    return text


async def no_parameters() -> None: ...
async def three(a: Any, b: Any, c: Any) -> None: ...
async def needs_a_keyword(a: Any, *, model: str) -> None: ...


class SyncExecute:
    def execute(self, input_data: Any, context: Any) -> Any:
        return input_data


@pytest.mark.promise("B1")
@pytest.mark.parametrize(
    ("step", "message"),
    [
        (synchronous, "synchronous is synchronous and would block the event loop.*run_in_thread=True"),
        (lambda x: upper(x), "<lambda> is synchronous"),
        (functools.partial(synchronous), "synchronous is synchronous"),
        (len, "len is synchronous"),
        (Mock(), "Mock is synchronous"),
        (SyncExecute(), "SyncExecute.execute is not async"),
        (Greeter, "expected a primitive or an async callable, got the class Greeter"),
        (SyncExecute, "got the class SyncExecute"),
        (RouterPrimitive, "got the class RouterPrimitive"),
        (None, "expected a primitive or an async callable, got NoneType"),
        ("text", "got str"),
        (no_parameters, "must take .* but takes no argument"),
        (three, r"requires \['a', 'b', 'c'\]"),
        (needs_a_keyword, r"requires \['a', 'model'\]"),
    ],
)
def test_what_is_no_step(step: Any, message: str) -> None:
    """What cannot be a step is refused when the chain is built, with what to do instead; not when it first runs."""
    with pytest.raises(ConfigurationError, match=message):
        lift(step)


def test_each_lift_keeps_to_its_kind() -> None:
    """A generator is no function and the other way round; each class says which one to use."""

    async def letters(text: str) -> AsyncIterator[str]:
        yield text

    with pytest.raises(ConfigurationError, match=r"pass StreamingPrimitive\(func\)"):
        LambdaPrimitive(letters)
    with pytest.raises(ConfigurationError, match="upper is no async generator function"):
        StreamingPrimitive(upper)  # type: ignore[arg-type]


def test_lifting_a_primitive_gives_itself() -> None:
    """A primitive is a step as it is."""
    primitive = LambdaPrimitive(upper)
    assert primitive is lift(primitive)


async def test_subclass_of_a_lifted_function_keeps_its_execute() -> None:
    """The shortcut past `execute`, which plain functions take, must not pass by one that a subclass has written."""

    class Loud(LambdaPrimitive[str, str]):
        async def execute(self, input_data: str, context: WorkflowContext | None = None) -> str:
            return await super().execute(input_data, context) + "!"

    assert "X!" == await call_of(Loud(upper))("x", None)
    assert "X!" == await TimeoutPrimitive(Loud(upper), 1.0).execute("x")


# ---- steps in threads


@pytest.mark.promise("B1")
async def test_synchronous_step_in_a_thread() -> None:
    """With `run_in_thread` a synchronous function runs beside the loop, with the caller's context variables."""
    variable: ContextVar[str] = ContextVar("variable")
    variable.set("set by the caller")

    def work(text: str) -> tuple[str, str, bool]:
        return text, variable.get(), threading.current_thread().daemon

    step = LambdaPrimitive(work, run_in_thread=True)
    assert ("x", "set by the caller", True) == await step.execute("x")


async def test_errors_of_a_thread_pass() -> None:
    """An error in the thread is the caller's, and one that a future cannot carry is said in other words."""

    def fails(_: str) -> None:
        raise LookupError("in the thread")

    def stops(_: str) -> None:
        raise StopIteration

    with pytest.raises(LookupError, match="in the thread"):
        await LambdaPrimitive(fails, run_in_thread=True).execute("x")
    with pytest.raises(RuntimeError, match="StopIteration"):
        await LambdaPrimitive(stops, run_in_thread=True).execute("x")


async def test_threads_are_few_and_used_again() -> None:
    """As many threads as are needed at once, up to the bound; an idle one is used before a new one is started."""
    threads = DaemonThreads(2, "few")
    names: set[int] = set()
    for _ in range(5):
        names.add(await threads.run(threading.get_ident))
    assert 1 == len(names)

    running, most, lock = 0, 0, threading.Lock()

    def work() -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.002)
        with lock:
            running -= 1

    await asyncio.gather(*(threads.run(work) for _ in range(8)))
    assert (0, 2) == (running, most)


async def test_cancelled_caller_leaves_its_thread() -> None:
    """Cancelling frees the caller at once; what the thread brings later, a value or an error, bothers nobody."""
    complaints: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    threads = DaemonThreads(2, "left")
    release, done = threading.Event(), []

    def work(fails: bool) -> None:
        release.wait()
        done.append(fails)
        if fails:
            raise LookupError

    callers = [asyncio.ensure_future(threads.run(work, fails)) for fails in (True, False)]
    await asyncio.sleep(0)
    for caller in callers:
        caller.cancel()
    await asyncio.wait(callers)
    assert all(caller.cancelled() for caller in callers)
    release.set()
    while len(done) < 2:
        await asyncio.sleep(0)
    await threads.run(lambda: None)
    gc.collect()
    assert [] == complaints


def test_cancelled_in_the_turn_in_which_the_thread_ends() -> None:
    """Cancelled just as the value arrives: the caller hears of its cancellation, and no thread is left running."""

    class Loop(FakeClockLoop):
        told = 0

        def call_soon_threadsafe(self, *args: Any, **kwargs: Any) -> Any:
            handle = super().call_soon_threadsafe(*args, **kwargs)
            self.told += 1
            return handle

    async def main() -> None:
        loop: Any = asyncio.get_running_loop()

        def cancel_after_the_value() -> None:
            while loop.told < 2:  # until the thread has queued its value
                time.sleep(0.001)
            loop.call_soon(task.cancel)

        task = asyncio.ensure_future(
            DaemonThreads(1, "ends").run(lambda: loop.call_soon_threadsafe(cancel_after_the_value))
        )
        await asyncio.wait({task})
        assert task.cancelled()
        assert left_in_thread(task) is None

    with asyncio.Runner(loop_factory=Loop) as runner:
        runner.run(main())


async def test_idle_thread_keeps_nothing() -> None:
    """What was asked and answered last, which may be large or secret, must not live on in a thread that waits."""

    class Text:
        pass

    threads = DaemonThreads(1, "idle")
    question, answer = Text(), Text()
    gone = [weakref.ref(question), weakref.ref(answer)]
    answers = [answer]
    assert answer is await threads.run(lambda _: answers.pop(), question)
    del question, answer
    for _ in range(1000):  # the thread tells of the answer a moment before it puts it away
        await asyncio.sleep(0)
        if [None, None] == [reference() for reference in gone]:
            break
        time.sleep(0.001)
    assert [None, None] == [reference() for reference in gone]


def test_thread_that_outlives_its_loop() -> None:
    """A thread that ends after its loop was closed has nobody to tell, and must not end in a traceback."""
    threads = DaemonThreads(1, "outlives")
    release, raised = threading.Event(), []

    async def ask() -> None:
        task = asyncio.ensure_future(threads.run(release.wait))
        await asyncio.sleep(0)
        task.cancel()

    hook, threading.excepthook = threading.excepthook, raised.append
    try:
        asyncio.run(ask())
        release.set()
        asyncio.run(threads.run(lambda: None))
    finally:
        threading.excepthook = hook
    assert [] == raised


async def test_no_thread_can_be_started(monkeypatch: pytest.MonkeyPatch) -> None:
    """When the system has no thread to give, the call fails, and a later one works."""
    threads = DaemonThreads(1, "none")

    def fail(_: Any) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", fail)
        with pytest.raises(RuntimeError, match="can't start new thread"):
            await threads.run(lambda: "ran")
    assert "ran" == await threads.run(lambda: "ran")


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        timeout=20,
        check=False,
    )


@pytest.mark.promise("T1")
def test_hanging_thread_does_not_keep_the_process_alive() -> None:
    """A blocking call that never returns must not hold up the end of the program, as the standard executors do."""
    result = python("""
        import asyncio, threading
        from observability_integration.primitives import LambdaPrimitive, TimeoutPrimitive

        def hangs(_):
            threading.Event().wait()

        async def main():
            try:
                await TimeoutPrimitive(LambdaPrimitive(hangs, run_in_thread=True), 0.01, 0).execute("x")
            except TimeoutError as error:
                print(error.cleanup)

        asyncio.run(main())
    """)
    assert (0, "abandoned\n") == (result.returncode, result.stdout), result.stderr


@pytest.mark.promise("S8")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform does not fork")
def test_forked_child_starts_its_own_threads() -> None:
    """A fork copies the count of threads but not the threads: a child that trusted it would wait for ever."""
    result = python("""
        import asyncio, os
        from observability_integration.tasks import DaemonThreads

        threads = DaemonThreads(1, "forked")
        asyncio.run(threads.run(lambda: None))
        pid = os.fork()
        if pid == 0:
            print(asyncio.run(threads.run(lambda: "child")), flush=True)
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    """)
    assert (0, "child\n0\n") == (result.returncode, result.stdout), result.stderr


# ---- a >> b


@pytest.mark.promise("B2")
async def test_sequence() -> None:
    """`a >> b` feeds what a returns to b; plain functions may stand on either side."""
    chain = LambdaPrimitive(upper) >> twice
    assert isinstance(chain, SequentialPrimitive)
    assert "XX" == await chain.execute("x")
    assert "XX" == await (twice >> LambdaPrimitive(upper)).execute("x")
    assert "x w-1x w-1" == await (with_context >> LambdaPrimitive(twice)).execute("x", WorkflowContext("w-1"))


@pytest.mark.promise("B2")
async def test_sequences_flatten() -> None:
    """A sequence of sequences is one sequence, whichever way it was put together."""
    a, b, c, d = (LambdaPrimitive(upper, name=name) for name in "abcd")
    for chain in ((a >> b) >> (c >> d), a >> (b >> (c >> d)), SequentialPrimitive([a, a >> b >> c][1:]) >> d):
        assert "sequence\n  1: a\n  2: b\n  3: c\n  4: d" == chain.describe()


async def test_sequence_stops_at_the_first_error(tracing: Any) -> None:
    """What comes after an error is not run, and the error passes unchanged."""
    failure = LookupError()
    after = AsyncMock()

    async def fails(_: Any) -> None:
        raise failure

    with pytest.raises(LookupError) as caught:
        await SequentialPrimitive([upper, fails, after]).execute("x")
    assert failure is caught.value
    after.assert_not_awaited()
    span = tracing.named("sequence")
    assert (failure, 3, 1) == (span.error, span.attributes["sequence.steps"], span.ends)


@pytest.mark.parametrize("make", [SequentialPrimitive, ParallelPrimitive])
def test_nothing_to_run(make: Any) -> None:
    """A sequence or parallel step without any step is a mistake."""
    with pytest.raises(ConfigurationError, match="needs at least one"):
        make([])


# ---- a | b


@pytest.mark.promise("B2")
async def test_parallel() -> None:
    """`a | b` gives both the same input at the same time, and returns their results in order."""

    async def slow(text: str) -> str:
        await asyncio.sleep(2.0)
        return text + " slow"

    async def quick(text: str) -> str:
        await asyncio.sleep(1.0)
        return text + " quick"

    both = LambdaPrimitive(slow) | quick
    assert isinstance(both, ParallelPrimitive)
    assert ["x slow", "x quick"] == await both.execute("x")
    assert 2.0 == now()
    assert ["x quick", "x slow"] == await (quick | LambdaPrimitive(slow)).execute("x")


@pytest.mark.promise("B2")
async def test_parallels_flatten() -> None:
    """Nested parallel steps of the same width are one; a narrower one stays as it was bounded."""
    a, b, c, d = (LambdaPrimitive(upper, name=name) for name in "abcd")
    flat = "parallel\n  1: a\n  2: b\n  3: c\n  4: d"
    assert flat == ((a | b) | (c | d)).describe()
    assert flat == (a | (b | (c | d))).describe()
    assert ["X"] * 4 == await ((a | b) | (c | d)).execute("x")
    narrow = ParallelPrimitive([a, b], max_concurrency=1) | c
    assert "parallel\n  1: parallel\n    1: a\n    2: b\n  2: c" == narrow.describe()
    assert [["X", "X"], "X"] == await narrow.execute("x")


@pytest.mark.promise("B2")
async def test_first_failure_cancels_the_siblings(tracing: Any) -> None:
    """The first error, unchanged and unwrapped; the others are cancelled and have ended; the caller is unmarked."""
    failure = LookupError("first")
    ended: list[float] = []

    async def sibling(_: Any) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(3.0)
            ended.append(now())

    async def fails(_: Any) -> None:
        await asyncio.sleep(1.0)
        raise failure

    async def fails_too(_: Any) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            raise ValueError("in the clean-up")

    with pytest.raises(LookupError) as caught:
        await ParallelPrimitive([fails_too, sibling, fails]).execute("x")
    assert failure is caught.value
    assert [4.0] == ended
    task = asyncio.current_task()
    assert task is not None
    assert 0 == task.cancelling()
    assert {task} == asyncio.all_tasks()
    span = tracing.named("parallel")
    assert (failure, 3, 1) == (span.error, span.attributes["parallel.branches"], span.ends)


@pytest.mark.promise("B2")
async def test_first_failure_is_the_first_in_time() -> None:
    """Of two failures the earlier one is told, whatever the order of the branches."""

    async def late(_: Any) -> None:
        await asyncio.sleep(1.0)
        await asyncio.sleep(0)
        raise ValueError("late")

    async def early(_: Any) -> None:
        await asyncio.sleep(1.0)
        raise LookupError("early")

    with pytest.raises(LookupError, match="early"):
        await ParallelPrimitive([late, early]).execute("x")


@pytest.mark.promise("B2", "B4")
async def test_branch_that_cancels_itself() -> None:
    """A branch that ends by a CancelledError of its own ends the whole, at once, with just that."""

    async def gives_up(_: Any) -> None:
        await asyncio.sleep(1.0)
        raise asyncio.CancelledError("no more")

    with pytest.raises(asyncio.CancelledError):
        await ParallelPrimitive([hang, gives_up]).execute("x")
    task = asyncio.current_task()
    assert task is not None
    assert (1.0, 0) == (now(), task.cancelling())


@pytest.mark.promise("B4")
async def test_cancelled_twice_while_siblings_end() -> None:
    """A caller that is cancelled again leaves siblings to their clean-up, and their errors are nobody's complaint."""
    complaints: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))

    async def cleans_up(_: Any) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(5.0)
            raise ValueError

    async def cleans_up_for_ever(_: Any) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.get_running_loop().create_future()

    task = asyncio.ensure_future(ParallelPrimitive([cleans_up, cleans_up_for_ever]).execute("x"))
    asyncio.get_running_loop().call_at(1.0, task.cancel)
    asyncio.get_running_loop().call_at(2.0, task.cancel)
    await asyncio.wait({task})
    assert (True, 2.0) == (task.cancelled(), now())
    del task
    gc.collect()  # a task that nobody held would be gone
    await asyncio.sleep(10.0)
    (left,) = asyncio.all_tasks() - {asyncio.current_task()}
    left.cancel()
    await asyncio.wait({left})
    gc.collect()
    assert [] == complaints


@pytest.mark.parametrize(("width", "expected"), [(1, 1), (2, 2), (9, 5), (None, 5)])
async def test_bounded_width(width: int | None, expected: int) -> None:
    """No more branches run at a time than allowed, and no fewer."""
    running, most = 0, 0

    async def branch(_: Any) -> int:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(1.0)
        running -= 1
        return running

    await ParallelPrimitive([branch] * 5, max_concurrency=width).execute("x")
    assert expected == most


async def test_bounded_width_keeps_the_order_and_stops_at_a_failure() -> None:
    """Results stay in the order of the branches; after a failure no further branch is begun."""
    begun: list[int] = []

    def branch(number: int, seconds: float) -> Callable[[Any], Any]:
        async def run(_: Any) -> int:
            begun.append(number)
            await asyncio.sleep(seconds)
            if number == 3:
                raise LookupError
            return number

        return run

    seconds = [3.0, 1.0, 2.0]
    steps = [branch(number, seconds[number]) for number in range(3)]
    assert [0, 1, 2] == await ParallelPrimitive(steps, max_concurrency=2).execute("x")
    begun.clear()
    steps = [branch(3, 1.0), branch(0, 5.0), branch(1, 1.0), branch(2, 1.0)]
    with pytest.raises(LookupError):
        await ParallelPrimitive(steps, max_concurrency=2).execute("x")
    assert [3, 0] == begun


@pytest.mark.parametrize("width", [0, -1, True, 1.5, "2"])
def test_bad_width(width: Any) -> None:
    """A width is an integer from 1, or None for all."""
    with pytest.raises(ConfigurationError, match="max_concurrency must be an integer >= 1 or None"):
        ParallelPrimitive([upper], max_concurrency=width)


# ---- conditional and switch


async def awaited(text: str) -> bool:
    await asyncio.sleep(0)
    return text == "x"


@pytest.mark.parametrize(
    "condition",
    [
        lambda text: text == "x",
        lambda text, context: text == "x" and context is not None,
        awaited,
        lambda text: awaited(text),
        lambda text: [text] if text == "x" else [],
    ],
    ids=["sync", "with context", "async", "returns an awaitable", "truthy"],
)
async def test_conditional(condition: Any, tracing: Any) -> None:
    """A condition may be synchronous or not, take the context or not, and need only be true or false."""
    primitive = ConditionalPrimitive(condition, upper, twice)
    assert "X" == await primitive.execute("x")
    assert "yy" == await primitive.execute("y")
    assert ["True", "False"] == [span.attributes["conditional.branch"] for span in tracing.spans]


async def test_selector_that_tells_no_parameters() -> None:
    """Some builtins do not tell what they take: they are called with the input alone."""
    assert "X" == await SwitchPrimitive(type, {str: upper}).execute("x")
    assert "X" == await ConditionalPrimitive(bool, upper).execute("x")


async def test_conditional_without_an_else() -> None:
    """Where there is nothing to do, the input is the result."""
    primitive = ConditionalPrimitive(lambda _: False, upper)
    value = ["x"]
    assert value is await primitive.execute(value)  # type: ignore[arg-type]


@pytest.mark.parametrize("selector", [lambda text: text[0], lambda text, _: text[0]])
async def test_switch(selector: Any, tracing: Any) -> None:
    """The case whose key the selector returns, or the default; the span shows keys of cases only."""
    primitive = SwitchPrimitive(selector, {"a": upper, "b": twice}, default=with_context)
    assert "A" == await primitive.execute("a")
    assert "bb" == await primitive.execute("b")
    assert "secret w-1" == await primitive.execute("secret", WorkflowContext("w-1"))
    assert ["a", "b", "default"] == [span.attributes["switch.branch"] for span in tracing.spans]
    assert "switch\n  a: upper\n  b: twice\n  default: with_context" == primitive.describe()


@pytest.mark.parametrize("key", [["a", "list"], ("a tuple", ["with a list"]), None, "unknown"])
async def test_key_of_no_case(key: Any) -> None:
    """Any other key leads to the default, even one that could never be a key; without one, the input is the result."""
    assert "xx" == await SwitchPrimitive(lambda _: key, {"a": upper}, default=twice).execute("x")
    assert "x" == await SwitchPrimitive(lambda _: key, {"a": upper}).execute("x")


async def test_error_of_the_selector_passes(tracing: Any) -> None:
    """A selector that fails leaves no case to guess at: its error is the caller's."""

    def fails(_: Any) -> str:
        raise LookupError("selector")

    with pytest.raises(LookupError, match="selector"):
        await SwitchPrimitive(fails, {"a": upper}).execute("x")
    span = tracing.named("switch")
    assert (True, 1) == (isinstance(span.error, LookupError), span.ends)


def test_switch_without_cases() -> None:
    """A switch that cannot switch is a mistake."""
    with pytest.raises(ConfigurationError, match="at least one case"):
        SwitchPrimitive(lambda _: "a", {})


# ---- all primitives


@pytest.mark.promise("B5")
def test_description_of_a_chain() -> None:
    """`describe` prints the whole chain, outermost first, each inner one under the part it plays."""
    chain = (
        LambdaPrimitive(upper)
        >> TimeoutPrimitive(RouterPrimitive({"fast": twice, "best": upper}, lambda _, __: "fast"), 30.0, 2.0)
        >> ConditionalPrimitive(lambda _: True, ParallelPrimitive([twice, upper]))
    )
    assert chain.describe() == "\n".join(
        [
            "sequence",
            "  1: upper",
            "  2: timeout router (30s, grace 2.0s)",
            "    router router (default: fast)",
            "      fast: twice",
            "      best: upper",
            "  3: conditional",
            "    True: parallel",
            "      1: twice",
            "      2: upper",
        ]
    )


def test_a_primitive_of_ones_own() -> None:
    """Subclassing needs only `execute`: name, description and the operators come along."""

    class Own(WorkflowPrimitive[str, str]):
        async def execute(self, input_data: str, context: WorkflowContext | None = None) -> str:
            return input_data

    assert "sequence\n  1: Own\n  2: upper" == (Own() >> upper).describe()


@pytest.mark.promise("B3")
@pytest.mark.parametrize(
    "around",
    [
        lambda step: TimeoutPrimitive(step, 10.0),
        lambda step: RouterPrimitive({"fast": step}, lambda _, __: "fast"),
        lambda step: SequentialPrimitive([step]),
        lambda step: ParallelPrimitive([step, step]),
        lambda step: ConditionalPrimitive(lambda _: True, step),
        lambda step: SwitchPrimitive(lambda _: 1, {1: step}),
    ],
    ids=["timeout", "router", "sequence", "parallel", "conditional", "switch"],
)
async def test_input_and_errors_pass_unchanged(around: Any) -> None:
    """A primitive hands on the very object it was given, as it was, and the very error that the work raised."""
    question = {"messages": [{"content": "x"}]}
    before = copy.deepcopy(question)
    seen: list[Any] = []

    async def look(value: Any) -> Any:
        seen.append(value)
        return "answer"

    await around(look).execute(question)
    assert all(value is question for value in seen)
    assert before == question

    failure = LookupError()

    async def fails(_: Any) -> None:
        raise failure

    with pytest.raises(LookupError) as caught:
        await around(fails).execute(question)
    assert failure is caught.value
    assert failure.__cause__ is None


# ---- WorkflowContext


def test_context_builds_only_what_is_read() -> None:
    """A context that nobody looks into costs next to nothing; each field appears when it is first read, and stays."""
    context = WorkflowContext()
    for name, kind in {"metadata": dict, "state": dict, "baggage": dict, "tags": dict, "checkpoints": list}.items():
        value = getattr(context, name)
        assert kind is type(value)
        assert value is getattr(context, name)
    assert 32 == len(context.correlation_id)
    assert context.correlation_id == context.correlation_id
    assert context.correlation_id != WorkflowContext().correlation_id
    with pytest.raises(AttributeError, match="'WorkflowContext' object has no attribute 'no_such'"):
        _ = context.no_such
    with pytest.raises(AttributeError):
        context.no_such = 1


def test_context_keeps_what_it_is_given() -> None:
    """Every argument is the field of its name, as the same object."""
    given: dict[str, Any] = {
        "workflow_id": "w-1",
        "session_id": "s-1",
        "correlation_id": "c-1",
        "metadata": {"a": 1},
        "state": {"b": 2},
        "baggage": {"c": "3"},
        "tags": {"d": "4"},
        "deadline": Deadline(5.0),
    }
    context = WorkflowContext(**given)
    for name, value in given.items():
        assert value is getattr(context, name)
    assert (
        "WorkflowContext(workflow_id='w-1', session_id='s-1', deadline=Deadline(when=5.0, operation='caller'))"
        == repr(context)
    )


def test_child_of_a_context() -> None:
    """A step's context has the same ids and clock, and copies of the rest: no step gets into another's way."""
    parent = WorkflowContext("w-1", "s-1", metadata={"a": 1}, tags={"team": "x"}, deadline=Deadline(5.0))
    parent.checkpoint("begun")
    child = parent.child("retrieve")
    assert ("w-1", "s-1", parent.correlation_id, parent.deadline) == (
        child.workflow_id,
        child.session_id,
        child.correlation_id,
        child.deadline,
    )
    assert {"team": "x", "step": "retrieve"} == child.tags
    child.metadata["b"] = 2
    child.state["c"] = 3
    assert ({"a": 1}, {}, {"team": "x"}) == (parent.metadata, parent.state, parent.tags)
    assert [] == child.checkpoints
    assert child.elapsed_ms() >= parent.checkpoints[0][1]


def test_checkpoints() -> None:
    """Checkpoints are noted in order, with the milliseconds since the start."""
    context = WorkflowContext()
    for name in "ab":
        context.checkpoint(name)
    (first, early), (second, late) = context.checkpoints
    assert ("a", "b") == (first, second)
    assert 0.0 <= early <= late <= context.elapsed_ms() < 10_000.0


def test_span_attributes_of_a_context() -> None:
    """The ids that the caller gave, and the one that joins everything; never what is inside."""
    context = WorkflowContext("w-1", "s-1", "c-1", metadata={"prompt": "secret"})
    attributes = context.to_otel_context()
    assert attributes.pop("workflow.elapsed_ms") >= 0  # type: ignore[operator]
    assert {"workflow.correlation_id": "c-1", "workflow.id": "w-1", "session.id": "s-1"} == attributes
    assert {"workflow.correlation_id", "workflow.elapsed_ms"} == set(WorkflowContext().to_otel_context())


@pytest.mark.parametrize("make", [copy.copy, copy.deepcopy, lambda context: pickle.loads(pickle.dumps(context))])
def test_context_can_be_copied(make: Any) -> None:
    """Users put contexts into queues and copies; what was never read must survive that too."""
    context = WorkflowContext("w-1", metadata={"a": 1})
    twin = make(context)
    assert ("w-1", {"a": 1}, context.correlation_id) == (twin.workflow_id, twin.metadata, twin.correlation_id)


# ---- Deadline


@pytest.mark.promise("T7")
async def test_deadline_on_the_loops_clock() -> None:
    """A deadline is a moment on the clock of the loop; what remains of it never falls below 0."""
    await asyncio.sleep(3.0)
    deadline = Deadline.after(5.0, "ask")
    assert (8.0, "ask", 5.0) == (deadline.when, deadline.operation, deadline.remaining())
    await asyncio.sleep(4.0)
    assert 1.0 == deadline.remaining()
    await asyncio.sleep(4.0)
    assert 0.0 == deadline.remaining()
    assert 0.0 == Deadline.after(-1).remaining()


def test_deadline_without_a_loop() -> None:
    """Made before the loop runs, a deadline is on the clock that the loop will have."""
    deadline = Deadline.after(60.0)
    assert 59.0 < deadline.remaining() <= 60.0

    async def left() -> float:
        return deadline.remaining()

    assert 59.0 < asyncio.run(left()) <= 60.0


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), -float("inf"), True, "5", None])
def test_bad_deadline(seconds: Any) -> None:
    """A deadline that means nothing is refused when it is made."""
    with pytest.raises(ConfigurationError, match="deadline seconds must be a finite number"):
        Deadline.after(seconds)


def test_deadlines_are_told_apart() -> None:
    """Two deadlines at the same moment are still two, or one primitive would take another's timeout for its own."""
    assert Deadline(1.0) != Deadline(1.0)


async def test_deadline_in_force() -> None:
    """A deadline binds the task that sets it and those started from there, until it is taken back."""
    assert (current_deadline(), remaining(), WorkflowContext().remaining()) == (None, None, None)
    deadline = Deadline.after(5.0)
    token = set_deadline(deadline)

    async def inside() -> Deadline | None:
        return current_deadline()

    assert deadline is await asyncio.ensure_future(inside())
    assert (5.0, 5.0) == (remaining(), WorkflowContext().remaining())
    assert 2.0 == WorkflowContext(deadline=Deadline.after(2.0)).remaining()
    reset_deadline(token)
    assert current_deadline() is None


def test_earliest() -> None:
    """Of two deadlines the nearer one, of two equal ones the first, of one and none the one."""
    near, far, equal = Deadline(1.0), Deadline(2.0), Deadline(1.0)
    assert near is earliest(near, far)
    assert near is earliest(far, near)
    assert near is earliest(near, equal)
    assert near is earliest(near, None)
    assert near is earliest(None, near)
    assert earliest(None, None) is None


# ---- events


@pytest.fixture
def heard() -> Any:
    """Subscribes, and ends the subscription after the test."""
    ends: list[Callable[[], None]] = []

    def hear(prefix: str = "") -> list[events.Event]:
        got: list[events.Event] = []
        ends.append(events.subscribe(got.append, prefix))
        return got

    yield hear
    for end in ends:
        end()


def test_events_reach_their_subscribers(heard: Any) -> None:
    """Each subscriber hears what begins with its prefix, with the facts and the time."""
    everything, caches, budgets = heard(), heard("cache."), heard("budget.")
    events.emit("cache.backend.degraded", operation="ask", attempts=3)
    (event,) = everything
    assert ("cache.backend.degraded", {"operation": "ask", "attempts": 3}) == (event.name, dict(event.attributes))
    assert abs(time.time() - event.time_seconds) < 60
    assert (everything, []) == (caches, budgets)
    with pytest.raises(TypeError):
        event.attributes["operation"] = "another"


def test_unsubscribing() -> None:
    """The function that `subscribe` returns ends that subscription, and no other of the same function."""
    got: list[events.Event] = []
    first, second = events.subscribe(got.append), events.subscribe(got.append)
    events.emit("a")
    first()
    first()
    events.emit("b")
    second()
    events.emit("c")
    assert ["a", "a", "b"] == [event.name for event in got]


@pytest.mark.promise("S9")
def test_subscriber_that_raises(heard: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A subscriber's fault is logged without its message, and keeps nobody else from hearing."""

    def fails(_: events.Event) -> None:
        raise ValueError("secret")

    end = events.subscribe(fails)
    after = heard()
    events.emit("a")
    end()
    assert 1 == len(after)
    assert ["A subscriber to event a raised ValueError"] == caplog.messages


# ---- tasks


async def test_wait_done() -> None:
    """Tells whether a task has ended in time; neither cancels it, nor raises its error."""

    async def fails() -> None:
        await asyncio.sleep(2.0)
        raise LookupError

    task = asyncio.ensure_future(fails())
    assert await wait_done(task, 1.0) is False
    assert not task.cancelled()
    # Waiting leaves nothing behind, on a task that lives long or in a loop that waits for a distant limit.
    assert not task._callbacks
    assert await wait_done(asyncio.ensure_future(asyncio.sleep(0)), 1_000_000.0) is True
    loop: Any = asyncio.get_running_loop()
    assert [] == [timer for timer in loop._scheduled if timer.when() > 1000.0 and not timer.cancelled()]
    assert await wait_done(task, None) is True
    assert await wait_done(task, 0.0) is True
    assert isinstance(task.exception(), LookupError)
    assert 2.0 == now()


@pytest.mark.promise("B4")
async def test_wait_done_passes_a_cancellation_on() -> None:
    """A cancelled caller stops waiting and leaves the task alone."""
    task = asyncio.ensure_future(asyncio.sleep(5.0))
    waiter = asyncio.ensure_future(wait_done(task, 60.0))
    await asyncio.sleep(1.0)
    waiter.cancel()
    await asyncio.wait({waiter})
    assert waiter.cancelled()
    assert not task.done()
    await task


async def test_owned_tasks_live_and_fail_quietly() -> None:
    """A background task that nobody holds runs to its end, and its error does not make asyncio complain."""
    complaints: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    done: list[str] = []

    async def work(name: str) -> None:
        await asyncio.get_running_loop().create_future() if name == "held" else await asyncio.sleep(1.0)
        done.append(name)
        raise LookupError

    spawn(work("spawned"), name="spawned")
    own(asyncio.ensure_future(work("owned")))
    held = weakref.ref(spawn(work("held"), name="held"))
    gc.collect()
    await asyncio.sleep(2.0)
    gc.collect()
    assert ["owned", "spawned"] == sorted(done)
    task = held()
    assert task is not None
    assert "held" == task.get_name()
    task.cancel()
    await asyncio.wait({task})
    assert [] == complaints


# ---- errors


def test_tree_of_errors() -> None:
    """The tree in the module's docstring is the tree, and callers who do not know us can catch what they know."""
    assert issubclass(ConfigurationError, ObservabilityError)
    assert issubclass(ConfigurationError, ValueError)
    assert issubclass(MissingDependencyError, ObservabilityError)
    assert issubclass(MissingDependencyError, ImportError)
    assert issubclass(StreamInterruptedError, ObservabilityError)
    assert not issubclass(StreamInterruptedError, PrimitiveTimeoutError)
    assert issubclass(StreamStalledError, StreamInterruptedError)
    assert issubclass(StreamStalledError, PrimitiveTimeoutError)
    drawn = [line.split("── ")[1].split()[0] for line in (errors.__doc__ or "").splitlines() if "── " in line]
    defined = [
        name for name, value in vars(errors).items() if isinstance(value, type) and value.__module__ == errors.__name__
    ]
    assert sorted(drawn) == sorted(defined)


@pytest.mark.parametrize(
    "error",
    [
        ObservabilityError("text"),
        ConfigurationError("text"),
        MissingDependencyError("text", name="redis"),
        PrimitiveTimeoutError("ask", 1.0, 2.0, kind="first_chunk", cleanup="failed"),
        StreamInterruptedError("ask", 3, "no_finish_reason"),
        StreamStalledError("ask", 1.0, 2.0, chunks=3, cleanup="late_result"),
    ],
    ids=lambda error: type(error).__name__,
)
@pytest.mark.parametrize("make", [lambda error: pickle.loads(pickle.dumps(error)), copy.copy], ids=["pickle", "copy"])
def test_errors_survive_pickling(error: Exception, make: Any) -> None:
    """Process pools and task queues hand errors over pickled: type, message and facts must arrive."""
    twin = make(error)
    assert type(error) is type(twin)
    assert str(error) == str(twin)
    assert vars(error) == vars(twin)


@pytest.mark.promise("T9")
def test_messages_of_stream_errors() -> None:
    """How far the stream got and why it ended, or which clock it was; nothing of the answer."""
    assert "Stream of 'ask' was interrupted after 3 chunks (no_finish_reason)" == str(
        StreamInterruptedError("ask", 3, "no_finish_reason")
    )
    assert "raise idle_seconds to allow more" in str(StreamStalledError("ask", 1.0, 2.0, chunks=3))
