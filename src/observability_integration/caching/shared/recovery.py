"""What the shared store has yet to do: forget, void and write, when it is back.

The last wish for each entry wins, what would have expired meanwhile is dropped, and all of it is bounded: too many
deletions or marks become one clearing, too many writes lose the oldest, which costs a call and no more.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import NamedTuple

from observability_integration.caching.stores.shared import Place, SharedStore

FOR_EVER_MS = 1 << 53  # some 285,000 years; Redis refuses what does not fit a signed 64-bit date
_MAX_VOIDED = 1000  # entries, or tags; few enough for one command
_MAX_BYTES = 8 * 1024 * 1024  # some thousands of answers
_AT_ONCE = 10  # round trips in one payment, which has the budget of one access: 5 ms each by default


class _Write(NamedTuple):
    data: bytes
    expires: float
    note: str


class _Mark(NamedTuple):
    life_ms: int
    note: str


class Due:
    """The wishes for one operation's entries.

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
        """Whether everything is to be voided."""
        return None in self._marks

    def forgets(self, name: str) -> bool:
        """Whether the entry may not be read, because it, or something that may touch it, is still to be voided."""
        return name in self._deletions or bool(self._marks)

    def delete(self, name: str, note: str) -> None:
        """The entry is to be forgotten."""
        self._drop_write(name)
        self._deletions.pop(name, None)
        self._deletions[name] = note
        if len(self._deletions) > _MAX_VOIDED:
            # Others hear that one entry went, and keep the rest in memory for the rest of their lives at the most.
            self._deletions.clear()
            self._marks[None] = _Mark(FOR_EVER_MS, note)

    def mark(self, tag: str | None, life_ms: int, note: str) -> None:
        """Everything with the tag (None: everything) is void."""
        if tag is not None and len(self._marks.keys() | {tag}) > _MAX_VOIDED:
            self._marks.clear()
            tag, life_ms = None, FOR_EVER_MS
        self._marks[tag] = _Mark(life_ms, note)
        if tag is None:
            self._writes.clear()
            self._bytes = 0

    def put(self, name: str, data: bytes, ttl_ms: int, note: str) -> None:
        """The entry is to be written, unless there is one by then."""
        self._drop_write(name)
        self._writes[name] = _Write(data, self._clock() + ttl_ms / 1000, note)
        self._bytes += len(data)
        while self._bytes > _MAX_BYTES:
            self._drop_write(next(iter(self._writes)))

    def _drop_write(self, name: str) -> None:
        dropped = self._writes.pop(name, None)
        if dropped is not None:
            self._bytes -= len(dropped.data)

    async def pay(self, store: SharedStore) -> None:
        """Does what is due, a bounded part of it at a time; what fails stays due. Voiding goes before writing."""
        for tag, mark in list(self._marks.items())[:_AT_ONCE]:
            await store.mark(self._prefix, tag, mark.life_ms, mark.note)
            if self._marks.get(tag) is mark:  # else it became due again meanwhile
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
