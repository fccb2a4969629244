"""What it costs to import a library, to switch telemetry on, and to keep entries: a fresh process each time."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from time import perf_counter

from benchmarks import workers

ENTRIES = 10_000
_STATM = Path("/proc/self/statm")  # only Linux has it
EMPTY = "pass"
EXPORTER = "opentelemetry.exporter.prometheus"  # brings the rest of OpenTelemetry along
OURS = "import observability_integration"
PRIMITIVES = "import observability_integration.primitives"
LITELLM = "import litellm"

# Statement -> the package that it needs.
PEERS = {LITELLM: "litellm", "import cashews": "cashews", "import aiocache": "aiocache"}
IMPORTS = {OURS: "observability_integration", PRIMITIVES: "observability_integration", **PEERS}

_RESIDENT = """
import gc
def resident():
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * __import__("os").sysconf("SC_PAGE_SIZE")
"""

_INITIALIZE = """
from time import perf_counter
from observability_integration import initialize_observability, shutdown_observability
started = perf_counter()
assert initialize_observability("benchmark", prometheus_port=0, otlp_endpoint="http://127.0.0.1:9")
print(perf_counter() - started)
shutdown_observability(0.1)
"""

_FILL = """
import asyncio
async def work(prompt):
    return prompt[:16].ljust(1000, ".")
async def main():
SETUP
    await ask("warm")
    before = resident()
    for number in range(ENTRIES):
        await ask("%08d " % number)
    print(resident() - before)
asyncio.run(main())
"""

_OURS_SETUP = """
    from observability_integration.primitives import CachePrimitive
    ask = CachePrimitive(work, lambda prompt: prompt).execute
"""
_CASHEWS_SETUP = """
    from cashews import Cache
    cache = Cache()
    cache.setup("mem://", size=20000)
    ask = cache(ttl=3600, key="answers:{prompt}")(work)
"""
_AIOCACHE_SETUP = """
    from aiocache import cached
    ask = cached(ttl=3600, key_builder=lambda _, prompt: prompt)(work)
"""

# Library -> the code for SETUP, and the package that it needs.
_CACHES = {
    "ours": (_OURS_SETUP, "observability_integration"),
    "cashews": (_CASHEWS_SETUP, "cashews"),
    "aiocache": (_AIOCACHE_SETUP, "aiocache"),
}

Report = Callable[[str], None]


def _run(code: str) -> str:
    finished = subprocess.run(
        [sys.executable, "-c", code],
        env=workers.environment(),
        check=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    return finished.stdout.decode().strip()


def _seconds(code: str) -> float:
    started = perf_counter()
    _run(code)
    return perf_counter() - started


def installed(package: str) -> bool:
    """Whether a package can be imported."""
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # the parent package is missing
        return False


def import_seconds(rounds: int, report: Report) -> dict[str, list[float]]:
    """Returns, by statement, the seconds of a process that runs it, less those of an empty one, for each round."""
    present = [code for code, package in IMPORTS.items() if installed(package)]
    for code in present:
        report(code)
        _seconds(code)  # compiles the modules, and fills the file cache
    samples: dict[str, list[float]] = {code: [] for code in present}
    for _ in range(rounds):
        empty = _seconds(EMPTY)
        for code in present:
            samples[code].append(max(_seconds(code) - empty, 1e-4))
    return samples


def initialize_seconds(rounds: int, report: Report) -> list[float]:
    """Returns the seconds of `initialize_observability` in fresh processes, the import of OpenTelemetry included."""
    if not installed(EXPORTER):
        return []
    report("initialize_observability()")
    return [float(_run(_INITIALIZE)) for _ in range(rounds)]


def resident_bytes(rounds: int, report: Report) -> dict[str, float]:
    """Returns, by statement, resident bytes beyond an empty process; an empty dict without ``/proc``."""
    if not _STATM.exists():
        return {}
    report("memory after imports")

    def after(code: str) -> float:
        return median(int(_run(f"{_RESIDENT}{code}\nprint(resident())")) for _ in range(rounds))

    empty = after(EMPTY)
    return {code: after(code) - empty for code, package in IMPORTS.items() if installed(package)}


def cache_bytes(rounds: int, report: Report) -> dict[str, float]:
    """Returns, by library, the bytes of `ENTRIES` entries of 1 kB; an empty dict without ``/proc``."""
    if not _STATM.exists():
        return {}
    report("memory of cached entries")
    filling = _RESIDENT + _FILL.replace("ENTRIES", str(ENTRIES))
    return {
        name: median(int(_run(filling.replace("SETUP", setup))) for _ in range(rounds))
        for name, (setup, package) in _CACHES.items()
        if installed(package)
    }
