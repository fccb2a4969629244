"""The two levels of a cache: memory, and behind it the shared store, if there is one."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

from observability_integration.telemetry.guard import note_fault

from .codec import Codec, Kept, Uncopyable, Unreadable
from .guarded import GuardedStore
from .keys import KeySpace
from .policy import CachePolicy
from .stores.memory import MemoryStore
from .stores.shared import SharedStore

ABSENT: Final[Any] = object()  # None is a value

_MAX_TTL_MILLISECONDS = 1 << 53  # some 285,000 years; Redis refuses what does not fit a signed 64-bit date


class Levels:
    """Looks values up in both levels, and keeps them in both.

    Args:
        operation: name for metrics and logs.
        keys: the key space.
        ttl_seconds: how long a value is kept.
        store: the second level, or None.
        policy: bounds and budgets.
        value_type: see `Codec`.

    Raises:
        ConfigurationError: `value_type` cannot be rebuilt from JSON.
    """

    def __init__(
        self,
        operation: str,
        keys: KeySpace,
        ttl_seconds: float,
        store: SharedStore | None,
        policy: CachePolicy,
        value_type: type[Any] | None,
    ) -> None:
        self._keys = keys
        self._ttl_seconds = ttl_seconds
        self._max_value_bytes = policy.max_value_bytes
        self._codec = Codec(value_type)
        self._memory = MemoryStore(policy.max_entries, policy.max_bytes)
        self._shared = None if store is None else GuardedStore(store, operation, keys.prefix, policy)

    @property
    def has_shared(self) -> bool:
        """Whether there is a second level."""
        return self._shared is not None

    def recall(self, digest: bytes) -> Any:
        """The value that memory has, or `ABSENT`."""
        kept = self._memory.get(digest)
        if kept is None:
            return ABSENT
        if kept.form == "value":
            return kept.payload
        try:
            return self._codec.restore(kept)
        except Unreadable as error:
            note_fault("cache.restore", error.__cause__ or error)
            self._memory.delete(digest)
            return ABSENT

    def hand_out(self, kept: Kept | None) -> Any:
        """What a flight brought, for one more caller to have; `ABSENT` if it cannot be had twice."""
        if kept is None:
            return ABSENT
        try:
            return self._codec.restore(kept)
        except Unreadable as error:
            note_fault("cache.restore", error.__cause__ or error)
            return ABSENT

    async def fetch(self, digest: bytes, current: Callable[[], bool]) -> tuple[Any, Kept] | None:
        """The value that the shared store has; memory keeps it from then on.

        Args:
            digest: the key.
            current: whether what is found may still be kept.
        """
        if self._shared is None:
            return None
        wire_key = self._keys.wire(digest)
        data = await self._shared.get(wire_key)
        if data is None:
            return None
        try:
            encoded, expires_ms = self._codec.unwrap(data)
            value = self._codec.decode(encoded)
        except Unreadable as error:
            note_fault("cache.decode", error.__cause__ or error)
            await self._shared.delete(wire_key)
            return None
        # What is left of the entry's life: memory must not keep it longer than the shared store should.
        left = min(self._ttl_seconds, expires_ms / 1000 - time.time())
        if left <= 0:
            return None  # the store kept it too long, or the clocks of two machines disagree
        kept = self._codec.keep(value, encoded, self._max_value_bytes)
        if kept.size <= self._max_value_bytes and current():
            self._memory.set(digest, kept, left)
        return value, kept

    async def keep(self, digest: bytes, value: Any, current: Callable[[], bool]) -> Kept | None:
        """Keeps a value in both levels; None when it can be neither encoded nor copied, hence not kept at all."""
        encoded = None
        if self._shared is not None or self._codec.needs_encoding(value):
            encoded = self._codec.encode(value)
        try:
            kept = self._codec.keep(value, encoded, self._max_value_bytes)
        except Uncopyable as error:
            note_fault("cache.keep", error.__cause__ or error)
            return None
        if kept.size > self._max_value_bytes or not current():
            return kept
        self._memory.set(digest, kept, self._ttl_seconds)
        if self._shared is not None and encoded is not None:
            wire_key = self._keys.wire(digest)
            ttl_ms = min(max(1, round(self._ttl_seconds * 1000)), _MAX_TTL_MILLISECONDS)
            expires_ms = int(time.time() * 1000) + ttl_ms
            await self._shared.set(wire_key, self._codec.wrap(encoded, expires_ms), ttl_ms)
            if not current():  # invalidated while it was being written, and perhaps deleted before it was there
                await self._shared.delete(wire_key)
        return kept

    async def forget(self, digest: bytes) -> None:
        """Forgets one value in both levels."""
        self._memory.delete(digest)
        if self._shared is not None:
            await self._shared.delete(self._keys.wire(digest))

    async def clear(self) -> None:
        """Forgets everything in memory, and everything of the operation in the shared store."""
        self._memory.clear()
        if self._shared is not None:
            await self._shared.clear()

    async def aclose(self) -> None:
        """Lets go of what the shared store opened itself."""
        if self._shared is not None:
            await self._shared.aclose()
