"""Runs retry storms and brown-outs: `python -m benchmarks.load.retry_storm_worker SCALE FILE` writes results as JSON.

Replaces `time.monotonic` before the library is imported, because the library binds it at import.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from pathlib import Path

from benchmarks.simulated_clock import SimulatedClock


def main(arguments: list[str]) -> None:
    """Runs the contestants."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load.retry_storm_worker")
    parser.add_argument("scale", choices=("full", "quick"))
    parser.add_argument("file", type=Path)
    options = parser.parse_args(arguments)
    logging.disable(logging.CRITICAL)  # some libraries log every retry
    clock = time.monotonic = SimulatedClock()
    from . import retry_storm
    from .retry_storm_contestants import OURS, PIPELINE, PIPELINE_AIMD, UNBUDGETED

    contestants: tuple[str, ...] = (OURS, PIPELINE, PIPELINE_AIMD, UNBUDGETED)
    runs = [(retry_storm.BROWN_OUT_SECONDS, 1)]
    if options.scale == "full":
        contestants, runs = retry_storm.CONTESTANTS, [(retry_storm.BROWN_OUT_SECONDS, 3), (retry_storm.LONG_SECONDS, 1)]

    def report(what: str) -> None:
        print(what, file=sys.stderr, flush=True)

    options.file.write_text(json.dumps(retry_storm.measure(contestants, runs, clock, report)), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
