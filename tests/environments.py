"""Runs the suite in every environment the library promises to work in, and judges the coverage of all of them together.

`python -m tests.environments` from the root of the project. Arguments go to pytest; the coverage is then shown, not
judged, because a part of the suite cannot cover the whole. The environments run beside one another:

* "every package" runs all tests. It takes longest, and runs in three parts, of which the one with the tests marked
  `unmeasured` is not measured.
* "neither" runs all but those marked `once`, which cannot tell one environment from another.
* "no opentelemetry" and "no redis" run what could fail in them alone. A test that passes with both packages and with
  neither fails with one of them only if it uses that one, and then it is marked as needing it: "no redis" runs the
  tests marked `needs_otel`, and "no opentelemetry" those marked `needs_redis_package`. Both run the tests marked
  `each_environment` as well, which look at what is imported and at what is said of a package that is absent.

The last lines are the sums. Before them stands once, with its number of tests, each reason for which "every package"
has skipped something: there it is the machine that lacks a program or a package.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import tempfile
from collections import Counter
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

# The tests that can run in this environment and not in "neither", by what is hidden.
NOT_IN_NEITHER = {"opentelemetry": "needs_redis_package", "redis": "needs_otel"}
IN_EACH = "each_environment"

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

_TESTS = Path("tests")
_NO_TESTS_FOUND = 5  # pytest's exit code

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
            (name, pool.submit(_run, name, absent, Path(directory, f"{number}.xml"), part, bool(arguments)))
            for number, (name, absent, part) in enumerate(jobs)
        ]
        reasons: Counter[str] = Counter()
        for name, result in running:
            run = result.result()
            print(run.printed, flush=True)
            outcomes[name] = outcomes[name].plus(run.outcome)
            if not ENVIRONMENTS[name]:
                reasons.update(run.reasons)
    subprocess.run([*coverage, "combine", "--quiet"], check=True)
    report = subprocess.run([*coverage, "report", *(["--fail-under=0"] if arguments else [])], check=False)
    total = functools.reduce(Outcome.plus, outcomes.values())
    if reasons:
        print("\nSkipped even with every package:")
        for reason, count in reasons.most_common():
            print(f"{count:5} {reason}")
    print()
    for name, outcome in outcomes.items():
        print(f"{name:<17} {outcome.passed:5} passed {outcome.failed:4} failed {outcome.skipped:5} skipped")
    print(f"{total.passed} passed, {total.failed} failed, {total.skipped} skipped")
    return 1 if total.failed or not total.passed or report.returncode else 0


class Run(NamedTuple):
    """One environment's run: its outcome, what pytest printed, and why it skipped tests."""

    outcome: Outcome
    printed: str
    reasons: Counter[str]


def _parts(absent: str, arguments: list[str]) -> list[list[str]]:
    # A caller who names tests wants these, in one run.
    if arguments or absent not in ("", *NOT_IN_NEITHER):
        return [arguments]
    return [_files_with(absent)] if absent else [list(part) for part in PARTS]


def _files_with(absent: str) -> list[str]:
    # To import the other modules would take longer than these tests.
    markers = (NOT_IN_NEITHER[absent], IN_EACH)
    texts = {path: path.read_text(encoding="utf-8") for path in sorted(_TESTS.rglob("test_*.py"))}
    return [str(path) for path, text in texts.items() if any(f"mark.{marker}" in text for marker in markers)]


def _selection(absent: str) -> str:
    alone = NOT_IN_NEITHER.get(absent)
    return f"not once and ({alone} or {IN_EACH})" if alone else "not once"


def _run(name: str, absent: str, results: Path, arguments: list[str], is_chosen: bool) -> Run:
    is_measured = absent in MEASURED and (absent != "" or tuple(arguments) != UNMEASURED)
    measured = ["-m", "coverage", "run"] if is_measured else []
    command = [sys.executable, *measured, "-m", "pytest", "-p", "tests.absent", f"--junitxml={results}"]
    if absent:
        command += ["-rfE", "-m", _selection(absent)]  # skipped tests are the point of this environment, not news
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
        return Run(Outcome(0, 1, 0), printed, Counter())
    suite = next(ElementTree.parse(results).getroot().iter("testsuite"))
    reasons = Counter(skip.get("message", "") for skip in suite.iter("skipped"))
    tests, failures, errors, skipped = (int(suite.attrib[key]) for key in ("tests", "failures", "errors", "skipped"))
    failed = failures + errors
    # Of the tests that a caller chose, an environment may have none.
    broke_off = finished.returncode not in ((0, _NO_TESTS_FOUND) if is_chosen else (0,))
    return Run(Outcome(tests - failed - skipped, max(failed, int(broke_off)), skipped), printed, reasons)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
