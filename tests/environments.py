"""Runs the suite in every environment the library promises to work in, and judges the coverage of all of them together.

`python -m tests.environments` from the root of the project. Arguments go to pytest; the coverage is then shown, not
judged, because a part of the suite cannot cover the whole.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple
from xml.etree import ElementTree

# What is hidden from the suite (see tests/absent.py), by the name the environment is shown under.
ENVIRONMENTS = {
    "every package": "",
    "no opentelemetry": "opentelemetry",
    "no redis": "redis",
    "neither": "opentelemetry,redis",
}


class Outcome(NamedTuple):
    """How many tests ended in which way; a run that broke off counts as one more failure."""

    passed: int
    failed: int
    skipped: int


def main(arguments: list[str]) -> int:
    """Run all environments, print the sums, and return the exit code."""
    coverage = [sys.executable, "-m", "coverage"]
    subprocess.run([*coverage, "erase"], check=True)
    with tempfile.TemporaryDirectory() as directory:
        outcomes = {
            name: _run(name, absent, Path(directory, f"{number}.xml"), arguments)
            for number, (name, absent) in enumerate(ENVIRONMENTS.items())
        }
    subprocess.run([*coverage, "combine", "--quiet"], check=True)
    report = subprocess.run([*coverage, "report", *(["--fail-under=0"] if arguments else [])], check=False)
    total = Outcome(*map(sum, zip(*outcomes.values(), strict=True)))
    print()
    for name, outcome in outcomes.items():
        print(f"{name:<17} {outcome.passed:5} passed {outcome.failed:4} failed {outcome.skipped:5} skipped")
    print(f"{total.passed} passed, {total.failed} failed, {total.skipped} skipped")
    return 1 if total.failed or report.returncode else 0


def _run(name: str, absent: str, results: Path, arguments: list[str]) -> Outcome:
    print(f"\n#### {name} ####", flush=True)
    command = [sys.executable, "-m", "coverage", "run", "-m", "pytest", "-p", "tests.absent", f"--junitxml={results}"]
    if absent:
        command.append("-rfE")  # skipped tests are the point of this environment, not news
    finished = subprocess.run([*command, *arguments], env={**os.environ, "OBS_TEST_ABSENT": absent}, check=False)
    if not results.exists():
        return Outcome(0, 1, 0)
    suite = next(ElementTree.parse(results).getroot().iter("testsuite"))
    tests, failures, errors, skipped = (int(suite.attrib[key]) for key in ("tests", "failures", "errors", "skipped"))
    failed = failures + errors
    return Outcome(tests - failed - skipped, max(failed, int(finished.returncode != 0)), skipped)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
