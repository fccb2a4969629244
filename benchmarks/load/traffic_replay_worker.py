"""Runs the traffic replay: `python -m benchmarks.load.traffic_replay_worker SCALE FILE` writes results as JSON.

The process runs nothing else, because its memory and the lag of its event loop are measured.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import sys
from pathlib import Path

from . import traffic_replay

SCALES = {"full": traffic_replay.FULL, "quick": traffic_replay.QUICK}


def main(arguments: list[str]) -> None:
    """Runs the replay."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.load.traffic_replay_worker")
    parser.add_argument("scale", choices=SCALES)
    parser.add_argument("file", type=Path)
    options = parser.parse_args(arguments)
    logging.disable(logging.CRITICAL)
    gc.collect()
    gc.freeze()  # objects of the imports are not part of the calls

    def report(what: str) -> None:
        print(what, file=sys.stderr, flush=True)

    options.file.write_text(json.dumps(traffic_replay.measure(SCALES[options.scale], report)), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
