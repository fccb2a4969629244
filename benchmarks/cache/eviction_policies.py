"""The compared eviction policies, behind one interface."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from heapq import heappop, heappush
from importlib.util import find_spec
from typing import Any, NamedTuple

from observability_integration.caching.entry import Entry
from observability_integration.caching.stores.memory import MemoryStore

OURS = "S3-FIFO: MemoryStore"
LRU = "LRU: written here"
SIEVE = "SIEVE: written here"
TINY_LFU = "W-TinyLFU: theine"

_TTL = timedelta(hours=1)


class Contestant(NamedTuple):
    """A cache of a fixed number of entries.

    Attributes:
        get: returns the entry of a key, or None.
        set: stores an entry.
        size: returns the number of entries.
        settle: applies deferred writes.
        close: ends the cache's threads.
    """

    get: Callable[[bytes], Any]
    set: Callable[[bytes, Entry], None]
    size: Callable[[], int]
    settle: Callable[[], object] = lambda: None
    close: Callable[[], object] = lambda: None


def contestants() -> Iterator[tuple[str, Callable[[int], Contestant]]]:
    """Yields name and factory of each installed cache; a factory takes the number of entries."""
    yield OURS, _memory_store
    yield LRU, _lru
    yield SIEVE, _sieve
    if find_spec("theine"):
        yield TINY_LFU, _tiny_lfu


def _memory_store(capacity: int) -> Contestant:
    store = MemoryStore(capacity, 1 << 62)
    return Contestant(store.get, store.set, store.__len__)


def _lru(capacity: int) -> Contestant:
    lru = Lru(capacity)
    return Contestant(lru.get, lru.set, lru.__len__)


def _sieve(capacity: int) -> Contestant:
    sieve = Sieve(capacity)
    return Contestant(sieve.get, sieve.set, sieve.__len__)


def _tiny_lfu(capacity: int) -> Contestant:
    from theine import Cache

    cache: Any = Cache(capacity)
    return Contestant(
        lambda key: cache.get(key)[0],
        lambda key, entry: cache.set(key, entry, _TTL),
        cache.__len__,
        cache._force_drain_write,
        cache.close,
    )


class Lru:
    """Least recently used, without expiry, bytes, tags or lock."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._entries: OrderedDict[bytes, Entry] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: bytes) -> Entry | None:
        entry = self._entries.get(key)
        if entry is not None:
            self._entries.move_to_end(key)
        return entry

    def set(self, key: bytes, entry: Entry) -> None:
        self._entries[key] = entry
        self._entries.move_to_end(key)
        if len(self._entries) > self._capacity:
            self._entries.popitem(last=False)


class _Node:
    __slots__ = ("entry", "key", "newer", "older", "visited")

    def __init__(self, key: bytes, entry: Entry) -> None:
        self.key = key
        self.entry = entry
        self.visited = False
        self.newer: _Node | None = None
        self.older: _Node | None = None


class Sieve:
    """SIEVE (Zhang et al., NSDI 2024), equally plain: a queue, one bit per entry, a hand from old to new."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._nodes: dict[bytes, _Node] = {}
        self._newest: _Node | None = None
        self._oldest: _Node | None = None
        self._hand: _Node | None = None

    def __len__(self) -> int:
        return len(self._nodes)

    def get(self, key: bytes) -> Entry | None:
        node = self._nodes.get(key)
        if node is None:
            return None
        node.visited = True
        return node.entry

    def set(self, key: bytes, entry: Entry) -> None:
        node = self._nodes.get(key)
        if node is not None:
            node.entry = entry
            node.visited = True
            return
        if len(self._nodes) >= self._capacity:
            self._evict()
        node = self._nodes[key] = _Node(key, entry)
        node.older = self._newest
        if self._newest is not None:
            self._newest.newer = node
        self._newest = node
        self._oldest = self._oldest or node

    def _evict(self) -> None:
        node = self._hand or self._oldest
        while node is not None and node.visited:
            node.visited = False
            node = node.newer or self._oldest
        if node is None:
            return
        self._hand = node.newer
        del self._nodes[node.key]
        if node.newer is not None:
            node.newer.older = node.older
        else:
            self._newest = node.older
        if node.older is not None:
            node.older.newer = node.newer
        else:
            self._oldest = node.newer


def ideal_hits(keys: Sequence[bytes], capacity: int) -> int:
    """Returns the hits of the optimal policy (Belady 1966) that need not store each entry: an upper bound."""
    following: list[float] = [math.inf] * len(keys)
    last: dict[bytes, int] = {}
    for at in range(len(keys) - 1, -1, -1):
        following[at] = last.get(keys[at], math.inf)
        last[keys[at]] = at
    hits = 0
    kept: dict[bytes, float] = {}
    furthest: list[tuple[float, bytes]] = []
    for at, key in enumerate(keys):
        hits += key in kept
        kept[key] = following[at]
        heappush(furthest, (-following[at], key))
        while len(kept) > capacity:
            negative, candidate = heappop(furthest)
            if kept.get(candidate) == -negative:
                del kept[candidate]
    return hits
