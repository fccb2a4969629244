"""The benchmarks of the cache with a Redis, in stampedes and in an hour of chat: they see what happens, and say so.

Nothing here looks at how fast anything is.
"""

from __future__ import annotations

import gc
import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import cache_tables, checks, imports, redis_hits, replay, report, servers, stampede
from benchmarks.data import VARIABLE
from benchmarks.grids import Grid, GridRow
from benchmarks.measure import Effort
from benchmarks.stampede import Seen
from benchmarks.stampede_contestants import OURS, Options
from benchmarks.targets import Section, Verdict
from observability_integration.caching.policy import CachePolicy

pytestmark = [pytest.mark.once, pytest.mark.unmeasured]

ROOT = Path(__file__).parents[2]
TINY = Effort(rounds=2, batches=1, calls=16)


@pytest.fixture(autouse=True)
def _small_heap(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the tests before have left for good need not be walked before every measurement."""
    monkeypatch.setattr(gc, "unfreeze", lambda: None)


def _silent(_: str) -> None:
    pass


@pytest.mark.needs_redis_package
@pytest.mark.needs_redis_server
async def test_hits_in_redis_are_hits_in_redis() -> None:
    """The library, the bare command and every peer that is installed find what was written, and nobody makes a call."""
    samples = await redis_hits.measure(TINY, _silent)
    assert {redis_hits.BY_URL, redis_hits.BY_CLIENT, redis_hits.BARE} <= set(samples)
    assert all(len(figures) == TINY.rounds and min(figures) > 0 for figures in samples.values())


@pytest.mark.needs_redis_package
@pytest.mark.needs_redis_server
async def test_a_hit_in_memory_is_not_taken_for_one_in_redis(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the fastest way to read from Redis would be not to."""
    monkeypatch.setattr(redis_hits, "_POLICY", CachePolicy(backend_budget_seconds=2.0))
    with pytest.raises(checks.NotDoneError, match="times from Redis"):
        await redis_hits.measure(TINY, _silent)


@pytest.mark.needs_redis_package
@pytest.mark.needs_redis_server
async def test_a_stampede_is_seen_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls, commands, callers and the death of a process: each is counted by what the processes themselves say."""
    # Whoever imports the package by a path of its own must let the processes do so too.
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(ROOT), *sys.path])))
    scale = stampede.QUICK._replace(work=0.2, lease=0.4)
    seen = await stampede.KILLED.run(OURS, scale)
    assert seen is not None
    assert seen.killed_at is not None
    assert (2, stampede.CALLERS, {}) == (seen.calls, seen.wanted, seen.errors)
    assert seen.complete
    assert seen.commands > 0
    failed = await stampede.FAILING.run(OURS, scale)
    assert failed is not None
    assert stampede.CALLERS * scale.processes == sum(failed.errors.values()) == failed.wanted


def test_a_library_that_is_not_installed_is_said_to_be_missing() -> None:
    """A column of the table that is empty for want of a package is no verdict on what it would have shown."""
    found: dict[str, Any] = {case.name: dict.fromkeys(stampede.CONTESTANTS) for case in stampede.CASES}
    grid = _tables(stampede=found)["Stampedes"]
    assert {("not installed",) * len(stampede.CONTESTANTS)} == {row.figures for row in _rows(grid)}
    assert {Verdict.NOT_MEASURED} == {row.verdict for row in _rows(grid)}


def _seen(**changes: Any) -> dict[str, Any]:
    seen = Seen(1, 42, [2.0, 2.01], [0.01, 0.0004], {}, 2, None, 100.0)
    return seen._replace(**changes)._asdict()


@pytest.mark.parametrize(
    ("case", "missed"),
    [
        (stampede.ONE_CALL, {"calls": 2}),
        (stampede.ONE_CALL, {"commands": 101}),
        (stampede.ONE_CALL, {"seconds": [2.0, 2.051]}),
        (stampede.ONE_CALL, {"seconds": [2.0]}),
        (stampede.KILLED, {"calls": 2, "killed_at": 95.4}),
        (stampede.KILLED, {"calls": 3, "killed_at": 96.0}),
        (stampede.SHORT_LEASE, {"errors": {"LockError": 1}}),
        (stampede.FAILING, {"calls": 20}),
        (stampede.CANCELLED, {"errors": {"CancelledError": 2}}),
        (stampede.PAUSED, {"added": [0.2, 0.0004]}),
        (stampede.PAUSED, {"added": [0.05, 0.0011]}),
    ],
)
def test_what_is_promised_of_a_stampede_can_be_missed(case: stampede.Case, missed: dict[str, Any]) -> None:
    """Each bound must be able to fail, and hold for what keeps within it."""
    good: dict[str, Any] = {"calls": 2, "killed_at": 96.0} if case is stampede.KILLED else {}
    if case is stampede.CANCELLED:
        good = {"errors": {"CancelledError": 1}}
    for changes, expected in ((good, Verdict.MET), (missed, Verdict.MISSED)):
        rows = _rows(_tables(stampede={case.name: {OURS: _seen(**changes)}})["Stampedes"])
        verdicts = {row.verdict for row in rows} - {Verdict.NOT_MEASURED}
        assert (expected is Verdict.MISSED) == (Verdict.MISSED in verdicts)
        assert verdicts


def test_options_of_a_worker_survive_their_way_to_it() -> None:
    """They travel as JSON."""
    options = Options(OURS, 1234, 0.5, 0.3, fails=True, callers=7)
    assert options == Options(**json.loads(json.dumps(options._asdict())))


def test_nothing_is_measured_without_a_redis(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tables still come, and say so."""
    monkeypatch.setattr(servers.shutil, "which", lambda name: None)
    assert not servers.redis_is_here()
    rows = [row for table in _tables().values() for row in _rows(table)]
    assert {Verdict.NOT_MEASURED} == {row.verdict for row in rows}


def _replayed(tmp_path: Path, share: str, data: Path) -> dict[str, Any]:
    file = tmp_path / "found.json"
    environment = {**imports.environment(), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-m", "benchmarks.replay_worker", share, str(file)]
    subprocess.run(command, cwd=ROOT, env={**environment, VARIABLE: str(data)}, check=True, timeout=50)
    found: dict[str, Any] = json.loads(file.read_text())
    return found


def test_an_hour_is_replayed_on_its_own_clock(tmp_path: Path) -> None:
    """A question that comes back is answered fresh, stale or anew as the features have it; the hour takes no time."""
    times = (0, 100, 500, 1900, 3600)  # the fourth comes while every call fails
    with gzip.open(tmp_path / replay.TRACE, "wt") as file:
        for at in times:
            row = {"timestamp": at * 1000, "input_length": 3, "output_length": 100, "hash_ids": [1, 2, 3]}
            file.write(json.dumps(row) + "\n")
    found = _replayed(tmp_path, "1", tmp_path)
    assert {replay.WHOLE: 0.8, replay.PREFIX: 0.8} == found["repeating"]
    seen = {
        name: (outcome["calls"], outcome["stale"], outcome["failures"])
        for name, outcome in found["outcomes"][replay.WHOLE].items()
    }
    assert (5, 0, 0) == seen["no cache"] == seen["single flight alone"]
    assert (4, 0, 0) == seen["cache"] == seen["cache, eager refresh"]
    assert (4, 3, 0) == seen["cache, stale while revalidate"]
    assert seen["calls fail: no cache"][2] == seen["calls fail: cache"][2] == 1
    assert (4, 1, 0) == seen["calls fail: cache, stale if error"]
    answer_seconds = replay.FIRST_TOKEN_SECONDS + 100 * replay.TOKEN_SECONDS
    assert pytest.approx(answer_seconds) == found["outcomes"][replay.WHOLE]["no cache"]["p50_seconds"]


def test_a_trace_that_is_not_there_is_said_to_be_missing(tmp_path: Path) -> None:
    """An empty table must not be taken for an hour without hits."""
    found = _replayed(tmp_path, "1", tmp_path)
    table = _tables(replay=found)["An hour of chat"]
    assert f"Not measured: {replay.TRACE} was not found (set {VARIABLE})." == table.note
    assert [] == table.rows


def test_tables_of_any_width_are_shown() -> None:
    """On the terminal and as Markdown, beside those of two figures, and in the count of what is met."""
    rows = [GridRow("good", ("1", "2", "3"), "1", True), GridRow("bad", ("4", "5", "6"), "3", False)]
    shown = [Grid("Wide", ("what", "ours", "one", "other"), rows, "A note."), *_tables().values()]
    run = report.this_run("python -m benchmarks")
    text, markdown = report.as_text(run, shown, []), report.as_markdown(run, shown, [])
    assert "| bad | 4 | 5 | 6 | 3 | MISSED |" in markdown
    assert "|---|---:|---:|---:|---|---|\n| good | 1 | 2 | 3 | 1 | met |" in markdown
    assert "- missed: Wide: bad" in text
    assert "missed" == report.as_json(rows[1])["verdict"]


def _tables(**found: Any) -> dict[str, Section | Grid]:
    nothing = {"redis_hits": {}, "stampede": {}, "replay": {"lacking": None, "repeating": {}, "outcomes": {}}}
    return {table.title: table for table in cache_tables.tables({**nothing, **found}, stampede.FULL)}


def _rows(table: Section | Grid) -> list[Any]:
    return list(table.rows)
