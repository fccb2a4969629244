"""Daemon threads for blocking calls that may never return."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import os
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar, cast
from weakref import WeakKeyDictionary

T = TypeVar("T")

# Tasks that were cancelled while a thread worked for them, each with a future that is done when the thread is.
_left_in_thread: WeakKeyDictionary[asyncio.Future[Any], asyncio.Future[None]] = WeakKeyDictionary()


def left_in_thread(task: asyncio.Future[Any]) -> asyncio.Future[None] | None:
    """Returns a future that is done when the thread of `DaemonThreads` that worked for the cancelled `task` returns."""
    left = _left_in_thread.get(task)
    return None if left is None or left.done() else left


_Job = Callable[[], Callable[[], None]]  # does the work and returns the function that delivers its result


class DaemonThreads:
    """A few daemon threads for blocking calls that may never return.

    The standard executors join their threads when the interpreter exits, so one blocking call that hangs keeps the
    process alive without end. These threads are daemons and keep nothing alive.

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
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
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

            def deliver_in_loop() -> None:
                with contextlib.suppress(RuntimeError):  # the loop closed meanwhile: no task is waiting
                    loop.call_soon_threadsafe(deliver, result, caught)

            return deliver_in_loop

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

    def stop(self) -> None:
        """Ends the threads, each when its call returns; for the owner of the last calls."""
        if self._pid == os.getpid():
            for _ in range(self._threads):
                self._jobs.put(None)

    def _work(self) -> None:
        deliver: Callable[[], None] | None = None
        while True:
            with self._lock:
                self._idle += 1
            if deliver is not None:
                deliver()  # only once counted as idle: the task it wakes may have the next call for this thread
            deliver = None  # an idle thread must not keep the arguments and result of its last call
            job = self._jobs.get()
            with self._lock:
                self._idle -= 1
                if job is None:
                    self._threads -= 1
                    return
                self._pending -= 1
            deliver = job()
            del job
