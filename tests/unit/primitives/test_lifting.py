"""What is accepted wherever a primitive is."""

from __future__ import annotations

import functools
import subprocess
import sys
import textwrap
import threading
from collections.abc import AsyncIterator
from contextvars import ContextVar
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock, MagicMock, Mock

import pytest

from observability_integration import WorkflowContext
from observability_integration.errors import (
    ConfigurationError,
)
from observability_integration.primitives import (
    LambdaPrimitive,
    RouterPrimitive,
    StreamingPrimitive,
    TimeoutPrimitive,
)
from observability_integration.primitives.lifting import call_of, lift
from observability_integration.testing import FakeClockLoop

LOOP_FACTORY = FakeClockLoop


async def upper(text: str) -> str:
    return text.upper()


async def with_context(text: str, context: WorkflowContext) -> str:
    return f"{text} {context.workflow_id}"


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
