"""How steps are combined, and what holds for all of them."""

from __future__ import annotations

import asyncio
import copy
import gc
from collections.abc import Callable
from typing import Any
from unittest.mock import AsyncMock

import pytest

from observability_integration import WorkflowContext
from observability_integration.errors import (
    ConfigurationError,
)
from observability_integration.primitives import (
    ConditionalPrimitive,
    LambdaPrimitive,
    ParallelPrimitive,
    RouterPrimitive,
    SequentialPrimitive,
    SwitchPrimitive,
    TimeoutPrimitive,
    WorkflowPrimitive,
)
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


async def test_a_primitive_of_a_users_own_under_the_earlier_names() -> None:
    """`collects` and `gather` are the earlier names of what a timeout asks about a stream."""

    class Own(WorkflowPrimitive[Any, Any]):
        collects = True

        async def execute(self, input_data: Any, context: WorkflowContext | None = None) -> Any:
            return self.gather(["a"])

        def gather(self, chunks: list[Any]) -> Any:
            return tuple(chunks)

    assert Own().execute_reads_stream
    assert ("a", "b") == Own().join_chunks(["a", "b"])
