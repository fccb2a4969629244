"""Python scripts in processes of their own: what OpenTelemetry accepts only once a process needs a fresh one."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap


def run_script(code: str, *arguments: str, **environment: str) -> str:
    """Runs `code` with warnings as errors; returns what it printed, and fails with its traceback if it failed."""
    finished = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(code), *arguments],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=40,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout
