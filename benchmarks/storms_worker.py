"""The storms in a process of their own: `python -m benchmarks.storms_worker SEEDS FILE` writes what it found as JSON.

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
    parser.add_argument("seeds", type=int, help="how many brown-outs each contestant goes through")
    parser.add_argument("file", type=Path)
    options = parser.parse_args(arguments)
    logging.disable(logging.CRITICAL)  # some say of every retry that there is one
    clock = time.monotonic = SimulatedClock()
    from . import storms

    def report(what: str) -> None:
        print(what, file=sys.stderr, flush=True)

    options.file.write_text(json.dumps(storms.measure(range(options.seeds), clock, report)), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
