"""Compares eviction policies for memory: `python -m benchmarks.cache.eviction`, from the root of the project.

Replays lookups through caches of a fixed number of entries: each lookup is a `get` and, on a miss, a `set`. Keys come
from one hour of real chat (the conversation trace published with Mooncake, FAST 2025; see `data`) and from seeded Zipf
distributions. Prints Markdown. The exit code is 0, or 1 when a trace or a policy is missing.
"""

from __future__ import annotations

import argparse
import gc
import gzip
import json
import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from hashlib import blake2b
from importlib.metadata import PackageNotFoundError, version
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

from benchmarks import data, report
from observability_integration.caching.codec import StoredValue
from observability_integration.caching.entry import Entry

from .eviction_policies import LRU, OURS, SIEVE, TINY_LFU, Contestant, contestants, ideal_hits

CAPACITIES = (100, 1_000, 10_000)  # the last is the cache's default
TRACE = "mooncake_conversation.jsonl.gz"
PREFIX_BLOCKS = 16
_SEED = 2024
_ZIPF_KEYS, _ZIPF_LOOKUPS = 100_000, 200_000
_ONCE = 0.8  # share of lookups whose key never repeats, in the last workload
_ROUNDS, _TIMED_ENTRIES = 7, 10_000


class Workload(NamedTuple):
    """Keys in the order of lookup."""

    name: str
    keys: Sequence[bytes]

    @property
    def ceiling(self) -> float:
        """The hit ratio of an unbounded cache."""
        return 1 - len(set(self.keys)) / len(self.keys)


def main(arguments: list[str]) -> int:
    """Measures, prints, and returns the exit code."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cache.eviction", description=__doc__.partition(":")[0])
    parser.parse_args(arguments)
    trace = data.find(TRACE)
    lacking = [] if trace else [f"{TRACE} was not found (set {data.VARIABLE})"]
    installed = [name for name, _ in contestants()]
    lacking += [f"{name} is not installed" for name in (TINY_LFU,) if name not in installed]
    print(f"{report.this_run('python -m benchmarks.cache.eviction').machine}; theine {_version('theine')}\n")
    gaps: list[str] = []
    for workload in (*_chat(trace), *_zipf()):
        report.progress(f"{workload.name}: {len(workload.keys)} lookups")
        ratios = _ratios(workload)
        print(_as_table(workload, ratios))
        gaps += _gaps(workload, ratios)
    print(_costs())
    print("\n".join([f"{OURS} compared with the others, in points of the hit ratio:", "", *gaps]))
    if lacking:
        print("\n".join(["", "Not measured:", "", *(f"- {what}." for what in lacking)]))
    return int(bool(lacking))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _chat(trace: Path | None) -> Iterator[Workload]:
    if trace is None:
        return
    with gzip.open(trace, "rt") as lines:
        prompts: list[list[int]] = [json.loads(line)["hash_ids"] for line in lines]
    # A block's id identifies all blocks up to it, so the last id identifies a prompt or its prefix.
    yield Workload("Chat, whole prompts", _named(prompt[-1] for prompt in prompts))
    yield Workload(
        f"Chat, the first {PREFIX_BLOCKS} blocks of 512 tokens",
        _named(prompt[:PREFIX_BLOCKS][-1] for prompt in prompts),
    )
    yield Workload("Chat, every block of every prompt", _named(block for prompt in prompts for block in prompt))


def _zipf() -> Iterator[Workload]:
    for exponent in (0.8, 1.1):
        numbers = _zipf_numbers(exponent, random.Random(_SEED))
        yield Workload(f"Zipf, exponent {exponent:g}, {_ZIPF_KEYS} keys", _named(numbers))
    source = random.Random(_SEED)
    mixed = (
        -at if source.random() < _ONCE else number
        for at, number in enumerate(_zipf_numbers(0.8, random.Random(_SEED)), start=1)
    )
    yield Workload(f"Zipf, exponent 0.8, {_ONCE:.0%} of lookups never repeat", _named(mixed))


def _zipf_numbers(exponent: float, source: random.Random) -> list[int]:
    weights = list(accumulate(1 / rank**exponent for rank in range(1, _ZIPF_KEYS + 1)))
    return source.choices(range(_ZIPF_KEYS), cum_weights=weights, k=_ZIPF_LOOKUPS)


def _named(numbers: Iterable[int]) -> list[bytes]:
    # As the cache makes keys, with one object per key.
    name = lru_cache(maxsize=None)(lambda number: blake2b(b"%d" % number, digest_size=32).digest())
    return [name(number) for number in numbers]


def _ratios(workload: Workload) -> dict[str, list[float]]:
    entry = _entry()
    found: dict[str, list[float]] = {}
    for name, make in contestants():
        found[name] = [_replay(make(capacity), workload.keys, entry, capacity) for capacity in CAPACITIES]
    found["best possible"] = [ideal_hits(workload.keys, capacity) / len(workload.keys) for capacity in CAPACITIES]
    for name, ratios in found.items():
        if any(ratio > best for ratio, best in zip(ratios, found["best possible"], strict=True)):
            raise AssertionError(f"{name} had more hits than the best possible")
    return found


def _replay(cache: Contestant, keys: Sequence[bytes], entry: Entry, capacity: int) -> float:
    hits = 0
    for key in keys:
        if cache.get(key) is None:
            cache.set(key, entry)
        else:
            hits += 1
    cache.settle()
    if cache.size() > capacity:
        raise AssertionError(f"a cache of {capacity} entries held {cache.size()}")
    cache.close()
    return hits / len(keys)


def _entry() -> Entry:
    now = time.monotonic()
    return Entry(StoredValue("answer", "value", 1), now, now + 3600, now + 3600, now + 3600)


def _as_table(workload: Workload, ratios: dict[str, list[float]]) -> str:
    lines = [f"**{workload.name}** ({len(workload.keys):,} lookups; {workload.ceiling:.1%} repeat)", ""]
    lines.append(f"| hit ratio, entries: | {' | '.join(f'{capacity:,}' for capacity in CAPACITIES)} |")
    lines.append(f"|---|{'---:|' * len(CAPACITIES)}")
    lines += [f"| {name} | {' | '.join(f'{ratio:.2%}' for ratio in row)} |" for name, row in ratios.items()]
    return "\n".join([*lines, ""])


def _gaps(workload: Workload, ratios: dict[str, list[float]]) -> Iterator[str]:
    parts: list[str] = []
    for name in (LRU, SIEVE, TINY_LFU):
        if name in ratios:
            gaps = [100 * (ours - other) for ours, other in zip(ratios[OURS], ratios[name], strict=True)]
            parts.append(f"{name.partition(':')[0]} {', '.join(f'{gap:+.1f}' for gap in gaps)}")
    yield f"- {workload.name}: {'; '.join(parts)}"


def _costs() -> str:
    keys = _named(range(2 * _TIMED_ENTRIES))
    old, new = keys[:_TIMED_ENTRIES], keys[_TIMED_ENTRIES:]
    best: dict[str, list[float]] = {name: [float("inf")] * 3 for name, _ in contestants()}
    for _ in range(_ROUNDS):
        for name, make in contestants():
            cache = make(_TIMED_ENTRIES)
            # Inserts, hits, and inserts that evict.
            figures = (_sets(cache, old), _gets(cache, old), _sets(cache, new))
            best[name] = list(map(min, best[name], figures))
            cache.close()
    lines = [f"**Microseconds per operation**, {_TIMED_ENTRIES:,} entries, the best of {_ROUNDS} rounds", ""]
    lines += ["| | hit | insert | insert that evicts |", "|---|---:|---:|---:|"]
    for name, (fresh, hit, evicting) in best.items():
        lines.append(f"| {name} | {hit * 1e6:.2f} | {fresh * 1e6:.2f} | {evicting * 1e6:.2f} |")
    note = (
        "MemoryStore also reads the clock, counts bytes, keeps expiries in order and locks for writes. theine locks "
        "and expires. The policies written here do none of this."
    )
    return "\n".join([*lines, "", note, ""])


def _gets(cache: Contestant, keys: Sequence[bytes]) -> float:
    get = cache.get
    return _timed(lambda: [get(key) for key in keys], len(keys))


def _sets(cache: Contestant, keys: Sequence[bytes]) -> float:
    entry = _entry()
    keep = cache.set
    return _timed(lambda: [keep(key, entry) for key in keys], len(keys))


def _timed(work: Callable[[], object], operations: int) -> float:
    gc.collect()
    gc.disable()
    try:
        started = time.perf_counter()
        work()
        return (time.perf_counter() - started) / operations
    finally:
        gc.enable()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
