"""Daemon threads: few, used again, and no obstacle to a caller that leaves or a process that ends."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from typing import Any

import pytest

from observability_integration.testing import FakeClockLoop
from observability_integration.threads import DaemonThreads, left_in_thread

LOOP_FACTORY = FakeClockLoop


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


@pytest.mark.promise("S8")
@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform does not fork")
def test_forked_child_starts_its_own_threads() -> None:
    """A fork copies the count of threads but not the threads: a child that trusted it would wait for ever."""
    result = python("""
        import asyncio, os
        from observability_integration.threads import DaemonThreads

        threads = DaemonThreads(1, "forked")
        asyncio.run(threads.run(lambda: None))
        pid = os.fork()
        if pid == 0:
            print(asyncio.run(threads.run(lambda: "child")), flush=True)
            os._exit(0)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    """)
    assert (0, "child\n0\n") == (result.returncode, result.stdout), result.stderr
