"""The storms of retries and the brown-outs: the provider is what it is said to be, and each bound can be missed."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import imports, load_tables, storm_contestants, storms
from benchmarks.checks import NotDoneError
from benchmarks.simulated_clock import SimulatedClock
from benchmarks.storm_contestants import BUDGETED, NO_RETRIES, OURS, PIPELINE, UNBUDGETED
from benchmarks.storms import Provider, Scene
from benchmarks.targets import Verdict
from observability_integration.testing import FakeClockLoop

pytestmark = [pytest.mark.once, pytest.mark.unmeasured]

LOOP_FACTORY = FakeClockLoop
ROOT = Path(__file__).parents[2]
SMALL = Scene(slots=10, before=5.0, after=40.0)


async def test_the_provider_serves_in_turn_and_no_more_than_it_can() -> None:
    """The whole scene stands on its queue."""
    provider, loop = Provider(2, lambda: 1.0), asyncio.get_running_loop()

    async def ask() -> float:
        await provider.ask("question")
        return loop.time()

    began = loop.time()
    ends = await asyncio.gather(*(ask() for _ in range(5)))
    assert [1.0, 1.0, 2.0, 2.0, 3.0] == [pytest.approx(end - began) for end in ends]
    assert 5 == provider.requests


async def test_the_provider_works_for_those_who_have_left() -> None:
    """Without that no state would outlive its cause: retries would take the places of what was given up."""
    provider, loop = Provider(1, lambda: 1.0), asyncio.get_running_loop()
    began = loop.time()
    left = [asyncio.create_task(provider.ask("question")) for _ in range(3)]
    await asyncio.sleep(0)
    for task in left:
        task.cancel()
    await provider.ask("question")
    assert 4.0 == pytest.approx(loop.time() - began)
    assert [False, False, False, True] == [wanted for _, wanted in provider.served]


async def test_a_smaller_provider_finishes_what_it_has_begun() -> None:
    """And takes no more until that leaves room; a larger one takes what waits at once."""
    provider, loop = Provider(2, lambda: 1.0), asyncio.get_running_loop()
    asked = [asyncio.create_task(provider.ask("question")) for _ in range(6)]
    await asyncio.sleep(0.5)
    provider.resize(1)
    await asyncio.sleep(1.0)  # two were served, and one is under way
    assert 2 == len(provider.served)
    provider.resize(3)
    await asyncio.gather(*asked)
    assert 3.0 == pytest.approx(loop.time())


@pytest.mark.parametrize(
    ("answered", "expected"),
    [
        (range(100), 0.0),
        (range(12, 100), 11.5),  # of the ten calls that follow, one is not answered
        (range(10), None),
        ([*range(20), *range(50, 60)], None),
        ((), None),
    ],
)
def test_recovered_is_who_stays_so(answered: Any, expected: float | None) -> None:
    """A few answers after the brown-out, before all is lost, are no recovery."""
    comes = [at / 2 for at in range(200)]
    answers = [at + half for at in answered for half in (0.0, 0.5)]
    assert expected == storms.recovered_seconds(comes, answers, 0.0, 100.0)


def test_every_attempt_of_a_storm_is_counted() -> None:
    """Those without a budget make as many as they may; ours keep within theirs, however the calls come in."""
    clock = SimulatedClock()
    for spread_seconds in (0.0, 60.0):
        assert 3.0 == storms.storm(storm_contestants.openai_sdk, spread_seconds, clock, calls=20)
    assert 1.0 < storms.storm(storm_contestants.retry, 0.0, clock) <= load_tables.MOST_ATTEMPTS


def test_a_call_that_fails_cannot_be_answered() -> None:
    """A contestant that swallows the error would else have the fewest attempts."""

    def swallowing(_: Any) -> Any:
        async def ask(_: Any) -> str:
            return "all is well"

        return ask

    with pytest.raises(NotDoneError):
        storms.storm(swallowing, 0.0, SimulatedClock(), calls=1)


def test_what_makes_a_brown_out_last_is_retries_without_a_budget() -> None:
    """The same retries at the same waits: for ever without the budget, for some seconds with it."""
    seen = {
        name: storms.brown_out(storm_contestants.BROWN_OUT_CONTESTANTS[name], SMALL, 1, SimulatedClock())
        for name in (NO_RETRIES, BUDGETED, UNBUDGETED)
    }
    assert seen[UNBUDGETED].recovered_seconds is None
    assert seen[UNBUDGETED].wasted > 0.9
    assert seen[UNBUDGETED].attempts > 2.0
    assert seen[NO_RETRIES].recovered_seconds is not None
    assert 1.0 == seen[NO_RETRIES].attempts
    assert seen[NO_RETRIES].attempts < seen[BUDGETED].attempts < load_tables.MOST_ATTEMPTS
    assert seen[NO_RETRIES].after > seen[BUDGETED].after > 0.5 > seen[UNBUDGETED].after


def test_breakers_live_on_the_simulated_clock() -> None:
    """By the real one no pause would ever end while a minute is simulated, and a pipeline would seem to ask no more."""
    script = f"""
import logging, time
from benchmarks.simulated_clock import SimulatedClock
clock = time.monotonic = SimulatedClock()
from benchmarks import storms
logging.disable(logging.CRITICAL)
print(storms.storm(storms.STORM_CONTESTANTS[{PIPELINE!r}], 60.0, clock, calls=60))
"""
    environment = {**imports.environment(), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, env=environment, check=True, capture_output=True)
    assert 5 == round(float(run.stdout) * 60)  # three until it opens, and two probes


def test_a_library_that_is_not_installed_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """And one that is, but does not work, is not."""

    def lacking(module: str) -> Any:
        def build(_: Any) -> Any:
            raise ImportError(name=module)

        return build

    monkeypatch.setitem(storms.STORM_CONTESTANTS, "peer", lacking("tenacity"))
    found = storms.measure(["peer"], [], SimulatedClock(), lambda _: None)
    assert {"storm": {"peer": None}, "brown_out": {}} == found
    monkeypatch.setitem(storms.STORM_CONTESTANTS, "peer", lacking("observability_integration.primitives.retry"))
    with pytest.raises(ImportError):
        storms.measure(["peer"], [], SimulatedClock(), lambda _: None)


def _brown_out(recovered_seconds: float | None = 10.0, seconds: float = storms.BROWN_OUT_SECONDS) -> dict[str, Any]:
    return storms.Seen(seconds, 1.0, 0.3, 0.9, recovered_seconds, 9.0, 0.1)._asdict()


def _rows(storm: dict[str, Any], brown_out: dict[str, Any]) -> list[dict[str, Any]]:
    found = json.loads(json.dumps({"storm": storm, "brown_out": brown_out}))
    grids = list(load_tables.tables({"storms": found, "arrivals": {"lacking": "no trace", "seen": None}}))
    assert all(len(grid.columns) == 1 + len(row.figures) for grid in grids for row in grid.rows)
    return [{row.what: row for row in grid.rows} for grid in grids[:2]]


@pytest.mark.parametrize(
    ("attempts", "recovered", "expected"),
    [
        ([1.2, 1.0], [_brown_out(), _brown_out(0.0)], Verdict.MET),
        ([1.0, 1.201], [_brown_out(0.0), _brown_out(10.5)], Verdict.MISSED),
        ([1.201, 1.0], [_brown_out(None), _brown_out(0.0)], Verdict.MISSED),
        (None, None, Verdict.NOT_MEASURED),
    ],
)
def test_what_is_promised_can_be_missed(attempts: Any, recovered: Any, expected: Verdict) -> None:
    """By the worst of the runs, not by the best."""
    storm, brown_out = _rows({OURS: attempts}, {PIPELINE: recovered})
    assert (expected, expected) == (storm[OURS].verdict, brown_out[PIPELINE].verdict)


def test_what_was_seen_is_shown() -> None:
    """Of several runs the range; who was not run, is not installed, or did not recover, is said so."""
    runs = [_brown_out(8.0), _brown_out(2.5), _brown_out(None, storms.LONG_SECONDS)]
    storm, brown_out = _rows({OURS: [1.1, 1.2], "tenacity, 3 attempts": None}, {OURS: runs, NO_RETRIES: runs[:1]})
    assert ("1.100", "1.200") == storm[OURS].figures
    assert ("not installed",) * 2 == storm["tenacity, 3 attempts"].figures
    assert ("–",) * 2 == storm["stamina, 3 attempts"].figures
    assert ("1.00", "30%", "90%", "2.5 to 8.0 s", "9.0 s", "10%", "not in 120 s") == brown_out[OURS].figures
    assert ("8.0 s", "–") == (brown_out[NO_RETRIES].figures[3], brown_out[NO_RETRIES].figures[-1])
    assert Verdict.INFORMATION is brown_out[NO_RETRIES].verdict
