"""Runs all benchmarks and prints tables: `python -m benchmarks`, from the root of the project.

The exit code is 0 when every measured target is met, 1 when one is missed (0 with --no-fail), and 2 when a contestant
did not do the work it was timed for.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from . import report, workers
from .cache import redis_hits, stampede
from .cache import tables as cache_tables
from .calls import imports
from .calls import tables as calls_tables
from .checks import NotDoneError
from .failover import benchmark as failover
from .failover import tables as failover_tables
from .hedging import benchmark as hedging
from .hedging import tables as hedging_tables
from .load import tables as load_tables
from .measure import Effort
from .table import RatioTable, Table, Verdict

# At four spans per call, a batch of calls stays below the 512 at which the SDK's processor exports or drops spans.
_EFFORT = {"on": Effort(40, 5, 100), "api": Effort(100, 5, 100), "absent": Effort(100, 5, 100)}
_QUICK = dict.fromkeys(_EFFORT, Effort(8, 4, 100))
_IMPORT_ROUNDS, _QUICK_IMPORT_ROUNDS = 9, 3
_MEMORY_ROUNDS, _QUICK_MEMORY_ROUNDS = 3, 1
_QUICK_SHARE = 0.05  # of the chat replay's hour
PARTS = ("calls", "cache", "failover", "hedging", "load")
RESULTS = Path(__file__).with_name("RESULTS.md")


def main(arguments: list[str]) -> int:
    """Measures, prints, and returns the exit code."""
    options = _options(arguments)
    run = report.this_run(" ".join(["python -m benchmarks", *arguments]))
    found: dict[str, Any] = {"modes": {}}
    shown: list[RatioTable | Table] = []
    measures = {
        "calls": _of_calls,
        "cache": _of_cache,
        "failover": _of_failover,
        "hedging": _of_hedging,
        "load": _of_load,
    }
    for part in options.only or PARTS:
        tables = measures[part](options.quick, found)
        if tables is None:
            return 2
        shown += tables
    checked = [f"{mode}: {what}" for mode, outcome in found["modes"].items() for what in outcome["checked"]]
    print(report.as_text(run, shown, checked))
    if options.json:
        _write_json(options.json, run, shown, found)
    if options.write:
        RESULTS.write_text(report.as_markdown(run, shown, checked), encoding="utf-8")
    missed = any(row.verdict is Verdict.MISSED for table in shown for row in table.rows)
    return int(missed and not options.no_fail)


def _options(arguments: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Measures what a call costs, side by side with peers."
    )
    parser.add_argument("--quick", action="store_true", help="run in minutes, with rougher figures")
    parser.add_argument("--only", action="append", choices=PARTS, help="run only this part; may be repeated")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures of all rounds to FILE")
    parser.add_argument("--write", action="store_true", help=f"write the tables to benchmarks/{RESULTS.name}")
    parser.add_argument("--no-fail", action="store_true", help="exit with 0 even if a target is missed")
    options = parser.parse_args(arguments)
    if options.write and options.only:
        parser.error(f"{RESULTS.name} holds all parts: use --write without --only")
    return options


def _of_calls(quick: bool, found: dict[str, Any]) -> list[RatioTable | Table] | None:
    for mode, effort in (_QUICK if quick else _EFFORT).items():
        if mode != "absent" and not imports.installed(imports.EXPORTER):
            report.progress(f"{mode}: skipped, OpenTelemetry is not installed")
            continue
        outcome = _in_own_process(mode, effort)
        if outcome is None:
            return None
        found["modes"][mode] = outcome
    found |= _once(_QUICK_IMPORT_ROUNDS if quick else _IMPORT_ROUNDS, quick)
    return list(calls_tables.tables(found))


def _in_own_process(mode: str, effort: Effort) -> dict[str, Any] | None:
    return _outcome_of(mode, "benchmarks.calls.worker", mode, json.dumps(effort))


def _outcome_of(what: str, module: str, *arguments: str) -> dict[str, Any] | None:
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory, "outcome.json")
        command = [sys.executable, "-m", module, *arguments, str(file)]
        # Peers print on standard output.
        finished = subprocess.run(command, env=workers.environment(), stdout=subprocess.DEVNULL, check=False)
        if finished.returncode != 0:
            report.progress(f"{what}: failed with exit code {finished.returncode}")
            return None
        outcome: dict[str, Any] = json.loads(file.read_text())
        return outcome


def _of_cache(quick: bool, found: dict[str, Any]) -> list[RatioTable | Table] | None:
    effort = redis_hits.QUICK if quick else redis_hits.EFFORT
    scale = stampede.QUICK if quick else stampede.FULL
    contestants = stampede.CONTESTANTS[:1] if quick else stampede.CONTESTANTS
    try:
        found["redis_hits"] = asyncio.run(redis_hits.measure(effort, report.progress))
        found["stampede"] = asyncio.run(stampede.measure(scale, contestants, report.progress))
    except NotDoneError as error:
        report.progress(f"failed: {error}")
        return None
    found["replay"] = _outcome_of("replay", "benchmarks.cache.chat_replay_worker", str(_QUICK_SHARE if quick else 1.0))
    return None if found["replay"] is None else list(cache_tables.tables(found, scale))


def _of_failover(quick: bool, found: dict[str, Any]) -> list[RatioTable | Table] | None:
    scale = failover.QUICK_SCALE if quick else failover.FULL_SCALE
    try:
        found["failover"] = asyncio.run(failover.measure(scale, failover.CONTESTANTS, report.progress))
    except NotDoneError as error:
        report.progress(f"failed: {error}")
        return None
    return list(failover_tables.tables(found["failover"], scale))


def _of_hedging(quick: bool, found: dict[str, Any]) -> list[RatioTable | Table] | None:
    scale = hedging.QUICK if quick else hedging.FULL
    try:
        found["hedging"] = asyncio.run(hedging.measure(scale, report.progress))
    except NotDoneError as error:
        report.progress(f"failed: {error}")
        return None
    return list(hedging_tables.tables(found["hedging"], scale))


def _of_load(quick: bool, found: dict[str, Any]) -> list[RatioTable | Table] | None:
    for part in ("retry_storm", "traffic_replay"):
        outcome = _outcome_of(part, f"benchmarks.load.{part}_worker", "quick" if quick else "full")
        if outcome is None:
            return None
        found[part] = outcome
    return list(load_tables.tables(found))


def _once(import_rounds: int, quick: bool) -> dict[str, Any]:
    memory_rounds = _QUICK_MEMORY_ROUNDS if quick else _MEMORY_ROUNDS
    return {
        "imports": imports.import_seconds(import_rounds, report.progress),
        "initialize": imports.initialize_seconds(import_rounds, report.progress),
        "memory": imports.resident_bytes(memory_rounds, report.progress),
        "entries": imports.cache_bytes(memory_rounds, report.progress),
    }


def _write_json(file: Path, run: report.Run, shown: list[RatioTable | Table], found: dict[str, Any]) -> None:
    rows = [{"table": table.title, **report.as_json(row)} for table in shown for row in table.rows]
    file.write_text(json.dumps({**run._asdict(), "rows": rows, "samples": found}, indent=1), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
