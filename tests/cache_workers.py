"""Processes that each have a cache on the same Redis, and do as they are told."""

from __future__ import annotations

import json
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import closing
from typing import Any

from tests.processes import RedisProcess

_READY_SECONDS = 30.0

_WORKER = """
import asyncio, json, os, sys, time

from observability_integration.caching.policy import CachePolicy
from observability_integration.primitives import CachePrimitive

options = json.loads(sys.argv[1])
calls = 0


def say(**what):
    print(json.dumps(what), flush=True)


async def compute(asked):
    global calls
    calls += 1
    say(call=calls)
    await asyncio.sleep(asked["work"])
    if asked.get("fails"):
        raise LookupError("the prompt may be in here")
    return f"answer {calls} of {os.getpid()}"


async def ask(cache, asked):
    async def one():
        started = time.monotonic()
        try:
            made = await cache.get_or_compute(asked["ask"], lambda: compute(asked), tags=asked.get("tags", ()))
        except Exception as error:
            made = error
        return made, time.monotonic() - started

    made = await asyncio.gather(*(one() for _ in range(asked.get("callers", 1))))
    errors = [value for value, _ in made if isinstance(value, Exception)]
    say(
        answers=[value for value, _ in made if isinstance(value, str)],
        errors=[[type(error).__name__, getattr(error, "error_type", "")] for error in errors],
        different=len(set(map(id, errors))),
        told=[str(error) for error in errors[:1]],
        slowest=max(seconds for _, seconds in made),
    )


async def main():
    cache = CachePrimitive(
        redis_url=options["url"],
        operation_name="ask",
        ttl_seconds=options["ttl_seconds"],
        policy=CachePolicy(**options["policy"]),
    )
    loop = asyncio.get_running_loop()
    asking = []
    say(ready=True)
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        told = json.loads(line)
        if "ask" in told:
            asking.append(asyncio.create_task(ask(cache, told)))
        elif "invalidate" in told:
            await cache.invalidate(told["invalidate"])
            say(invalidated=True)
    await asyncio.gather(*asking)
    stats = cache.get_stats()
    say(hits=stats["hits"], misses=stats["misses"])
    await cache.aclose()


asyncio.run(main())
"""


class Worker:
    """One process, and what it says."""

    def __init__(self, server: RedisProcess, ttl_seconds: float, policy: dict[str, Any]) -> None:
        options = {"url": server.url, "ttl_seconds": ttl_seconds, "policy": policy}
        self._process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", _WORKER, json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.said: list[dict[str, Any]] = []
        self._saying: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._saying.put(json.loads(line))

    def tell(self, **what: Any) -> None:
        """Tells it what to do."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()

    def ask(self, key: str, work: float, **more: Any) -> None:
        """Lets it look something up; `answered` waits for what comes of it."""
        self.tell(ask=key, work=work, **more)

    def next(self, word: str, seconds: float = _READY_SECONDS) -> dict[str, Any]:
        """The next thing it says with this word in it."""
        give_up = time.monotonic() + seconds
        while True:
            self.said.append(self._saying.get(timeout=max(0.0, give_up - time.monotonic())))
            if word in self.said[-1]:
                return self.said[-1]

    def answered(self) -> dict[str, Any]:
        """What came of what was asked."""
        return self.next("answers")

    @property
    def calls(self) -> int:
        """How many calls it has made, as far as is known."""
        while not self._saying.empty():
            self.said.append(self._saying.get())
        return sum("call" in said for said in self.said)

    def send(self, number: signal.Signals) -> None:
        """Sends it a signal."""
        self._process.send_signal(number)

    def end(self) -> None:
        """Lets it end, and ends it if it does not."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(_READY_SECONDS if self._process.poll() is None else 0.0)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._reader.join()
        assert self._process.stdout is not None
        self._process.stdout.close()


def commands_counted(server: RedisProcess) -> Callable[[], int]:
    """A function that says how many commands the server has executed for others since it was last called."""
    import redis

    def count() -> int:
        with closing(redis.Redis(port=server.port, protocol=2)) as client:
            stats: dict[str, dict[str, int]] = client.info("commandstats")  # type: ignore[assignment]
            client.config_resetstat()
        ours = ("cmdstat_info", "cmdstat_config|resetstat")
        # Its own connection may introduce itself.
        return sum(stat["calls"] for name, stat in stats.items() if name not in ours)

    count()
    return count
