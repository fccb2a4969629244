"""The first level: a bounded map in the process, least recently used out first."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable

from observability_integration.caching.codec import Kept


class MemoryStore:
    """Bounded by entries and by bytes; expiry is checked on reading.

    Args:
        max_entries: at least 1.
        max_bytes: at least 1.
        clock: seconds that only go forward.
    """

    def __init__(self, max_entries: int, max_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._clock = clock
        self._entries: OrderedDict[bytes, tuple[Kept, float]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, key: bytes) -> Kept | None:
        """The entry, unless it is missing or has expired."""
        found = self._entries.get(key)
        if found is None:
            return None
        if found[1] <= self._clock():
            self.delete(key)
            return None
        try:  # noqa: SIM105 - suppress() costs as much as everything else here
            self._entries.move_to_end(key)
        except KeyError:  # another thread evicted it meanwhile; what was found is still good
            pass
        return found[0]

    def set(self, key: bytes, kept: Kept, ttl_seconds: float) -> None:
        """Keeps an entry, and evicts until everything fits."""
        with self._lock:
            old = self._entries.pop(key, None)
            if old is not None:
                self._bytes -= old[0].size
            if kept.size > self._max_bytes:
                return
            self._entries[key] = (kept, self._clock() + ttl_seconds)
            self._bytes += kept.size
            while len(self._entries) > self._max_entries or self._bytes > self._max_bytes:
                _, (evicted, _) = self._entries.popitem(last=False)
                self._bytes -= evicted.size

    def delete(self, key: bytes) -> None:
        """Forgets an entry, if it is there."""
        with self._lock:
            old = self._entries.pop(key, None)
            if old is not None:
                self._bytes -= old[0].size

    def clear(self) -> None:
        """Forgets everything."""
        with self._lock:
            self._entries.clear()
            self._bytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def bytes(self) -> int:
        """Bytes kept, as estimated."""
        return self._bytes
