"""The cache and a real Redis that fails, in every way that servers and networks do: nobody's call is the worse for it.

Each fault is a context: inside it the server is broken, afterwards it is mended, on the same port.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing
from pathlib import Path
from typing import Any

import pytest

from observability_integration import events
from observability_integration.caching.policy import CachePolicy
from observability_integration.context import Deadline, WorkflowContext
from observability_integration.primitives import CachePrimitive
from tests.processes import RedisProcess
from tests.redis_caches import WAYS, Caches, Calls, ask_server, caches, keys_in
from tests.scripts import run_script

__all__ = ["caches"]

pytestmark = [
    pytest.mark.once,
    pytest.mark.unmeasured,
    # redis-py drops the transport of a connection attempt that is cancelled, and Python says so when it is collected.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.needs_redis_package,
    pytest.mark.needs_redis_server,
    pytest.mark.promise("C5"),
]

# The defaults, but for the time after which the server is tried again: nobody wants to wait for a second here.
EAGER = CachePolicy(backend_retry_seconds=0.05, backend_retry_max_seconds=0.2)

# The promise is 100 ms for the call that meets the fault; the rest is for a machine that has other things to do.
_FIRST_SECONDS = 0.15
_OPEN_SECONDS = 0.001
_TICK_SECONDS = 0.005

Fault = Callable[[RedisProcess], AbstractAsyncContextManager[None]]


# Faults ---------------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def killed(server: RedisProcess) -> AsyncIterator[None]:
    """Connections break, and new ones are refused."""
    server.kill()
    yield
    server.restart()


@asynccontextmanager
async def paused(server: RedisProcess) -> AsyncIterator[None]:
    """Connections stay open, new ones are accepted, and nothing answers."""
    server.pause()
    yield
    server.resume()


class _Impostor(asyncio.Protocol):
    """Something else listens where Redis should."""

    def __init__(self, says: bytes | None, connections: list[asyncio.Transport]) -> None:
        self._says = says
        self._connections = connections

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self._connections.append(transport)
        if self._says == b"":
            transport.abort()

    def data_received(self, data: bytes) -> None:
        if self._says:
            self._transport.write(self._says)


def impostor(says: bytes | None) -> Fault:
    """The port is taken by something that answers everything with the same bytes; b"" hangs up, None is silent."""

    @asynccontextmanager
    async def fault(server: RedisProcess) -> AsyncIterator[None]:
        server.kill()
        connections: list[asyncio.Transport] = []
        loop = asyncio.get_running_loop()
        listening = await loop.create_server(lambda: _Impostor(says, connections), "127.0.0.1", server.port)
        yield
        listening.close()
        for connection in connections:
            connection.abort()
        await listening.wait_closed()
        server.restart()

    return fault


def misconfigured(broken: list[list[str]], mended: list[list[str]]) -> Fault:
    """The server answers, and refuses: by commands that break it, and others that mend it."""

    @asynccontextmanager
    async def fault(server: RedisProcess) -> AsyncIterator[None]:
        import redis

        with closing(redis.Redis(port=server.port, single_connection_client=True)) as admin:
            for command in broken:
                admin.execute_command(*command)
            yield
            for command in mended:
                admin.execute_command(*command)

    return fault


FAULTS: dict[str, Fault] = {
    "killed": killed,
    "paused": paused,
    "silent": impostor(None),
    "hangs up": impostor(b""),
    "speaks HTTP": impostor(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
    "speaks in tongues": impostor(b"\x00\xff\x15\x03\x01\r\n\xfe"),
    "answers by half": impostor(b"$1000\r\nhalf"),
    "loading": impostor(b"-LOADING Redis is loading the dataset in memory\r\n"),
    "read-only": misconfigured([["REPLICAOF", "127.0.0.1", "1"]], [["REPLICAOF", "NO", "ONE"]]),
    "without replicas": misconfigured(
        [["CONFIG", "SET", "min-replicas-to-write", "1"]], [["CONFIG", "SET", "min-replicas-to-write", "0"]]
    ),
    "out of memory": misconfigured(
        [["CONFIG", "SET", "maxmemory-policy", "noeviction"], ["CONFIG", "SET", "maxmemory", "1"]],
        [["CONFIG", "SET", "maxmemory", "0"]],
    ),
    "writing forbidden": misconfigured(
        [["ACL", "SETUSER", "default", "-set"]], [["ACL", "SETUSER", "default", "+set"]]
    ),
    "reading forbidden": misconfigured(
        [["ACL", "SETUSER", "default", "-get", "-mget"]], [["ACL", "SETUSER", "default", "+get", "+mget"]]
    ),
    "wants a password": misconfigured(
        [["CONFIG", "SET", "requirepass", "x"], ["CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes"]],
        [["CONFIG", "SET", "requirepass", ""]],
    ),
}


# Means ----------------------------------------------------------------------------------------------------------------


class Turns:
    """What happened to the stores, as events tell it."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.recovered = asyncio.Event()

    def __call__(self, event: events.Event) -> None:
        self.seen.append(event.name.removeprefix("cache.backend."))
        if event.name == "cache.backend.recovered":
            self.recovered.set()


@pytest.fixture
def turns() -> Iterator[Turns]:
    """Listens from the beginning of the test."""
    heard = Turns()
    unsubscribe = events.subscribe(heard, "cache.backend.")
    yield heard
    unsubscribe()


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the log says, ours or anybody's, cut to what has happened."""
    lines = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    return [
        "out of use" if "out of use" in line else "back in use" if "back in use" in line else line for line in lines
    ]


async def answer() -> str:
    """The call."""
    return "answer"


async def timed(cache: CachePrimitive[Any, Any], key: Any) -> float:
    """How long a lookup takes, of which the call takes nothing, in seconds."""
    started = time.perf_counter()
    assert "answer" == await cache.get_or_compute(key, answer)
    return time.perf_counter() - started


async def timed_alone(cache: CachePrimitive[Any, Any], key: Any) -> float:
    """The same, less what other processes take from this one: the time for which a ticking task could not tick."""
    lag = 0.0

    async def tick() -> None:
        nonlocal lag
        while True:
            before = time.perf_counter()
            await asyncio.sleep(_TICK_SECONDS)
            lag += time.perf_counter() - before - _TICK_SECONDS

    ticking = asyncio.create_task(tick())
    await asyncio.sleep(0)
    took = await timed(cache, key)
    ticking.cancel()
    await asyncio.wait([ticking])
    return took - lag


def kept_waiting() -> float:
    """For how long this thread could have run and was not let, in seconds: what other processes have taken from it."""
    try:
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    except FileNotFoundError:  # only Linux tells
        return 0.0


async def in_use(
    cache: CachePrimitive[Any, Any], server: RedisProcess, turns: Turns, caplog: pytest.LogCaptureFixture
) -> None:
    """Fills the cache and the server with "before 0" to "before 19", through several connections at once.

    A machine that is busy with other things may put the server out of use meanwhile, which is no part of the test.
    """
    keys = [f"before {number}" for number in range(20)]
    while True:
        await asyncio.gather(*(timed(cache, key) for key in keys))
        if turns.seen[-1:] == ["degraded"]:
            await until_recovered(cache, turns)
        elif 20 <= len(keys_in(server)):
            break
        turns.recovered.clear()
        await cache.clear()
    turns.seen.clear()
    caplog.clear()


async def until_recovered(cache: CachePrimitive[Any, Any], turns: Turns) -> None:
    """Goes on calling, as users do, until the server is back in use."""
    async with asyncio.timeout(20):
        number = 0
        while not turns.recovered.is_set():
            number += 1
            await timed(cache, f"meanwhile {number}")
            await asyncio.sleep(0.01)


# Promises -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["asyncio", "sync text", "url"])
@pytest.mark.parametrize("fault", FAULTS)
async def test_nobody_is_the_worse_for_it(
    fault: str,
    way: str,
    redis_process: RedisProcess,
    caches: Caches,
    turns: Turns,
    caplog: pytest.LogCaptureFixture,
    metrics: Callable[..., Any],
) -> None:
    """Whatever happens to Redis: no failed call, 100 ms once, 1 ms from then on, and back in use without a restart."""
    cache = caches(way, redis_process, policy=EAGER, operation_name="chat", cost_per_call=0.5)
    await in_use(cache, redis_process, turns, caplog)
    before = cache.get_stats()

    async with FAULTS[fault](redis_process):
        assert await timed_alone(cache, "first") < _FIRST_SECONDS
        # Of a few rounds the best, less what other processes take: what else the machine does must not count.
        rounds = []
        for number in range(3):
            started = time.perf_counter() - kept_waiting()
            for key in range(100):
                await timed(cache, [number, key])
            rounds.append(time.perf_counter() - kept_waiting() - started)
        assert min(rounds) < 100 * _OPEN_SECONDS
        # Memory serves what it has, from before and from since.
        unneeded = Calls("never")
        for key in [*(f"before {number}" for number in range(20)), "first", *([0, key] for key in range(100))]:
            assert "answer" == await cache.get_or_compute(key, unneeded)
        assert 0 == unneeded.made
        assert ["degraded"] == turns.seen
        assert ["out of use"] == warnings_in(caplog)
        assert 0 == metrics("cache.backend_up", operation="chat")
        stats = cache.get_stats()
        assert (121, 301) == (stats["hits"] - before["hits"], stats["misses"] - before["misses"])
        assert 60.5 == stats["cost_savings_usd"] - before["cost_savings_usd"]
        assert stats["hits"] == metrics("cache.hits", operation="chat")
        assert stats["misses"] == metrics("cache.misses", operation="chat")

    await until_recovered(cache, turns)
    assert ["degraded", "recovered"] == turns.seen
    assert ["out of use", "back in use"] == warnings_in(caplog)
    assert 1 == metrics("cache.backend_up", operation="chat")
    await timed(cache, "afterwards")
    assert "answer" == await caches(way, redis_process, operation_name="chat").get_or_compute("afterwards", Calls("no"))


@pytest.mark.parametrize("fault", FAULTS)
async def test_it_stays_out_of_use_for_as_long_as_it_is_broken(
    fault: str, redis_process: RedisProcess, caches: Caches, turns: Turns, caplog: pytest.LogCaptureFixture
) -> None:
    """A server that answers and serves nothing must not be taken for one that is back, only to fail again."""
    cache = caches("url", redis_process, policy=EAGER)
    await in_use(cache, redis_process, turns, caplog)
    async with FAULTS[fault](redis_process):
        for number in range(40):  # while it is tried again at least twice
            await timed(cache, number)
            await asyncio.sleep(0.01)
        assert ["degraded"] == turns.seen
        assert ["out of use"] == warnings_in(caplog)
    await until_recovered(cache, turns)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("fault", ["killed", "paused", "silent", "hangs up", "speaks HTTP"])
async def test_a_server_that_was_never_there(
    fault: str, way: str, redis_process: RedisProcess, caches: Caches, turns: Turns, caplog: pytest.LogCaptureFixture
) -> None:
    """A program that starts before its Redis does, or while that hangs, must start all the same, and find it later."""
    async with FAULTS[fault](redis_process):
        cache = caches(way, redis_process, policy=EAGER)
        assert await timed_alone(cache, "first") < _FIRST_SECONDS
        for _ in range(2):
            for key in range(100):
                await timed(cache, key)
        assert (100, 101) == (cache.get_stats()["hits"], cache.get_stats()["misses"])
        assert ["out of use"] == warnings_in(caplog)
    await until_recovered(cache, turns)
    assert ["out of use", "back in use"] == warnings_in(caplog)
    await timed(cache, "afterwards")
    assert any(not key.endswith(":probe") for key in keys_in(redis_process))


@pytest.mark.parametrize("way", WAYS)
async def test_a_crowd_meets_the_fault_together(
    way: str, redis_process: RedisProcess, caches: Caches, caplog: pytest.LogCaptureFixture
) -> None:
    """Two hundred callers of a frozen server must not queue up behind one another's budgets, nor each log a line."""
    cache = caches(way, redis_process, policy=CachePolicy())
    await timed(cache, "before")
    redis_process.pause()
    started = time.perf_counter()
    await asyncio.gather(*(timed(cache, key) for key in range(200)))
    # One after the other, in the slots that there are, they would take more than half a second.
    assert time.perf_counter() - started < 0.4
    redis_process.resume()
    assert ["out of use"] == warnings_in(caplog)
    assert 201 == cache.get_stats()["misses"]


@pytest.mark.promise("T7")
async def test_a_deadline_is_kept_while_redis_hangs(redis_process: RedisProcess, caches: Caches) -> None:
    """A caller with little time left must not spend it on a server that does not answer."""
    calls = Calls("answer")
    slow = CachePolicy(backend_budget_seconds=20.0)
    cache = caches("asyncio", redis_process, calls, lambda prompt, context: prompt, policy=slow)
    redis_process.pause()
    deadline = Deadline.after(0.4)
    assert "answer" == await cache.execute("prompt", WorkflowContext(deadline=deadline))
    assert 0 < deadline.remaining()
    redis_process.resume()
    await cache.aclose()
    await asyncio.wait(asyncio.all_tasks() - {asyncio.current_task()})  # the server is judged by its own budget


@pytest.mark.promise("C2", "B4")
@pytest.mark.parametrize("way", WAYS)
async def test_a_cancelled_caller_harms_no_other_while_redis_hangs(
    way: str, redis_process: RedisProcess, caches: Caches
) -> None:
    """The one who is cancelled may be the one who is waiting for Redis, on behalf of all the others."""
    cache, calls = caches(way, redis_process, policy=EAGER), Calls("answer")
    redis_process.pause()
    callers = [asyncio.create_task(cache.get_or_compute("key", calls)) for _ in range(10)]
    await asyncio.sleep(0.01)
    assert 0 == calls.made
    callers[0].cancel()
    returned = await asyncio.gather(*callers, return_exceptions=True)
    redis_process.resume()
    assert isinstance(returned[0], asyncio.CancelledError)
    assert ["answer"] * 9 == returned[1:]
    assert 1 == calls.made


@pytest.mark.parametrize("way", WAYS)
async def test_a_server_that_comes_and_goes(
    way: str, redis_process: RedisProcess, caches: Caches, turns: Turns, caplog: pytest.LogCaptureFixture
) -> None:
    """Each turn is told once, however often it happens, and no call fails on the way."""
    cache = caches(way, redis_process, policy=EAGER)
    for number in range(3):
        async with (killed if number % 2 else paused)(redis_process):
            await timed(cache, f"first {number}")
            await timed(cache, f"second {number}")
        await until_recovered(cache, turns)
        turns.recovered.clear()
    assert ["degraded", "recovered"] * 3 == turns.seen
    assert ["out of use", "back in use"] * 3 == warnings_in(caplog)


@pytest.mark.promise("C8")
@pytest.mark.parametrize("everything", [False, True])
@pytest.mark.parametrize("way", WAYS)
async def test_what_is_invalidated_while_the_server_is_away_stays_invalidated(
    way: str, everything: bool, redis_process: RedisProcess, caches: Caches, turns: Turns
) -> None:
    """The server comes back with the old value in it, which must not be served again, by this process or another."""
    cache = caches(way, redis_process, policy=EAGER, operation_name="chat")
    await cache.get_or_compute("key", Calls("old"))
    async with paused(redis_process):
        await timed(cache, "finds out")
        started = time.perf_counter()
        await (cache.clear() if everything else cache.invalidate("key"))
        assert time.perf_counter() - started < _FIRST_SECONDS
    await until_recovered(cache, turns)
    for reader in (caches(way, redis_process, operation_name="chat"), cache):
        assert "new" == await reader.get_or_compute("key", Calls("new"))


@pytest.mark.promise("X4")
@pytest.mark.parametrize("fault", ["wants a password", "speaks HTTP", "killed"])
async def test_no_secret_is_logged(fault: str, redis_process: RedisProcess, caplog: pytest.LogCaptureFixture) -> None:
    """What a client says about a fault may quote the address with the password, or the command with the prompt."""
    url = f"redis://someone:hunter2@127.0.0.1:{redis_process.port}/0"
    async with FAULTS[fault](redis_process):
        cache: CachePrimitive[Any, Any] = CachePrimitive(redis_url=url, operation_name="chat")
        assert "the answer" == await cache.get_or_compute("the prompt", lambda: "the answer")
        await cache.aclose()
    assert ["out of use"] == warnings_in(caplog)
    for secret in ("hunter2", "someone", "the prompt", "the answer"):
        assert secret not in caplog.text


@pytest.mark.parametrize("way", WAYS)
async def test_errors_of_the_server_are_counted_by_type(
    way: str, redis_process: RedisProcess, caches: Caches, metrics: Callable[..., Any]
) -> None:
    """A dashboard tells a server that hangs from one that has no memory left."""
    cache = caches(way, redis_process, operation_name=f"counted {way}")
    await timed(cache, "before")
    ask_server(redis_process, "CONFIG", "SET", "maxmemory", "1")
    await timed(cache, "first")
    found = metrics("cache.backend_errors", operation=f"counted {way}", error_type="redis.exceptions.OutOfMemoryError")
    assert 1 == found


@pytest.mark.promise("C4")
async def test_a_server_that_hangs_does_not_hold_up_the_end_of_the_program(redis_process: RedisProcess) -> None:
    """A synchronous client waits in a thread that nobody can stop; a process must be able to end without it."""
    redis_process.pause()
    started = time.monotonic()
    printed = run_script(
        """
        import asyncio, sys, redis
        from observability_integration.primitives import CachePrimitive

        async def main():
            client = redis.Redis(port=int(sys.argv[1]), socket_timeout=None, socket_connect_timeout=None)
            print(await CachePrimitive(redis_client=client).get_or_compute("prompt", lambda: "answer"))

        asyncio.run(main())
        """,
        str(redis_process.port),
    )
    redis_process.resume()
    assert "answer\n" == printed
    assert time.monotonic() - started < 20
