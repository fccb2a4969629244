"""Runs one telemetry mode in a process: `python -m benchmarks.calls.worker MODE EFFORT FILE` writes results as JSON."""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import sys
from pathlib import Path


def main(arguments: list[str]) -> None:
    """Runs one mode."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.calls.worker")
    parser.add_argument("mode", choices=("on", "api", "absent"))
    parser.add_argument("effort", type=json.loads, help="rounds, batches and calls, as a JSON list")
    parser.add_argument("file", type=Path)
    parser.add_argument("--without-peers", action="store_true")
    options = parser.parse_args(arguments)
    if options.mode == "absent":
        # Every import of it now fails as if it were not installed.
        sys.modules["opentelemetry"] = None  # type: ignore[assignment]
    logging.disable(logging.CRITICAL)
    from benchmarks.measure import Effort

    from .telemetry_modes import run_mode

    def report(what: str) -> None:
        print(f"{options.mode}: {what}", file=sys.stderr, flush=True)

    beside_peers = not options.without_peers
    outcome = asyncio.run(run_mode(options.mode, Effort(*options.effort), report, beside_peers=beside_peers))
    options.file.write_text(json.dumps(outcome._asdict()), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
