"""The benchmarks run: each part, at a small scale, does what it times, and says so in its tables.

Nothing here looks at how fast anything is.
"""

from __future__ import annotations

import asyncio
import gc
import gzip
import json
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from benchmarks import __main__, checks, data, servers, workers, workload
from benchmarks.cache import chat_replay, eviction, redis_hits, stampede
from benchmarks.cache import tables as cache_tables
from benchmarks.cache.stampede_contestants import OURS
from benchmarks.calls import imports, telemetry_modes
from benchmarks.calls import tables as calls_tables
from benchmarks.failover import benchmark as failover
from benchmarks.failover import faults
from benchmarks.failover import tables as failover_tables
from benchmarks.hedging import benchmark as hedging
from benchmarks.load import retry_storm, retry_storm_contestants, traffic_replay
from benchmarks.load import tables as load_tables
from benchmarks.load.traffic_replay_provider import Question
from benchmarks.measure import Effort, Ratio
from benchmarks.simulated_clock import SimulatedClock
from benchmarks.table import RatioRow, Target, Verdict
from observability_integration.testing import FakeClockLoop
from tests.processes import require_binary
from tests.scripts import run_script

pytestmark = [pytest.mark.once, pytest.mark.unmeasured]

ROOT = Path(__file__).parents[2]
TINY = Effort(rounds=2, batches=2, calls=3)


@pytest.fixture(autouse=True)
def _small_heap(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the tests before have left for good need not be walked before every measurement."""
    monkeypatch.setattr(gc, "unfreeze", lambda: None)


@pytest.fixture(autouse=True)
def _same_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """The package may be found by a path that only this process knows, and the workers need it too."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT), *sys.path])))


def _silent(_: str) -> None:
    pass


def _worker(module: str, *arguments: str, **environment: str) -> None:
    command = [sys.executable, "-m", f"benchmarks.{module}", *arguments]
    subprocess.run(command, cwd=ROOT, env={**workers.environment(), **environment}, check=True, timeout=50)


def _verdicts(tables: Iterable[Any]) -> set[Verdict]:
    rows = [row for table in tables for row in table.rows]
    assert rows
    return {row.verdict for row in rows}


@pytest.mark.parametrize(
    ("mode", "other"),
    [
        pytest.param("on", "by hand", marks=pytest.mark.needs_otel),
        pytest.param("api", "by hand", marks=pytest.mark.needs_otel),
        ("absent", "bare asyncio"),
    ],
)
def test_every_contestant_does_its_work_in_every_mode(mode: str, other: str, tmp_path: Path) -> None:
    """Ours and its equivalents answer, count and (with telemetry on) report alike, or the worker breaks off."""
    file = tmp_path / "outcome.json"
    _worker("calls.worker", mode, json.dumps(TINY), str(file), "--without-peers")
    outcome = json.loads(file.read_text())
    assert [task.name for task in telemetry_modes.TASKS] == list(outcome["cases"])
    for samples in outcome["cases"].values():
        assert {"ours", other} <= set(samples)
        assert all(len(figures) == TINY.rounds and min(figures) > 0 for figures in samples.values())
    assert any("spans of each side arrived" in what for what in outcome["checked"]) == (mode == "on")
    outcome["cases"] |= {
        peers: {"ours": [1e-6]} for peers in (telemetry_modes.BESIDE_CACHES, telemetry_modes.BESIDE_RETRIES)
    }
    seconds = {imports.OURS: [0.01], imports.PRIMITIVES: [0.1]}
    found = {"modes": {mode: outcome}, "imports": seconds, "initialize": [], "memory": {}, "entries": {}}
    assert Verdict.NOT_MEASURED in _verdicts(calls_tables.tables(found))  # the peers, and what another mode would show


@pytest.mark.needs_redis_package
@pytest.mark.needs_redis_server
async def test_the_cache_is_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Hits in Redis are hits there, a killed process costs one call more, and an hour is replayed on its own clock."""
    monkeypatch.setattr(servers, "BINARY", require_binary("redis-server"))  # a benchmark looks on the PATH only
    samples = await redis_hits.measure(TINY, _silent)
    assert {redis_hits.BY_URL, redis_hits.BY_CLIENT, redis_hits.BARE} <= set(samples)
    seen = await stampede.KILLED.run(OURS, stampede.QUICK._replace(work=0.2, lease=0.4))
    assert seen is not None
    assert (2, stampede.CALLERS, {}) == (seen.calls, seen.wanted, seen.errors)
    with gzip.open(tmp_path / chat_replay.TRACE, "wt") as trace:
        for at in (0, 100, 500, 1900, 3600):  # the fourth comes while every call fails
            row = {"timestamp": at * 1000, "input_length": 3, "output_length": 100, "hash_ids": [1, 2, 3]}
            trace.write(json.dumps(row) + "\n")
    file = tmp_path / "found.json"
    _worker("cache.chat_replay_worker", "1", str(file), **{data.VARIABLE: str(tmp_path)})
    replayed = json.loads(file.read_text())
    calls = {name: outcome["calls"] for name, outcome in replayed["outcomes"][chat_replay.WHOLE].items()}
    assert (5, 4) == (calls["no cache"], calls["cache"])
    found = {"redis_hits": samples, "stampede": {stampede.KILLED.name: {OURS: seen._asdict()}}, "replay": replayed}
    assert Verdict.MET in _verdicts(cache_tables.tables(found, stampede.FULL))


def test_the_wall_of_faults_is_measured() -> None:
    """Ours gets over an answer without an end mark, in a process of its own, and the table tells what the wall saw."""
    pytest.importorskip("openai")
    script = """
        import asyncio, json
        from benchmarks.failover import benchmark, faults, worker
        from benchmarks.failover.contestants import OURS

        async def main():
            fault = next(fault for fault in faults.FAULTS if fault.code == "S11")
            async with worker.ProviderPair(OURS, benchmark.QUICK_SCALE) as providers:
                print(json.dumps((await providers.run_fault(fault, providers.build(fault)))._asdict()))

        asyncio.run(main())
    """
    seen = json.loads(run_script(script))
    assert seen["primary"]
    found = {OURS: {fault.code: seen for fault in faults.FAULTS}, "tenacity": None}
    assert Verdict.MET in _verdicts(failover_tables.tables(found, failover.QUICK_SCALE))


def test_hedging_is_measured_and_written(monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path) -> None:
    """All calls of all ways are made and counted, those of the hedges too: on the terminal, and in the file."""
    monkeypatch.setattr(hedging, "QUICK", hedging.Scale(40, 0, 20, 50.0))
    file = tmp_path / "found.json"
    arguments = ["--quick", "--only", "hedging", "--no-fail", "--json", str(file)]
    assert 0 == __main__.main(arguments)
    found = json.loads(file.read_text())["samples"]["hedging"]
    assert [*hedging.WAYS] == [*found]
    assert all(len(way["seconds"]) == 40 and way["requests"] >= 40 for way in found.values())
    assert hedging.HEDGED in capsys.readouterr().out


def test_load_is_measured() -> None:
    """Each attempt of a storm is counted; a replay in which half of the attempts fail accounts for every call."""
    clock = SimulatedClock()
    assert 3.0 == retry_storm.storm(retry_storm_contestants.openai_sdk, 0.0, clock, calls=20)
    attempts = retry_storm.storm(retry_storm_contestants.retry, 0.0, clock)
    assert 1.0 < attempts <= load_tables.MOST_ATTEMPTS
    scenario = retry_storm.Scenario(slots=10, before=5.0, after=40.0)
    build = retry_storm_contestants.BROWN_OUT_CONTESTANTS[retry_storm_contestants.BUDGETED]
    brown_out = retry_storm.brown_out(build, scenario, 1, clock)
    calls = [(number * 0.5, Question(number, 20 + number * 5)) for number in range(80)]
    scale = traffic_replay.Scale(0, 100, 1.0, 1.0)
    with asyncio.Runner(loop_factory=FakeClockLoop) as runner:
        seen = runner.run(traffic_replay.replay(calls, scale, failing=0.5))
    assert (80, 80) == (seen.calls, seen.whole + seen.late)
    assert (0, 0, 0, 0, {}) == (seen.lost, seen.wrong, seen.doubled, seen.left_open, seen.failed)
    found = {
        "retry_storm": {
            "storm": {retry_storm_contestants.OURS: [attempts]},
            "brown_out": {retry_storm_contestants.BUDGETED: [brown_out._asdict()]},
        },
        "traffic_replay": {"lacking": None, "scale": scale._asdict(), "seen": seen._asdict()},
    }
    assert Verdict.MET in _verdicts(load_tables.tables(json.loads(json.dumps(found))))


def test_eviction_is_measured(monkeypatch: pytest.MonkeyPatch, capsys: Any, tmp_path: Path) -> None:
    """Without the trace and without a rival the rest is, and the report says what is missing."""
    monkeypatch.setenv(data.VARIABLE, str(tmp_path))
    monkeypatch.setattr("benchmarks.cache.eviction_policies.find_spec", lambda name: None)
    small = {"CAPACITIES": (2, 5), "_ZIPF_KEYS": 10, "_ZIPF_LOOKUPS": 50, "_TIMED_ENTRIES": 5, "_ROUNDS": 1}
    for name, value in small.items():
        monkeypatch.setattr(eviction, name, value)
    assert 1 == eviction.main([])
    printed = capsys.readouterr().out
    assert "is not installed.\n" in printed
    assert f"- {eviction.TRACE} was not found (set {data.VARIABLE}).\n" in printed


def test_a_contestant_that_did_not_do_its_work_ends_the_benchmark() -> None:
    """Each check must be able to fail, or a cache that never stores would win the race for misses."""
    work = workload.Work("answer")
    with pytest.raises(checks.NotDoneError, match="called the work 0 times, not 3"):
        checks.expect_calls("lazy", work, 3)
    with pytest.raises(checks.NotDoneError, match="lazy answered something else"):
        checks.expect_answer("lazy", "answer", None)
    with pytest.raises(checks.NotDoneError, match="no spans"):
        checks.expect_equal("spans", {}, {})
    with pytest.raises(checks.NotDoneError, match="1 counts differ"):
        checks.expect_equal("counts", {"hits": 1}, {"hits": 2})


async def test_a_cache_that_never_keeps_anything_breaks_the_run_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calling the work each time is the fastest cache miss there is, and no cache."""

    class Cheating(telemetry_modes.Bare):
        def cache(self, work: workload.Work) -> workload.Runnable:
            return self.llm_call(work)

    monkeypatch.setattr(telemetry_modes, "Bare", Cheating)
    with pytest.raises(checks.NotDoneError, match="bare asyncio, cache hit called the work"):
        await telemetry_modes.run_mode("absent", Effort(1, 1, 20), _silent, beside_peers=False)


@pytest.mark.parametrize(
    ("median", "target", "expected"),
    [
        (1.1, Target(1.1), Verdict.MET),
        (1.11, Target(1.1), Verdict.MISSED),
        (11.9, Target(12.0, at_least=True), Verdict.MISSED),
        (None, Target(12.0, at_least=True), Verdict.NOT_MEASURED),
        (3.0, None, Verdict.INFORMATION),
    ],
)
def test_the_verdict_follows_from_figure_and_target(median: Any, target: Target | None, expected: Verdict) -> None:
    """The table must not call a missed target met, nor one met that nobody measured."""
    found = None if median is None else Ratio(median, median, median)
    assert expected is RatioRow("what", "1 µs", "1 µs", found, target).verdict
