"""The storms in a process of their own: `python -m benchmarks.storms_worker SCALE FILE` writes what it found as JSON.

The clock has to be exchanged before the library is imported, because the library takes it over as it is then.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from pathlib import Path

from .simulated_clock import SimulatedClock


def main(arguments: list[str]) -> None:
    """Run."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.storms_worker")
    parser.add_argument("scale", choices=("full", "quick"))
    parser.add_argument("file", type=Path)
    options = parser.parse_args(arguments)
    logging.disable(logging.CRITICAL)  # some tell of every single retry
    clock = time.monotonic = SimulatedClock()
    from . import storms
    from .storm_contestants import OURS, PIPELINE, PIPELINE_AIMD, UNBUDGETED

    contestants: tuple[str, ...] = (OURS, PIPELINE, PIPELINE_AIMD, UNBUDGETED)
    runs = [(storms.BROWN_OUT_SECONDS, 1)]
    if options.scale == "full":
        contestants, runs = storms.CONTESTANTS, [(storms.BROWN_OUT_SECONDS, 3), (storms.LONG_SECONDS, 1)]

    def report(what: str) -> None:
        print(what, file=sys.stderr, flush=True)

    options.file.write_text(json.dumps(storms.measure(contestants, runs, clock, report)), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
