"""The engine of a cache: looks in memory, joins an equal call in flight, looks in the shared store, makes the call.

A stale entry may be served at once while a refresh replaces it, or in place of a call that failed or is late. No fault
of the shared store prevents the call.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any

from observability_integration.context import Deadline, current_deadline, remaining
from observability_integration.errors import PrimitiveTimeoutError
from observability_integration.tasks import wait_done
from observability_integration.telemetry.catalogue.cache import (
    CACHE_DUPLICATES,
    CACHE_LOCK_WAIT,
    CACHE_STALE_SERVED,
)
from observability_integration.telemetry.guard import note_fault
from observability_integration.telemetry.tracing import spans

from .codec import Codec
from .entry import Entry
from .flights.reading import StoreReads
from .flights.refreshing import Refresher
from .flights.single_flight import Flight, SingleFlight
from .flights.waiting import begin_wait, current, end_wait, waits_for_itself
from .flights.work import FlightResult, FlightWork
from .freshness import Freshness
from .keys import KeySpace
from .lookup import Lookup, LookupResult, Signal, deadline_error, only_leader_timed_out
from .policy import CachePolicy
from .shared.channel import Channel, Note
from .shared.leases import Leases
from .stores.shared import SharedStore
from .tiers import ABSENT, Tiers
from .wire.frame import Wire

_NO_TAGS: frozenset[str] = frozenset()
_CANCEL_SECONDS = 5.0  # that flights without waiters have to end after their cancellation, when the cache is closed


class Engine:
    """Looks values up, computes them and stores them.

    Args:
        operation: name for metrics.
        keys: the key space.
        freshness: how long entries live.
        store: the shared store, or None.
        policy: the knobs.
        codec: encodes values.
        wire: encodes entries.

    Attributes:
        value_of: see `Tiers.value_of`.
    """

    def __init__(
        self,
        operation: str,
        keys: KeySpace,
        freshness: Freshness,
        store: SharedStore | None,
        policy: CachePolicy,
        codec: Codec,
        wire: Wire,
    ) -> None:
        self._operation = operation
        self._keys = keys
        self._freshness = freshness
        self._background_seconds = policy.background_seconds
        self._soft, self._hard = policy.soft_timeout_seconds, policy.hard_timeout_seconds
        self._limited = self._soft is not None or self._hard is not None
        self._flights = SingleFlight()
        budget, leases = policy.backend_budget_seconds, None
        self._channel = (
            None
            if store is None
            else Channel(store, keys.prefix, self._on_note, budget, lambda: self._confirmation.after_gap())
        )
        self._tiers = Tiers(operation, keys, freshness, store, self._channel, policy, codec, wire)
        self._memory, self._confirmation = self._tiers.memory, self._tiers.confirmation
        self.value_of = self._tiers.value_of
        shared, duplicates = self._tiers.shared, CACHE_DUPLICATES.declare(self, operation)
        if store is not None and shared is not None and self._channel is not None:
            leases = Leases(store, shared, self._channel, operation, policy.lease_seconds, duplicates.add)
        self._work = FlightWork(operation, keys, self._tiers, freshness, self._flights, leases, policy)
        self._refresher = Refresher(operation, self._flights, self._work, policy)
        self._reads = StoreReads(operation, self._tiers, self._flights, self._channel, freshness, self._refresher)

    def fresh(self, digest: bytes) -> Entry | None:
        """The fresh entry in memory; None if there is none, or if a hit may have to start an early refresh."""
        return None if self._freshness.refreshes_early else self._memory.fresh(digest)

    def serve_from_memory(self, lookup: Lookup, *, asked: bool = False) -> LookupResult | None:
        """Serves a fresh entry from memory, or a stale one within the policy; starts a refresh if it is due.

        Args:
            lookup: the lookup.
            asked: whether the shared store was asked. Else an entry that is stale or in doubt is not served.
        """
        digest, shared = lookup.digest, self._tiers.shared
        entry = self._memory.get(digest)
        if entry is None:
            return None
        now = time.monotonic()
        if now >= entry.expired_at:
            if not asked and shared is not None and shared.check():
                return None
            entry = entry.original
        fresh = now < entry.fresh_until
        if fresh:
            if self._freshness.refreshes_early and self._freshness.is_due(entry, now):
                self._refresher.refresh(lookup, entry)
        elif not self._freshness.may_revalidate(entry, now):
            return None
        else:
            self._refresher.refresh(lookup, entry)
        value = self._tiers.value_of(digest, entry)
        if value is ABSENT:
            return None
        if now < entry.expired_at:
            return LookupResult(value, "memory", "fresh", now - entry.created, entry.tokens)
        CACHE_STALE_SERVED.series(self._operation, "throttled" if fresh else "revalidating").add()
        return LookupResult(value, "memory", "stale", now - entry.created, entry.tokens)

    async def serve_confirmed(self, lookup: Lookup) -> LookupResult | None:
        """Serves a stale entry of memory that may be served at once, or one in doubt, after asking the shared store."""
        held = self._memory.get(lookup.digest)
        if held is None or self._tiers.shared is None:
            return None
        now, entry = time.monotonic(), held.original
        if now >= entry.fresh_until and not self._freshness.may_revalidate(entry, now):
            return None
        found = await self._read_store(lookup)
        return found if isinstance(found, LookupResult) else self.serve_from_memory(lookup, asked=True)

    async def fetch_or_compute(self, lookup: Lookup) -> LookupResult:
        """Joins an equal call in flight, or looks in the shared store and makes the call.

        Raises:
            PrimitiveTimeoutError: the deadline or the hard timeout passed.
        """
        entered_at = time.monotonic()
        while True:
            flight = self._flights.running(lookup.digest)
            leading = flight is None
            if flight is not None:  # perhaps a refresh
                result = await self.serve_confirmed(lookup)
                if result is not None:
                    return result
                if self._flights.running(lookup.digest) is not flight:
                    continue
                spans.tracing.link(lookup.span, flight.span)
            else:
                stale_entry = None
                if self._tiers.shared is not None:
                    found = await self._read_store(lookup)
                    if isinstance(found, LookupResult):
                        return found
                    # During the read, another caller may have made the call, or started it.
                    result = self.serve_from_memory(lookup, asked=True)
                    if result is not None:
                        return result
                    if found is Signal.LOOK_AGAIN:
                        continue
                    stale_entry = found
                if remaining() == 0.0:
                    lookup.miss("failed")
                    raise deadline_error(self._operation, current_deadline(), 0.0)
                flight = self._start_flight(lookup, stale_entry)
            if waits_for_itself(flight.node, current()):  # its own flight too: an eager task has begun by now
                return LookupResult(None, "reentrant")
            awaited = await self._await_flight(lookup, flight, leading, entered_at)
            if awaited is not Signal.LOOK_AGAIN:
                return awaited

    async def _read_store(self, lookup: Lookup) -> LookupResult | Entry | Signal | None:
        """Reads the shared store: a hit, a stale entry to fall back on, None, or `LOOK_AGAIN`."""
        found = await self._reads.read(lookup)
        return self._to_lookup_result(lookup, *found) if isinstance(found, tuple) else found

    def _start_flight(self, lookup: Lookup, stale_entry: Entry | None) -> Flight:
        entry = self._memory.get(lookup.digest)
        entry = None if entry is None else entry.original
        if stale_entry is None or (entry is not None and entry.expired_at >= stale_entry.expired_at):
            stale_entry = entry
        flight = Flight(lookup.span, stale_entry)
        if lookup.span is spans.NO_SPAN:
            self._flights.start(lookup.digest, flight, self._work.run(flight, lookup))
            return flight
        token = spans.tracing.activate(lookup.span)  # the flight copies the context as it starts
        try:
            self._flights.start(lookup.digest, flight, self._work.run(flight, lookup))
        finally:
            spans.tracing.deactivate(token)
        return flight

    async def _await_flight(
        self, lookup: Lookup, flight: Flight, leading: bool, entered_at: float
    ) -> LookupResult | Signal:
        """Waits for a flight; returns its result, a stale value if it is late, or `LOOK_AGAIN`."""
        void_tags, searched, waiting_since, deadline = _NO_TAGS, 0.0, 0.0, None
        if not leading:  # the leader joined as the flight started, and its call keeps to the deadline
            void_tags = frozenset(flight.void_tags)
            searched, waiting_since = time.perf_counter() - lookup.started, time.monotonic()
            deadline = current_deadline()
        stale_entry = None
        waiter, task, waiting = flight.add_waiter(), flight.task, begin_wait(flight.node)
        assert task is not None  # noqa: S101 - for the type checker: it has started
        try:
            if self._limited or deadline is not None:
                stale_entry = await self._await_within_limits(lookup, flight, task, entered_at, deadline)
            elif not task.done():  # as eager tasks may be
                await waiter
                if not task.done():  # a task factory may have wrapped it in steps of its own
                    await wait_done(task, None)
            if not leading:
                lookup.started = time.perf_counter() - searched  # waiting for the call is no part of the lookup
                CACHE_LOCK_WAIT.series(self._operation, "process").record(time.monotonic() - waiting_since)
            if stale_entry is not None:
                return self._serve_late(lookup, flight, stale_entry)
            if flight.cancel_requested and (task.cancelled() or task.exception() is not None):
                return Signal.LOOK_AGAIN  # the cache cancelled it, for no fault of its own: another is needed
            result: FlightResult = task.result()
        except Exception as error:
            if not leading and only_leader_timed_out(error):
                return Signal.LOOK_AGAIN
            lookup.miss("failed")
            raise
        finally:
            end_wait(waiting, flight.node)
            if flight.remove_waiter(waiter):
                self._flights.cancel_if_unwaited(flight, self._background_seconds)
        # A tag of the value may have been invalidated after the call began and before this caller joined.
        again = result.tier == "left" or (result.tier == "reentrant" and not leading)
        if again or not void_tags.isdisjoint(flight.tags):
            return Signal.LOOK_AGAIN
        return self._to_lookup_result(lookup, result, leading)

    async def _await_within_limits(
        self, lookup: Lookup, flight: Flight, task: asyncio.Task[Any], entered_at: float, deadline: Deadline | None
    ) -> Entry | None:
        """Waits for a flight within the timeouts, which count from `entered_at`, and the deadline of this caller.

        ================ ===============================================================================
        passed first     what happens
        ================ ===============================================================================
        soft timeout     a stale entry is returned if there is one, and the flight goes on in the background
        hard timeout     the same, and without a stale entry the caller gets an error
        deadline         the caller gets an error, and the flight goes on for the other waiters
        ================ ===============================================================================

        The timeouts end where a stream starts.

        Returns:
            None when the flight has finished; else the stale entry to serve in its place.

        Raises:
            PrimitiveTimeoutError: see above.
        """
        if self._soft is not None and not await wait_done(task, self._soft - (time.monotonic() - entered_at)):
            stale_entry = None if lookup.is_streaming else await self._work.stand_in(flight, lookup.digest)
            if task.done():
                return None
            if stale_entry is not None and not lookup.is_streaming:
                self._flights.cancel_after(flight, self._background_seconds)
                return stale_entry
        while True:
            hard = None
            if self._hard is not None and not lookup.is_streaming:
                hard = self._hard - (time.monotonic() - entered_at)
            left = None if deadline is None else deadline.remaining()
            limits = [limit for limit in (hard, left) if limit is not None]
            if await wait_done(task, min(limits, default=None)):
                return None
            if left is not None and (hard is None or left < hard):
                raise deadline_error(self._operation, deadline, time.monotonic() - entered_at)
            if lookup.is_streaming:  # the hard timeout no longer applies
                continue
            stale_entry = await self._work.stand_in(flight, lookup.digest)
            if task.done():
                return None
            if not lookup.is_streaming:
                break
        self._flights.cancel_after(flight, self._background_seconds)
        if stale_entry is None:
            elapsed = time.monotonic() - entered_at
            raise PrimitiveTimeoutError(self._operation, self._hard or 0.0, elapsed, kind="hard")
        return stale_entry

    def _to_lookup_result(self, lookup: Lookup, result: FlightResult, leading: bool) -> LookupResult:
        if result.tier == "reentrant":
            return LookupResult(None, "reentrant")
        if leading and result.tier == "call":
            lookup.miss("expired")  # unless it was counted when the call began
            return LookupResult(result.value, "call")
        entry = result.entry
        age = 0.0 if entry is None else time.monotonic() - entry.created
        tokens = 0 if entry is None else entry.tokens
        if leading:
            freshness = {"stale": "stale", "remote": "coalesced"}.get(result.tier, "fresh")
            tier = "memory" if self._tiers.shared is None else "backend"
            tier = "semantic" if result.tier == "semantic" else tier
            return LookupResult(result.value, tier, freshness, age, tokens)
        # Each caller gets its own copy of a structure, so that none can change another's.
        value = self._tiers.restore(result.kept)
        if value is ABSENT:
            return LookupResult(None, "uncopyable")
        return LookupResult(value, "flight", "stale" if result.tier == "stale" else "coalesced", age, tokens)

    def _serve_late(self, lookup: Lookup, flight: Flight, entry: Entry) -> LookupResult | Signal:
        """Serves a stale entry in place of a late flight."""
        value = self._tiers.value_of(lookup.digest, entry)
        if value is ABSENT:
            flight.stale_entry = None  # it cannot be restored, now or later
            return Signal.LOOK_AGAIN
        CACHE_STALE_SERVED.series(self._operation, "timeout").add()
        return LookupResult(value, "memory", "stale", time.monotonic() - entry.created, entry.tokens)

    def flight_task(self, digest: bytes, tags: Sequence[str] = ()) -> asyncio.Task[Any] | None:
        """The task that computes the value for `digest` in this event loop.

        None if there is none, or if one of the tags was invalidated since it started.
        """
        flight = self._flights.running(digest)
        if flight is None or (flight.void_tags and not flight.void_tags.isdisjoint(map(self._keys.tag, tags))):
            return None
        return flight.task

    def cancel_flight(self, digest: bytes, again_seconds: float = 0.1) -> None:
        """Cancels the flight for `digest` in this event loop, because no caller wants its result."""
        flight = self._flights.running(digest)
        if flight is not None:
            flight.cancel(again_seconds)

    # Invalidation ---------------------------------------------------------------------------------------------------

    async def forget(self, digest: bytes) -> None:
        """Deletes an entry from all tiers. A value in flight for it is not kept."""
        self._flights.forget(digest)
        self._reads.void(digest)
        await self._tiers.forget(digest)

    async def forget_tag(self, tag: str) -> None:
        """Voids all entries with the tag (its hash) in all tiers. Values in flight with the tag are not kept."""
        self._flights.void_tag(tag)
        self._reads.void_all()
        await self._tiers.forget_tag(tag)

    async def clear(self) -> None:
        """Voids all entries in all tiers. Values in flight are not kept."""
        self._flights.forget_all()
        self._reads.void_all()
        await self._tiers.clear()

    def _on_note(self, note: Note) -> None:
        """Applies a change that another process, or another cache of this one, has published."""
        if note.action == "clear":
            self._flights.forget_all()
            self._reads.void_all()
            self._memory.clear()
        elif note.action == "tag":
            self._flights.void_tag(note.tag)
            self._reads.void_all()
            self._memory.delete_tagged(note.tag)
        elif note.action in ("set", "delete"):
            try:
                digest = bytes.fromhex(note.name)
            except ValueError as error:
                note_fault("cache.note", error)
                return
            self._memory.delete(digest)
            self._reads.void(digest)
            if note.action == "delete":
                self._flights.forget(digest)

    async def aclose(self) -> None:
        """Cancels the flights of this loop without waiters, unsubscribes, and closes the store's own connections."""
        ending = self._flights.unwaited()
        for flight in ending:
            flight.cancel()
        tasks = [flight.task for flight in ending if flight.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=_CANCEL_SECONDS)
        if self._channel is not None:
            await self._channel.aclose()
        await self._confirmation.aclose()
        await self._tiers.aclose()
