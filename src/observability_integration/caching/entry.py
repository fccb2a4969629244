"""A cache entry in memory: the value, and the times that decide whether it may be served; and one that was read."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import msgspec
from msgspec.structs import replace

from .codec import StoredValue
from .stores.shared import Generation


class Entry(msgspec.Struct, frozen=True):
    """One entry in memory. Times are seconds of the monotonic clock.

    Attributes:
        kept: the value.
        created: when the call that computed it began.
        fresh_until: end of the time in which the entry is served without a refresh.
        expired_at: end of the TTL; the same as `fresh_until`, unless a failed refresh extended that.
        usable_until: end of the time in which the entry may be served stale; never before `fresh_until`.
        refresh_at: moment from which a hit starts a refresh in the background; infinite for never.
        compute_seconds: duration of the call that computed it.
        tags: hashes of its tags.
        version: tells the entry from others under the same key in the shared store; empty if it is not stored there.
        tokens: tokens that a hit saves, by the usage of the answer; 0 without usage.
        basis: generation in the shared store before the call that computed it began; None if none was known, and for an
            entry that was read there.
        doubted: the entry as it was before a gap in which its invalidation may have been missed; None for one that is
            not in doubt.
    """

    kept: StoredValue
    created: float
    fresh_until: float
    expired_at: float
    usable_until: float
    refresh_at: float = float("inf")
    compute_seconds: float = 0.0
    tags: tuple[str, ...] = ()
    version: bytes = b""
    tokens: int = 0
    basis: Generation | None = None
    doubted: Entry | None = None

    @property
    def original(self) -> Entry:
        """The entry as it was before it came into doubt."""
        return self if self.doubted is None else self.doubted

    def in_doubt(self) -> Entry:
        """The entry as one that is not fresh, whatever its TTL: a lookup has to ask the shared store first."""
        if self.doubted is not None:
            return self
        return replace(self, fresh_until=-math.inf, expired_at=-math.inf, refresh_at=math.inf, doubted=self)


class StoreHit(msgspec.Struct, frozen=True):
    """An entry found in the shared store: its value, and the entry as memory may keep it."""

    value: Any
    entry: Entry


class Answer(NamedTuple):
    """What the shared store says about an entry.

    Attributes:
        answered: whether it says anything; it may be out of use or late, or not know an invalidation yet.
        version: of the entry that it has; empty if it has none, or one that is void or unreadable.
        hit: that entry, unless it has expired.
        generation: of the operation.
    """

    answered: bool
    version: bytes = b""
    hit: StoreHit | None = None
    generation: Generation | None = None
