"""Entries replaced in the background, before they are missed."""

from __future__ import annotations

import asyncio
import contextvars
from typing import Any

from observability_integration.caching.entry import Entry
from observability_integration.caching.lookup import Asked
from observability_integration.caching.policy import CachePolicy
from observability_integration.context import set_deadline
from observability_integration.telemetry.catalogue.cache import CACHE_REFRESHES
from observability_integration.telemetry.tracing import spans

from .single_flight import Flight, SingleFlight
from .work import LEFT, Brought, FlightWork


class Refresher:
    """Makes the calls that nobody waits for; only so many at a time, and each for a limited time.

    Args:
        operation: name for metrics and spans.
        flights: under which the calls are made.
        work: makes them.
        policy: the knobs.
    """

    def __init__(self, operation: str, flights: SingleFlight, work: FlightWork, policy: CachePolicy) -> None:
        self._operation = operation
        self._flights = flights
        self._work = work
        self._most = policy.max_refreshes
        self._longest_seconds = policy.background_seconds
        self._lease_seconds = policy.lease_seconds
        self._throttle_seconds = policy.stale_if_error_throttle_seconds
        self._running: set[asyncio.Task[Any]] = set()

    def refresh(self, asked: Asked, entry: Entry) -> None:
        """Starts a call in the background that replaces the entry, unless one is under way."""
        if self._flights.join(asked.digest) is not None:
            return
        if len(self._running) >= self._most:
            CACHE_REFRESHES.series(self._operation, "skipped").add()
            return
        flight = Flight(asked.span, entry)
        context = contextvars.copy_context()
        context.run(set_deadline, None)  # nobody waits for it, so nobody's deadline ends it
        task = self._flights.depart(asked.digest, flight, self._run(flight, asked, entry), context)
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        self._flights.let_go(flight, self._longest_seconds)

    async def _run(self, flight: Flight, asked: Asked, entry: Entry) -> Brought:
        links = () if asked.span is spans.NO_SPAN else (spans.tracing.link_to(asked.span),)
        span = spans.tracing.begin(f"cache refresh {self._operation}", {}, links=links)
        flight.span = span
        token = spans.tracing.activate(span)
        try:
            brought = await self._work.obtain(flight, asked, refreshing=True)
        except Exception as error:  # noqa: BLE001 - nobody waits for it, and the entry is still there
            CACHE_REFRESHES.series(self._operation, "error").add()
            spans.tracing.mark_failed(span, error)
            self._work.put_off(flight, asked.digest, entry, self._throttle_seconds)
            return LEFT
        finally:
            spans.tracing.deactivate(token)
            span.end()
        if brought.tier == "left":
            self._work.put_off(flight, asked.digest, entry, self._lease_seconds)
        elif brought.entry is None:  # what came must not be kept: so may what comes next
            self._work.put_off(flight, asked.digest, entry, self._throttle_seconds)
        CACHE_REFRESHES.series(self._operation, "left" if brought.tier == "left" else "success").add()
        return brought
