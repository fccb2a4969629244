"""The environment of the processes that the benchmarks start."""

from __future__ import annotations

import os


def environment() -> dict[str, str]:
    """The environment of every process that is started: nothing asks the network, and no OTEL_* variable interferes."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OTEL_", "ENABLE_APM"))}
    return {**kept, "LITELLM_LOCAL_MODEL_COST_MAP": "True", "NO_PROXY": "127.0.0.1,localhost"}
