"""The memory tier: a bounded map in the process. It evicts expired entries first, then rarely used ones.

The policy is S3-FIFO (Yang et al., "FIFO queues are all you need for cache eviction", SOSP 2023). A new entry waits in
a short queue. An entry without a hit by the end of that queue is evicted, and its key is remembered for a while. An
entry with a hit moves to the long queue, and so does one that is stored again soon. So a flood of keys without hits,
which most chats are, does not evict the entries that are read. `benchmarks/cache/eviction.py` compares
it with other policies.
"""

from __future__ import annotations

import math
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from heapq import heappop, heappush

from observability_integration.caching.entry import Entry

_SHORT = 0.3  # share of the short queue; 0.1 in the paper, but chats repeat later: see the benchmark
_MOST_USES = 3  # counted per entry, as in the paper
_LOOKED_AT = 128  # entries of the long queue that one eviction inspects at most: a write must not wait for thousands
_SWEPT = 2  # expired entries that a write removes: more than it adds, and few enough to be quick
_SPARE = 64  # expiries of entries long gone that are not worth looking for


class _Slot:
    # An entry, whether it is in the long queue, and its uses since the last inspection.
    __slots__ = ("entry", "proven", "uses")

    def __init__(self, entry: Entry, proven: bool) -> None:
        self.entry = entry
        self.proven = proven
        self.uses = 0


class MemoryStore:
    """Bounded by entries and by bytes; threads may share it.

    An expired entry is dropped when it is read, when room is needed (before any entry that can still be served), or
    as new entries come.

    Args:
        max_entries: at least 1.
        max_bytes: at least 1; the sum of the sizes of the values.
        clock: seconds that only go forward, as in `Entry`.
    """

    def __init__(self, max_entries: int, max_bytes: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_entries = max_entries
        self._max_bytes = max_bytes
        self._clock = clock
        self._slots: dict[bytes, _Slot] = {}
        self._bytes = 0
        self._short: OrderedDict[bytes, _Slot] = OrderedDict()
        self._short_bytes = 0
        self._long: OrderedDict[bytes, _Slot] = OrderedDict()
        self._pushed_out: OrderedDict[bytes, None] = OrderedDict()  # from the short queue, no more than there are slots
        self._tagged: dict[str, set[bytes]] = {}
        # What expires in which second, a heap of those seconds, and one of what expires in those that have come. Some
        # of it is gone by now, or lives longer: to find that at once costs more than it saves.
        self._expiring: dict[int, list[bytes]] = {}
        self._seconds: list[int] = []
        self._due: list[tuple[float, bytes]] = []
        self._listed = 0
        # Not taken to read: looking up is atomic, and a use that two threads count at once may well count as one.
        self._lock = threading.Lock()

    def get(self, key: bytes) -> Entry | None:
        """The entry, fresh or stale; None when it is missing or can no longer be used."""
        slot = self._slots.get(key)
        if slot is None:
            return None
        entry = slot.entry
        if entry.usable_until <= self._clock():
            with self._lock:
                slot = self._slots.get(key)
                if slot is not None and slot.entry is entry:  # another thread may have replaced it
                    self._drop(key, slot)
            return None
        if slot.uses < _MOST_USES:
            slot.uses += 1
        return entry

    def fresh(self, key: bytes) -> Entry | None:
        """The entry, if its TTL has not ended."""
        slot = self._slots.get(key)
        if slot is None:
            return None
        entry = slot.entry
        if entry.expired_at <= self._clock():
            return None
        if slot.uses < _MOST_USES:
            slot.uses += 1
        return entry

    def set(self, key: bytes, entry: Entry) -> None:
        """Stores an entry, unless it is too large or expired, and evicts others for it."""
        now, size = self._clock(), entry.kept.size
        with self._lock:
            due = bool(self._seconds and self._seconds[0] <= now) or bool(self._due and self._due[0][0] <= now)
            if due:
                for _ in range(_SWEPT):
                    self._drop_expired(now)
            slot = self._slots.get(key)
            if size > self._max_bytes or entry.usable_until <= now:
                if slot is not None:
                    self._drop(key, slot)
                return
            if slot is not None and self._bytes - slot.entry.kept.size + size <= self._max_bytes:
                self._discount(key, slot)
                slot.entry = entry  # in place: a concurrent reader finds the old or the new one
            else:
                if slot is not None:
                    self._drop(key, slot)
                while len(self._slots) >= self._max_entries or self._bytes + size > self._max_bytes:
                    if not (due and self._drop_expired(now)):
                        self._push_out()
                proven = self._pushed_out.pop(key, self) is None  # it is back
                slot = self._slots[key] = _Slot(entry, proven)
                (self._long if proven else self._short)[key] = slot
            self._count(key, slot)

    def delete(self, key: bytes) -> bool:
        """Forgets an entry; says whether it was there."""
        with self._lock:
            slot = self._slots.get(key)
            if slot is not None:
                self._drop(key, slot)
            return slot is not None

    def delete_tagged(self, tag: str) -> int:
        """Forgets all entries with a tag; says how many there were."""
        with self._lock:
            keys = list(self._tagged.get(tag, ()))
            for key in keys:
                self._drop(key, self._slots[key])
            return len(keys)

    def doubt(self) -> None:
        """Puts all entries in doubt; see `Entry.in_doubt`."""
        with self._lock:
            for slot in self._slots.values():
                slot.entry = slot.entry.in_doubt()

    def clear(self) -> None:
        """Forgets everything."""
        with self._lock:
            for kept in (self._slots, self._short, self._long, self._pushed_out, self._tagged):
                kept.clear()
            self._expiring, self._seconds, self._due = {}, [], []
            self._bytes = self._short_bytes = self._listed = 0

    def __len__(self) -> int:
        return len(self._slots)

    def _count(self, key: bytes, slot: _Slot) -> None:
        entry = slot.entry
        self._bytes += entry.kept.size
        if not slot.proven:
            self._short_bytes += entry.kept.size
        for tag in entry.tags:
            self._tagged.setdefault(tag, set()).add(key)
        if entry.usable_until < math.inf:
            self._list_expiry(key, entry.usable_until)
            if self._listed > 2 * len(self._slots) + _SPARE:
                self._expiring, self._seconds, self._due, self._listed = {}, [], [], 0
                for name, kept in self._slots.items():
                    if kept.entry.usable_until < math.inf:
                        self._list_expiry(name, kept.entry.usable_until)

    def _list_expiry(self, key: bytes, until: float) -> None:
        self._listed += 1
        second = int(until)
        expiring = self._expiring.get(second)
        if expiring is not None:
            expiring.append(key)
            return
        self._expiring[second] = [key]
        heappush(self._seconds, second)

    def _discount(self, key: bytes, slot: _Slot) -> None:
        entry = slot.entry
        self._bytes -= entry.kept.size
        if not slot.proven:
            self._short_bytes -= entry.kept.size
        for tag in entry.tags:
            keys = self._tagged.get(tag)
            if keys is not None:  # None where an entry names one tag twice
                keys.discard(key)
                if not keys:
                    del self._tagged[tag]

    def _drop(self, key: bytes, slot: _Slot) -> None:
        del (self._long if slot.proven else self._short)[key]
        del self._slots[key]
        self._discount(key, slot)

    def _drop_expired(self, now: float) -> bool:
        # Drops the one that expired first, if any has.
        while self._seconds and self._seconds[0] <= now:
            second = heappop(self._seconds)
            keys = self._expiring.pop(second)
            self._listed -= len(keys)
            for key in keys:
                slot = self._slots.get(key)
                if slot is not None and second <= slot.entry.usable_until < second + 1:
                    heappush(self._due, (slot.entry.usable_until, key))
                    self._listed += 1
        while self._due and self._due[0][0] <= now:
            until, key = heappop(self._due)
            self._listed -= 1
            slot = self._slots.get(key)
            if slot is not None and slot.entry.usable_until == until:
                self._drop(key, slot)
                return True
        return False

    def _push_out(self) -> None:
        while self._short and (not self._long or self._is_short_full()):
            key, slot = self._short.popitem(last=False)
            if not slot.uses:
                del self._slots[key]
                self._discount(key, slot)
                self._pushed_out[key] = None
                while len(self._pushed_out) > len(self._slots):
                    self._pushed_out.popitem(last=False)
                return
            self._short_bytes -= slot.entry.kept.size
            self._long[key] = slot
            slot.proven, slot.uses = True, 0
        for _ in range(_LOOKED_AT):
            key, slot = self._long.popitem(last=False)
            if not slot.uses:
                break
            slot.uses -= 1
            self._long[key] = slot
        else:
            key, slot = self._long.popitem(last=False)
        del self._slots[key]
        self._discount(key, slot)

    def _is_short_full(self) -> bool:
        return len(self._short) >= _SHORT * self._max_entries or self._short_bytes >= _SHORT * self._max_bytes

    @property
    def bytes(self) -> int:
        """Bytes kept, as estimated."""
        return self._bytes
