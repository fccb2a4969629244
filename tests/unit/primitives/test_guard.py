"""One life of a call, tried on a guard that does nothing but write down what it is told."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from typing import Any, NamedTuple

import pytest

from observability_integration.context import WorkflowContext
from observability_integration.primitives.guard import GuardPrimitive
from observability_integration.primitives.lifting import lift
from observability_integration.telemetry.tracing import spans
from observability_integration.testing import FakeClockLoop

LOOP_FACTORY = FakeClockLoop

pytestmark = pytest.mark.once


class Left(NamedTuple):
    """What `leave` was told."""

    ticket: int
    error: type[BaseException] | None
    answer: Any
    seen: Any


class Refused(Exception):
    """The guard's own refusal."""


class Notebook(GuardPrimitive[Any, Any, int]):
    """Admits at once, after a wait of a second, or not at all; its tickets are 0, 1, 2."""

    refused_outcome = "refused"

    def __init__(self, step: Any, *, waits: bool = False, refuses: bool = False) -> None:
        super().__init__(lift(step), "notebook")
        self.waits, self.refuses = waits, refuses
        self.entered: list[Any] = []
        self.left: list[Left] = []
        self.contexts: list[WorkflowContext | None] = []
        self.times: list[float] = []

    def enter(self, span: Any, input_data: Any, context: WorkflowContext | None) -> int | Coroutine[Any, Any, int]:
        self.entered.append(input_data)
        self.contexts.append(context)
        return self._wait() if self.waits else self._admit()

    async def _wait(self) -> int:
        await asyncio.sleep(1.0)
        return self._admit()

    def _admit(self) -> int:
        if self.refuses:
            raise Refused
        return len(self.entered) - 1

    def leave(
        self, ticket: int, span: Any, error: BaseException | None, began: float, answer: Any = None, seen: Any = None
    ) -> None:
        self.left.append(Left(ticket, None if error is None else type(error), answer, seen))
        self.times.append(began)

    def see(self, seen: Any, chunk: Any) -> Any:
        return (seen or 0) + 1


class Falsy(list[Any]):
    """An object with `execute` that is false, as an empty container of the user's is."""

    async def execute(self, input_data: Any, context: Any = None) -> str:
        return "answer"


async def answer(_: Any) -> str:
    await asyncio.sleep(1.0)
    return "answer"


async def fail(_: Any) -> str:
    await asyncio.sleep(1.0)
    raise ValueError("no")


async def chunks(_: Any) -> AsyncIterator[str]:
    for text in ("a", "b"):
        await asyncio.sleep(1.0)
        yield text


async def chunk_and_fail(_: Any) -> AsyncIterator[str]:
    yield "a"
    raise ValueError("no")


async def _execute(guard: Notebook) -> str:
    try:
        return await guard.execute("question")
    except Exception as error:
        return type(error).__name__


async def _read(guard: Notebook) -> str:
    try:
        async with guard.stream("question") as stream:
            return "".join([chunk async for chunk in stream])
    except Exception as error:
        return type(error).__name__


async def _cancel(work: Coroutine[Any, Any, str], after_seconds: float) -> str:
    task = asyncio.ensure_future(work)
    await asyncio.sleep(after_seconds)
    task.cancel()
    await asyncio.wait([task])
    return "CancelledError" if task.cancelled() else task.result()


@pytest.fixture(params=["telemetry off", "telemetry on"])
def telemetry(request: pytest.FixtureRequest) -> Any:
    """None, or the spans that were begun."""
    if request.param == "telemetry off":
        spans.install(None)
        return None
    return request.getfixturevalue("tracing")


# How the call goes, what its caller gets, what `leave` is told, and the span's outcome.
CASES: dict[str, tuple[Any, str, list[Left], str]] = {
    "success": (lambda: (g := Notebook(answer), _execute(g)), "answer", [Left(0, None, "answer", None)], "success"),
    "success after a wait": (
        lambda: (g := Notebook(answer, waits=True), _execute(g)), "answer", [Left(0, None, "answer", None)], "success",
    ),
    "success of a falsy object": (
        lambda: (g := Notebook(Falsy()), _execute(g)), "answer", [Left(0, None, "answer", None)], "success",
    ),
    "error": (lambda: (g := Notebook(fail), _execute(g)), "ValueError", [Left(0, ValueError, None, None)], "error"),
    "refused": (lambda: (g := Notebook(answer, refuses=True), _execute(g)), "Refused", [], "refused"),
    "refused after a wait": (
        lambda: (g := Notebook(answer, waits=True, refuses=True), _execute(g)), "Refused", [], "refused",
    ),
    "cancelled": (
        lambda: (g := Notebook(answer), _cancel(_execute(g), 0.5)), "CancelledError",
        [Left(0, asyncio.CancelledError, None, None)], "cancelled",
    ),
    "cancelled in the wait": (
        lambda: (g := Notebook(answer, waits=True), _cancel(_execute(g), 0.5)), "CancelledError", [], "cancelled",
    ),
    "stream": (lambda: (g := Notebook(chunks), _read(g)), "ab", [Left(0, None, None, 2)], "success"),
    "stream of a falsy object": (
        lambda: (g := Notebook(Falsy()), _read(g)), "answer", [Left(0, None, None, 1)], "success",
    ),
    "stream that fails": (
        lambda: (g := Notebook(chunk_and_fail), _read(g)), "ValueError", [Left(0, ValueError, None, 1)], "error",
    ),
    "stream refused": (lambda: (g := Notebook(chunks, refuses=True), _read(g)), "Refused", [], "error"),
    "stream cancelled": (
        lambda: (g := Notebook(chunks), _cancel(_read(g), 1.5)), "CancelledError",
        [Left(0, asyncio.CancelledError, None, 1)], "cancelled",
    ),
    "stream cancelled in the wait": (
        lambda: (g := Notebook(chunks, waits=True), _cancel(_read(g), 0.5)), "CancelledError", [], "cancelled",
    ),
}  # fmt: skip


@pytest.mark.promise("X1", "X2", "B4")
@pytest.mark.parametrize("case", CASES)
async def test_every_ending_is_told_once(case: str, telemetry: Any) -> None:
    """A permit that comes back twice, or never, or with the wrong ending, breaks every guard at once."""
    begin, expected, left, outcome = CASES[case]
    guard, work = begin()
    assert expected == await work
    assert left == guard.left
    if telemetry is not None:
        (span,) = telemetry.spans
        assert (1, outcome) == (span.ends, span.attributes["outcome"])
        assert (span.error is None) == (outcome in ("success", "cancelled"))
        assert telemetry.current is None


@pytest.mark.promise("X3")
@pytest.mark.parametrize("read", [0, 1])
async def test_a_reader_who_leaves_is_no_error(read: int, telemetry: Any) -> None:
    """It says nothing about the call but how much of it was seen."""
    guard = Notebook(chunks)
    async with guard.stream("question") as stream:
        for _ in range(read):
            await anext(stream)
    assert [Left(0, GeneratorExit, None, read or None)] == guard.left


async def test_a_stream_that_is_dropped_is_told() -> None:
    """Its permit must come back though no `async with` was left."""
    guard = Notebook(chunks)
    stream: Any = guard.stream("question")
    await stream.__aenter__()
    del stream
    assert [Left(0, GeneratorExit, None, None)] == guard.left


async def test_the_first_ticket_is_a_ticket() -> None:
    """0 is false, and was entered for."""
    guard = Notebook(answer)
    for number in range(3):
        await guard.execute(number)
    assert [0, 1, 2] == [left.ticket for left in guard.left]


class Timed(Notebook):
    """Wants to know when the call began."""

    timed = True

    def began(self, context: WorkflowContext | None) -> float:
        return 7.0


class WithContext(Notebook):
    """Wants a context."""

    needs_context = True


class Observer(Notebook):
    """Looks on, and has nothing to say while telemetry is off."""

    observes_only = True


@pytest.mark.parametrize(("kind", "times"), [(Notebook, [0.0, 0.0]), (Timed, [7.0, 7.0])])
async def test_the_time_of_the_beginning(kind: type[Notebook], times: list[float]) -> None:
    """A guard that does not ask for it does not pay for a look at the clock."""
    guard = kind(chunks)
    await _execute(guard)
    await _read(guard)
    assert times == guard.times


@pytest.mark.parametrize("kind", [Notebook, WithContext])
@pytest.mark.parametrize("given", [None, WorkflowContext()])
async def test_a_context_is_made_where_it_is_needed(kind: type[Notebook], given: WorkflowContext | None) -> None:
    """One for guard and call alike, and never in place of the caller's."""
    seen: list[Any] = []

    class Step(Falsy):
        async def execute(self, input_data: Any, context: Any = None) -> str:
            seen.append(context)
            return "answer"

    guard = kind(Step())
    await guard.execute("question", given)
    async with guard.stream("question", given) as stream:
        await anext(stream)
    if given is not None:
        assert [given, given] == guard.contexts == seen
    elif kind is WithContext:
        assert seen == guard.contexts
        assert all(isinstance(each, WorkflowContext) for each in seen)
    else:
        assert [None, None] == guard.contexts


async def test_who_only_observes_is_left_out_while_telemetry_is_off(telemetry: Any) -> None:
    """Half of what a router costs without telemetry."""
    guard = Observer(answer)
    assert "answer" == await _execute(guard)
    assert ([] if telemetry is None else [Left(0, None, "answer", None)]) == guard.left


async def test_a_stream_closes_what_it_opened() -> None:
    """Else the provider's connection stays open when the reader goes."""
    closed: list[bool] = []

    async def endless(_: Any) -> AsyncIterator[str]:
        try:
            while True:
                yield "a"
        finally:
            closed.append(True)

    async with Notebook(endless).stream("question") as stream:
        await anext(stream)
    assert [True] == closed


def test_it_answers_for_what_it_guards() -> None:
    """A timeout further out asks whether chunks can be watched, `describe` what is inside."""
    guard = Notebook(chunks)
    assert guard.execute_reads_stream
    assert "ab" == guard.join_chunks(["a", "b"])
    assert ["chunks"] == [step.name for _, step in guard.steps()]
    assert not Notebook(answer).execute_reads_stream
