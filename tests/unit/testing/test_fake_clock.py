"""The clock that jumps, which users' tests and ours rely on."""

from __future__ import annotations

import asyncio
import socket
import threading

import pytest

from observability_integration.primitives import TimeoutPrimitive
from observability_integration.testing import FakeClockLoop


def run(scenario, **options):
    with asyncio.Runner(loop_factory=lambda: FakeClockLoop(**options)) as runner:
        return runner.run(scenario())


def test_waiting_takes_no_time_but_the_clock_shows_it() -> None:
    """A week of sleep, and any timeout on the way, is over at once and at exactly its time."""

    async def hang(_: str) -> None:
        await asyncio.Event().wait()

    async def scenario() -> list[float]:
        loop = asyncio.get_running_loop()
        moments = [loop.time()]
        await asyncio.sleep(604_800.0)
        moments.append(loop.time())
        with pytest.raises(TimeoutError):
            await TimeoutPrimitive(hang, 30.0).execute("question")
        moments.append(loop.time())
        return moments

    assert [0.0, 604_800.0, 604_830.0] == run(scenario)


def test_even_years_pass() -> None:
    """So late that a nanosecond is lost in rounding, the clock still reaches its timers."""

    async def scenario() -> float:
        await asyncio.sleep(31_536_000.0)
        await asyncio.sleep(0.1)
        return asyncio.get_running_loop().time()

    assert pytest.approx(131_536_000.1) == run(scenario, start_seconds=100_000_000.0)


def test_timers_fire_in_order() -> None:
    """Tasks that sleep at the same time wake in the order of their times, not of their starts."""

    async def scenario() -> list[tuple[str, float]]:
        woken: list[tuple[str, float]] = []

        async def sleeper(name: str, seconds: float) -> None:
            await asyncio.sleep(seconds)
            woken.append((name, asyncio.get_running_loop().time()))

        await asyncio.gather(sleeper("c", 3.0), sleeper("a", 1.0), sleeper("b", 2.5))
        return woken

    assert [("a", 101.0), ("b", 102.5), ("c", 103.0)] == run(scenario, start_seconds=100.0)


def test_the_clock_stands_still_while_anything_can_run() -> None:
    """Only when every task waits does time pass: however many turns a task takes, they take no time."""

    async def scenario() -> float:
        timer = asyncio.ensure_future(asyncio.sleep(1.0))
        for _ in range(1000):
            await asyncio.sleep(0)
        assert not timer.done()
        await timer
        return asyncio.get_running_loop().time()

    assert 1.0 == run(scenario)


def test_advance_is_a_blocked_loop() -> None:
    """Moving the clock by hand makes timers late, as blocking code does; backwards it does not go."""

    async def scenario() -> float:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, FakeClockLoop)
        timer = asyncio.ensure_future(asyncio.sleep(1.0))
        await asyncio.sleep(0)
        loop.advance(5.0)
        await timer
        with pytest.raises(ValueError, match="does not run backwards"):
            loop.advance(-1.0)
        return loop.time()

    assert 5.0 == run(scenario)


def test_sockets_and_threads_work() -> None:
    """What is ready on a socket comes before the clock jumps, and without a timer the loop waits for other threads."""

    async def scenario() -> tuple[bytes, bytes, str]:
        ours, theirs = socket.socketpair()
        reader, writer = await asyncio.open_connection(sock=ours)
        other_reader, other_writer = await asyncio.open_connection(sock=theirs)
        large = b"x" * 1_000_000  # more than fits the socket's buffer, so that the loop waits for reading and writing
        writer.write(large)
        other_writer.write(large)
        received = await asyncio.gather(other_reader.readexactly(len(large)), reader.readexactly(len(large)))
        for each in (writer, other_writer):
            each.close()
            await each.wait_closed()
        future = asyncio.get_running_loop().create_future()
        thread = threading.Thread(
            target=asyncio.get_running_loop().call_soon_threadsafe, args=(future.set_result, "from a thread")
        )
        thread.start()
        told = await future
        thread.join()
        return received[0][:1], received[1][:1], told

    assert (b"x", b"x", "from a thread") == run(scenario)


def test_closing_waits_for_threads() -> None:
    """Threads of the default executor end in real time, whatever time limit the runner sets on this clock."""
    release = threading.Event()

    async def scenario() -> None:
        asyncio.get_running_loop().run_in_executor(None, release.wait)
        threading.Timer(0.02, release.set).start()

    run(scenario)
    assert release.is_set()
