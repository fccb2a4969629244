"""Runs the suite in every environment the library promises to work in, and judges the coverage of all of them together.

`python -m tests.environments` from the root of the project. Arguments go to pytest; the coverage is then shown, not
judged, because a part of the suite cannot cover the whole. The full environment runs beside the others, which leave out
the tests marked `once`: those that cannot tell one environment from another. It takes longest, and runs in three parts,
of which the one with the tests marked `unmeasured` is not measured.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
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

# Coverage is measured where there is most to run and where least is installed: between them they run every line that
# depends on a package being there or not, and measuring takes as long again as running.
MEASURED = ("", "opentelemetry,redis")

# The parts of the full environment, about as long as each other; the others run as a whole.
UNMEASURED = ("-m", "unmeasured")
PARTS = (
    UNMEASURED,
    ("-m", "not unmeasured", "tests/unit", "tests/stack", "tests/docs"),
    ("-m", "not unmeasured", "tests/integration"),
)

# A test waits for a socket, a process or a clock about half of the time.
_AT_ONCE = 3


class Outcome(NamedTuple):
    """How many tests ended in which way; a run that broke off counts as one more failure."""

    passed: int
    failed: int
    skipped: int

    def plus(self, other: Outcome) -> Outcome:
        """Both together."""
        return Outcome(*map(sum, zip(self, other, strict=True)))


def main(arguments: list[str]) -> int:
    """Run all environments, print the sums, and return the exit code."""
    coverage = [sys.executable, "-m", "coverage"]
    subprocess.run([*coverage, "erase"], check=True)
    jobs = [(name, absent, part) for name, absent in ENVIRONMENTS.items() for part in _parts(absent, arguments)]
    outcomes = dict.fromkeys(ENVIRONMENTS, Outcome(0, 0, 0))
    with tempfile.TemporaryDirectory() as directory, ThreadPoolExecutor(_AT_ONCE) as pool:
        running = [
            (name, pool.submit(_run, name, absent, Path(directory, f"{number}.xml"), part))
            for number, (name, absent, part) in enumerate(jobs)
        ]
        for name, result in running:
            outcomes[name] = outcomes[name].plus(_shown(result.result()))
    subprocess.run([*coverage, "combine", "--quiet"], check=True)
    report = subprocess.run([*coverage, "report", *(["--fail-under=0"] if arguments else [])], check=False)
    total = functools.reduce(Outcome.plus, outcomes.values())
    print()
    for name, outcome in outcomes.items():
        print(f"{name:<17} {outcome.passed:5} passed {outcome.failed:4} failed {outcome.skipped:5} skipped")
    print(f"{total.passed} passed, {total.failed} failed, {total.skipped} skipped")
    return 1 if total.failed or report.returncode else 0


class Run(NamedTuple):
    """One environment's run: its outcome, and what pytest printed."""

    outcome: Outcome
    printed: str


def _parts(absent: str, arguments: list[str]) -> list[list[str]]:
    # Whoever names tests wants these, in one run.
    return [arguments] if absent or arguments else [list(part) for part in PARTS]


def _shown(run: Run) -> Outcome:
    print(run.printed, flush=True)
    return run.outcome


def _run(name: str, absent: str, results: Path, arguments: list[str]) -> Run:
    is_measured = absent in MEASURED and (absent != "" or tuple(arguments) != UNMEASURED)
    measured = ["-m", "coverage", "run"] if is_measured else []
    command = [sys.executable, *measured, "-m", "pytest", "-p", "tests.absent", f"--junitxml={results}"]
    if absent:
        command += ["-rfE", "-m", "not once"]  # skipped tests are the point of this environment, not news
    # All runs, and the hundreds of processes that they start, use what the first one has compiled.
    environment = {**os.environ, "OBS_TEST_ABSENT": absent, "PYTHONDONTWRITEBYTECODE": ""}
    finished = subprocess.run(
        [*command, *arguments],
        env=environment,
        check=False,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    printed = f"\n#### {name} ####\n{finished.stdout}"
    if not results.exists():
        return Run(Outcome(0, 1, 0), printed)
    suite = next(ElementTree.parse(results).getroot().iter("testsuite"))
    tests, failures, errors, skipped = (int(suite.attrib[key]) for key in ("tests", "failures", "errors", "skipped"))
    failed = failures + errors
    return Run(Outcome(tests - failed - skipped, max(failed, int(finished.returncode != 0)), skipped), printed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
