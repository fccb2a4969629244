"""The one way to Redis: a script under a guard, and clients that hang without taking all threads."""

from __future__ import annotations

import asyncio
import gc
import inspect
import threading
import weakref
from collections.abc import Callable
from typing import Any

import pytest

from observability_integration.errors import ConfigurationError
from observability_integration.redis_backend import Guard, Notice, RedisBackend, Script
from observability_integration.redis_backend.backend import threads_of
from observability_integration.redis_backend.guard import in_time
from observability_integration.testing import FakeClockLoop

LOOP_FACTORY = FakeClockLoop

SCRIPT = Script("return ARGV[1]")
NOTICE = Notice("spend", "Budget '%s': away (%s)", "Budget '%s': back", "budget.backend")


class Client:
    """Answers what it is told, or raises it."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.asked = 0

    async def execute_command(self, *command: Any) -> Any:
        self.asked += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


async def test_a_script_under_a_guard(caplog: pytest.LogCaptureFixture) -> None:
    """What a budget needs: an answer, or None, by which the caller allows or refuses; and to be back by itself."""
    client = Client(b"7")
    backend = RedisBackend(client)

    async def probe() -> None:
        await guard.within(backend.run(SCRIPT, ["key"], 0))

    guard = Guard(
        NOTICE, budget_seconds=0.05, retry_seconds=1.0, retry_max_seconds=8.0, task_name="budget", probe=probe
    )
    assert b"7" == await guard.ask(lambda: backend.run(SCRIPT, ["key"], 7))
    client.answer = ConnectionRefusedError()
    for _ in range(3):
        assert await guard.ask(lambda: backend.run(SCRIPT, ["key"], 7)) is None
    assert (2, False) == (client.asked, guard.in_use)
    client.answer = b"7"
    await asyncio.sleep(guard.pause_left())
    assert not guard.check()
    await asyncio.sleep(0.01)
    assert b"7" == await guard.ask(lambda: backend.run(SCRIPT, ["key"], 7))
    assert ["Budget 'spend': away (ConnectionRefusedError)", "Budget 'spend': back"] == caplog.messages
    await guard.aclose()
    await backend.aclose()


async def test_without_a_probe_the_caller_says_when_it_is_back() -> None:
    """A task that asks again and again by itself needs no other; its pauses grow with each attempt that fails."""
    guard = Guard(NOTICE, budget_seconds=0.05, retry_seconds=1.0, retry_max_seconds=8.0, task_name="sync")
    pauses = []
    guard.lose(ConnectionRefusedError())
    for _ in range(5):
        guard.lose(ConnectionRefusedError())  # from before the loss: it says nothing new
        pauses.append(guard.pause_left())
        await asyncio.sleep(guard.pause_left())
        guard.extend()
    for pause, most in zip(pauses, [1.0, 2.0, 4.0, 8.0, 8.0], strict=True):
        assert most / 2 <= pause <= most
    assert not guard.check()
    guard.recover()
    assert guard.check()


@pytest.mark.parametrize("steady_seconds", [0.0, 10.0])
async def test_a_backend_that_flaps(steady_seconds: float) -> None:
    """A short recovery begins the pauses anew, unless the user of the guard asks for a steady one."""
    guard = Guard(
        NOTICE,
        budget_seconds=0.05,
        retry_seconds=1.0,
        retry_max_seconds=8.0,
        steady_seconds=steady_seconds,
        task_name="sync",
    )
    pauses = []
    for _ in range(4):
        guard.lose(ConnectionRefusedError())
        pauses.append(guard.pause_left())
        guard.recover()
        await asyncio.sleep(1.0)
    assert (max(pauses) <= 1.0) == (steady_seconds == 0.0)


async def test_a_probe_that_fails_late_does_not_take_away_what_another_found() -> None:
    """Two event loops probe at once: the one that finds the backend is right."""
    release = asyncio.Event()

    async def probe() -> None:
        await release.wait()
        raise ConnectionRefusedError

    guard = Guard(NOTICE, budget_seconds=0.05, retry_seconds=1.0, retry_max_seconds=8.0, task_name="sync", probe=probe)
    guard.lose(ConnectionRefusedError())
    await asyncio.sleep(guard.pause_left())
    assert not guard.check()
    await asyncio.sleep(0)
    guard.recover()
    release.set()
    await asyncio.sleep(0.1)
    assert guard.in_use


async def test_an_access_that_is_cancelled_before_it_began_is_closed() -> None:
    """Python would warn of a coroutine that was never awaited."""

    async def access() -> str:
        return "answer"

    work = access()
    task = asyncio.ensure_future(in_time(work, 1.0, name="access"))
    await asyncio.sleep(0)  # the access has a task, which has not begun
    for each in asyncio.all_tasks() - {asyncio.current_task()}:  # as `asyncio.run` does at its end
        each.cancel()
    await asyncio.wait([task])
    assert inspect.CORO_CLOSED == inspect.getcoroutinestate(work)


class Blocking:
    """A synchronous client."""

    def execute_command(self, *command: Any) -> str:
        return "answer"


class Hanging:
    """A synchronous client whose server has gone."""

    def __init__(self) -> None:
        self.release, self.entered = threading.Event(), threading.Semaphore(0)

    def execute_command(self, *command: Any) -> None:
        self.entered.release()
        self.release.wait()


async def _wait_for(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0)


@pytest.mark.parametrize("given_up", [True, False])
async def test_a_client_that_hangs_leaves_the_others_their_threads(given_up: bool) -> None:
    """One server that is gone must not take the threads of all, however many caches and limits use its client."""
    client, healthy = Hanging(), Blocking()
    backends = [RedisBackend(client) for _ in range(2)]
    calls = [asyncio.ensure_future(backend.execute("GET", "key")) for backend in backends for _ in range(20)]
    for _ in range(16):
        await _wait_for(lambda: client.entered.acquire(blocking=False))
    if given_up:
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)
    assert "answer" == await RedisBackend(healthy).execute("GET", "key")
    client.release.set()
    await asyncio.wait(calls)
    assert await backends[0].execute("GET", "key") is None


async def test_the_threads_of_a_client_end_with_it() -> None:
    """A program that makes a client for each job must not gather threads."""
    client = Blocking()
    threads = weakref.ref(threads_of(client))
    assert "answer" == await RedisBackend(client).execute("GET", "key")
    assert threads() is threads_of(client)
    del client
    gc.collect()
    await _wait_for(lambda: threads() is None)


@pytest.mark.parametrize("given", [{}, {"client": Client(b""), "url": "redis://localhost"}])
def test_one_of_client_and_url(given: dict[str, Any]) -> None:
    """Neither would be an error at the first call, both a guess."""
    with pytest.raises(ConfigurationError, match="one of"):
        RedisBackend(**given)
