"""Runs the hedging benchmark alone: `python -m benchmarks.hedging`, from the root of the project.

The exit code is 0 when the targets are met, 1 when one is missed, and 2 when a call returned a wrong answer.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from pathlib import Path

from benchmarks import report
from benchmarks.checks import NotDoneError
from benchmarks.table import Verdict

from .benchmark import FULL, QUICK, measure
from .tables import tables


def main(arguments: list[str]) -> int:
    """Measures, prints, and returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hedging", description=__doc__.partition(":")[0])
    parser.add_argument("--quick", action="store_true", help="make a quarter of the calls, with rougher figures")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the time of every call to FILE")
    options = parser.parse_args(arguments)
    scale = QUICK if options.quick else FULL
    try:
        found = asyncio.run(measure(scale, report.progress))
    except NotDoneError as error:
        print(error, file=sys.stderr)
        return 2
    shown = list(tables(found, scale))
    print(report.as_text(report.this_run(" ".join(["python -m benchmarks.hedging", *arguments])), shown, []))
    if options.json:
        options.json.write_text(json.dumps(found), encoding="utf-8")
    return int(any(row.verdict is Verdict.MISSED for table in shown for row in table.rows))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
