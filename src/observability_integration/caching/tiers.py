"""The two tiers of a cache: memory, and behind it the shared store, if there is one."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

import msgspec
from msgspec.structs import replace

from observability_integration.errors import ConfigurationError
from observability_integration.telemetry.catalogue.cache import CACHE_ENTRY_SIZE, CACHE_REFUSALS
from observability_integration.telemetry.guard import note_fault

from .codec import Codec, StoredValue, Uncopyable, Unreadable
from .entry import Answer, Entry, StoreHit
from .freshness import Freshness
from .keys import KeySpace
from .policy import CachePolicy
from .shared.channel import Action, Channel
from .shared.confirmation import Confirmation
from .shared.leases import Lease
from .shared.store_guard import GuardedStore
from .stores.memory import MemoryStore
from .stores.plain import UNCHANGING, PlainStore
from .stores.shared import FOR_EVER_MS, Generation, SharedStore, Write
from .wire.frame import Stamp, Wire

ABSENT: Final[Any] = object()  # None is a value


_NO_ANSWER = Answer(answered=False)


class Computed(msgspec.Struct, frozen=True):
    """A value that a call returned, before it is stored.

    Attributes:
        value: the value.
        ttl_seconds: the TTL that the call has set, or None for the cache's own.
        tags: hashes of the tags, sorted.
        began: when the call began, by the monotonic clock.
        seconds: duration of the call.
        tokens: tokens that a hit will save.
        refusal: why the value must not be kept, or None.
        basis: generation that was read in the shared store before the call began, or None.
    """

    value: Any
    ttl_seconds: float | None
    tags: tuple[str, ...]
    began: float
    seconds: float
    tokens: int
    refusal: str | None
    basis: Generation | None = None


class Tiers:
    """Reads entries from both tiers and stores them in both.

    Args:
        operation: name for metrics and logs.
        keys: the key space.
        freshness: how long entries live.
        store: the shared store, or None.
        channel: tells other processes of changes; None without a shared store.
        policy: bounds and budgets.
        codec: encodes values.
        wire: encodes entries.

    Attributes:
        memory: the first tier.
        shared: the second tier, the guarded shared store, or None.
        confirmation: tells whether what memory holds is still valid.
        generation: the last one that was read in the shared store; None if none was.
    """

    def __init__(
        self,
        operation: str,
        keys: KeySpace,
        freshness: Freshness,
        store: SharedStore | None,
        channel: Channel | None,
        policy: CachePolicy,
        codec: Codec,
        wire: Wire,
    ) -> None:
        self._operation = operation
        self._keys = keys
        self._freshness = freshness
        self._max_value_bytes = policy.max_value_bytes
        self._codec = codec
        self._wire = wire
        self._store = store
        self._channel = channel
        self.memory = MemoryStore(policy.max_entries, policy.max_bytes)
        origin = "" if channel is None else channel.origin
        self.shared = None if store is None else GuardedStore(store, operation, keys.prefix, policy, origin)
        self.generation = UNCHANGING if isinstance(store, PlainStore) else None
        self.confirmation = Confirmation(keys, self.memory, self.shared, channel, self.ask, self.put_in_memory)
        self._size = CACHE_ENTRY_SIZE.declare(self, operation)

    def value_of(self, digest: bytes, entry: Entry) -> Any:
        """The value of an entry in memory, a copy for one caller; `ABSENT` if it cannot be restored."""
        kept = entry.kept
        if kept.form == "value":
            return kept.payload
        value = self.restore(kept)
        if value is ABSENT:
            self.memory.delete(digest)
        return value

    def restore(self, kept: StoredValue | None) -> Any:
        """A stored value, as a copy for one caller; `ABSENT` if there is none or it cannot be restored."""
        if kept is None:
            return ABSENT
        try:
            return self._codec.restore(kept)
        except Unreadable as error:
            note_fault("cache.restore", error.__cause__ or error)
            return ABSENT

    async def fetch(self, digest: bytes) -> StoreHit | None:
        """Reads an entry from the shared store, fresh or stale."""
        return (await self.ask(digest)).hit

    async def ask(self, digest: bytes, *, in_any_case: bool = False) -> Answer:
        """Asks the shared store about an entry.

        Args:
            digest: the key.
            in_any_case: see `GuardedStore.ask`.
        """
        if self.shared is None:
            return _NO_ANSWER
        reading = await self.shared.read(self._keys.place(digest), in_any_case=in_any_case)
        if reading is None:
            return _NO_ANSWER
        generation = reading.generation
        if generation is not self.generation and generation is not None:
            self.note_generation(generation)
        if reading.data is None:
            return Answer(answered=True, generation=generation)
        return await self._open(digest, reading.data, generation, in_any_case=in_any_case)

    def note_generation(self, generation: Generation) -> None:
        """Notes a generation that was read in the shared store: calls that begin from now on are based on it."""
        self.generation = generation
        if self._channel is not None:
            self._channel.begin(generation)

    async def decode(self, digest: bytes, data: bytes, generation: Generation | None) -> StoreHit | None:
        """Decodes an entry of the shared store; None if it is void, expired or unreadable.

        An unreadable entry is deleted from the shared store.

        Args:
            digest: the key.
            data: the entry as it was read.
            generation: of the operation.
        """
        return (await self._open(digest, data, generation)).hit

    async def _open(
        self, digest: bytes, data: bytes, generation: Generation | None, *, in_any_case: bool = False
    ) -> Answer:
        absent = Answer(answered=True, generation=generation)
        place = self._keys.place(digest)
        if self.shared is not None and self.shared.forgets(place.name):
            return _NO_ANSWER
        try:
            stamp, payload, version = self._wire.open(place.key, data)
            value = self._codec.decode(payload)
        except Unreadable as error:
            note_fault("cache.decode", error.__cause__ or error)
            if self.shared is not None:
                await self.shared.delete(place.name, self._note("delete", place.name))
            return absent
        basis = stamp.generation
        if generation is None or basis.id != generation.id or basis.number > generation.number:
            return absent
        if stamp.tags and basis.number != generation.number:
            vouched = await self._vouches(stamp, in_any_case)
            if not vouched:
                return _NO_ANSWER if vouched is None else absent
        return Answer(True, version, self._hit(stamp, value, payload, version), generation)

    async def _vouches(self, stamp: Stamp, in_any_case: bool) -> bool | None:
        store, guarded = self._store, self.shared
        if store is None or guarded is None:
            return True
        return await guarded.ask(
            lambda: store.vouches(self._keys.prefix, stamp.tags, stamp.generation), in_any_case=in_any_case
        )

    def _hit(self, stamp: Stamp, value: Any, payload: bytes, version: bytes) -> StoreHit | None:
        # The clocks of two machines may disagree: no entry gets more than its whole life.
        age = max(0.0, time.time() - stamp.created_us / 1e6)
        now = time.monotonic()
        fresh_until = now - age + stamp.fresh_ms / 1000
        usable_until = now - age + stamp.usable_ms / 1000
        if usable_until <= now:
            return None
        kept = self._codec.keep(value, payload, self._max_value_bytes)
        compute_seconds = stamp.compute_ms / 1000
        refresh_at = (
            now - age + compute_seconds + self._freshness.refresh_after(stamp.fresh_ms / 1000 - compute_seconds)
        )
        entry = Entry(
            kept,
            now - age,
            fresh_until,
            fresh_until,
            usable_until,
            refresh_at,
            compute_seconds,
            stamp.tags,
            version,
            stamp.tokens,
        )
        return StoreHit(value, entry)

    def put_in_memory(self, digest: bytes, entry: Entry) -> None:
        """Keeps an entry that was stored before in memory, unless it is too large."""
        if entry.kept.size <= self._max_value_bytes:
            self.memory.set(digest, entry)

    def prepare(self, computed: Computed) -> tuple[StoredValue | None, Entry | None, bytes | None]:
        """Prepares a computed value for storing; counts the refusal if it must not be kept.

        Returns:
            The value to restore for other callers (None if it can be neither encoded nor copied); the entry (None if it
            must not be kept); the encoded value for the shared store (None if it cannot be encoded or there is no
            shared store).
        """
        encoded = None
        if self.shared is not None or self._codec.needs_encoding(computed.value):
            encoded = self._codec.encode(computed.value)
        try:
            kept = self._codec.keep(computed.value, encoded, self._max_value_bytes)
        except Uncopyable as error:
            note_fault("cache.keep", error.__cause__ or error)
            self.count_refusal("uncopyable")
            return None, None, None
        refusal = computed.refusal or ("too_large" if kept.size > self._max_value_bytes else None)
        if refusal is not None:
            self.count_refusal(refusal)
            return kept, None, None
        fresh_seconds, usable_seconds = self._freshness.lifetime(computed.ttl_seconds)
        now = time.monotonic()
        entry = Entry(
            kept,
            computed.began,
            now + fresh_seconds,
            now + fresh_seconds,
            now + usable_seconds,
            now + self._freshness.refresh_after(fresh_seconds),
            computed.seconds,
            computed.tags,
            b"",
            computed.tokens,
            computed.basis,
        )
        return kept, entry, None if self.shared is None else encoded

    def store_in_memory(self, digest: bytes, entry: Entry) -> None:
        """Stores a new entry in memory only."""
        self._size.record(entry.kept.size)
        self.memory.set(digest, entry)

    async def store_in_both(
        self, digest: bytes, entry: Entry, encoded: bytes, lease: Lease | None, current: Callable[[], bool]
    ) -> Entry | None:
        """Stores a new entry in both tiers.

        Args:
            digest: the key.
            entry: the entry.
            encoded: the encoded value.
            lease: the lease to commit it with, or None if none was acquired.
            current: whether the entry may still be kept.

        Returns:
            The entry as it is stored; None if it is not.
        """
        written = await self._write(digest, entry, encoded, lease, current)
        if written is None or not current():
            self.count_refusal("invalidated")
            return None
        entry = replace(entry, version=written)
        self.memory.set(digest, entry)
        return entry

    async def _write(
        self, digest: bytes, entry: Entry, encoded: bytes, lease: Lease | None, current: Callable[[], bool]
    ) -> bytes | None:
        # Returns the version of the entry in the shared store, now or later; empty if there will be none, because
        # nothing was known before the call that shows what is void; None if it may not be kept.
        assert self.shared is not None  # noqa: S101 - for the type checker
        if entry.basis is None:
            return b""
        now = time.monotonic()
        place = self._keys.place(digest)
        made_ms = _ms(now - entry.created)
        created_us = int(time.time() * 1e6) - 1000 * made_ms if lease is None else lease.now_us
        usable_ms = min(_ms(entry.usable_until - now), FOR_EVER_MS)
        stamp = Stamp(
            created_us,
            made_ms + min(_ms(entry.fresh_until - now), FOR_EVER_MS),
            made_ms + usable_ms,
            _ms(entry.compute_seconds),
            entry.tags,
            entry.tokens,
            entry.basis,
        )
        data = self._wire.seal(place.key, stamp, encoded)
        self._size.record(len(data))
        write = Write(data, usable_ms, entry.basis, entry.tags)
        if lease is not None:
            written = await lease.commit(write)
            if written is not None:  # False: the lease was lost, to an invalidation or to a newer leader
                return data[:16] if written else None
            if not current():
                return None
        self.shared.put_late(place, write, self._note("set", place.name))
        return data[:16]

    def _note(self, action: Action, name: str = "", *, tag: str = "") -> str:
        return "" if self._channel is None else self._channel.note(action, name, tag=tag)

    def count_refusal(self, reason: str) -> None:
        """Counts a value that is not kept."""
        CACHE_REFUSALS.series(self._operation, reason).add()

    async def forget(self, digest: bytes) -> None:
        """Deletes an entry from both tiers."""
        self.memory.delete(digest)
        if self.shared is not None:
            name = self._keys.place(digest).name
            await self.shared.delete(name, self._note("delete", name))

    async def forget_tag(self, tag: str) -> None:
        """Voids all entries with the tag, given by its hash.

        Raises:
            ConfigurationError: the shared store has no tags.
        """
        if isinstance(self._store, PlainStore):
            raise ConfigurationError("invalidation by tag needs Redis; the backend given has no tags")
        self.memory.delete_tagged(tag)
        if self.shared is not None:
            await self.shared.void(tag, self._note("tag", tag=tag))

    async def clear(self) -> None:
        """Deletes all entries from memory, and voids all of the operation in the shared store."""
        self.memory.clear()
        if self.shared is not None:
            await self.shared.void(None, self._note("clear"))

    async def aclose(self) -> None:
        """Closes the connections that the shared store opened itself."""
        if self.shared is not None:
            await self.shared.aclose()


def _ms(seconds: float) -> int:
    return max(1, round(seconds * 1000))
