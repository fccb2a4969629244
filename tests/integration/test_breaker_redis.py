"""Circuit breakers of several processes over a real Redis: one verdict, one probe, and no harm from its faults."""

from __future__ import annotations

import asyncio
import gc
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from observability_integration.errors import CircuitOpenError
from observability_integration.primitives.circuit_breaker import CircuitBreakerPrimitive
from observability_integration.primitives.circuit_breaker.breaker import BreakerPolicy
from observability_integration.primitives.circuit_breaker.redis import RedisBreakerStore
from observability_integration.primitives.circuit_breaker.verdict import Verdict
from observability_integration.tasks import drop_left
from tests.processes import RedisProcess
from tests.redis_caches import CLIENTS, ask_server, clients_of

pytestmark = [
    pytest.mark.once,
    pytest.mark.needs_redis_package,
    pytest.mark.needs_redis_server,
    pytest.mark.promise("K3"),
]

_A_MOMENT_SECONDS = 5.0


@pytest.fixture
async def client(request: pytest.FixtureRequest, redis_server: RedisProcess) -> AsyncIterator[Any]:
    """A client of each kind, as users make them."""
    import redis
    import redis.asyncio

    kind = redis.asyncio.Redis if request.param.startswith("asyncio") else redis.Redis
    made: Any = kind(port=redis_server.port, decode_responses=request.param.endswith("text"))
    yield made
    if isinstance(made, redis.Redis):
        made.close()
    else:
        await made.aclose()


async def soon(holds: Callable[[], bool]) -> None:
    give_up = time.monotonic() + _A_MOMENT_SECONDS
    while not holds():
        assert time.monotonic() < give_up
        await asyncio.sleep(0.01)


# ---- the two keys


@pytest.mark.parametrize("client", [*CLIENTS], indirect=True)
async def test_verdicts_and_leases(client: Any, redis_server: RedisProcess, request: pytest.FixtureRequest) -> None:
    """Whatever client it is: said, seen with what is left of the pause, kept while it runs; one lease, in one hand."""
    target = request.node.name + " ключ"
    async with RedisBreakerStore(client=client).link(target) as link:
        assert (None, "free") == await link.fetch("a", 1.0, 0)
        said = await link.publish("a", Verdict("id1", True, 20.0, 21.0), 60.0, keep=True)
        assert Verdict("id1", True, 20.0, 21.0) == said.verdict
        seen = (await link.fetch("b", 5.0, 1)).verdict
        assert seen is not None
        assert ("id1", True, 21.0) == (seen.id, seen.open, seen.longest_seconds)
        assert 19.0 < seen.left_seconds <= 20.0
        kept = await link.publish("a", Verdict("id2", True, 30.0, 21.0), 60.0, keep=True)
        assert "id1" == (kept.verdict and kept.verdict.id)
        assert ["mine", "other"] == [(await link.fetch(token, 5.0, 1)).lease for token in "ba"]
        over = await link.publish("b", Verdict("id3", True, -1.0, 21.0), 60.0, keep=False)
        assert ("id3", -1.0, "free") == (
            over.verdict and (over.verdict.id),
            over.verdict and over.verdict[2],
            over.lease,
        )
        replaced = await link.publish("a", Verdict("id4", False, 23.5, 21.0), 60.0, keep=True)
        assert ("id4", False) == (replaced.verdict and replaced.verdict[:2])
        assert "mine" == (await link.fetch("a", 0.05, 1)).lease
        await asyncio.sleep(0.06)
        assert "mine" == (await link.fetch("b", 5.0, 1)).lease
    keys = [key.decode() for key in ask_server(redis_server, "KEYS", "breaker:*")]
    assert {"verdict", "probe"} >= {key.rpartition(":")[2] for key in keys}
    assert not [key for key in keys if "verdicts" in key.casefold() or not key.isascii()]
    assert all(ask_server(redis_server, "PTTL", key) > 0 for key in keys)


@pytest.mark.parametrize("client", ["asyncio"], indirect=True)
async def test_the_lease_is_for_who_wants_it_most(client: Any, request: pytest.FixtureRequest) -> None:
    """One that is called takes it from one that waits; whoever has it says anew how much it wants it."""
    async with RedisBreakerStore(client=client).link(request.node.name) as link:

        async def lease(token: str, claim: int) -> str:
            return (await link.fetch(token, 5.0, claim)).lease

        assert ["free", "mine", "other", "mine"] == [
            await lease(*who) for who in (("a", 0), ("a", 1), ("b", 1), ("b", 2))
        ]
        assert ["other", "other", "mine"] == [await lease("a", claim) for claim in (0, 2, 3)]
        assert ["mine", "other", "mine"] == [await lease(*who) for who in (("a", 1), ("b", 1), ("a", 0))]
        assert "mine" == await lease("b", 2)


@pytest.mark.parametrize("client", ["asyncio"], indirect=True)
@pytest.mark.parametrize("opens", [True, False])
async def test_what_was_said_by_hand_stays(client: Any, opens: bool, request: pytest.FixtureRequest) -> None:
    """For whoever has not heard of it: while it lasts, and where it says closed, until somebody opens anew."""
    target = request.node.name
    found = Verdict("found", not opens, 20.0, 21.0)
    async with RedisBreakerStore(client=client).link(target) as link:

        async def last(verdict: Verdict, *, keep: bool = False) -> str:
            said = (await link.publish("a", verdict, 60.0, keep=keep)).verdict
            assert said is not None
            return said.id

        by_hand = Verdict("hand", opens, 20.0, 21.0, by_hand=True)
        assert "hand" == await last(by_hand)
        seen = (await link.fetch("b", 1.0, 0)).verdict
        assert seen is not None
        assert (opens, True) == (seen.open, seen.by_hand)
        assert "hand" == await last(found)
        assert "hand" == await last(found._replace(after="another"))
        assert ("hand" if opens else "anew") == await last(Verdict("anew", True, 20.0, 21.0), keep=True)
        assert "again" == await last(by_hand._replace(id="again", open=not opens))
        assert "heard" == await last(found._replace(id="heard", after="again"))
        assert "over" == await last(by_hand._replace(id="over", left_seconds=-1.0))
        assert "found" == await last(found)


@pytest.mark.parametrize("client", ["asyncio"], indirect=True)
async def test_a_pause_without_end_is_shared(client: Any, request: pytest.FixtureRequest) -> None:
    """Redis refuses times whose end it cannot write as a number; a century will do."""
    async with RedisBreakerStore(client=client).link(request.node.name) as link:
        for seconds in (1e12, 1e17, sys.float_info.max):
            await link.publish("a", Verdict("hand", True, seconds, seconds, by_hand=True), seconds, keep=False)
            seen = (await link.fetch("b", 1.0, 0)).verdict
            assert seen is not None
            assert 1e9 < seen.left_seconds <= seen.longest_seconds < 1e10


@pytest.mark.parametrize("client", ["asyncio"], indirect=True)
@pytest.mark.parametrize(
    "value", ["", "nonsense", "a:b:c:d", "id:open:1:x", "id:ajar:1:1", "id:open!!:1:1", "\udcff", ["list"]]
)
async def test_what_others_wrote_is_no_verdict(client: Any, value: Any, redis_server: RedisProcess) -> None:
    """It is looked over, and written over, or left to its owner; nothing fails for it but the sharing."""
    store = RedisBreakerStore(client=client)
    async with store.link("owned") as link:
        verdict, probe = link._keys  # type: ignore[attr-defined]
        ask_server(redis_server, "DEL", verdict, probe)
        if isinstance(value, list):
            ask_server(redis_server, "RPUSH", verdict, *value)
        else:
            ask_server(redis_server, "SET", verdict, value.encode(errors="surrogateescape"))
        assert (None, "mine") == await link.fetch("a", 1.0, 1)
        said = await link.publish("a", Verdict("id", True, 1.0, 21.0), 1.0, keep=True)
        assert "id" == (said.verdict and said.verdict.id)


async def test_a_stand_in_that_answers_nothing_is_as_good_as_no_redis() -> None:
    """Tests of users give mocks; each breaker then goes by itself."""

    class Nothing:
        async def execute_command(self, *command: Any) -> None:
            """Does nothing."""

    async with RedisBreakerStore(client=Nothing()).link("t") as link:
        assert (None, "free") == await link.fetch("a", 1.0, 1)


# ---- one process


class Target:
    def __init__(self) -> None:
        self.fails = False
        self.calls = 0

    async def __call__(self, _: Any) -> str:
        self.calls += 1
        if self.fails:
            raise ConnectionError
        return "answer"


async def outcome(primitive: Any) -> Any:
    try:
        return await primitive.execute("q")
    except (ConnectionError, CircuitOpenError) as error:
        return type(error)


async def test_primitives_follow_each_other(redis_process: RedisProcess) -> None:
    """From the name of the target alone they find each other; closed, they leave neither task nor connection behind."""
    target = Target()
    first, second = (CircuitBreakerPrimitive(target, target="provider", redis_url=redis_process.url) for _ in range(2))
    assert "circuit breaker provider (shared)" == first.describe().splitlines()[0]
    assert ["answer"] * 2 == [await outcome(first), await outcome(second)]
    target.fails = True
    assert [ConnectionError] * 3 + [CircuitOpenError] == [await outcome(first) for _ in range(4)]
    await soon(lambda: second.state == "open")
    assert CircuitOpenError is await outcome(second)
    second.reset()
    await soon(lambda: first.state == "closed")
    for primitive in (first, second, first):
        await primitive.aclose()
    await soon(lambda: clients_of(redis_process) == 0)


# The sockets are shut down, and asyncio says so of each when it is collected.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_loops_that_are_closed_in_the_middle_leave_no_connection(
    redis_process: RedisProcess, caplog: pytest.LogCaptureFixture
) -> None:
    """Without the care that `asyncio.run` takes: an application that makes a loop for each request must not run out."""
    primitive = CircuitBreakerPrimitive(Target(), target="provider", redis_url=redis_process.url)

    async def job() -> None:
        assert "answer" == await outcome(primitive)
        await soon(lambda: primitive.breaker._answered_at > 0)  # type: ignore[attr-defined]
        primitive.breaker._answered_at = 0.0  # type: ignore[attr-defined]

    async def last() -> None:
        await job()
        await soon(lambda: clients_of(redis_process) == 1)

    for _ in range(3):
        loop = asyncio.new_event_loop()
        loop.run_until_complete(job())
        loop.close()
        del loop
    asyncio.run(last())
    gc.collect()
    assert not caplog.records


# As above.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_way_that_is_left_outside_of_all_loops_leaves_no_connection(redis_process: RedisProcess) -> None:
    """The collector may end it anywhere, where nothing can be awaited."""
    store = RedisBreakerStore(redis_process.url)

    async def hold(looked: asyncio.Event) -> None:
        async with store.link("t") as link:
            await link.fetch("a", 1.0, 0)
            looked.set()
            await asyncio.Event().wait()

    async def begin() -> asyncio.Task[None]:
        looked = asyncio.Event()
        task = asyncio.create_task(hold(looked))
        await looked.wait()
        return task

    loop = asyncio.new_event_loop()
    task = loop.run_until_complete(begin())
    assert 1 == clients_of(redis_process)
    loop.close()
    drop_left(task)
    del task, loop
    asyncio.run(soon(lambda: clients_of(redis_process) == 0))
    gc.collect()


@pytest.mark.parametrize("fault", ["killed", "paused"])
async def test_a_redis_at_fault_costs_no_call_anything(redis_process: RedisProcess, fault: str) -> None:
    """Calls go on at their pace, and the breaker by itself; of hundreds no call fails or waits."""
    target = Target()
    primitive = CircuitBreakerPrimitive(
        target, BreakerPolicy(open_seconds=0.3, minimum_calls=3), target="p", redis_url=redis_process.url
    )
    assert "answer" == await outcome(primitive)
    await soon(lambda: primitive.breaker._answered_at > 0)  # type: ignore[attr-defined]
    if fault == "killed":
        redis_process.kill()
    else:
        redis_process.pause()
    slowest = 0.0
    for _ in range(300):
        began = time.perf_counter()
        assert "answer" == await outcome(primitive)
        slowest = max(slowest, time.perf_counter() - began)
        await asyncio.sleep(0.001)
    assert slowest < 0.1
    target.fails = True
    assert [ConnectionError] * 3 + [CircuitOpenError] == [await outcome(primitive) for _ in range(4)]
    target.fails = False
    await soon(lambda: primitive.breaker._answered_at < 0)  # type: ignore[attr-defined]
    await asyncio.sleep(0.3)
    assert "answer" == await outcome(primitive)
    await primitive.aclose()


# ---- several processes

_WORKER = """
import asyncio, json, sys, time
from pathlib import Path

from observability_integration import events
from observability_integration.errors import CircuitOpenError
from observability_integration.primitives.circuit_breaker import CircuitBreakerPrimitive
from observability_integration.primitives.circuit_breaker import BreakerPolicy

url, folder, pace = sys.argv[1:]
down, stop = Path(folder, "down"), Path(folder, "stop")


def say(*what):
    print(json.dumps(what), flush=True)


async def call(_):
    failed = down.exists()
    say("call", time.time(), failed)
    await asyncio.sleep(0.05 if failed else 0)
    if failed:
        raise ConnectionError
    return "answer"


async def main():
    policy = BreakerPolicy(
        minimum_calls=5, consecutive_failures=5, open_seconds=1.2, growth=1.0, max_open_seconds=1.2, jitter=0.0
    )
    events.subscribe(lambda event: say("turn", time.time(), event.name, event.attributes.get("reason")))
    primitive = CircuitBreakerPrimitive(call, policy, target="provider", redis_url=url)
    slowest, others = 0.0, 0
    say("ready")
    while not stop.exists():
        began = time.perf_counter()
        try:
            await primitive.execute("q")
        except (ConnectionError, CircuitOpenError):
            pass
        except Exception:
            others += 1
        slowest = max(slowest, time.perf_counter() - began)
        await asyncio.sleep(float(pace))
    await primitive.aclose()
    say("end", primitive.state, others, slowest)


asyncio.run(main())
"""


@pytest.fixture
def processes(redis_process: RedisProcess, tmp_path: Path) -> Iterator[list[subprocess.Popen[str]]]:
    """A process that calls a target over and over, and two that do so twice a second."""
    started = [
        subprocess.Popen(
            [sys.executable, "-W", "error", "-c", _WORKER, redis_process.url, str(tmp_path), pace],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for pace in ("0.02", "0.5", "0.5")
    ]
    yield started
    for process in started:
        process.kill()
        process.communicate()


def test_processes_have_one_verdict_and_one_probe(
    processes: list[subprocess.Popen[str]],
    redis_process: RedisProcess,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One opens for all and one probes for all; and when Redis is killed, all go on."""
    for process in processes:
        assert process.stdout is not None
        assert '["ready"]\n' == process.stdout.readline()
    down, stop = tmp_path / "down", tmp_path / "stop"
    time.sleep(0.3)
    down.touch()
    time.sleep(1.9)
    down.unlink()
    time.sleep(2.2)
    redis_process.kill()
    lost = time.time()
    time.sleep(0.6)
    stop.touch()
    told = [[json.loads(line) for line in process.communicate(timeout=10.0)[0].splitlines()] for process in processes]
    calls = sorted(line[1:] for lines in told for line in lines if line[0] == "call")
    turns = [[(name, reason) for _, _, name, reason in _of("turn", lines)] for lines in told]
    failed = [when for when, fails in calls if fails]
    (opened, *_), *_ = [[when for _, when, *_ in _of("turn", lines)] for lines in told]
    late = [when for when in failed if when > opened + 1.15]
    ends = [line[1:] for lines in told for line in _of("end", lines)]
    with capsys.disabled():
        print(  # noqa: T201 - figures that are promised
            f"\n3 processes, a target that is down for 1.9 s: {len(failed) - len(late)} calls that failed, "
            f"{len(late)} probes that did; slowest {max(slowest for *_, slowest in ends):.3f} s"
        )
    for lines in turns[1:]:
        assert ("circuit_breaker.opened", "shared") == lines[0]
    assert len(failed) - len(late) <= 5 + 3 + 3
    assert len(late) <= 1
    assert [["closed", 0]] * 3 == [end[:2] for end in ends]
    assert 1 == sum(("circuit_breaker.closed", "probe_succeeded") in lines for lines in turns)
    assert 2 == sum(("circuit_breaker.closed", "shared") in lines for lines in turns)
    assert all(any(when > lost for _, when, _ in _of("call", lines)) for lines in told)
    assert max(slowest for *_, slowest in ends) < 0.3


def _of(kind: str, lines: list[Any]) -> list[Any]:
    return [line for line in lines if line[0] == kind]
