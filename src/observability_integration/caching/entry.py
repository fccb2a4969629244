"""A cache entry in memory: the value, and the times that decide whether it may be served."""

from __future__ import annotations

import msgspec

from .codec import StoredValue


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
