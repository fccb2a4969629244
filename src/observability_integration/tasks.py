"""Asyncio building blocks whose behaviour under cancellation is exact.

`asyncio.wait_for` is not used anywhere: on Python 3.11 it swallows a cancellation that arrives in the tick in which
the inner future completes (cpython#86296).
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import functools
import os
import queue
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar, cast
from weakref import WeakKeyDictionary

T = TypeVar("T")

# The event loop holds its tasks weakly; these are the ones that nobody awaits but that must run to their end.
_owned: dict[asyncio.AbstractEventLoop, set[asyncio.Task[Any]]] = {}

# Tasks that were cancelled while a thread worked for them, each with a future that is done when the thread is.
_left_in_thread: WeakKeyDictionary[asyncio.Future[Any], asyncio.Future[None]] = WeakKeyDictionary()


def announce(waiter: asyncio.Future[None], _: object = None) -> None:
    """Completes a future that somebody may be waiting for, or has waited for."""
    if not waiter.done():
        waiter.set_result(None)


async def wait_done(
    task: asyncio.Future[Any], timeout_seconds: float | None, ending: asyncio.Future[None] | None = None
) -> bool:
    """Waits until `task` has ended or the time is up, and says whether it has ended.

    Never cancels the task, never raises its error, and never absorbs a cancellation of the caller. What
    ``asyncio.wait({task}, timeout=...)`` does, at about two thirds of its cost.

    Args:
        task: what is waited for.
        timeout_seconds: for how long; None for as long as it takes.
        ending: to be used once: a future that the last step of the work completes (see `announce`), which is a turn of
            the loop before the task's own callbacks.
    """
    if task.done():
        return True
    loop = asyncio.get_running_loop()
    waiter: asyncio.Future[None] = loop.create_future() if ending is None else ending
    timer = None if timeout_seconds is None else loop.call_later(timeout_seconds, announce, waiter)
    # Also where there is an `ending`: a task that is cancelled before it began has no last step.
    callback = functools.partial(announce, waiter)
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
        task.exception()  # marks it as retrieved: whoever cared has been told by other means


def own(task: asyncio.Task[T]) -> asyncio.Task[T]:
    """Keeps a strong reference to a task until it ends, and retrieves its error so that asyncio does not log it.

    A task whose event loop was closed under it is let go of as soon as another loop has one to be kept.
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
    """Ends a task whose event loop was closed under it, which will not run its last steps."""
    left: Any = task
    left._log_destroy_pending = False
    with contextlib.suppress(Exception):  # what the last steps want of the loop
        left.get_coro().close()


def spawn(work: Coroutine[Any, Any, T], *, name: str) -> asyncio.Task[T]:
    """Starts a background task that is owned (see `own`)."""
    return own(asyncio.get_running_loop().create_task(work, name=name))


def begin_apart(
    loop: asyncio.AbstractEventLoop,
    work: Coroutine[Any, Any, T],
    *,
    name: str,
    context: contextvars.Context | None = None,
) -> asyncio.Task[T]:
    """Starts a task that is no part of the call that happens to need it first; whoever starts it has to keep it.

    Args:
        loop: the running event loop.
        work: what it does.
        name: of the task.
        context: it gets a copy of this one; by default it begins with an empty one, without deadline or current span.
    """
    # Entered, not given: a task factory need not take a context.
    return (contextvars.Context() if context is None else context).run(loop.create_task, work, name=name)


def cancel_until_done(task: asyncio.Task[Any], again_seconds: float = 0.1) -> None:
    """Cancels a task, and again after ever longer pauses until it has ended.

    One cancellation is not enough for a client that loses it while it cleans up, and then goes on with its retries.
    """
    if task.done():
        return
    task.cancel()
    timer = task.get_loop().call_later(again_seconds, cancel_until_done, task, 2 * again_seconds)
    task.add_done_callback(lambda _: timer.cancel())


def left_in_thread(task: asyncio.Future[Any]) -> asyncio.Future[None] | None:
    """What the cancelled `task` left running in a thread of `DaemonThreads`: done when that has ended."""
    left = _left_in_thread.get(task)
    return None if left is None or left.done() else left


_Job = Callable[[], Callable[[], None]]  # does the work, and returns what tells of the result


class DaemonThreads:
    """A few daemon threads for blocking calls that may never return.

    The standard executors join their threads when the interpreter exits, so one blocking call that hangs keeps the
    process alive for ever. These threads are daemons and keep nothing alive.

    Args:
        max_threads: how many calls run at a time; the next one waits for one of them to return.
        name: name of the threads.
    """

    def __init__(self, max_threads: int, name: str) -> None:
        self._max_threads = max_threads
        self._name = name
        self._start_afresh()

    def _start_afresh(self) -> None:
        self._pid = os.getpid()
        self._jobs: queue.SimpleQueue[_Job] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._threads = 0
        self._idle = 0
        self._pending = 0

    async def run(self, func: Callable[..., T], *args: Any) -> T:
        """Calls `func` in a thread and awaits its result; context variables are carried over.

        Cancelling the caller frees the caller at once; the thread itself cannot be stopped.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        ended: asyncio.Future[None] | None = None
        context = contextvars.copy_context()

        def deliver(result: T | None, error: BaseException | None) -> None:
            if ended is not None:
                ended.set_result(None)
            if future.done():
                return
            if error is None:
                future.set_result(result)  # type: ignore[arg-type]
            else:
                future.set_exception(error)

        def job() -> Callable[[], None]:
            result: T | None = None
            caught: BaseException | None = None
            try:
                result = context.run(func, *args)
            except BaseException as error:  # noqa: BLE001 - handed to the awaiting task
                caught = RuntimeError("StopIteration raised in a thread") if isinstance(error, StopIteration) else error

            def tell() -> None:
                with contextlib.suppress(RuntimeError):  # the loop closed meanwhile: nobody is waiting
                    loop.call_soon_threadsafe(deliver, result, caught)

            return tell

        self._submit(job)
        try:
            return await future
        except asyncio.CancelledError:
            if future.cancelled():  # else the thread had ended in the same turn of the loop
                ended = loop.create_future()
                _left_in_thread[cast("asyncio.Task[Any]", asyncio.current_task())] = ended
            raise

    def _submit(self, job: _Job) -> None:
        if self._pid != os.getpid():  # forked: the threads counted here stayed behind in the parent
            self._start_afresh()  # pragma: no cover - only ever runs in a forked child, where nothing is measured
        with self._lock:
            start = self._idle <= self._pending and self._threads < self._max_threads
            if start:
                threading.Thread(target=self._work, name=self._name, daemon=True).start()
                self._threads += 1
            self._pending += 1
        self._jobs.put(job)

    def _work(self) -> None:
        tell: Callable[[], None] | None = None
        while True:
            with self._lock:
                self._idle += 1
            if tell is not None:
                tell()  # after being counted as idle: whoever is told may have the next call for this very thread
            tell = None  # an idle thread must not keep what the last call was about
            job = self._jobs.get()
            with self._lock:
                self._idle -= 1
                self._pending -= 1
            tell = job()
            del job
