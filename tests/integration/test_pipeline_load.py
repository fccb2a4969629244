"""A few minutes of real chat arrivals in some seconds, through a pipeline whose first target fails at times.

In a process of its own, on the real event loop and clock. Nothing is said of how fast it is: what is told of time is
held against the deadline and against how late the event loop was.
"""

from __future__ import annotations

import gzip
import json
import os
import random
import subprocess
import sys
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from benchmarks import data
from benchmarks.load import tables as load_tables
from benchmarks.load import traffic_replay
from benchmarks.load.traffic_replay import QUICK, ReplayResult
from benchmarks.workers import environment

pytestmark = [pytest.mark.once, pytest.mark.unmeasured]

ROOT = Path(__file__).parents[2]


def _folder_of_the_trace(tmp_path: Path) -> Path:
    """That of the real trace, or of one that is made up where there is none, with as many calls and as long answers."""
    found = data.find(traffic_replay.TRACE)
    if found is not None:
        return found.parent
    made_up = random.Random(0)
    at = datetime(2023, 11, 16, 18)
    with gzip.open(tmp_path / traffic_replay.TRACE, "wt") as lines:
        lines.write("TIMESTAMP,ContextTokens,GeneratedTokens\n")
        for _ in range(QUICK.calls):
            at += timedelta(seconds=made_up.expovariate(5.0))
            lines.write(f"{at:%Y-%m-%d %H:%M:%S.%f}0,100,{min(1000, round(made_up.expovariate(1 / 200)))}\n")
    return tmp_path


def test_no_call_is_lost_doubled_or_kept_beyond_its_deadline(tmp_path: Path) -> None:
    """Hundreds of calls at once, a twentieth of the attempts failing, some callers in a hurry, some reading along."""
    file = tmp_path / "found.json"
    variables = {**environment(), "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    variables[data.VARIABLE] = str(_folder_of_the_trace(tmp_path))
    command = [sys.executable, "-m", "benchmarks.load.traffic_replay_worker", "quick", str(file)]
    subprocess.run(command, cwd=ROOT, env=variables, check=True, timeout=50, stderr=subprocess.DEVNULL)
    seen = ReplayResult(**json.loads(file.read_text())["seen"])
    assert (QUICK.calls, QUICK.calls) == (seen.calls, seen.whole + seen.late)
    assert (0, 0, 0, 0, {}) == (seen.wrong, seen.lost, seen.doubled, seen.left_open, seen.failed)
    assert 0 < seen.late < seen.calls / 10
    assert seen.beyond_lag_ms[1] <= load_tables.OVERRUN_MS
    assert seen.failovers > 0
    assert seen.restarted > 0
    assert 1.0 < sum(seen.attempts) / seen.calls < load_tables.MOST_ATTEMPTS
