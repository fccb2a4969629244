"""One limit for many processes, in a real Redis, through every kind of client, and while Redis is at fault."""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from typing import Any

import pytest

from observability_integration.errors import ConfigurationError, RateLimitExceededError
from observability_integration.primitives.rate_limit import RateLimitPrimitive
from observability_integration.primitives.rate_limit.buckets import Ledger
from observability_integration.primitives.rate_limit.redis import RedisLedger
from observability_integration.primitives.rate_limit.shared import LedgerUpdate, Limits
from tests.processes import RedisProcess, free_port
from tests.tcp_proxy import TcpProxy

pytestmark = [
    pytest.mark.needs_redis_package,
    pytest.mark.needs_redis_server,
    pytest.mark.once,
    pytest.mark.promise("Q2"),
]

PATIENT_SECONDS = 2.0  # a machine that is busy with other things may take long to answer

Make = Callable[..., RateLimitPrimitive[Any, Any]]


async def used(_: Any) -> Any:
    return {"usage": {"prompt_tokens": 5, "completion_tokens": 5}}


@pytest.fixture
async def make() -> AsyncIterator[Make]:
    """Makes limiters; all are closed at the end."""
    made: list[RateLimitPrimitive[Any, Any]] = []

    def limited(url: str | None, name: str, **options: Any) -> RateLimitPrimitive[Any, Any]:
        options.setdefault("redis_budget_seconds", PATIENT_SECONDS)
        made.append(RateLimitPrimitive(options.pop("step", used), operation_name=name, redis_url=url, **options))
        return made[-1]

    yield limited
    for each in made:
        await each.aclose()


async def admitted(primitive: RateLimitPrimitive[Any, Any], calls: int, request: Any = "") -> int:
    """How many of so many calls were made."""
    done = await asyncio.gather(*(primitive.execute(request) for _ in range(calls)), return_exceptions=True)
    assert {type(each) for each in done if isinstance(each, BaseException)} <= {RateLimitExceededError}
    return sum(isinstance(each, dict) for each in done)


@pytest.mark.parametrize("way", ["url", "asyncio", "asyncio text", "sync", "sync text"])
async def test_any_client_shares_the_limit(way: str, redis_server: RedisProcess, make: Make) -> None:
    """Two limiters of one name have one limit between them, and the loop is never blocked."""
    import redis
    import redis.asyncio

    options: dict[str, Any] = {"requests_per_minute": 1, "burst_seconds": 600.0, "max_wait_seconds": 0}
    url, client = redis_server.url if way == "url" else None, None
    if way != "url":
        kind: Any = redis.asyncio.Redis if way.startswith("asyncio") else redis.Redis
        client = kind(port=redis_server.port, decode_responses=way.endswith("text"))
    first, second = (make(url, f"any {way}", redis_client=client, **options) for _ in range(2))
    assert 8 == await admitted(first, 8)
    assert 2 == await admitted(second, 8)
    assert {"admitted": 2, "refused": 6}.items() <= second.get_stats().items()
    for each in (first, second):
        await each.aclose()
    if client is not None:
        await client.aclose() if way.startswith("asyncio") else client.close()


WORKER = """
import asyncio, json, sys, time

from observability_integration.errors import RateLimitExceededError
from observability_integration.primitives.rate_limit import RateLimitPrimitive


async def main(url, seconds):
    async def used(_):
        return {"usage": {"prompt_tokens": 10, "completion_tokens": 10}}

    limited = RateLimitPrimitive(
        used, requests_per_minute=6000, tokens_per_minute=60_000, burst_seconds=0.1, estimate_tokens=lambda _: 40,
        max_wait_seconds=0.5, operation_name="shared", redis_url=url, redis_budget_seconds=2.0,
    )
    await asyncio.to_thread(sys.stdin.readline)
    began, came = time.monotonic(), []

    async def caller():
        while time.monotonic() < began + seconds:
            try:
                await limited.execute("")
                came.append(time.monotonic())
            except RateLimitExceededError as error:
                await asyncio.sleep(min(error.retry_after_seconds, 0.1))

    await asyncio.gather(*(caller() for _ in range(8)))
    await limited.aclose()
    print(json.dumps({"began": began, "came": came, "stats": limited.get_stats()}), flush=True)


asyncio.run(main(sys.argv[1], float(sys.argv[2])))
"""


def test_processes_share_one_limit(redis_server: RedisProcess) -> None:
    """What three processes did in sum is what one would have been allowed, and none went without."""
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", WORKER, redis_server.url, "1.0"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    time.sleep(0.5)  # so that they begin at about the same time; nothing depends on it
    said = []
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in processes:
        out, _ = process.communicate(timeout=60)
        said.append(json.loads(out))
    came = sorted(moment for each in said for moment in each["came"])
    began, ended = min(each["began"] for each in said), max(came)
    # 1,000 tokens a second at 20 a call are 50 calls a second. What is reserved above that (40) is given back, and
    # 100 tokens may be saved up.
    most = (1000 * (ended - began) + 100 + 40) / 20
    assert len(came) <= most
    assert len(came) >= 0.6 * most
    assert all(each["came"] for each in said)


async def test_first_come_first_served_across_processes(redis_server: RedisProcess, make: Make) -> None:
    """Small calls of one process, however many, do not starve a large one of another."""
    options: dict[str, Any] = {"tokens_per_minute": 60_000, "burst_seconds": 0.5, "estimate_tokens": float}
    options["step"] = _nothing
    small, large = (make(redis_server.url, "fair", **options) for _ in range(2))
    await small.execute(500)
    waiting = asyncio.create_task(large.execute(400))
    await asyncio.sleep(0.05)
    began, went = time.monotonic(), 0
    while not waiting.done():
        await small.execute(5)
        went += 1
    assert time.monotonic() - began < 5.0  # 400 tokens come in 0.4 s
    assert went <= 60


async def _nothing(_: Any) -> None:
    return None


async def test_redis_killed_and_back(redis_process: RedisProcess, make: Make) -> None:
    """No call fails; each process goes on by itself from where they stood; then the shared limit is used again."""
    primitive = make(redis_process.url, "killed", requests_per_minute=1, burst_seconds=6000.0, max_wait_seconds=0)
    assert 50 == await admitted(primitive, 50)
    redis_process.kill()
    assert 40 == await admitted(primitive, 40)
    assert 10 == await admitted(primitive, 20)
    redis_process.start()
    give_up = time.monotonic() + 20
    while _level(redis_process, "killed") is None and time.monotonic() < give_up:
        await admitted(primitive, 1)
        await asyncio.sleep(0.05)
    # What was used meanwhile still counts, though the server has forgotten everything.
    assert float(_level(redis_process, "killed") or "nan") < 2


def _command(server: RedisProcess, *command: Any) -> Any:
    import redis

    with closing(redis.Redis(port=server.port)) as client:
        return client.execute_command(*command)


def _level(server: RedisProcess, name: str) -> bytes | None:
    found: bytes | None = _command(server, "HGET", f"ratelimit:{{{name}}}:state", "r")
    return found


async def test_a_silent_redis_costs_one_budget(redis_server: RedisProcess, make: Make, metrics: Any) -> None:
    """It accepts connections and never answers: the first calls wait a budget together, all others nothing."""
    async with TcpProxy(redis_server.port) as proxy:
        primitive = make(proxy.url, "silent", requests_per_minute=10_000, redis_budget_seconds=0.1)
        await primitive.execute("")
        proxy.swallow()
        began = time.monotonic()
        assert 50 == await admitted(primitive, 50)
        assert time.monotonic() - began < 1.0
        began = time.monotonic()
        assert 500 == await admitted(primitive, 500)
        assert time.monotonic() - began < 1.0
        assert 1 == metrics("rate_limit.backend_errors", operation="silent", error_type="TimeoutError")
        await primitive.aclose()


async def test_no_redis_from_the_start(make: Make) -> None:
    """A service that starts before its Redis serves all the same."""
    primitive = make(f"redis://127.0.0.1:{free_port()}/0", "none", requests_per_minute=10)
    assert 10 == await admitted(primitive, 10)


def test_no_url(redis_server: RedisProcess) -> None:
    """Said when it is made, without quoting the password."""
    with pytest.raises(ConfigurationError) as caught:
        RateLimitPrimitive(used, requests_per_minute=1, redis_url="ftp://:secret@somewhere")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("seed", range(4))
async def test_the_script_does_what_the_ledger_here_does(seed: int, redis_server: RedisProcess) -> None:
    """Both have the same rules, so the promises that are tested on the one hold for the other."""
    chance = random.Random(seed)
    # So slow that the time that passes between the steps brings nothing.
    here = Ledger(6e-5, 6e-3, 6e8)
    assert here.requests is not None
    assert here.tokens is not None
    terms = Limits(here.requests.rate, here.requests.capacity, here.tokens.rate, here.tokens.capacity)
    there = RedisLedger(f"model {seed}", url=redis_server.url)
    for step in range(50):
        await asyncio.sleep(0.002)  # of two that have waited as long, the one that said so first is first
        now = step / 100
        line = chance.choice("abc")
        news = LedgerUpdate(chance.choice([0, 1]), chance.choice([0, 0, 3000, -2000]))
        if chance.random() < 0.1:
            news = news._replace(most_requests=chance.choice([None, 30]), most_tokens=chance.choice([None, 9000.0]))
        waited = sorted((chance.choice([0, 1, 2, 5]) for _ in range(chance.randrange(5))), reverse=True)
        calls = [(float(chance.choice([0, 100, 2000, 70_000])), float(seconds)) for seconds in waited]
        here.give_back(news.requests, news.tokens)
        here.lower(news.most_requests, news.most_tokens, now)
        expected = here.take(line, [(tokens, now - seconds) for tokens, seconds in calls], now)
        answer = await there.take(line, terms, news, calls)
        assert expected.granted == answer.verdict.granted
        assert expected.wait_seconds == pytest.approx(answer.verdict.wait_seconds, rel=1e-3, abs=1e-3)
        if expected.granted < len(calls):
            assert expected.limit == answer.verdict.limit
        assert here.left(now) == pytest.approx((max(0, answer.requests or 0), max(0, answer.tokens or 0)), abs=1e-3)
    await there.aclose()


async def test_the_gate_is_closed_for_all(redis_server: RedisProcess) -> None:
    """For as long as was said, whoever asks; a shorter pause said later does not open it."""
    ledger = RedisLedger("gate", url=redis_server.url)
    terms = Limits(1.0, 60.0)
    for seconds in (30.0, 10.0, 0.0):
        answer = await ledger.take("a", terms, LedgerUpdate(closed_seconds=seconds), [(0.0, 0.0)])
        assert ("provider", 0, 60.0) == (answer.verdict.limit, answer.verdict.granted, answer.requests)
        assert 30.0 == pytest.approx(answer.verdict.wait_seconds, abs=1.0)
        assert answer.closed_seconds == pytest.approx(answer.verdict.wait_seconds)
    await ledger.aclose()


async def test_a_claim_is_void_when_nobody_renews_it(redis_server: RedisProcess) -> None:
    """A process that was killed while it waited must not keep all others waiting."""
    ledger = RedisLedger("claim", url=redis_server.url)
    terms = Limits(0.0, 0.0, 1.0, 600.0)
    for until_ms, granted in ((1, 1), (4_000_000_000_000, 0)):
        _command(redis_server, "HSET", ledger.key, "line", json.dumps([["gone", 0, until_ms, 599]]))
        answer = await ledger.take("a", terms, LedgerUpdate(), [(10.0, 0.0)])
        assert granted == answer.verdict.granted
    await ledger.aclose()


@pytest.mark.parametrize("command", [("SET", "nonsense"), ("HSET", "line", "nonsense"), ("HSET", "r", "nonsense")])
async def test_a_key_that_holds_nonsense_fails_no_call(
    command: tuple[str, ...], redis_server: RedisProcess, make: Make
) -> None:
    """Whoever wrote it: the process limits by itself."""
    name = f"nonsense {command}"
    _command(redis_server, command[0], f"ratelimit:{{{name}}}:state", *command[1:])
    if command[0] == "HSET":
        _command(redis_server, "HSET", f"ratelimit:{{{name}}}:state", "ra", "0")
    primitive = make(redis_server.url, name, requests_per_minute=10, max_wait_seconds=0)
    assert 10 == await admitted(primitive, 20)


async def test_keys_go_by_themselves(redis_server: RedisProcess, make: Make) -> None:
    """A limit that nobody uses any more must not stay in Redis for ever; while it matters, it must."""
    primitive = make(redis_server.url, "life", requests_per_minute=60, max_wait_seconds=0)
    assert 30 == await admitted(primitive, 30)
    milliseconds = _command(redis_server, "PTTL", "ratelimit:{life}:state")
    assert 60_000 < milliseconds <= 60_000 + 31_000


def test_one_limiter_in_one_loop_after_another(redis_server: RedisProcess) -> None:
    """A script that calls ``asyncio.run`` twice and closes nothing: each loop has its connections, and leaves none."""
    primitive = RateLimitPrimitive(
        used, requests_per_minute=60, operation_name="twice", redis_url=redis_server.url, redis_budget_seconds=2.0
    )
    for count in (1, 2, 3):
        asyncio.run(primitive.execute(""))
        assert 60 - count <= float(_level(redis_server, "twice") or "nan") < 61 - count
