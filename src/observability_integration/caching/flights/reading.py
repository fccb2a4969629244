"""Reads of the shared store: one for equal lookups that overlap."""

from __future__ import annotations

import asyncio
import time

from observability_integration.caching.entry import Entry, StoreHit
from observability_integration.caching.freshness import Freshness
from observability_integration.caching.lookup import Lookup, Signal
from observability_integration.caching.shared.channel import Channel
from observability_integration.caching.tiers import Tiers
from observability_integration.tasks import wait_done
from observability_integration.telemetry.catalogue.cache import CACHE_STALE_SERVED, CACHE_TIER_LATENCY

from .refreshing import Refresher
from .single_flight import SingleFlight
from .work import FlightResult


class StoreReads:
    """The reads of one cache.

    Args:
        operation: name for metrics.
        tiers: read the shared store.
        flights: the flights of the cache.
        channel: started with the first read; None without a shared store.
        freshness: how long entries live.
        refresher: replaces a stale entry that is served.
    """

    def __init__(
        self,
        operation: str,
        tiers: Tiers,
        flights: SingleFlight,
        channel: Channel | None,
        freshness: Freshness,
        refresher: Refresher,
    ) -> None:
        self._operation = operation
        self._tiers = tiers
        self._flights = flights
        self._channel = channel
        self._freshness = freshness
        self._refresher = refresher
        self._running: dict[tuple[asyncio.AbstractEventLoop, bytes], asyncio.Future[FlightResult | None]] = {}

    async def read(self, lookup: Lookup) -> tuple[FlightResult, bool] | Entry | Signal | None:
        """Reads the shared store, and settles what memory holds for the key.

        Returns:
            A hit and whether this lookup was the one that read it; a stale entry to fall back on; None; or
            `LOOK_AGAIN`.
        """
        key = asyncio.get_running_loop(), lookup.digest
        running = self._running.get(key)
        if running is not None:  # another caller reads the same entry
            await wait_done(running, None)
            accepted = running.result()
            return Signal.LOOK_AGAIN if accepted is None else (accepted, False)
        read: asyncio.Future[FlightResult | None] = key[0].create_future()
        self._running[key] = read
        started = time.perf_counter()
        accepted = stale_entry = None
        held = self._tiers.memory.get(lookup.digest)
        try:
            if self._channel is not None:
                self._channel.start()  # to learn when an entry kept in memory is voided elsewhere
            answer = await self._tiers.ask(lookup.digest)
            CACHE_TIER_LATENCY.series(self._operation, "backend").record(time.perf_counter() - started)
            hit = self._tiers.confirmation.settle(lookup.digest, held, answer)
            if hit is not None:
                current = self._running.get(key) is read  # else the entry was invalidated during the read
                stale_entry = hit.entry if current else None
                accepted = self._accept(lookup, hit, current=current)
        finally:
            read.set_result(accepted)
            if self._running.get(key) is read:
                del self._running[key]
        if accepted is not None:
            return accepted, True
        # If the entry was forgotten during the read, another caller may have started the call.
        return stale_entry if self._flights.running(lookup.digest) is None else Signal.LOOK_AGAIN

    def _accept(self, lookup: Lookup, hit: StoreHit, *, current: bool) -> FlightResult | None:
        """The result to serve for an entry of the shared store; None if the entry may not be served at once."""
        entry, now = hit.entry, time.monotonic()
        fresh = now < entry.fresh_until
        if not fresh and not (current and self._freshness.may_revalidate(entry, now)):
            return None
        if current:
            self._tiers.put_in_memory(lookup.digest, entry)
        if fresh:
            return FlightResult(hit.value, "backend", entry.kept, entry)
        CACHE_STALE_SERVED.series(self._operation, "revalidating").add()
        self._refresher.refresh(lookup, entry)
        return FlightResult(hit.value, "stale", entry.kept, entry)

    def void(self, digest: bytes) -> None:
        """Keeps no read of this entry in progress: it was invalidated."""
        for loop, running in list(self._running):
            if running == digest:
                self._running.pop((loop, running), None)

    def void_all(self) -> None:
        """Keeps no read in progress."""
        self._running.clear()
