"""Sets the environment of the processes that the benchmarks start."""

from __future__ import annotations

import os


def environment() -> dict[str, str]:
    """Returns the environment of a child process: no OTEL_* variables, no network access by the peers."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "ENABLE_APM"))}
    return {**kept, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "NO_PROXY": "127.0.0.1,localhost"}
