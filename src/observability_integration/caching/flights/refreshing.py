"""Background refreshes: entries are replaced before a lookup misses them."""

from __future__ import annotations

import asyncio
import contextvars
from typing import Any

from observability_integration.caching.entry import Entry
from observability_integration.caching.lookup import Lookup
from observability_integration.caching.policy import CachePolicy
from observability_integration.context import set_deadline
from observability_integration.telemetry.catalogue.cache import CACHE_REFRESHES
from observability_integration.telemetry.tracing import spans

from .single_flight import Flight, SingleFlight
from .work import NO_RESULT, FlightResult, FlightWork


class Refresher:
    """Runs refreshes in the background: a bounded number at a time, each for a bounded time.

    Args:
        operation: name for metrics and spans.
        flights: the flights of the cache.
        work: makes the calls.
        policy: the knobs.
    """

    def __init__(self, operation: str, flights: SingleFlight, work: FlightWork, policy: CachePolicy) -> None:
        self._operation = operation
        self._flights = flights
        self._work = work
        self._max_running = policy.max_refreshes
        self._max_seconds = policy.background_seconds
        self._lease_seconds = policy.lease_seconds
        self._throttle_seconds = policy.stale_if_error_throttle_seconds
        self._running: set[asyncio.Task[Any]] = set()

    def refresh(self, lookup: Lookup, entry: Entry) -> None:
        """Starts a call in the background that replaces the entry, unless a flight for it is running."""
        if self._flights.running(lookup.digest) is not None:
            return
        if len(self._running) >= self._max_running:
            CACHE_REFRESHES.series(self._operation, "skipped").add()
            return
        flight = Flight(lookup.span, entry)
        context = contextvars.copy_context()
        context.run(set_deadline, None)  # no caller waits, so no caller's deadline ends it
        task = self._flights.start(lookup.digest, flight, self._run(flight, lookup, entry), context)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        self._flights.cancel_after(flight, self._max_seconds)

    async def _run(self, flight: Flight, lookup: Lookup, entry: Entry) -> FlightResult:
        links = () if lookup.span is spans.NO_SPAN else (spans.tracing.link_to(lookup.span),)
        span = spans.tracing.begin(f"cache refresh {self._operation}", {}, links=links)
        flight.span = span
        token = spans.tracing.activate(span)
        try:
            result = await self._work.obtain(flight, lookup, refreshing=True)
        except Exception as error:  # noqa: BLE001 - no caller waits, and the entry is still there
            CACHE_REFRESHES.series(self._operation, "error").add()
            spans.tracing.mark_failed(span, error)
            self._work.postpone_refresh(flight, lookup.digest, entry, self._throttle_seconds)
            return NO_RESULT
        finally:
            spans.tracing.deactivate(token)
            span.end()
        if result.tier == "left":
            self._work.postpone_refresh(flight, lookup.digest, entry, self._lease_seconds)
        elif result.entry is None:  # this value must not be kept: the next one may
            self._work.postpone_refresh(flight, lookup.digest, entry, self._throttle_seconds)
        CACHE_REFRESHES.series(self._operation, "left" if result.tier == "left" else "success").add()
        return result
