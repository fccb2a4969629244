"""Deletions, invalidations and writes to replay once the shared store recovers.

The last request for each entry wins, what would have expired meanwhile is dropped, and all of it is bounded: too many
deletions or marks become one clearing, too many writes lose the oldest, which costs a call and no more.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from observability_integration.caching.stores.shared import Place, SharedStore

FOR_EVER_MS = 1 << 53  # some 285,000 years; Redis refuses what does not fit a signed 64-bit date
_MAX_VOIDED = 1000  # entries or tags; few enough for one command
_MAX_BYTES = 8 * 1024 * 1024  # some thousands of answers
_AT_ONCE = 10  # round trips in one flush, which has the budget of one access: 5 ms each by default


class _Write(NamedTuple):
    data: bytes
    expires: float
    note: str


class _Mark(NamedTuple):
    life_ms: int
    note: str


class PendingWrites:
    """What one operation has yet to delete, void or write in the shared store.

    Args:
        prefix: how the operation's keys begin.
        clock: seconds that only go forward.
    """

    def __init__(self, prefix: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._prefix = prefix
        self._clock = clock
        self._deletions: dict[str, str] = {}
        self._marks: dict[str | None, _Mark] = {}
        self._writes: dict[str, _Write] = {}
        self._bytes = 0

    def __bool__(self) -> bool:
        return bool(self._deletions or self._marks or self._writes)

    @property
    def clears(self) -> bool:
        """Whether all entries are to be voided."""
        return None in self._marks

    def forgets(self, name: str) -> bool:
        """Tells whether the entry may not be read, because its deletion or any invalidation is pending."""
        return name in self._deletions or bool(self._marks)

    def delete(self, name: str, note: str) -> None:
        """Adds the deletion of an entry."""
        self._drop_write(name)
        self._deletions.pop(name, None)
        self._deletions[name] = note
        if len(self._deletions) > _MAX_VOIDED:
            # Other processes hear of one deletion, and keep the other entries in memory until these expire.
            self._deletions.clear()
            self._marks[None] = _Mark(FOR_EVER_MS, note)

    def mark(self, tag: str | None, life_ms: int, note: str) -> None:
        """Adds the invalidation of all entries with the tag (None: all entries)."""
        if tag is not None and len(self._marks.keys() | {tag}) > _MAX_VOIDED:
            self._marks.clear()
            tag, life_ms = None, FOR_EVER_MS
        self._marks[tag] = _Mark(life_ms, note)
        if tag is None:
            self._writes.clear()
            self._bytes = 0

    def put(self, name: str, data: bytes, ttl_ms: int, note: str) -> None:
        """Adds the write of an entry, unless the store has one by then."""
        self._drop_write(name)
        self._writes[name] = _Write(data, self._clock() + ttl_ms / 1000, note)
        self._bytes += len(data)
        while self._bytes > _MAX_BYTES:
            self._drop_write(next(iter(self._writes)))

    def _drop_write(self, name: str) -> None:
        dropped = self._writes.pop(name, None)
        if dropped is not None:
            self._bytes -= len(dropped.data)

    async def flush(self, store: SharedStore) -> None:
        """Replays a bounded part; what fails stays pending. Voiding goes before writing."""
        for tag, mark in list(self._marks.items())[:_AT_ONCE]:
            await store.mark(self._prefix, tag, mark.life_ms, mark.note)
            if self._marks.get(tag) is mark:  # else it was added again meanwhile
                del self._marks[tag]
        if self._marks:
            return
        deletions = dict(self._deletions)
        if deletions:
            await store.delete(self._prefix, list(deletions), list(deletions.values()))
            for name, note in deletions.items():
                if self._deletions.get(name) is note:
                    del self._deletions[name]
        for name, write in list(self._writes.items())[:_AT_ONCE]:
            left_ms = int(1000 * (write.expires - self._clock()))
            if left_ms > 0 and name not in self._deletions and not self._marks:
                await store.put_late(Place(self._prefix, name), write.data, left_ms, write.note)
            if self._writes.get(name) is write:
                self._drop_write(name)
