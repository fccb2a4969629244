"""Memory over many calls."""

from __future__ import annotations

import gc
import os
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.once, pytest.mark.unmeasured, pytest.mark.needs_otel]

SCRIPT = """
import asyncio, gc, itertools, logging
from observability_integration import initialize_observability, shutdown_observability
from observability_integration.primitives import *

logging.disable(logging.CRITICAL)  # nobody listens at the OTLP endpoint, and the exporter says so at every batch
assert initialize_observability("flat", prometheus_port=0, otlp_endpoint="http://127.0.0.1:9")

async def work(request):
    return {"model": "m", "usage": {"prompt_tokens": 3, "completion_tokens": 5}, "text": "x" * 100}

call = LLMCallPrimitive(work, model="m", provider="openai")
router = RouterPrimitive({"fast": TimeoutPrimitive(call, 30.0, operation_name="t")}, lambda x, c: "fast")
chain = CachePrimitive(router, lambda x: x, operation_name="c", policy=CachePolicy(max_entries=500))
numbers = itertools.count()

def resident():
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096

async def calls(count):
    for _ in range(count):
        await chain.execute(f"question {next(numbers) // 2}")  # every other one is a hit

async def main():
    await calls(5_000)
    before = resident()
    await calls(100_000)
    print(resident() - before)

asyncio.run(main())
shutdown_observability(0.5)
"""


@pytest.mark.promise("M11", "C6")
def test_a_hundred_thousand_calls_leave_memory_flat():
    """A counter, span or cache entry kept for each call would end every long-running service."""
    gc.collect()
    # What measures coverage would take three times as long, and memory of its own.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    run = subprocess.run(
        [sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=55, check=False, env=environment
    )
    assert "" == run.stderr
    assert abs(int(run.stdout)) < 5_000_000
