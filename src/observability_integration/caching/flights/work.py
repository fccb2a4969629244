"""The work of one flight: an answer found by its meaning or by another process, or the call itself.

Whoever started the flight may be gone, and have ended the span.
"""

from __future__ import annotations

import time
from collections.abc import Coroutine
from typing import Any

import msgspec
from msgspec.structs import replace

from observability_integration.caching.codec import Kept
from observability_integration.caching.entry import Entry
from observability_integration.caching.entry_options import NOTHING, begin_entry
from observability_integration.caching.freshness import Freshness
from observability_integration.caching.keys import KeySpace
from observability_integration.caching.lookup import Asked, Meaning
from observability_integration.caching.policy import CachePolicy
from observability_integration.caching.shared.leases import Lease, Leases
from observability_integration.caching.tiers import ABSENT, Found, Levels, Made
from observability_integration.tasks import spawn
from observability_integration.telemetry.catalogue.cache import CACHE_COMPUTE, CACHE_LOCK_WAIT, CACHE_STALE_SERVED
from observability_integration.telemetry.metrics.instruments import switch

from .single_flight import Flight, SingleFlight


class Brought(msgspec.Struct, frozen=True):
    """What a flight brings, for the one who started it and for those who joined it.

    Attributes:
        value: the value.
        tier: ``call``, ``backend``, ``remote`` (after waiting for another process), ``stale``, ``semantic``, or
            ``left``, when a refresh found another process at it.
        kept: what others can be given the value from, if they can.
        entry: the entry, if it is kept.
    """

    value: Any
    tier: str
    kept: Kept | None
    entry: Entry | None


LEFT = Brought(None, "left", None, None)  # a refresh that another process makes


class FlightWork:
    """Does what flights are for.

    Args:
        operation: name for metrics.
        keys: the key space.
        levels: where entries are kept.
        freshness: how long they live.
        flights: under which the work is done.
        leases: of the operation, or None without a shared store.
        policy: the knobs.
    """

    def __init__(
        self,
        operation: str,
        keys: KeySpace,
        levels: Levels,
        freshness: Freshness,
        flights: SingleFlight,
        leases: Leases | None,
        policy: CachePolicy,
    ) -> None:
        self._operation = operation
        self._keys = keys
        self._levels = levels
        self._freshness = freshness
        self._flights = flights
        self._leases = leases
        self._policy = policy

    async def run(self, flight: Flight, asked: Asked) -> Brought:
        """What is asked for; if the call fails, a stale entry that may stand in."""
        try:
            return await self.obtain(flight, asked, refreshing=False)
        except Exception:
            stand_in = self.standing_in(flight)
            value = ABSENT if stand_in is None else self._levels.hand_out(stand_in.kept)
            if stand_in is None or value is ABSENT:
                raise
            CACHE_STALE_SERVED.series(self._operation, "error").add()
            self.put_off(flight, asked.digest, stand_in, self._policy.stale_if_error_throttle_seconds)
            return Brought(value, "stale", stand_in.kept, stand_in)
        finally:
            self._flights.land(flight)

    def put_off(self, flight: Flight, digest: bytes, entry: Entry, seconds: float) -> None:
        """Serves an entry for a while without trying to replace it, within the time in which it may be served."""
        later = time.monotonic() + seconds
        if later > entry.fresh_until:
            entry = replace(entry, fresh_until=min(later, entry.usable_until))
        # Nor is it replaced early by chance, which goes by how long the call took.
        self._remember(flight, digest, replace(entry, refresh_at=later, compute_seconds=0.0))

    def standing_in(self, flight: Flight) -> Entry | None:
        """The stale entry that may be served in place of what is made."""
        entry = flight.stand_in
        if entry is None or not flight.void_tags.isdisjoint(entry.tags):
            return None
        return entry if self._freshness.may_stand_in(entry, time.monotonic()) else None

    def obtain(self, flight: Flight, asked: Asked, *, refreshing: bool) -> Coroutine[Any, Any, Brought]:
        """What is asked for, from wherever it is to be had; for a refresh, from a call."""
        if asked.meaning is not None and not refreshing:
            return self._by_meaning(flight, asked, asked.meaning)
        return self._led(flight, asked, refreshing)

    async def _by_meaning(self, flight: Flight, asked: Asked, meaning: Meaning) -> Brought:
        """An answer to the same question in other words, or the call, from which the index learns."""
        lookup, name = meaning.lookup, asked.digest.hex()
        match = await lookup.find(meaning.scope, meaning.text)
        near = None if match is None or match.name == name else await self._named(match.name)
        if match is not None and near is None and match.name != name:
            spawn(lookup.forget(match.name), name="cache semantic")
        if match is not None and near is not None and match.serve:
            return Brought(near.value, "semantic", near.entry.kept, near.entry)
        brought = await self._led(flight, asked, refreshing=False)
        if match is not None and near is not None:
            spawn(lookup.observe(match, near.value, self._levels.hand_out(brought.kept)), name="cache semantic")
        if brought.entry is not None:
            spawn(lookup.learn(meaning.scope, meaning.text, name), name="cache semantic")
        return brought

    async def _named(self, name: str) -> Found | None:
        """The entry of that name, if it is fresh."""
        digest, now = bytes.fromhex(name), time.monotonic()
        entry = self._levels.memory.get(digest)
        if entry is None or now >= entry.fresh_until:
            found = await self._levels.fetch(digest)
            return found if found is not None and time.monotonic() < found.entry.fresh_until else None
        value = self._levels.value_of(digest, entry)
        return None if value is ABSENT else Found(value, entry)

    def _led(self, flight: Flight, asked: Asked, refreshing: bool) -> Coroutine[Any, Any, Brought]:
        """The call, made by this process or by another."""
        leases = self._leases
        if leases is None:
            return self._make(flight, asked, None, refreshing)
        return self._leased(leases, flight, asked, refreshing)

    async def _leased(self, leases: Leases, flight: Flight, asked: Asked, refreshing: bool) -> Brought:
        began, looked = time.monotonic(), time.perf_counter()
        known = b"" if flight.stand_in is None else flight.stand_in.version

        async def judge(data: bytes, cleared_us: int) -> Brought | None:
            found = await self._levels.judge(asked.digest, data, cleared_us)
            if found is None or time.monotonic() >= found.entry.fresh_until:
                return None
            self._remember(flight, asked.digest, found.entry)
            CACHE_LOCK_WAIT.series(self._operation, "remote").record(time.monotonic() - began)
            asked.started += time.perf_counter() - looked  # waiting for the call is no part of the lookup
            return Brought(found.value, "remote", found.entry.kept, found.entry)

        brought = await leases.run(
            self._keys.place(asked.digest),
            known,
            judge,
            lambda lease: self._make(flight, asked, lease, refreshing),
            wait=not refreshing,
        )
        return LEFT if brought is None else brought

    def _remember(self, flight: Flight, digest: bytes, entry: Entry) -> None:
        if self._flights.is_current(flight) and flight.void_tags.isdisjoint(entry.tags):
            self._levels.remember(digest, entry)

    async def _make(self, flight: Flight, asked: Asked, lease: Lease | None, refreshing: bool) -> Brought:
        stale = NOTHING
        if flight.stand_in is not None:
            stale = self._levels.hand_out(flight.stand_in.kept)
        if refreshing or (flight.stand_in is not None and self.standing_in(flight) is not None):
            asked.looked()  # and it may yet become a hit
        else:
            asked.miss(self._why_missed(flight))
        options = begin_entry(asked.tags, NOTHING if stale is ABSENT else stale)
        began = time.monotonic()
        try:
            value = await asked.compute(refreshing)
        except Exception:
            CACHE_COMPUTE.series(self._operation, "error").record(time.monotonic() - began)
            raise
        seconds = time.monotonic() - began
        if switch.on:
            CACHE_COMPUTE.series(self._operation, "success").record(seconds)
        if options.tags:
            flight.tags = tuple(sorted({self._keys.tag(tag) for tag in options.tags}))
        tokens, refusal = asked.judge(value)
        if not options.store:
            refusal = "not_stored"
        made = Made(value, options.ttl_seconds, flight.tags, began, seconds, tokens, refusal)
        kept, entry, encoded = self._levels.admit(made)
        if entry is not None:
            if not self._may_keep(flight):
                self._levels.refuse("invalidated")
                entry = None
            elif encoded is None:
                self._levels.keep(asked.digest, entry)
            else:
                entry = await self._levels.share(asked.digest, entry, encoded, lease, lambda: self._may_keep(flight))
        return Brought(value, "call", kept, entry)

    def _may_keep(self, flight: Flight) -> bool:
        return self._flights.is_current(flight) and flight.void_tags.isdisjoint(flight.tags)

    def _why_missed(self, flight: Flight) -> str:
        if self._levels.shared is not None and not self._levels.shared.in_use:
            return "backend_down"
        return "absent" if flight.stand_in is None else "expired"
