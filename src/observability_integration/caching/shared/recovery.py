"""Deletions, invalidations and writes to replay once the shared store recovers.

The last request for each entry wins, what would have expired meanwhile is dropped, and all of it is bounded: too many
deletions or tags become one clearing, too many writes lose the oldest, which costs a call and no more. The store itself
refuses a write of what another process has invalidated meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from observability_integration.caching.stores.shared import Place, SharedStore, Write

from .channel import Note

_MAX_VOIDED = 1000  # entries or tags; few enough for one command
_MAX_BYTES = 8 * 1024 * 1024  # some thousands of answers
_AT_ONCE = 10  # round trips in one flush, which has the budget of one access: 5 ms each by default


class _Write(NamedTuple):
    write: Write
    expires: float
    note: str
    origin: str


class PendingWrites:
    """What one operation has yet to delete, void or write in the shared store.

    Args:
        prefix: how the operation's keys begin.
        origin: the cache; see `Channel.origin`.
        clock: seconds that only go forward.
    """

    def __init__(self, prefix: str, origin: str = "", clock: Callable[[], float] = time.monotonic) -> None:
        self._prefix = prefix
        self._origin = origin
        self._clock = clock
        self._deletions: dict[str, str] = {}
        self._voids: dict[str | None, str] = {}
        self._writes: dict[str, _Write] = {}
        self._bytes = 0
        self._reported = False

    def __bool__(self) -> bool:
        return bool(self._deletions or self._voids or self._writes)

    @property
    def invalidations(self) -> int:
        """How many invalidations are pending."""
        return len(self._deletions) + len(self._voids)

    def unreported(self) -> int:
        """How many invalidations are pending; 0 if that was asked before and none has come since."""
        reported, self._reported = self._reported, True
        return 0 if reported else self.invalidations

    @property
    def clears(self) -> bool:
        """Whether all entries are to be voided."""
        return None in self._voids

    def forgets(self, name: str) -> bool:
        """Tells whether the entry may not be read, because its deletion or any invalidation is pending."""
        return name in self._deletions or bool(self._voids)

    def writes(self, name: str) -> bool:
        """Tells whether the entry has yet to be written."""
        return name in self._writes

    def delete(self, name: str, note: str) -> None:
        """Adds the deletion of an entry."""
        self._reported = False
        self._drop_write(name)
        self._deletions.pop(name, None)
        self._deletions[name] = note
        if len(self._deletions) > _MAX_VOIDED:
            self._deletions.clear()
            self._voids[None] = _clearing(note)

    def void(self, tag: str | None, note: str) -> None:
        """Adds the invalidation of all entries with the tag (None: all entries)."""
        self._reported = False
        if tag is not None and len(self._voids.keys() | {tag}) > _MAX_VOIDED:
            self._voids.clear()
            tag, note = None, _clearing(note)
        self._voids[tag] = note
        if tag is None:
            self._writes.clear()
            self._bytes = 0

    def put(self, name: str, write: Write, note: str) -> None:
        """Adds the write of an entry, unless the store has one by then."""
        self._drop_write(name)
        # The value is newer than a deletion of our own that is pending. Any other deletion since its basis voids it.
        origin = self._origin if name in self._deletions else ""
        self._writes[name] = _Write(write, self._clock() + write.ttl_ms / 1000, note, origin)
        self._bytes += len(write.data)
        while self._bytes > _MAX_BYTES:
            self._drop_write(next(iter(self._writes)))

    def _drop_write(self, name: str) -> None:
        dropped = self._writes.pop(name, None)
        if dropped is not None:
            self._bytes -= len(dropped.write.data)

    async def flush(self, store: SharedStore) -> None:
        """Replays a bounded part; what fails stays pending. Voiding goes before writing."""
        for tag, note in list(self._voids.items())[:_AT_ONCE]:
            await store.void(self._prefix, tag, note, self._origin)
            if self._voids.get(tag) is note:  # else it was added again meanwhile
                del self._voids[tag]
        if self._voids:
            return
        deletions = dict(self._deletions)
        if deletions:
            await store.delete(self._prefix, list(deletions), list(deletions.values()), self._origin)
            for name, note in deletions.items():
                if self._deletions.get(name) is note:
                    del self._deletions[name]
        for name, pending in list(self._writes.items())[:_AT_ONCE]:
            left_ms = int(1000 * (pending.expires - self._clock()))
            if left_ms > 0 and name not in self._deletions and not self._voids:
                write = pending.write._replace(ttl_ms=left_ms)
                written = await store.put_late(Place(self._prefix, name), write, pending.note, pending.origin)
                if written and self._writes.get(name) is not pending:  # deleted or replaced on the way: it may be last
                    self._deletions.setdefault(name, Note("delete", name, origin=self._origin).encode())
            if self._writes.get(name) is pending:
                self._drop_write(name)


def _clearing(note: str) -> str:
    # Other processes must not hear of the last invalidation only.
    return Note("clear", origin=Note.decode(note).origin).encode()
