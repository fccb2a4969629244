"""Processes that want the same entry at the same time, a real Redis between them, and what can happen to a leader.

Each process coalesces its own callers as the cache does, so what is seen here is what the processes owe each other.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest

from tests.processes import RedisProcess

pytestmark = [pytest.mark.once, pytest.mark.unmeasured, pytest.mark.needs_redis_package, pytest.mark.needs_redis_server]

_CALLERS = 5
_READY_SECONDS = 30.0
# What waking up, and a machine that has other things to do, may add to what is promised.
_SLACK_SECONDS = 0.3

_WORKER = """
import asyncio, json, os, sys, time

from observability_integration.caching.shared.channel import Channel
from observability_integration.caching.shared.store_guard import GuardedStore
from observability_integration.caching.shared.leases import Leases
from observability_integration.caching.policy import CachePolicy
from observability_integration.caching.stores.redis import RedisStore
from observability_integration.caching.stores.shared import Place, Write

options = json.loads(sys.argv[1])


def say(**what):
    print(json.dumps(what), flush=True)


clients = []


def make_store():
    way = options["way"]
    if way == "url":
        return RedisStore(url=f"redis://127.0.0.1:{options['port']}/0", patience_seconds=4.0)
    import redis, redis.asyncio

    kind = redis.Redis if "sync" in way.split() else redis.asyncio.Redis
    protocol = {"protocol": 2 if "resp2" in way else 3} if "resp" in way else {}
    client = kind(port=options["port"], decode_responses="text" in way, **protocol)
    clients.append(client)
    return RedisStore(client)


async def main():
    store = make_store()
    policy = CachePolicy(backend_budget_seconds=2.0, lease_seconds=options["lease"] + 4.0)
    guarded = GuardedStore(store, "ask", options["prefix"], policy)
    channel = Channel(store, options["prefix"], lambda note: None, policy.backend_budget_seconds)
    lost = []
    leases = Leases(store, guarded, channel, "ask", options["lease"], lambda: lost.append(1))
    place = Place(options["prefix"], "entry")

    async def judge(data, generation):
        return data[16:].decode()

    async def compute(lease):
        say(call=os.getpid(), lease=lease is not None)
        await asyncio.sleep(options["work"])
        if options["fails"]:
            raise LookupError("the prompt may be in here")
        answer = f"by {os.getpid()}"
        if lease is not None and options["keeps"]:
            say(committed=await lease.commit(Write(os.urandom(16) + answer.encode(), 60_000, lease.generation)))
        return answer

    async def fly():
        reading = await guarded.ask(lambda: store.read(place))
        channel.start()
        if reading.data is not None:
            return await judge(reading.data, reading.generation)
        return await leases.run(place, b"", judge, compute)

    async def call(flight):
        started = time.monotonic()
        try:
            said = {"answer": await asyncio.shield(flight)}
        except Exception as error:
            said = {"error": type(error).__name__, "type": getattr(error, "error_type", ""), "text": str(error)}
        say(seconds=time.monotonic() - started, **said)

    say(ready=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline)
    flight = asyncio.ensure_future(fly())
    await asyncio.gather(*(call(flight) for _ in range(options["callers"])))
    say(lost=len(lost))
    await channel.aclose()
    await store.aclose()
    for client in clients:
        await client.aclose() if hasattr(client, "aclose") else client.close()


asyncio.run(main())
"""


class Workers:
    """Processes that are told to begin at the same time, and what they say."""

    def __init__(self, count: int, options: dict[str, Any]) -> None:
        self.said: list[dict[str, Any]] = []
        self._saying: queue.SimpleQueue[tuple[int, dict[str, Any]]] = queue.SimpleQueue()
        self._processes = [self._start(options) for _ in range(count)]
        self._readers = [threading.Thread(target=self._read, args=(process,)) for process in self._processes]
        for reader in self._readers:
            reader.start()
        for _ in range(count):
            self.next("ready")

    @staticmethod
    def _start(options: dict[str, Any]) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-W", "error", "-c", _WORKER, json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self._saying.put((process.pid, json.loads(line)))

    def begin(self) -> None:
        """Lets all begin."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()

    def next(self, word: str, seconds: float = _READY_SECONDS) -> dict[str, Any]:
        """The next thing that is said with this word in it."""
        give_up = time.monotonic() + seconds
        while True:
            pid, said = self._saying.get(timeout=max(0.0, give_up - time.monotonic()))
            self.said.append({"pid": pid, **said})
            if word in said:
                return self.said[-1]

    def wait(self) -> None:
        """Waits until all have ended and have been heard."""
        for process, reader in zip(self._processes, self._readers, strict=True):
            assert process.wait(_READY_SECONDS) in (0, -signal.SIGKILL)
            reader.join()
        while not self._saying.empty():
            pid, said = self._saying.get()
            self.said.append({"pid": pid, **said})

    def all(self, word: str) -> list[Any]:
        """All that was said under this word."""
        return [said[word] for said in self.said if word in said]

    def end(self) -> None:
        """Ends them, whatever they do."""
        for process in self._processes:
            process.kill()
            process.wait()
        for process, reader in zip(self._processes, self._readers, strict=True):
            reader.join()
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                pipe.close()


Start = Callable[..., Workers]


@pytest.fixture
def workers(redis_process: RedisProcess) -> Iterator[Start]:
    """Starts processes; all are gone at the end."""
    started: list[Workers] = []

    def start(count: int, *, way: str = "url", work: float, lease: float, **more: Any) -> Workers:
        options = {"port": redis_process.port, "prefix": "cache:{ask:v1:0}:", "way": way, "work": work, "lease": lease}
        options |= {"callers": _CALLERS, "fails": False, "keeps": True, **more}
        started.append(Workers(count, options))
        return started[-1]

    yield start
    for group in started:
        group.end()


@pytest.fixture
def commands(redis_process: RedisProcess) -> Iterator[Callable[[], int]]:
    """How many commands the server has executed for others, those inside of scripts included, since it was asked."""
    import redis

    with closing(redis.Redis(port=redis_process.port, protocol=2)) as client:
        client.ping()

        def count() -> int:
            stats: dict[str, dict[str, int]] = client.info("commandstats")  # type: ignore[assignment]
            client.config_resetstat()
            ours = ("cmdstat_info", "cmdstat_config|resetstat")
            return sum(stat["calls"] for name, stat in stats.items() if name not in ours)

        count()
        yield count


@pytest.mark.parametrize("way", ["url", "sync", "resp2 text", "resp3", "sync resp3 text"])
def test_one_call_serves_all_processes(workers: Start, commands: Callable[[], int], way: str) -> None:
    """Twenty callers pay for one call, wait hardly longer than it takes, and do not keep Redis busy meanwhile."""
    processes, work = 4 if way == "url" else 2, 0.5
    group = workers(processes, way=way, work=work, lease=1.0)
    commands()
    group.begin()
    group.wait()
    asked = commands()
    assert [{"pid": pid, "call": pid, "lease": True} for pid in group.all("call")] == [
        said for said in group.said if "call" in said
    ]
    assert 1 == len(group.all("call"))
    assert [f"by {group.all('call')[0]}"] * processes * _CALLERS == group.all("answer")
    assert [True] == group.all("committed")
    assert [0] * processes == group.all("lost")
    assert max(group.all("seconds")) < work + _SLACK_SECONDS
    if way == "url":
        assert asked <= 100, asked


def test_a_lease_shorter_than_the_call_is_kept_up(workers: Start) -> None:
    """Calls to models take longer than any lease that would make a dead leader bearable."""
    group = workers(3, work=1.0, lease=0.3)
    group.begin()
    group.wait()
    assert 1 == len(group.all("call"))
    assert [0, 0, 0] == group.all("lost")


def test_a_leader_that_is_killed_is_replaced_by_one(workers: Start) -> None:
    """Everybody is answered within a lease and a call, and the call is made once more, not once by each."""
    work, lease = 0.5, 0.6
    group = workers(4, work=work, lease=lease)
    group.begin()
    leader = group.next("call")["pid"]
    os.kill(leader, signal.SIGKILL)
    group.wait()
    assert 2 == len(group.all("call"))
    assert [f"by {group.all('call')[1]}"] * 3 * _CALLERS == group.all("answer")
    assert max(group.all("seconds")) < lease + work + 0.5


def test_a_leader_that_was_asleep_overwrites_nothing(workers: Start) -> None:
    """It wakes with an answer of yesterday, when another process has long led and written."""
    group = workers(2, work=0.3, lease=0.4)
    group.begin()
    sleeper = group.next("call")["pid"]
    os.kill(sleeper, signal.SIGSTOP)
    other = group.next("call")["pid"]
    assert {"pid": other, "committed": True} == group.next("committed")
    os.kill(sleeper, signal.SIGCONT)
    assert {"pid": sleeper, "committed": False} == group.next("committed")
    group.wait()
    assert {f"by {other}", f"by {sleeper}"} == set(group.all("answer"))  # its own callers still get what it brought
    assert [0, 1] == sorted(group.all("lost"))
    after = workers(1, work=0.0, lease=0.4)
    after.begin()
    after.wait()
    assert [f"by {other}"] * _CALLERS == after.all("answer")


def test_a_failure_is_shared(workers: Start) -> None:
    """Whoever waited for the call that failed learns of which kind the error was, and does not try it again in turn."""
    group = workers(3, work=0.4, lease=1.0, fails=True)
    group.begin()
    group.wait()
    assert 1 == len(group.all("call"))
    leader = group.all("call")[0]
    own = [said["error"] for said in group.said if "error" in said and said["pid"] == leader]
    others = [(said["error"], said["type"]) for said in group.said if "error" in said and said["pid"] != leader]
    assert ["LookupError"] * _CALLERS == own
    assert [("SharedCallError", "LookupError")] * 2 * _CALLERS == others
    assert not [said for said in group.said if said["pid"] != leader and "prompt" in said.get("text", "")]


def test_what_is_not_kept_is_not_waited_for_in_turn(workers: Start) -> None:
    """A call whose answer cannot be given to others lets them all go at once."""
    group = workers(3, work=0.4, lease=1.0, keeps=False)
    group.begin()
    group.wait()
    assert 3 == len(group.all("call"))
    assert max(group.all("seconds")) < 2 * 0.4 + _SLACK_SECONDS
