"""The benchmarks' own machinery: what it times is really done, and what it says of a figure is true.

Nothing here looks at how fast anything is.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from benchmarks import checks, imports, modes, report, targets, workload
from benchmarks.measure import Case, Contestant, Effort, Ratio, ratio, run
from benchmarks.targets import Row, Section, Target, Verdict

pytestmark = [pytest.mark.once, pytest.mark.unmeasured]

ROOT = Path(__file__).parents[2]
TINY = Effort(rounds=2, batches=2, calls=3)


@pytest.fixture(autouse=True)
def _small_heap(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the tests before have left for good need not be walked before every measurement."""
    monkeypatch.setattr(gc, "unfreeze", lambda: None)


async def _quick(_: Any) -> None:
    pass


async def _thorough(_: Any) -> None:
    for _ in range(5):
        await asyncio.sleep(0)


async def test_engine_gives_sane_ratios_for_two_known_functions() -> None:
    """One figure a round for each contestant, all above zero, and a ratio that is above zero and within its range."""
    case = Case("known", [Contestant("quick", _quick), Contestant("thorough", _thorough)], lambda number: range(number))
    samples = await run(case, TINY)
    assert ["quick", "thorough"] == list(samples)
    assert all(len(figures) == TINY.rounds and min(figures) > 0 for figures in samples.values())
    found = ratio(samples, "thorough", "quick")
    assert 0 < found.low <= found.median <= found.high


async def test_every_contestant_gets_the_same_arguments_and_is_settled_after_each_batch() -> None:
    """A ratio means something only if both did the same; a batch must not pay for what the one before left running."""
    given: dict[str, list[int]] = {"first": [], "second": []}
    settled: Counter[str] = Counter()
    numbers = iter(range(1000))

    def contestant(name: str) -> Contestant:
        async def call(argument: int) -> None:
            given[name].append(argument)

        async def settle() -> None:
            settled[name] += 1

        return Contestant(name, call, settle)

    case = Case(
        "same", [contestant("first"), contestant("second")], lambda number: [next(numbers) for _ in range(number)]
    )
    await run(case, TINY)
    assert given["first"] == given["second"]
    assert TINY.total == len(given["first"]) == len(set(given["first"]))
    batches = 1 + TINY.rounds * TINY.batches
    assert {"first": batches, "second": batches} == dict(settled)


async def test_no_garbage_is_collected_while_the_clock_runs() -> None:
    """A collection would be charged to whoever is running when it happens to be due."""
    collecting: list[bool] = []

    async def call(_: Any) -> None:
        collecting.append(gc.isenabled())

    await run(Case("collector", [Contestant("only", call)], range), TINY)
    assert {False} == set(collecting)
    assert gc.isenabled()


async def test_slow_contestant_may_make_fewer_calls() -> None:
    """A peer that takes milliseconds a call gets a share of the batch, so that the whole stays within minutes."""
    calls = 0

    async def call(_: Any) -> None:
        nonlocal calls
        calls += 1

    await run(Case("share", [Contestant("slow", call, share=0.1)], range), Effort(1, 1, 20))
    assert 2 * 2 == calls


def test_ratio_is_taken_within_each_round() -> None:
    """A round in which the machine was slow for everybody must not move the ratio."""
    samples = {"a": [2.0, 20.0, 1.0, 3.0], "b": [1.0, 10.0, 1.0, 1.0]}
    assert Ratio(2.0, 2.0, 2.0) == ratio(samples, "a", "b")


def _worker(mode: str, file: Path) -> dict[str, Any]:
    # The package may be found by a path that only this process knows.
    environment = {**imports.environment(), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-m", "benchmarks.worker", mode, json.dumps(TINY), str(file), "--without-peers"]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=50)
    outcome: dict[str, Any] = json.loads(file.read_text())
    return outcome


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
    outcome = _worker(mode, tmp_path / "outcome.json")
    assert [task.name for task in modes.TASKS] == list(outcome["cases"])
    for samples in outcome["cases"].values():
        assert {"ours", other} <= set(samples)
        assert all(len(figures) == TINY.rounds and min(figures) > 0 for figures in samples.values())
    assert any("spans of each side arrived" in what for what in outcome["checked"]) == (mode == "on")


async def test_bare_router_falls_back_like_ours() -> None:
    """The equivalent must give the guarantee: a rule that fails or names no route leads to the default."""
    from benchmarks.bare import Router

    async def fast(_: Any) -> str:
        return "fast"

    def broken(_: Any) -> str:
        raise LookupError

    for rule in (broken, lambda _: "nowhere"):
        assert "fast" == await Router({"fast": fast}, rule, "fast").execute("question")


async def test_bare_cache_makes_overlapping_calls_once_and_survives_a_cancelled_caller() -> None:
    """The equivalent must give the guarantee: one call for all who wait, and one who leaves takes nobody along."""
    from benchmarks.bare import Cache

    release = asyncio.Event()
    calls = 0

    async def work(_: Any) -> dict[str, int]:
        nonlocal calls
        calls += 1
        await release.wait()
        return {"answer": 42}

    cache = Cache(work, str)
    first, second = (asyncio.create_task(cache.execute("question")) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    release.set()
    assert {"answer": 42} == await second
    with pytest.raises(asyncio.CancelledError):
        await first
    one, other = await cache.execute("question"), await cache.execute("question")
    assert one == other
    assert one is not other
    assert 1 == calls
    assert {"hits": 3, "misses": 1} == cache.get_stats()


async def test_bare_timeout_gives_control_back_from_work_that_ignores_its_cancellation() -> None:
    """The equivalent must give the guarantee: neither the limit nor the grace waits for the work's consent."""
    from benchmarks.bare import finished_within

    release = asyncio.Event()

    async def stubborn() -> None:
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue

    task = asyncio.create_task(stubborn())
    assert not await finished_within(task, 0.01, 0.01)
    assert not task.done()
    release.set()
    await task


def test_contestant_that_did_not_do_its_work_ends_the_benchmark() -> None:
    """Each check must be able to fail, or a cache that never stores would win the race for misses."""
    work = workload.Work("answer")
    with pytest.raises(checks.NotDoneError, match="called the work 0 times, not 3"):
        checks.worked("lazy", work, 3)
    with pytest.raises(checks.NotDoneError, match="lazy answered something else"):
        checks.answered("lazy", "answer", None)
    with pytest.raises(checks.NotDoneError, match="no spans"):
        checks.alike("spans", {}, {})
    with pytest.raises(checks.NotDoneError, match="1 counts differ"):
        checks.alike("counts", {"hits": 1}, {"hits": 2})

    class Miscounting:
        def get_stats(self) -> dict[str, int]:
            return {"hits": 0}

    with pytest.raises(checks.NotDoneError, match="counted"):
        checks.counted("lazy", Miscounting(), {"hits": 1})


async def test_cache_that_never_keeps_anything_breaks_the_run_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calling the work each time is the fastest cache miss there is, and no cache."""

    class Cheating(modes.Bare):
        def cache(self, work: workload.Work) -> workload.Runnable:
            return self.llm_call(work)

    monkeypatch.setattr(modes, "Bare", Cheating)
    with pytest.raises(checks.NotDoneError, match="bare asyncio, cache hit called the work"):
        await modes.run_mode("absent", Effort(1, 1, 20), lambda _: None, beside_peers=False)


@pytest.mark.parametrize(
    ("median", "target", "expected"),
    [
        (1.1, Target(1.1), Verdict.MET),
        (1.11, Target(1.1), Verdict.MISSED),
        (12.0, Target(12.0, at_least=True), Verdict.MET),
        (11.9, Target(12.0, at_least=True), Verdict.MISSED),
        (None, Target(12.0, at_least=True), Verdict.NOT_MEASURED),
        (3.0, None, Verdict.INFORMATION),
    ],
)
def test_verdict_follows_from_figure_and_target(median: float | None, target: Target | None, expected: Verdict) -> None:
    """The table must not call a missed target met, nor one met that nobody measured."""
    found = None if median is None else Ratio(median, median, median)
    assert expected is Row("what", "1 µs", "1 µs", found, target).verdict


def _found(mode: str) -> dict[str, Any]:
    other = "bare asyncio" if mode == "absent" else "by hand"
    cases: dict[str, Any] = {task.name: {"ours": [1e-6], other: [2e-6]} for task in modes.TASKS}
    cases[modes.TIMEOUT.name] |= {modes.ASYNCIO_TIMEOUT: [1e-6], modes.BARE_CALL: [1e-7]}
    cases[modes.CONCURRENCY.name][modes.SEMAPHORE] = [1e-6]
    cases[modes.BESIDE_CACHES] = {"ours": [1e-6], "cashews": [9e-6]}
    cases[modes.BESIDE_RETRIES] = {"ours": [2e-6], "tenacity, decorator": [1e-6]}
    return {"cases": cases, "missing": ["aiocache"], "checked": ["everything"]}


def test_report_shows_missing_peers_and_all_sections() -> None:
    """Without a peer, or without OpenTelemetry, the table still comes, and says what was not measured."""
    found = {
        "modes": {"absent": _found("absent")},
        "imports": {imports.OURS: [0.01], imports.PRIMITIVES: [0.1]},
        "initialize": [],
        "memory": {},
        "entries": {},
    }
    shown = list(targets.sections(found))
    by_name = {row.what: row for section in shown for row in section.rows}
    assert Verdict.MET is by_name["cashews; ours: OpenTelemetry absent"].verdict
    assert Verdict.NOT_MEASURED is by_name["aiocache; ours: OpenTelemetry absent"].verdict
    assert Verdict.MISSED is by_name["tenacity, decorator; ours: OpenTelemetry absent"].verdict
    assert Verdict.NOT_MEASURED is by_name["stamina, decorator; ours: OpenTelemetry absent"].verdict
    assert Verdict.NOT_MEASURED is by_name["chain on a cache miss, telemetry on"].verdict
    this_run = report.this_run("python -m benchmarks")
    for text in (report.as_text(this_run, shown, ["all"]), report.as_markdown(this_run, shown, ["all"])):
        assert all(section.title in text for section in shown)
        assert "not installed" in text
        assert "Python" in text


def test_summary_names_every_missed_target() -> None:
    """A missed target may not hide in the middle of a long table."""
    rows = [
        Row("good", "1 µs", "1 µs", Ratio(1.0, 1.0, 1.0), Target(1.1)),
        Row("bad", "2 µs", "1 µs", Ratio(2.0, 2.0, 2.0), Target(1.1)),
    ]
    text = report.summary([Section("Title", ("a", "b", "c", "d"), rows)])
    assert "1 targets met, 1 missed.\n- missed: Title: bad" == text


def test_import_times_are_those_of_fresh_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is installed is timed once a round, and what is not is left out."""
    assert not imports.installed("missing_peer.inside")
    monkeypatch.setattr(imports, "IMPORTS", {"import json": "json", "import missing_peer": "missing_peer"})
    said: list[str] = []
    samples = imports.import_seconds(2, said.append)
    assert ["import json"] == list(samples) == said
    assert 2 == len(samples["import json"])
    assert min(samples["import json"]) > 0
