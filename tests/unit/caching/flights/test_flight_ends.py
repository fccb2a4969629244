"""How flights end that end in an unusual way: at once, late, before they began, or not at all."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import weakref
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from observability_integration.caching.policy import CachePolicy
from observability_integration.context import Deadline, WorkflowContext, reset_deadline, set_deadline
from observability_integration.errors import PrimitiveTimeoutError
from observability_integration.primitives import CachePrimitive, TimeoutPrimitive
from observability_integration.testing.clock import FakeClockLoop
from tests.cache_doubles import Scripted, Server, at, turns

pytestmark = pytest.mark.usefixtures("clocks")

LOOP_FACTORY = FakeClockLoop

Factory = Callable[..., Any]


def _cache(step: Any, store: Any = None, **policy: Any) -> CachePrimitive[Any, Any]:
    return CachePrimitive(
        step,
        lambda question: question,
        10.0,
        operation_name="answers",
        backend=store,
        policy=CachePolicy(ttl_jitter=0.0, **policy),
    )


class _Done(asyncio.Future[Any]):
    def set_name(self, name: object) -> None:
        """As tasks have it."""


def _eager(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, Any], **options: Any) -> Any:
    """What the eager tasks of Python 3.12 do with work that never waits: it is done when the task has been made."""
    context = options.pop("context", None) or contextvars.copy_context()
    done = _Done(loop=loop)
    try:
        context.run(work.send, None)
    except StopIteration as end:
        done.set_result(end.value)
    except Exception as error:
        done.set_exception(error)
    else:
        raise AssertionError("the work has waited")
    return done


def _wrapping(loop: asyncio.AbstractEventLoop, work: Coroutine[Any, Any, Any], **options: Any) -> Any:
    """What an instrumented factory may do: the task goes on for a while when the work has ended."""

    async def wrapped() -> Any:
        try:
            return await work
        finally:
            await asyncio.sleep(0.01)

    return asyncio.Task(wrapped(), loop=loop, **options)


async def _with(factory: Factory, run: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    loop = asyncio.get_running_loop()
    loop.set_task_factory(factory)
    try:
        return await run()
    finally:
        loop.set_task_factory(None)


@pytest.mark.promise("C2")
@pytest.mark.parametrize("factory", [_eager, _wrapping])
async def test_task_factories_change_nothing(factory: Factory) -> None:
    """An application may have set one; a flight may be over before it can be boarded, or last longer than its work."""

    async def answer(question: str) -> str:
        return f"answer to {question}"

    cache = _cache(answer)

    async def ask() -> Any:
        return await cache.execute("q")

    assert "answer to q" == await _with(factory, ask)
    assert "answer to q" == await _with(factory, ask)
    stats = cache.get_stats()
    assert (1, 1) == (stats["hits"], stats["misses"])
    flights = cache._engine._flights
    assert (0, set()) == (len(flights), flights._in_flight)


@pytest.mark.parametrize("factory", [_eager, _wrapping])
async def test_task_factories_do_not_turn_a_failure_into_a_hang(factory: Factory) -> None:
    """The error is the work's own."""

    async def fail(_: str) -> str:
        raise ValueError("broken")

    cache = _cache(fail)

    async def ask() -> Any:
        return await cache.execute("q")

    with pytest.raises(ValueError, match="broken"):
        await _with(factory, ask)
    assert 0 == len(cache._engine._flights)


@pytest.mark.promise("T1")
async def test_work_that_a_task_factory_wraps_is_in_time() -> None:
    """The work has ended, its task has not yet: that is no reason to call it late."""

    async def answer(question: str) -> str:
        return question

    timeout = TimeoutPrimitive(answer, 5.0)

    async def ask() -> Any:
        return await timeout.execute("q")

    assert "q" == await _with(_wrapping, ask)
    assert 1 == timeout.get_stats()["successes"]


async def test_who_waits_for_a_flight_that_is_cancelled_before_it_begins_is_told() -> None:
    """Somebody may cancel all tasks of the loop; nobody must wait for ever because of that."""
    cache = _cache(Scripted("answer"))
    caller = asyncio.create_task(cache.execute("q"))
    await asyncio.sleep(0)
    (flight,) = (task for task in asyncio.all_tasks() if task.get_name() == "cache flight")
    flight.cancel()
    await asyncio.wait({caller}, timeout=1.0)
    assert caller.cancelled()
    flights = cache._engine._flights
    assert (0, set()) == (len(flights), flights._in_flight)


async def test_a_timeout_whose_work_is_cancelled_before_it_begins_does_not_wait() -> None:
    """Nor for the limit."""
    caller = asyncio.create_task(TimeoutPrimitive(Scripted("answer"), 30.0, operation_name="work").execute("q"))
    await asyncio.sleep(0)
    (work,) = (task for task in asyncio.all_tasks() if task.get_name() == "work")
    work.cancel()
    await asyncio.wait({caller})
    assert caller.cancelled()
    assert 0.0 == asyncio.get_running_loop().time()


async def test_a_value_that_knows_its_maker_is_let_go() -> None:
    """A value may refer to the task that made it; when the cache lets go of it, nothing of that may stay."""

    class Answer:
        def __init__(self) -> None:
            self.task = asyncio.current_task()

        def __deepcopy__(self, memo: Any) -> Answer:
            return self

    seen: list[weakref.ref[Answer]] = []

    async def answer(_: str) -> Answer:
        seen.append(weakref.ref(made := Answer()))
        return made

    cache = _cache(answer)
    for number in range(3):
        await cache.execute(f"q{number}")
    await turns()
    await cache.clear()
    gc.collect()
    assert [None, None, None] == [value() for value in seen]


async def test_a_slow_call_is_not_the_slower_for_those_who_left() -> None:
    """While a provider hangs, every caller is served the old answer after a moment: one timer is enough for all."""
    work = Scripted("old")
    cache = _cache(work, soft_timeout_seconds=0.1, stale_if_error_seconds=1000.0, background_seconds=500.0)
    await cache.execute("q")
    await at(11.0)
    hang = asyncio.Event()

    async def slow(_: Any) -> str:
        await hang.wait()
        return "new"

    cache._call = lambda question, context: slow(question)
    loop: Any = asyncio.get_running_loop()
    assert ["old"] * 200 == await asyncio.gather(*(cache.execute("q") for _ in range(200)))
    (flight,) = cache._engine._flights._in_flight
    assert len(flight.task._callbacks or ()) < 5
    assert sum(not timer.cancelled() for timer in loop._scheduled) < 5
    hang.set()
    await turns()
    assert "new" == await cache.execute("q")


@pytest.mark.promise("C10")
async def test_closing_does_not_wait_for_ever() -> None:
    """For a refresh that ignores its cancellation."""
    obey = asyncio.Event()
    work = Scripted("old")
    cache = _cache(work, stale_while_revalidate_seconds=1000.0)
    await cache.execute("q")
    await at(11.0)

    async def stubborn(_: Any) -> str:
        while not obey.is_set():
            try:
                await obey.wait()
            except asyncio.CancelledError:
                continue
        return "new"

    cache._call = lambda question, context: stubborn(question)
    assert "old" == await cache.execute("q")
    await turns()
    began = asyncio.get_running_loop().time()
    await cache.aclose()
    assert 5.0 == pytest.approx(asyncio.get_running_loop().time() - began)
    obey.set()
    await turns()
    assert not cache._engine._flights._in_flight


@pytest.mark.promise("T7")
async def test_a_follower_waits_no_longer_than_its_deadline() -> None:
    """The one who made the call has more time; the other is told when its own is over."""
    cache = _cache(Scripted("answer", seconds=1.0))
    first = asyncio.create_task(cache.execute("q"))
    await turns()
    with pytest.raises(PrimitiveTimeoutError) as caught:
        await cache.execute("q", WorkflowContext(deadline=Deadline.after(0.1)))
    assert ("deadline", "inherited") == (caught.value.kind, caught.value.deadline_source)
    assert 0.1 == asyncio.get_running_loop().time()
    assert "answer" == await first


@pytest.mark.promise("T7")
async def test_no_call_is_made_when_no_time_is_left() -> None:
    """What is there is served all the same."""
    work = Scripted("answer")
    cache = _cache(work)
    await cache.execute("kept")
    token = set_deadline(Deadline.after(0.0))
    try:
        assert "answer" == await cache.execute("kept")
        with pytest.raises(PrimitiveTimeoutError) as caught:
            await cache.execute("new")
    finally:
        reset_deadline(token)
    assert ("deadline", "refused") == (caught.value.kind, caught.value.cleanup)
    assert 1 == work.made
    assert 2 == cache.get_stats()["misses"]


@pytest.mark.promise("C8")
@pytest.mark.parametrize("shared", [False, True])
async def test_what_a_call_brings_that_began_before_an_invalidation_is_kept_nowhere(shared: bool, metrics: Any) -> None:
    """It goes to who waited for it; the next one makes the call anew."""
    server = Server()
    cache = _cache(Scripted("answer", seconds=1.0), server.store() if shared else None)
    asked = asyncio.create_task(cache.execute("q"))
    await at(0.5)
    await cache.invalidate("q")
    assert "answer" == await asked
    assert cache._engine.fresh(cache._keys.digest("q")) is None
    assert {} == server.entries
    assert 1 == metrics("cache.refusals", operation="answers", reason="invalidated")
    await cache.aclose()
