"""The one way to Redis: a script under a guard, and clients that hang without taking all threads."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from observability_integration.errors import ConfigurationError
from observability_integration.redis_backend import Guard, Notice, RedisBackend, Script
from observability_integration.redis_backend.backend import threads
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
    for _ in range(5):
        guard.lose(ConnectionRefusedError())
        guard.lose(ConnectionRefusedError())  # from before the loss: it says nothing new
        pauses.append(guard.pause_left())
        await asyncio.sleep(guard.pause_left())
    for pause, most in zip(pauses, [1.0, 2.0, 4.0, 8.0, 8.0], strict=True):
        assert most / 2 <= pause <= most
    assert not guard.check()
    guard.recover()
    assert guard.check()


async def test_clients_that_hang_leave_threads_to_others() -> None:
    """Each call that is given up keeps a thread until it returns; one server that is gone must not take them all."""
    release, entered = threading.Event(), threading.Semaphore(0)

    class Hanging:
        def execute_command(self, *command: Any) -> None:
            entered.release()
            release.wait()

    backend = RedisBackend(Hanging())
    calls = [asyncio.ensure_future(backend.execute("GET", "key")) for _ in range(16)]
    for _ in calls:
        while not entered.acquire(blocking=False):
            await asyncio.sleep(0)
    for call in calls:
        call.cancel()
    await asyncio.wait(calls)
    with pytest.raises(TimeoutError):
        await backend.execute("GET", "key")
    assert "free" == await threads.run(lambda: "free")
    release.set()
    while backend._hung:
        await asyncio.sleep(0)
    assert await backend.execute("GET", "key") is None


@pytest.mark.parametrize("given", [{}, {"client": Client(b""), "url": "redis://localhost"}])
def test_one_of_client_and_url(given: dict[str, Any]) -> None:
    """Neither would be an error at the first call, both a guess."""
    with pytest.raises(ConfigurationError, match="one of"):
        RedisBackend(**given)
