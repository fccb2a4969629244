"""A store of the user's own in place of Redis: it keeps entries, and processes are not coordinated by it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from observability_integration.errors import ConfigurationError

from .shared import Acquired, CacheBackend, Place, Reading, Subscription

_PROBE_TTL_MS = 1000


class Silence:
    """A subscription that never receives a note."""

    async def aclose(self) -> None:
        """Nothing to stop."""


class PlainStore:
    """A `SharedStore` on a `CacheBackend`: every process leads, and receives no notes of the others.

    To clear is to delete, as there are no marks; calls under way may write their entries afterwards.
    """

    def __init__(self, backend: CacheBackend) -> None:
        self._backend = backend

    async def read(self, place: Place) -> Reading:
        """Returns the entry; an empty one counts as none."""
        return Reading(await self._backend.get(place.key) or None, 0)

    async def marked_us(self, prefix: str, tags: Sequence[str]) -> int:
        """Returns 0: see `mark`."""
        return 0

    async def acquire(self, place: Place, token: str, lease_ms: int, known: bytes) -> Acquired:
        """Always leads, without asking the backend."""
        return Acquired(None, 0, time.time_ns() // 1000, leading=True, lease_left_ms=0)

    async def end_lease(self, place: Place, longest_ms: int) -> None:
        """Does nothing: there are no leases."""

    async def renew(self, place: Place, token: str, lease_ms: int) -> bool:
        """Succeeds: there is no lease to lose."""
        return True

    async def commit(self, place: Place, token: str, data: bytes, ttl_ms: int, note: str) -> bool:
        """Writes the entry."""
        await self._backend.set(place.key, data, ttl_ms)
        return True

    async def release(self, place: Place, token: str, note: str) -> None:
        """Does nothing: there was no lease."""

    async def put_late(self, place: Place, data: bytes, ttl_ms: int, note: str) -> bool:
        """Writes the entry, unless one is there."""
        if await self._backend.get(place.key):
            return False
        await self._backend.set(place.key, data, ttl_ms)
        return True

    async def delete(self, prefix: str, names: Sequence[str], notes: Sequence[str]) -> None:
        """Deletes the entries."""
        if names:
            await self._backend.delete(*(Place(prefix, name).key for name in names))

    async def mark(self, prefix: str, tag: str | None, life_ms: int, note: str) -> None:
        """Deletes all entries.

        Raises:
            ConfigurationError: a tag is given; the backend could not say which entries have it.
        """
        if tag is not None:
            raise ConfigurationError("invalidation by tag needs Redis; the backend given has no tags")
        await self._backend.clear(prefix)

    async def probe(self, prefix: str) -> None:
        """Writes and reads."""
        await self._backend.set(prefix + "probe", b"1", _PROBE_TTL_MS)
        await self._backend.get(prefix + "probe")

    async def listen(self, prefix: str, hear: Callable[[str], None], resumed: Callable[[], None]) -> Subscription:
        """Returns a subscription that never receives a note."""
        return Silence()

    async def aclose(self) -> None:
        """Closes the backend."""
        await self._backend.aclose()
