"""The building blocks under everything that waits: exact under cancellation, and quiet about what nobody awaits."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import weakref
from typing import Any

import pytest

from observability_integration.tasks import (
    cancel_until_done,
    keep_alive,
    spawn,
    spawn_detached,
    wait_done,
)
from observability_integration.testing import FakeClockLoop

LOOP_FACTORY = FakeClockLoop


def now() -> float:
    return asyncio.get_running_loop().time()


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


async def test_a_task_that_loses_a_cancellation_is_cancelled_again() -> None:
    """A client that swallows a cancellation while it cleans up, and then waits before its next try, does not stay."""
    swallowed = 0

    async def deaf() -> None:
        nonlocal swallowed
        while swallowed < 3:
            try:
                await asyncio.sleep(100.0)
            except asyncio.CancelledError:
                swallowed += 1
        await asyncio.sleep(100.0)

    task = asyncio.ensure_future(deaf())
    await asyncio.sleep(1.0)
    cancel_until_done(task)
    await asyncio.wait({task})
    assert task.cancelled()
    assert 1.0 + 0.1 + 0.2 + 0.4 == pytest.approx(now())
    cancel_until_done(task)
    loop: Any = asyncio.get_running_loop()
    assert all(timer.cancelled() for timer in loop._scheduled)


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
    keep_alive(asyncio.ensure_future(work("owned")))
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


def test_owned_tasks_of_a_loop_that_was_closed_under_them_are_let_go_of() -> None:
    """By the next loop that owns one: what is left of them would be kept for ever, with loop, sockets and all."""
    ended: list[str] = []
    loops = []

    async def work(name: str) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(name)
            if name == "awaits":
                await asyncio.sleep(0)

    async def begin(*names: str) -> None:
        for name in names:
            spawn(work(name), name=name)
        await asyncio.sleep(0)

    for names in (["first", "second"], ["awaits"]):
        loop = FakeClockLoop()
        loops.append(weakref.ref(loop))
        loop.run_until_complete(begin(*names))
        loop.close()
        del loop
    assert ["first", "second"] == sorted(ended)
    asyncio.run(begin("next"))
    gc.collect()
    assert ["awaits", "first", "next", "second"] == sorted(ended)
    assert [None, None] == [loop() for loop in loops]


def test_a_loop_whose_owned_tasks_have_ended_is_not_kept() -> None:
    """Not even until the next one comes: there may be none."""

    async def work() -> None:
        """Ends at once."""

    async def begin() -> None:
        await spawn(work(), name="work")

    loop = FakeClockLoop()
    known = weakref.ref(loop)
    loop.run_until_complete(begin())
    loop.close()
    del loop
    gc.collect()
    assert known() is None


async def test_a_task_apart_knows_nothing_of_the_call() -> None:
    """No deadline, no span: with whatever makes the tasks of this loop, also one that takes no context."""
    variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="nothing")

    async def work() -> str:
        return variable.get()

    loop = asyncio.get_running_loop()
    variable.set("the call's")
    given = contextvars.copy_context()
    given.run(variable.set, "given")
    for factory in (None, lambda loop, work: asyncio.Task(work, loop=loop)):
        loop.set_task_factory(factory)  # type: ignore[arg-type]
        try:
            tasks = (
                spawn_detached(loop, work(), name="apart"),
                spawn_detached(loop, work(), name="apart", context=given),
            )
        finally:
            loop.set_task_factory(None)
        assert ["apart"] * 2 == [task.get_name() for task in tasks]
        assert ["nothing", "given"] == [await task for task in tasks]
