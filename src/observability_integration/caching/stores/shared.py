"""The interface of a store that processes share.

What must be atomic is one method. Names are hashes; times are Unix microseconds by the store's own clock, so that the
clocks of the processes need not agree.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Literal, NamedTuple, Protocol

import msgspec

FOR_EVER_MS = 1 << 53  # some 285,000 years; Redis refuses what does not fit a signed 64-bit date
_GENERATION = re.compile(rb"([0-9a-f]{16}):([0-9]{1,14})")  # scripts would round numbers of more digits
_MAX_CHARS = 31


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


class Generation(NamedTuple):
    """What vouches for the entries of an operation: an entry of another generation, or without one, is void.

    Nothing that a store loses makes an entry valid again. A clearing removes the generation, and the next one has
    another id. An invalidation by key or by tag raises its number.

    Attributes:
        id: 16 random hexadecimal digits.
        number: how many invalidations by key or by tag there have been.
    """

    id: bytes
    number: int


@functools.lru_cache(maxsize=256)
def _parse(text: bytes) -> Generation | None:
    found = _GENERATION.fullmatch(text)
    return None if found is None else Generation(found[1], int(found[2]))


def parse_generation(text: Any) -> Generation | None:
    """Parses ``id:number``, as the store has it; what is anything else is no generation."""
    return _parse(text) if type(text) is bytes and len(text) <= _MAX_CHARS else None


class Write(NamedTuple):
    """An entry to write.

    Attributes:
        data: the entry.
        ttl_ms: how long it is kept.
        basis: the generation that was read before the call for the entry began; what was invalidated since then must
            not be written.
        tags: hashes of its tags.
    """

    data: bytes
    ttl_ms: int
    basis: Generation
    tags: Sequence[str] = ()


Committed = Literal["written", "lost", "void"]


class Reading(msgspec.Struct, frozen=True, gc=False):
    """The result of a read.

    Attributes:
        data: the entry, or None.
        generation: of the operation; None if there is none, and then no entry is valid.
    """

    data: bytes | None
    generation: Generation | None


class Acquired(NamedTuple):
    """The answer to a request for a lease: a newer entry, or the lease, or how long another holds it.

    Attributes:
        data: an entry other than the one known; then there is no need to lead.
        generation: as in `Reading`.
        now_us: the store's time, if the lease is now the caller's.
        leading: whether the lease is now the caller's.
        lease_left_ms: how long the lease of another lasts, below 0 without end; 0 otherwise.
    """

    data: bytes | None
    generation: Generation | None
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

    async def vouches(self, prefix: str, tags: Sequence[str], basis: Generation) -> bool:
        """Tells whether it is known of all these tags that they have not been invalidated since `basis`."""
        ...

    async def acquire(
        self, place: Place, token: str, lease_ms: int, known: bytes, tags: Sequence[str] = ()
    ) -> Acquired:
        """Requests the lease on an entry, unless one exists that does not begin with `known` (empty: any entry).

        Begins to vouch for `tags`, those of the entry that are known before the call.
        """
        ...

    async def end_lease(self, place: Place, longest_ms: int) -> None:
        """Ends the lease, whichever process holds it, if it would last for more than `longest_ms`, or without end."""
        ...

    async def renew(self, place: Place, token: str, lease_ms: int) -> bool:
        """Extends the lease, if it is still held with this token."""
        ...

    async def commit(self, place: Place, token: str, write: Write, note: str) -> Committed:
        """Writes the entry, ends the lease and publishes `note`.

        Returns:
            ``lost`` if the lease is not held with this token any more; ``void`` if the operation was cleared since the
            basis, or a tag was invalidated or may have been. In both cases nothing was done.
        """
        ...

    async def release(self, place: Place, token: str, note: str) -> None:
        """Ends the lease and publishes `note`, if it is still held with this token."""
        ...

    async def put_late(self, place: Place, write: Write, note: str, origin: str) -> bool:
        """Writes an entry for which no lease was held and publishes `note`.

        Returns:
            False if nothing was written: an entry is there or being made, or this one was invalidated since the basis
            or may have been. A deletion of the entry by `origin` itself does not count.
        """
        ...

    async def delete(self, prefix: str, names: Sequence[str], notes: Sequence[str], origin: str) -> None:
        """Deletes entries, ends leases on them so that calls under way write nothing, and publishes a note for each.

        `origin` names the cache that does it.
        """
        ...

    async def void(self, prefix: str, tag: str | None, note: str, origin: str) -> None:
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
