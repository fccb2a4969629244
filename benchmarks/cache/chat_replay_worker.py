"""Runs the chat replay: `python -m benchmarks.cache.chat_replay_worker SHARE FILE` writes results as JSON.

Replaces `time.monotonic` before the library is imported, because the library binds it at import.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from benchmarks.simulated_clock import SimulatedClock


def main(arguments: list[str]) -> None:
    """Runs the replay."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cache.chat_replay_worker")
    parser.add_argument("share", type=float, help="fraction of the hour, from 0 to 1")
    parser.add_argument("file", type=Path)
    options = parser.parse_args(arguments)
    clock = time.monotonic = SimulatedClock()
    from . import chat_replay

    def report(what: str) -> None:
        print(what, file=sys.stderr, flush=True)

    options.file.write_text(json.dumps(chat_replay.measure(options.share, clock, report)), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
