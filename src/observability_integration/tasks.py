"""Asyncio building blocks whose behaviour under cancellation is exact.

The library never uses `asyncio.wait_for`: on Python 3.11 it swallows a cancellation that arrives in the same turn of
the event loop as the inner future's completion (cpython#86296).
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

# The event loop holds its tasks weakly. These are not awaited, but must run to their end.
_owned: dict[asyncio.AbstractEventLoop, set[asyncio.Task[Any]]] = {}


def set_done(waiter: asyncio.Future[None], _: object = None) -> None:
    """Completes a future, unless it is done."""
    if not waiter.done():
        waiter.set_result(None)


async def wait_done(
    task: asyncio.Future[Any], timeout_seconds: float | None, ending: asyncio.Future[None] | None = None
) -> bool:
    """Waits until `task` has ended or the time is up, and says whether it has ended.

    Never cancels the task, never raises its error, and never absorbs a cancellation of the caller. What
    ``asyncio.wait({task}, timeout=...)`` does, at about two thirds of its cost.

    Args:
        task: the task or future to wait for.
        timeout_seconds: limit of the wait; None for no limit.
        ending: a future, used once, that the last step of the work completes (see `set_done`): one turn of the loop
            before the task's own callbacks.
    """
    if task.done():
        return True
    loop = asyncio.get_running_loop()
    waiter: asyncio.Future[None] = loop.create_future() if ending is None else ending
    timer = None if timeout_seconds is None else loop.call_later(timeout_seconds, set_done, waiter)
    # Also where there is an `ending`: a task that is cancelled before it began has no last step.
    callback = functools.partial(set_done, waiter)
    task.add_done_callback(callback)
    try:
        await waiter
    finally:
        if timer is not None:
            timer.cancel()
        task.remove_done_callback(callback)
    if ending is not None and not task.done() and (timer is None or timer.when() > loop.time()):
        # A task factory may have wrapped the work in steps of its own.
        return await wait_done(task, None if timer is None else timer.when() - loop.time())
    return task.done()


def _settled(task: asyncio.Task[Any]) -> None:
    loop = task.get_loop()
    here = _owned.get(loop)
    if here is not None:
        here.discard(task)
        if not here:
            del _owned[loop]
    if not task.cancelled():
        task.exception()  # marks it as retrieved, so that asyncio does not log it


def keep_alive(task: asyncio.Task[T]) -> asyncio.Task[T]:
    """Keeps a strong reference to a task until it ends, and retrieves its error so that asyncio does not log it.

    A task whose event loop was closed is dropped when the next loop keeps a task.
    """
    loop = task.get_loop()
    here = _owned.get(loop)
    if here is None:
        if _owned:
            _drop_ended()
        here = _owned[loop] = set()
    here.add(task)
    task.add_done_callback(_settled)
    return task


def _drop_ended() -> None:
    for loop in list(_owned):
        if loop.is_closed():
            for task in _owned.pop(loop, ()):
                drop_left(task)


def drop_left(task: asyncio.Task[Any]) -> None:
    """Closes the coroutine of a task whose event loop was closed before the task ended."""
    left: Any = task
    left._log_destroy_pending = False
    with contextlib.suppress(Exception):  # its last steps may need the loop
        left.get_coro().close()


def spawn(work: Coroutine[Any, Any, T], *, name: str) -> asyncio.Task[T]:
    """Starts a background task and keeps it alive (see `keep_alive`)."""
    return keep_alive(asyncio.get_running_loop().create_task(work, name=name))


def spawn_detached(
    loop: asyncio.AbstractEventLoop,
    work: Coroutine[Any, Any, T],
    *,
    name: str,
    context: contextvars.Context | None = None,
) -> asyncio.Task[T]:
    """Starts a task that is independent of the current call. The caller has to keep a reference to it.

    Args:
        loop: the running event loop.
        work: the coroutine to run.
        name: name of the task.
        context: the task gets a copy of it; by default an empty context, without deadline or current span.
    """
    # Entered, not given: a task factory need not take a context.
    return (contextvars.Context() if context is None else context).run(loop.create_task, work, name=name)


def cancel_until_done(task: asyncio.Task[Any], again_seconds: float = 0.1) -> None:
    """Cancels a task, again and again with doubling pauses, until it has ended.

    One cancellation is not enough for a client that loses it during its clean-up and then continues its retries.
    """
    if task.done():
        return
    task.cancel()
    timer = task.get_loop().call_later(again_seconds, cancel_until_done, task, 2 * again_seconds)
    task.add_done_callback(lambda _: timer.cancel())
