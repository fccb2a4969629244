"""Nothing starts when nothing remains, and control is back after limit and grace, whatever a fallback does."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from observability_integration import WorkflowContext
from observability_integration.context import Deadline, reset_deadline, set_deadline
from observability_integration.errors import PrimitiveTimeoutError
from observability_integration.primitives import (
    CachePrimitive,
    RetryPrimitive,
    SagaPrimitive,
    SagaStep,
    SequentialPrimitive,
    TimeoutPrimitive,
    WorkflowPrimitive,
)
from observability_integration.propagation import continue_from, incoming
from observability_integration.resilience.backoff import Backoff
from observability_integration.testing import FakeClockLoop
from tests.every_primitive import AROUND_CALLS, AROUND_STREAMS, Make, covered, exported

LOOP_FACTORY = FakeClockLoop

pytestmark = [pytest.mark.once, pytest.mark.promise("T7")]


class Work:
    """Counts how often it is started."""

    def __init__(self) -> None:
        self.starts = 0

    async def call(self, request: Any) -> str:
        self.starts += 1
        return "answer"

    async def stream(self, request: Any) -> AsyncIterator[str]:
        self.starts += 1
        yield "ans"
        yield "wer"


class Application:
    """A context of the application's own, which holds a deadline of this library."""

    def __init__(self, deadline: Deadline) -> None:
        self.deadline = deadline


@contextmanager
def current(deadline: Deadline) -> Iterator[None]:
    token = set_deadline(deadline)
    try:
        yield None
    finally:
        reset_deadline(token)


@contextmanager
def received(_: Deadline) -> Iterator[WorkflowContext]:
    with continue_from(incoming({"x-request-deadline-ms": "0"}, max_seconds=60)) as ambient:
        yield ambient.context()


@contextmanager
def in_context(deadline: Deadline) -> Iterator[WorkflowContext]:
    yield WorkflowContext(deadline=deadline)


@contextmanager
def in_foreign_context(deadline: Deadline) -> Iterator[Application]:
    yield Application(deadline)


@contextmanager
def later_in_context(deadline: Deadline) -> Iterator[WorkflowContext]:
    with current(deadline):
        yield WorkflowContext(deadline=Deadline.after(10.0))


DEADLINES: dict[str, Callable[[Deadline], Any]] = {
    "of the task": current,
    "of the context": in_context,
    "of a context of another type": in_foreign_context,
    "of the task, before that of the context": later_in_context,
    "received": received,
}


async def execute(primitive: WorkflowPrimitive[Any, Any], context: Any) -> Any:
    return await primitive.execute("q", context)


async def read(primitive: WorkflowPrimitive[Any, Any], context: Any) -> Any:
    async with primitive.stream("q", context) as chunks:
        return [chunk async for chunk in chunks]


async def read_without_block(primitive: WorkflowPrimitive[Any, Any], context: Any) -> Any:
    return [chunk async for chunk in primitive.stream("q", context)]


WAYS = {"execute": execute, "stream": read, "stream without a block": read_without_block}
EVERY: dict[str, tuple[Make, str]] = {
    **{f"{name} of a call": (make, "call") for name, make in AROUND_CALLS.items()},
    **{f"{name} of a stream": (make, "stream") for name, make in AROUND_STREAMS.items()},
}


def test_every_primitive_is_in_the_table() -> None:
    """One that is added later keeps the promise too."""
    assert set() == {each for each in exported() - covered() if not inspect.isabstract(each)}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("place", DEADLINES)
@pytest.mark.parametrize("name", EVERY)
async def test_work_is_refused_after_the_deadline(name: str, place: str, way: str) -> None:
    """An answer that comes too late costs money and serves no caller."""
    make, kind = EVERY[name]
    work = Work()
    primitive = make(getattr(work, kind))
    deadline = Deadline.after(1.0)
    await asyncio.sleep(1.0)  # at the deadline itself nothing is left
    with DEADLINES[place](deadline) as context, pytest.raises(PrimitiveTimeoutError) as caught:
        await WAYS[way](primitive, context)
    assert 0 == work.starts
    assert ("deadline", "inherited", "refused") == (
        caught.value.kind,
        caught.value.deadline_source,
        caught.value.cleanup,
    )


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", EVERY)
async def test_work_starts_while_there_is_time(name: str, way: str) -> None:
    """A refusal ahead of time would be an outage."""
    make, kind = EVERY[name]
    work = Work()
    with current(Deadline.after(1.0)):
        await WAYS[way](make(getattr(work, kind)), WorkflowContext(deadline=Deadline.after(2.0)))
    assert 1 == work.starts


@pytest.mark.parametrize("way", WAYS)
async def test_a_hit_is_served_after_the_deadline(way: str) -> None:
    """A stored answer starts no work."""
    work = Work()
    cache = CachePrimitive(work.call if way == "execute" else work.stream, str)
    answer = await WAYS[way](cache, None)
    with current(Deadline.after(0.0)):
        assert answer == await WAYS[way](cache, None)
    assert 1 == work.starts


@pytest.mark.parametrize("way", WAYS)
async def test_no_step_begins_after_the_deadline(way: str) -> None:
    """What the first step needed is no longer there for the second; a saga undoes the first."""
    work, undone = Work(), []

    async def slow(request: Any) -> Any:
        await asyncio.sleep(1.0)
        return request

    async def undo(result: Any) -> None:
        undone.append(result)

    for primitive in (SequentialPrimitive([slow, work.call]), SagaPrimitive([SagaStep(slow, undo), work.call])):
        with current(Deadline.after(1.0)), pytest.raises(PrimitiveTimeoutError):
            await WAYS[way](primitive, None)
    assert (0, ["q"]) == (work.starts, undone)


class Hang:
    """Work that does not end: it obeys its cancellation, or ignores it for a while."""

    def __init__(self, ignores_seconds: float = 0.0) -> None:
        self.ignores_seconds = ignores_seconds

    async def call(self, request: Any) -> Any:
        end = asyncio.get_running_loop().time() + 1_000.0
        while True:
            try:
                await asyncio.sleep(end - asyncio.get_running_loop().time())
                return None
            except asyncio.CancelledError:
                if not self.ignores_seconds:
                    raise
                end = min(end, asyncio.get_running_loop().time() + self.ignores_seconds)

    async def stream(self, request: Any) -> AsyncIterator[Any]:
        await self.call(request)
        yield "late"


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("grace", [0.0, 0.5, 5.0])
@pytest.mark.parametrize("watched", [False, True], ids=["", "first chunk watched"])
@pytest.mark.parametrize("kind", ["call", "stream"])
@pytest.mark.parametrize("stubborn", ["neither", "work", "fallback", "both"])
async def test_a_fallback_ends_within_limit_and_grace(
    stubborn: str, kind: str, watched: bool, grace: float, way: str
) -> None:
    """A fallback that hangs holds the caller no longer than the work alone could."""
    work = Hang(50.0 if stubborn in ("work", "both") else 0.0)
    fallback = Hang(50.0 if stubborn in ("fallback", "both") else 0.0)
    limit = TimeoutPrimitive(
        getattr(work, kind),
        2.0,
        grace,
        "ask",
        first_chunk_seconds=1.0 if watched else None,
        fallback=getattr(fallback, kind),
    )
    began = asyncio.get_running_loop().time()
    with pytest.raises(PrimitiveTimeoutError, match="'ask'") as caught:
        await WAYS[way](limit, None)
    assert asyncio.get_running_loop().time() - began <= 2.0 + grace + 0.05 + 1e-6
    assert any("grace_period_seconds" in note for note in caught.value.__notes__)
    await asyncio.sleep(120.0)  # the abandoned work ends


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("grace", [0.0, 0.5, None])
async def test_an_answer_at_hand_is_always_in_time(grace: float | None, way: str) -> None:
    """A fixed text needs no time, so it serves also where the clean-up has used up the grace."""

    async def fixed(request: Any) -> str:
        return "sorry"

    work = Hang(0.0 if grace is None else 50.0)
    assert "sorry" in await WAYS[way](TimeoutPrimitive(work.call, 2.0, grace, fallback=fixed), None)
    await asyncio.sleep(60.0)


@pytest.mark.parametrize("way", WAYS)
async def test_a_fallback_sees_its_time(way: str) -> None:
    """So a primitive inside of it can give up in time; a deadline from further out is the earlier one."""
    seen: list[float | None] = []

    async def looks(request: Any, context: WorkflowContext) -> str:
        seen.append(context.remaining())
        return "sorry"

    limit = TimeoutPrimitive(Hang().call, 2.0, 3.0, fallback=looks)
    await WAYS[way](limit, None)
    with current(Deadline.after(4.0)):
        await WAYS[way](limit, None)
    assert [3.0, 2.0] == seen


async def test_a_fallback_that_stalls_after_content() -> None:
    """Its chunks have been shown, so its own timeout is told."""

    async def stalls(request: Any) -> AsyncIterator[str]:
        yield "half"
        await asyncio.sleep(100.0)

    async with TimeoutPrimitive(Hang().stream, 2.0, 3.0, "ask", fallback=stalls).stream("q") as chunks:
        assert "half" == await anext(chunks)
        with pytest.raises(PrimitiveTimeoutError, match="ask fallback"):
            await anext(chunks)


async def test_the_fallbacks_own_timeout_passes_unchanged() -> None:
    """It tells of a call of the fallback's own, not of the rest of the grace."""
    inner = TimeoutPrimitive(Hang().call, 0.5, 0.0, "second model")
    with pytest.raises(PrimitiveTimeoutError, match="'second model'"):
        await TimeoutPrimitive(Hang().call, 2.0, 3.0, "ask", fallback=inner).execute("q")
    with current(Deadline.after(2.5)), pytest.raises(PrimitiveTimeoutError) as caught:
        await TimeoutPrimitive(Hang().call, 2.0, 3.0, "ask", fallback=Hang().call).execute("q")
    assert "inherited" == caught.value.deadline_source


@pytest.mark.parametrize("way", WAYS)
async def test_a_call_around_the_cache_is_refused_too(way: str) -> None:
    """One whose key is missing, or whose request is never kept, is a call like any other."""
    work = Work()
    step: Any = work.call if way == "execute" else work.stream
    for cache in (
        CachePrimitive(step, lambda request: None, operation_name="keyless"),
        CachePrimitive(step, str, scope=lambda request: None, operation_name="scopeless"),
    ):
        with current(Deadline.after(0.0)), pytest.raises(PrimitiveTimeoutError):
            await WAYS[way](cache, None)
        with pytest.raises(PrimitiveTimeoutError):
            await WAYS[way](cache, WorkflowContext(deadline=Deadline.after(0.0)))
    assert 0 == work.starts


@pytest.mark.parametrize("streams", [False, True], ids=["execute", "stream"])
async def test_no_attempt_begins_after_a_wait_that_took_too_long(streams: bool) -> None:
    """A wait may end after the deadline although it was to end before: the event loop was blocked."""
    starts = 0
    loop: Any = asyncio.get_running_loop()

    async def call(request: Any) -> str:
        nonlocal starts
        starts += 1
        loop.call_later(0.5, loop.advance, 5.0)
        raise ConnectionError("blip")

    retry = RetryPrimitive(call, backoff=Backoff(base_seconds=1.0, max_seconds=1.0, jitter="none"))
    context = WorkflowContext(deadline=Deadline.after(2.0))
    with pytest.raises(ConnectionError, match="blip"):  # noqa: PT012
        if streams:
            [chunk async for chunk in retry.stream("q", context)]
        else:
            await retry.execute("q", context)
    assert 1 == starts
