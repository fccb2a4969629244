"""What the cache needs of a store that processes share.

Everything that must happen at once happens in one call, so that a store can make it atomic. Names are hashes; times are
Unix microseconds by the store's own clock, so that the clocks of the processes need not agree.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple, Protocol

import msgspec


class StoreBusy(Exception):  # noqa: N818 - never leaves the cache
    """The store was not asked, because every connection to it was in use; that says nothing about the store."""


class Place(msgspec.Struct, frozen=True, gc=False):
    """Where one entry stands: the prefix of its operation, and its name under it."""

    prefix: str
    name: str

    @property
    def key(self) -> str:
        """The key in the store."""
        return self.prefix + self.name


class Reading(msgspec.Struct, frozen=True, gc=False):
    """What a read finds.

    Attributes:
        data: the entry, or None.
        cleared_us: when the operation was last cleared; 0 if never. What was created no later than that is void.
    """

    data: bytes | None
    cleared_us: int


class Acquired(NamedTuple):
    """What asking for a lease brings: a newer entry, or the lease, or news of the one who has it.

    Attributes:
        data: an entry other than the one known; then there is no need to lead.
        cleared_us: as in `Reading`.
        now_us: the store's time, if the lease is now the caller's.
        leading: whether the lease is now the caller's.
        lease_left_ms: how long the lease of another has to go; 0 otherwise.
    """

    data: bytes | None
    cleared_us: int
    now_us: int
    leading: bool
    lease_left_ms: int


class Subscription(Protocol):
    """A channel that is being listened to."""

    async def aclose(self) -> None:
        """Stops listening."""
        ...


class SharedStore(Protocol):
    """A store that processes share. What it raises, and how long it takes, is the guard's business."""

    def read(self, place: Place) -> Awaitable[Reading]:
        """The entry; a plain future of it may be left at any moment, anything else is awaited in a task."""
        ...

    async def marked_us(self, prefix: str, tags: Sequence[str]) -> int:
        """The newest moment at which any of these tags was invalidated; 0 if none ever was."""
        ...

    async def acquire(self, place: Place, token: str, lease_ms: int, known: bytes) -> Acquired:
        """Asks for the lease on an entry, unless one is there that does not begin with `known` (empty: any entry)."""
        ...

    async def renew(self, place: Place, token: str, lease_ms: int) -> bool:
        """Extends the lease, if it is still held with this token."""
        ...

    async def commit(self, place: Place, token: str, data: bytes, ttl_ms: int, note: str) -> bool:
        """Writes the entry, ends the lease and publishes `note`, if the lease is still held with this token."""
        ...

    async def release(self, place: Place, token: str, note: str) -> None:
        """Ends the lease and publishes `note`, if it is still held with this token."""
        ...

    async def put_late(self, place: Place, data: bytes, ttl_ms: int, note: str) -> bool:
        """Writes an entry for which no lease was held and publishes `note`, unless one is there or being made."""
        ...

    async def delete(self, prefix: str, names: Sequence[str], notes: Sequence[str]) -> None:
        """Forgets entries, ends leases on them, so that what is being made is not written, and publishes the notes."""
        ...

    async def mark(self, prefix: str, tag: str | None, life_ms: int, note: str) -> None:
        """Voids all entries with the tag (None: all of the operation) created until now, and publishes `note`."""
        ...

    async def probe(self, prefix: str) -> None:
        """Writes and reads; raises if either does not work."""
        ...

    async def listen(self, prefix: str, hear: Callable[[str], None], resumed: Callable[[], None]) -> Subscription:
        """Hears the notes of the operation from now on, in the running event loop.

        `hear` is called in that loop with each note, `resumed` whenever listening goes on after a gap. A connection
        that is lost is made again for as long as the subscription is open.
        """
        ...

    async def aclose(self) -> None:
        """Lets go of connections that the store opened itself."""
        ...


class CacheBackend(Protocol):
    """A store of the user's own, in place of Redis: it needs no more than this, and gets no leases and no tags."""

    async def get(self, key: str) -> bytes | None:
        """The entry, or None."""
        ...

    async def set(self, key: str, value: bytes, ttl_milliseconds: int) -> None:
        """Keeps an entry for so long."""
        ...

    async def delete(self, *keys: str) -> None:
        """Forgets entries."""
        ...

    async def clear(self, prefix: str) -> None:
        """Forgets every entry whose key starts with `prefix`."""
        ...

    async def aclose(self) -> None:
        """Lets go of connections that the store opened itself."""
        ...
