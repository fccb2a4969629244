"""The work of one flight: finds an answer by its meaning or from another process, or makes the call.

The caller that started the flight may be gone, and its span may have ended.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Coroutine
from typing import Any

import msgspec
from msgspec.structs import replace

from observability_integration.caching.codec import StoredValue
from observability_integration.caching.entry import Entry, StoreHit
from observability_integration.caching.entry_options import NOTHING, begin_entry
from observability_integration.caching.freshness import Freshness
from observability_integration.caching.keys import KeySpace
from observability_integration.caching.lookup import Lookup, Meaning
from observability_integration.caching.policy import CachePolicy
from observability_integration.caching.shared.leases import Lease, Leases
from observability_integration.caching.stores.shared import Generation
from observability_integration.caching.tiers import ABSENT, Computed, Tiers
from observability_integration.tasks import spawn
from observability_integration.telemetry.catalogue.cache import CACHE_COMPUTE, CACHE_LOCK_WAIT, CACHE_STALE_SERVED
from observability_integration.telemetry.metrics.instruments import switch

from .single_flight import Flight, SingleFlight
from .waiting import enter


class FlightResult(msgspec.Struct, frozen=True):
    """The result of a flight, for its leader and its followers.

    Attributes:
        value: the value.
        tier: ``call``, ``backend``, ``remote`` (after waiting for another process), ``stale``, ``semantic``,
            ``left``, when another process already makes the call of a refresh, or ``reentrant``, when the call that
            holds the lease waits for this one.
        kept: the value to restore for followers; None if it can be neither encoded nor copied.
        entry: the entry, if it is kept.
    """

    value: Any
    tier: str
    kept: StoredValue | None
    entry: Entry | None


NO_RESULT = FlightResult(None, "left", None, None)
"""The result of a refresh without a value: another process makes the call, or the call failed."""

REENTRANT = FlightResult(None, "reentrant", None, None)
"""The result of a flight that would wait for a call which waits for it."""


class FlightWork:
    """Does the work of flights.

    Args:
        operation: name for metrics.
        keys: the key space.
        tiers: store the entries.
        freshness: how long entries live.
        flights: the flights of the cache.
        leases: leases of the operation, or None without a shared store.
        policy: the knobs.
    """

    def __init__(
        self,
        operation: str,
        keys: KeySpace,
        tiers: Tiers,
        freshness: Freshness,
        flights: SingleFlight,
        leases: Leases | None,
        policy: CachePolicy,
    ) -> None:
        self._operation = operation
        self._keys = keys
        self._tiers = tiers
        self._freshness = freshness
        self._flights = flights
        self._leases = leases
        self._policy = policy

    async def run(self, flight: Flight, lookup: Lookup) -> FlightResult:
        """Obtains the value; if the call fails, returns the stale entry of the flight while it may be served."""
        try:
            return await self.obtain(flight, lookup, refreshing=False)
        except Exception:
            stale = await self.stand_in(flight, lookup.digest)
            value = ABSENT if stale is None else self._tiers.restore(stale.kept)
            if stale is None or value is ABSENT:
                raise
            CACHE_STALE_SERVED.series(self._operation, "error").add()
            if self._may_put(flight, stale):
                self._tiers.confirmation.keep(lookup.digest, stale)
            self.postpone_refresh(flight, lookup.digest, stale, self._policy.stale_if_error_throttle_seconds)
            return FlightResult(value, "stale", stale.kept, stale)
        finally:
            self._flights.finish(flight)

    def postpone_refresh(self, flight: Flight, digest: bytes, entry: Entry, seconds: float) -> None:
        """Serves an entry for a while without a refresh, at most until `Entry.usable_until`."""
        if not self._may_put(flight, entry):
            return
        later = time.monotonic() + seconds
        fresh_until = max(entry.fresh_until, min(later, entry.usable_until))
        # Zero compute_seconds: early refreshes at random, which grow with it, are postponed too.
        changed = replace(entry, fresh_until=fresh_until, refresh_at=later, compute_seconds=0.0)
        self._tiers.confirmation.put_back(digest, entry, changed)

    def servable_stale_entry(self, flight: Flight) -> Entry | None:
        """The stale entry that may be served in place of a call that failed or is late."""
        return self._if_servable(flight, flight.stale_entry)

    def _if_servable(self, flight: Flight, entry: Entry | None) -> Entry | None:
        if entry is None or not self._may_put(flight, entry):
            return None
        return entry if self._freshness.may_serve_if_error(entry, time.monotonic()) else None

    async def stand_in(self, flight: Flight, digest: bytes) -> Entry | None:
        """The same, or a newer one, once the shared store has confirmed it or has not answered."""
        entry = self.servable_stale_entry(flight)
        return (
            None if entry is None else self._if_servable(flight, await self._tiers.confirmation.stand_in(digest, entry))
        )

    def obtain(self, flight: Flight, lookup: Lookup, *, refreshing: bool) -> Coroutine[Any, Any, FlightResult]:
        """Obtains the value from a semantic match, another process or the call; for a refresh, never from a match."""
        if lookup.meaning is not None and not refreshing:
            return self._match_or_compute(flight, lookup, lookup.meaning)
        return self._compute_once(flight, lookup, refreshing)

    async def _match_or_compute(self, flight: Flight, lookup: Lookup, meaning: Meaning) -> FlightResult:
        """The answer of a semantic match, or of the call, which the index then learns."""
        semantic, name = meaning.semantic, lookup.digest.hex()
        match = await semantic.find(meaning.scope, meaning.text)
        near = None if match is None or match.name == name else await self._fresh_hit(match.name)
        if match is not None and near is None and match.name != name:
            spawn(semantic.forget(match.name), name="cache semantic")
        if match is not None and near is not None and match.serve:
            return FlightResult(near.value, "semantic", near.entry.kept, near.entry)
        result = await self._compute_once(flight, lookup, refreshing=False)
        if result is REENTRANT:
            return result
        if match is not None and near is not None:
            spawn(semantic.observe(match, near.value, self._tiers.restore(result.kept)), name="cache semantic")
        if result.entry is not None:
            spawn(semantic.learn(meaning.scope, meaning.text, name), name="cache semantic")
        return result

    async def _fresh_hit(self, name: str) -> StoreHit | None:
        """The entry of that name, if it is fresh."""
        digest, now = bytes.fromhex(name), time.monotonic()
        entry = self._tiers.memory.get(digest)
        if entry is None or now >= entry.expired_at:
            hit = await self._tiers.fetch(digest)
            return hit if hit is not None and time.monotonic() < hit.entry.fresh_until else None
        value = self._tiers.value_of(digest, entry)
        return None if value is ABSENT else StoreHit(value, entry)

    def _compute_once(self, flight: Flight, lookup: Lookup, refreshing: bool) -> Coroutine[Any, Any, FlightResult]:
        """Makes the call, in this process or in the one that holds the lease."""
        leases = self._leases
        if leases is None:
            return self._compute(flight, lookup, None, refreshing)
        return self._compute_under_lease(leases, flight, lookup, refreshing)

    async def _compute_under_lease(
        self, leases: Leases, flight: Flight, lookup: Lookup, refreshing: bool
    ) -> FlightResult:
        began, waiting_since = time.monotonic(), time.perf_counter()
        known = b"" if flight.stale_entry is None else flight.stale_entry.version

        async def accept(data: bytes, generation: Generation | None) -> FlightResult | None:
            hit = await self._tiers.decode(lookup.digest, data, generation)
            if hit is None or time.monotonic() >= hit.entry.fresh_until:
                return None
            self._put_in_memory(flight, lookup.digest, hit.entry)
            CACHE_LOCK_WAIT.series(self._operation, "remote").record(time.monotonic() - began)
            lookup.started += time.perf_counter() - waiting_since  # waiting for the call is no part of the lookup
            return FlightResult(hit.value, "remote", hit.entry.kept, hit.entry)

        result = await leases.run(
            self._keys.place(lookup.digest),
            known,
            accept,
            lambda lease: self._compute(flight, lookup, lease, refreshing),
            node=flight.node,
            wait=not refreshing,
            tags=[self._keys.tag(tag) for tag in lookup.tags],
        )
        if result is None:
            return NO_RESULT if refreshing else REENTRANT
        return result

    def _put_in_memory(self, flight: Flight, digest: bytes, entry: Entry) -> None:
        if self._may_put(flight, entry):
            self._tiers.put_in_memory(digest, entry)

    def _may_put(self, flight: Flight, entry: Entry) -> bool:
        return self._flights.is_current(flight) and flight.void_tags.isdisjoint(entry.tags)

    async def _compute(self, flight: Flight, lookup: Lookup, lease: Lease | None, refreshing: bool) -> FlightResult:
        stale = NOTHING
        if flight.stale_entry is not None:
            stale = self._tiers.restore(flight.stale_entry.kept)
        if refreshing or (flight.stale_entry is not None and self.servable_stale_entry(flight) is not None):
            lookup.end_search()  # it may still become a hit
        else:
            lookup.miss(self._miss_reason(flight))
        if lease is not None and lease.generation is not None:
            self._tiers.note_generation(lease.generation)
        basis = self._tiers.generation
        options = begin_entry(lookup.tags, NOTHING if stale is ABSENT else stale)
        began = time.monotonic()
        enter(flight.node)
        try:
            value = await lookup.compute(refreshing)
        except Exception:
            CACHE_COMPUTE.series(self._operation, "error").record(time.monotonic() - began)
            raise
        if flight.cancel_requested:  # what a call returns in place of its cancellation is no answer
            raise asyncio.CancelledError
        seconds = time.monotonic() - began
        if switch.on:
            CACHE_COMPUTE.series(self._operation, "success").record(seconds)
        if options.tags:
            flight.tags = tuple(sorted({self._keys.tag(tag) for tag in options.tags}))
        tokens, refusal = lookup.assess(value)
        if not options.store:
            refusal = "not_stored"
        computed = Computed(value, options.ttl_seconds, flight.tags, began, seconds, tokens, refusal, basis)
        kept, entry, encoded = self._tiers.prepare(computed)
        if entry is not None:
            if not self._may_keep(flight):
                self._tiers.count_refusal("invalidated")
                entry = None
            elif encoded is None:
                self._tiers.store_in_memory(lookup.digest, entry)
            else:
                entry = await self._tiers.store_in_both(
                    lookup.digest, entry, encoded, lease, lambda: self._may_keep(flight)
                )
        return FlightResult(value, "call", kept, entry)

    def _may_keep(self, flight: Flight) -> bool:
        return self._flights.is_current(flight) and flight.void_tags.isdisjoint(flight.tags)

    def _miss_reason(self, flight: Flight) -> str:
        if self._tiers.shared is not None and not self._tiers.shared.in_use:
            return "backend_down"
        return "absent" if flight.stale_entry is None else "expired"
