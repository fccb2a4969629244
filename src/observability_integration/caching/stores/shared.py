"""The interface of a store that processes share.

What must be atomic is one method. Names are hashes; times are Unix microseconds by the store's own clock, so that the
clocks of the processes need not agree.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple, Protocol

import msgspec


class StoreBusy(Exception):  # noqa: N818 - never leaves the cache
    """The store was not asked, because every connection to it was in use; that says nothing about the store."""


class Place(msgspec.Struct, frozen=True, gc=False):
    """The place of one entry: the prefix of its operation, and its name under it."""

    prefix: str
    name: str

    @property
    def key(self) -> str:
        """The key in the store."""
        return self.prefix + self.name


class Reading(msgspec.Struct, frozen=True, gc=False):
    """The result of a read.

    Attributes:
        data: the entry, or None.
        cleared_us: when the operation was last cleared; 0 if never. What was created no later than that is void.
    """

    data: bytes | None
    cleared_us: int


class Acquired(NamedTuple):
    """The answer to a request for a lease: a newer entry, or the lease, or how long another holds it.

    Attributes:
        data: an entry other than the one known; then there is no need to lead.
        cleared_us: as in `Reading`.
        now_us: the store's time, if the lease is now the caller's.
        leading: whether the lease is now the caller's.
        lease_left_ms: how long the lease of another lasts, below 0 without end; 0 otherwise.
    """

    data: bytes | None
    cleared_us: int
    now_us: int
    leading: bool
    lease_left_ms: int


class Subscription(Protocol):
    """A subscription to a channel."""

    async def aclose(self) -> None:
        """Stops listening."""
        ...


class SharedStore(Protocol):
    """A store that processes share. Its guard handles what it raises and how long it takes."""

    def read(self, place: Place) -> Awaitable[Reading]:
        """Returns the entry; a plain future may be left at any moment, anything else is awaited in a task."""
        ...

    async def marked_us(self, prefix: str, tags: Sequence[str]) -> int:
        """Returns the last moment at which any of these tags was invalidated; 0 if none ever was."""
        ...

    async def acquire(self, place: Place, token: str, lease_ms: int, known: bytes) -> Acquired:
        """Requests the lease on an entry, unless one exists that does not begin with `known` (empty: any entry)."""
        ...

    async def end_lease(self, place: Place, longest_ms: int) -> None:
        """Ends the lease, whoever holds it, if it would last for more than `longest_ms`, or without end."""
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
        """Deletes entries, ends leases on them so that calls under way write nothing, and publishes the notes."""
        ...

    async def mark(self, prefix: str, tag: str | None, life_ms: int, note: str) -> None:
        """Voids all entries with the tag (None: all of the operation) created until now, and publishes `note`."""
        ...

    async def probe(self, prefix: str) -> None:
        """Writes and reads; raises if either does not work."""
        ...

    async def listen(self, prefix: str, hear: Callable[[str], None], resumed: Callable[[], None]) -> Subscription:
        """Subscribes to the notes of the operation, in the running event loop.

        `hear` is called in that loop with each note, `resumed` whenever listening goes on after a gap. A connection
        that is lost is opened again for as long as the subscription lasts.
        """
        ...

    async def aclose(self) -> None:
        """Closes the connections that the store opened itself."""
        ...


class CacheBackend(Protocol):
    """A store of the user's own, in place of Redis: these methods are all it needs; it has no leases and no tags."""

    async def get(self, key: str) -> bytes | None:
        """Returns the entry, or None."""
        ...

    async def set(self, key: str, value: bytes, ttl_milliseconds: int) -> None:
        """Keeps an entry until its TTL is over."""
        ...

    async def delete(self, *keys: str) -> None:
        """Deletes entries."""
        ...

    async def clear(self, prefix: str) -> None:
        """Deletes every entry whose key starts with `prefix`."""
        ...

    async def aclose(self) -> None:
        """Closes the connections that the store opened itself."""
        ...
