"""An entry as memory has it: the value, and all that decides whether it may be served."""

from __future__ import annotations

import msgspec

from .codec import Kept


class Entry(msgspec.Struct, frozen=True):
    """One value in memory. Times are seconds of the monotonic clock.

    Attributes:
        kept: the value.
        created: when the call that made it began.
        fresh_until: until when it is served without more ado.
        expired_at: when its TTL ended; `fresh_until`, unless a failed call had it served for longer.
        usable_until: until when it may be served stale; never before `fresh_until`.
        refresh_at: from when on a hit starts a refresh in the background; infinite for never.
        compute_seconds: how long the call took that made it.
        tags: hashes of its tags.
        version: what tells it from other entries under the same key in the shared store; empty if it is in none.
        tokens: tokens that a hit saves, as the answer's usage says; 0 if it says nothing.
    """

    kept: Kept
    created: float
    fresh_until: float
    expired_at: float
    usable_until: float
    refresh_at: float = float("inf")
    compute_seconds: float = 0.0
    tags: tuple[str, ...] = ()
    version: bytes = b""
    tokens: int = 0
