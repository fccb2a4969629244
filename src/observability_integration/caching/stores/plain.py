"""A store of the user's own in place of Redis: it keeps entries, and processes are not coordinated by it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from observability_integration.errors import ConfigurationError

from .shared import Acquired, CacheBackend, Committed, Generation, Place, Reading, Subscription, Write

_PROBE_TTL_MS = 1000

UNCHANGING = Generation(b"0" * 16, 0)
"""The generation of a backend, which has none: its entries are void when they are deleted, and not before."""


class Silence:
    """A subscription that never receives a note."""

    async def aclose(self) -> None:
        """Nothing to stop."""


class PlainStore:
    """A `SharedStore` on a `CacheBackend`: every process leads, and receives no notes of the others.

    To clear is to delete, as there are no generations; calls under way may write their entries afterwards.
    """

    def __init__(self, backend: CacheBackend) -> None:
        self._backend = backend

    async def read(self, place: Place) -> Reading:
        """Returns the entry; an empty one counts as none."""
        return Reading(await self._backend.get(place.key) or None, UNCHANGING)

    async def vouches(self, prefix: str, tags: Sequence[str], basis: Generation) -> bool:
        """Returns True: see `void`."""
        return True

    async def acquire(
        self, place: Place, token: str, lease_ms: int, known: bytes, tags: Sequence[str] = ()
    ) -> Acquired:
        """Always leads, without asking the backend."""
        return Acquired(None, UNCHANGING, time.time_ns() // 1000, leading=True, lease_left_ms=0)

    async def end_lease(self, place: Place, longest_ms: int) -> None:
        """Does nothing: there are no leases."""

    async def renew(self, place: Place, token: str, lease_ms: int) -> bool:
        """Succeeds: there is no lease to lose."""
        return True

    async def commit(self, place: Place, token: str, write: Write, note: str) -> Committed:
        """Writes the entry."""
        await self._backend.set(place.key, write.data, write.ttl_ms)
        return "written"

    async def release(self, place: Place, token: str, note: str) -> None:
        """Does nothing: there was no lease."""

    async def put_late(self, place: Place, write: Write, note: str, origin: str) -> bool:
        """Writes the entry, unless one is there."""
        if await self._backend.get(place.key):
            return False
        await self._backend.set(place.key, write.data, write.ttl_ms)
        return True

    async def delete(self, prefix: str, names: Sequence[str], notes: Sequence[str], origin: str) -> None:
        """Deletes the entries."""
        if names:
            await self._backend.delete(*(Place(prefix, name).key for name in names))

    async def void(self, prefix: str, tag: str | None, note: str, origin: str) -> None:
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
