"""Several processes, one Redis, one answer: what the caches of whole processes owe each other.

What leases owe is tested at their own level; here is what users of the cache see of it.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.cache_workers import Worker, commands_counted
from tests.processes import RedisProcess

pytestmark = [pytest.mark.needs_redis_package, pytest.mark.needs_redis_server, pytest.mark.once, pytest.mark.unmeasured]

# What is promised is 50 ms. Five processes on a machine that has two cores, and others to serve, may each be kept from
# running for longer, which is no fault of the cache: alone it is 10 to 30 ms, which the test prints. A caller that is
# not woken but looks again by itself comes later than this more often than not.
_SLACK_SECONDS = 0.15

Start = Callable[..., list[Worker]]


@pytest.fixture
def workers(redis_process: RedisProcess) -> Iterator[Start]:
    """Starts processes; all are gone at the end."""
    started: list[Worker] = []

    def start(count: int, *, ttl_seconds: float = 60.0, **policy: Any) -> list[Worker]:
        policy = {"ttl_jitter": 0.0, "backend_budget_seconds": 2.0, "lease_seconds": 0.6, **policy}
        group = [Worker(redis_process, ttl_seconds, policy) for _ in range(count)]
        started.extend(group)
        for worker in group:
            worker.next("ready")
        return group

    yield start
    for worker in started:
        worker.end()


@pytest.mark.promise("C9")
def test_one_call_answers_all_processes(
    workers: Start, redis_process: RedisProcess, capsys: pytest.CaptureFixture[str]
) -> None:
    """Twenty callers of a cold key pay for one call, longer than a lease, and hardly wait longer than it takes."""
    work = 1.5
    group = workers(4)
    commands = commands_counted(redis_process)
    for worker in group:
        worker.ask("question", work, callers=5)
    came = [worker.answered() for worker in group]
    asked, slowest = commands(), max(answered["slowest"] for answered in came)
    with capsys.disabled():
        print(f"\n4 processes x 5 callers, {work} s of work: {asked} commands, slowest {slowest - work:+.3f} s")  # noqa: T201 - a figure that is promised
    assert 1 == sum(worker.calls for worker in group)
    assert 1 == len({answer for answered in came for answer in answered["answers"]})
    assert [5] * 4 == [len(answered["answers"]) for answered in came]
    assert asked <= 100  # with those that the scripts execute, which are more than half: some 40 are sent
    assert slowest < work + _SLACK_SECONDS
    for worker in group:
        worker.end()
    counts = [worker.next("hits") for worker in group]
    assert (19, 1) == (sum(said["hits"] for said in counts), sum(said["misses"] for said in counts))


@pytest.mark.promise("C9")
def test_a_leader_that_is_killed_is_replaced(workers: Start) -> None:
    """Within a lease, and by one process, not by each."""
    work, lease = 0.5, 0.6
    group = workers(3)
    group[0].ask("question", work)
    group[0].next("call")
    for worker in group[1:]:
        worker.ask("question", work, callers=5)
    time.sleep(0.1)
    group[0].send(signal.SIGKILL)
    came = [worker.answered() for worker in group[1:]]
    assert 1 == sum(worker.calls for worker in group[1:])
    assert 1 == len({answer for answered in came for answer in answered["answers"]})
    assert max(answered["slowest"] for answered in came) < lease + work + 0.5


@pytest.mark.promise("C9")
def test_a_failure_is_one_error_for_all_who_waited(workers: Start) -> None:
    """A thousand callers, one failing call, one error; another process learns of which kind it was, and no more."""
    first, second = workers(2)
    first.ask("question", 0.8, callers=1000, fails=True)
    first.next("call")
    second.ask("question", 0.8, callers=50, fails=True)
    ours, theirs = first.answered(), second.answered()
    assert [["LookupError", ""]] * 1000 == ours["errors"]
    assert [["SharedCallError", "LookupError"]] * 50 == theirs["errors"]
    assert (1, 1) == (ours["different"], theirs["different"])
    assert (1, 0) == (first.calls, second.calls)
    assert "prompt" not in theirs["told"][0]


@pytest.mark.promise("C9")
def test_a_leader_that_was_asleep_overwrites_nothing(workers: Start) -> None:
    """Neither what another has kept in Redis meanwhile, nor, with its own answer of yesterday, its own memory."""
    sleeper, other, third = workers(3)
    sleeper.ask("question", 0.3)
    sleeper.next("call")
    sleeper.send(signal.SIGSTOP)
    other.ask("question", 0.3)
    (kept,) = other.answered()["answers"]
    assert str(other.pid) in kept
    sleeper.send(signal.SIGCONT)
    (late,) = sleeper.answered()["answers"]
    assert str(sleeper.pid) in late  # its own callers waited for it
    for worker in (sleeper, third, other):
        worker.ask("question", 0.0)
        assert [kept] == worker.answered()["answers"]
    assert (1, 1, 0) == (sleeper.calls, other.calls, third.calls)


@pytest.mark.promise("C9")
def test_one_process_refreshes_for_all(workers: Start) -> None:
    """The first to come past the fraction of the TTL makes the call, and nobody waits for it."""
    group = workers(3, ttl_seconds=4.0, eager_refresh=0.25)
    for worker in group:
        worker.ask("question", 0.0)
    (old,) = {worker.answered()["answers"][0] for worker in group}
    time.sleep(1.1)
    for worker in group:
        worker.ask("question", 0.4, callers=5)
    came = [worker.answered() for worker in group]
    assert [[old] * 5] * 3 == [answered["answers"] for answered in came]
    assert max(answered["slowest"] for answered in came) < _SLACK_SECONDS
    time.sleep(0.8)
    for worker in group:
        worker.ask("question", 0.0)
    (new,) = {worker.answered()["answers"][0] for worker in group}
    assert new != old
    assert 2 == sum(worker.calls for worker in group)


@pytest.mark.promise("C8")
def test_what_one_process_invalidates_leaves_the_memory_of_another(workers: Start) -> None:
    """Within a moment, although that one has only ever read, and never made a call."""
    first, second = workers(2)
    first.ask("question", 0.0)
    (old,) = first.answered()["answers"]
    for _ in range(2):
        second.ask("question", 0.0)
        assert [old] == second.answered()["answers"]
    time.sleep(0.3)  # until it listens
    first.tell(invalidate="question")
    first.next("invalidated")
    time.sleep(0.3)
    second.ask("question", 0.0)
    (new,) = second.answered()["answers"]
    assert (1, 1) == (first.calls, second.calls)
    assert new != old
