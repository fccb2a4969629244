"""The way of one lookup: memory, an equal call under way, the shared store, and the call itself.

What is stale may be served at once while it is replaced in the background, or in place of a call that failed or is
late. Whatever happens to the shared store, the call is made.
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
    CACHE_TIER_LATENCY,
)
from observability_integration.telemetry.guard import note_fault
from observability_integration.telemetry.tracing import spans

from .codec import Codec
from .entry import Entry
from .flights.refreshing import Refresher
from .flights.single_flight import Flight, SingleFlight
from .flights.work import Brought, FlightWork
from .freshness import Freshness
from .keys import KeySpace
from .lookup import Asked, Served
from .policy import CachePolicy
from .shared.channel import Channel, Note
from .shared.leases import Leases
from .stores.shared import SharedStore
from .tiers import ABSENT, Found, Levels
from .wire.frame import Wire

_NOTHING_VOID: frozenset[str] = frozenset()
_ENDING_SECONDS = 5.0  # for calls that nobody waits for to obey their cancellation, when the cache is closed
_AGAIN: Any = object()  # things have changed meanwhile


class Engine:
    """Looks values up, makes them, keeps them.

    Args:
        operation: name for metrics.
        keys: the key space.
        freshness: how long entries live.
        store: the shared store, or None.
        policy: the knobs.
        codec: how values are written.
        wire: how entries are written.

    Attributes:
        value_of: see `Levels.value_of`.
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
        self._looks: dict[tuple[asyncio.AbstractEventLoop, bytes], asyncio.Future[Brought | None]] = {}
        self._channel: Channel | None = None
        leases: Leases | None = None
        if store is not None:
            self._channel = Channel(store, keys.prefix, self._heard, policy.backend_budget_seconds)
        self._levels = Levels(operation, keys, freshness, store, self._channel, policy, codec, wire)
        self._memory = self._levels.memory
        self.value_of = self._levels.value_of
        shared, duplicates = self._levels.shared, CACHE_DUPLICATES.declare(self, operation)
        if store is not None and shared is not None and self._channel is not None:
            leases = Leases(store, shared, self._channel, operation, policy.lease_seconds, duplicates.add)
        self._work = FlightWork(operation, keys, self._levels, freshness, self._flights, leases, policy)
        self._refresher = Refresher(operation, self._flights, self._work, policy)

    def fresh(self, digest: bytes) -> Entry | None:
        """The entry that memory has, if all there is to do is to serve it."""
        return None if self._freshness.refreshes_early else self._memory.fresh(digest)

    def recall(self, asked: Asked) -> Served | None:
        """What memory has, fresh, or stale if that may be served at once; starts a refresh if it is due."""
        digest = asked.digest
        entry = self._memory.get(digest)
        if entry is None:
            return None
        now = time.monotonic()
        fresh = now < entry.fresh_until
        if fresh:
            if self._freshness.refreshes_early and self._freshness.is_due(entry, now):
                self._refresher.refresh(asked, entry)
        elif not self._freshness.may_revalidate(entry, now):
            return None
        else:
            self._refresher.refresh(asked, entry)
        value = self._levels.value_of(digest, entry)
        if value is ABSENT:
            return None
        if now < entry.expired_at:
            return Served(value, "memory", "fresh", now - entry.created, entry.tokens)
        CACHE_STALE_SERVED.series(self._operation, "throttled" if fresh else "revalidating").add()
        return Served(value, "memory", "stale", now - entry.created, entry.tokens)

    async def fly(self, asked: Asked) -> Served:
        """Joins an equal call that is under way, or looks in the shared store and makes the call.

        Raises:
            PrimitiveTimeoutError: the hard timeout passed.
        """
        came = time.monotonic()
        while True:
            flight = self._flights.join(asked.digest)
            leading = flight is None
            if flight is None:
                stand_in = None
                if self._levels.shared is not None:
                    served = await self._look(asked)
                    if isinstance(served, Served):
                        return served
                    # While this one looked, another may have made the call, or be making it.
                    kept = self.recall(asked)
                    if kept is not None:
                        return kept
                    if served is _AGAIN:
                        continue
                    stand_in = served
                if remaining() == 0.0:
                    asked.miss("failed")
                    raise self._too_late(current_deadline(), 0.0)
                flight = self._depart(asked, stand_in)
            else:
                spans.tracing.link(asked.span, flight.span)
            served = await self._ride(asked, flight, leading, came)
            if served is not None:
                return served

    async def _look(self, asked: Asked) -> Served | Entry | None:
        """Looks into the shared store: a hit, a stale entry to fall back on, nothing, or `_AGAIN`."""
        here = asyncio.get_running_loop(), asked.digest
        other = self._looks.get(here)
        if other is not None:  # somebody is looking already
            await wait_done(other, None)
            brought = other.result()
            return _AGAIN if brought is None else self._handed(asked, brought, leading=False)
        look: asyncio.Future[Brought | None] = here[0].create_future()
        self._looks[here] = look
        started = time.perf_counter()
        brought = stand_in = None
        try:
            if self._channel is not None:
                self._channel.start()  # whoever keeps in memory what others made has to hear when it is void
            found = await self._levels.fetch(asked.digest)
            CACHE_TIER_LATENCY.series(self._operation, "backend").record(time.perf_counter() - started)
            if found is not None:
                current = self._looks.get(here) is look  # else something was invalidated meanwhile
                stand_in = found.entry if current else None
                brought = self._taken(asked, found, current=current)
        finally:
            look.set_result(brought)
            if self._looks.get(here) is look:
                del self._looks[here]
        if brought is not None:
            return self._handed(asked, brought, leading=True)
        # Another one may have begun the call while this one looked, if somebody has forgotten the entry meanwhile.
        return stand_in if self._flights.join(asked.digest) is None else _AGAIN

    def _depart(self, asked: Asked, stand_in: Entry | None) -> Flight:
        kept = self._memory.get(asked.digest)
        if stand_in is None or (kept is not None and kept.expired_at >= stand_in.expired_at):
            stand_in = kept
        flight = Flight(asked.span, stand_in)
        if asked.span is spans.NO_SPAN:
            self._flights.depart(asked.digest, flight, self._work.run(flight, asked))
            return flight
        token = spans.tracing.activate(asked.span)  # the flight copies the context as it departs
        try:
            self._flights.depart(asked.digest, flight, self._work.run(flight, asked))
        finally:
            spans.tracing.deactivate(token)
        return flight

    async def _ride(self, asked: Asked, flight: Flight, leading: bool, came: float) -> Served | None:
        """Waits for a flight, and takes what it brings; None if that is not for this one, who has to look again."""
        void, looked, boarded, deadline = _NOTHING_VOID, 0.0, 0.0, None
        if not leading:  # who leads came as it departed, and the call minds the deadline
            void = frozenset(flight.void_tags)
            looked, boarded = time.perf_counter() - asked.started, time.monotonic()
            deadline = current_deadline()
        stand_in = None
        waiter, task = flight.board(), flight.task
        assert task is not None  # noqa: S101 - for the type checker: it has departed
        try:
            if self._limited or deadline is not None:
                stand_in = await self._in_time(asked, flight, task, came, deadline)
            elif not task.done():  # as eager tasks may be
                await waiter
                if not task.done():  # a task factory may have wrapped it in steps of its own
                    await wait_done(task, None)
            if not leading:
                asked.started = time.perf_counter() - looked  # waiting for the call is no part of the lookup
                CACHE_LOCK_WAIT.series(self._operation, "process").record(time.monotonic() - boarded)
            if stand_in is not None:
                served = self._late(asked, stand_in)
                if served is None:
                    flight.stand_in = None  # it cannot be handed out, now or later
                return served
            if flight.given_up and task.cancelled():
                return None  # it took too long after those had left who waited for it: on to another
            brought: Brought = task.result()
        except PrimitiveTimeoutError as error:
            if not leading and error.deadline_source == "inherited" and remaining() != 0.0:
                return None  # the one who made the call was in a greater hurry than we are
            asked.miss("failed")
            raise
        except Exception:
            asked.miss("failed")
            raise
        finally:
            if flight.leave(waiter):
                self._flights.desert(flight, self._background_seconds)
        if void and not void.isdisjoint(flight.tags):  # made before, with what was void when this one came
            return None
        return None if brought.tier == "left" else self._handed(asked, brought, leading)

    async def _in_time(
        self, asked: Asked, flight: Flight, task: asyncio.Task[Any], started: float, deadline: Deadline | None
    ) -> Entry | None:
        """Waits for a flight, at `started` or since; a stale entry if it is late and there is one that may stand in."""
        begun = asked.begun
        soft = None if self._soft is None else self._soft - (time.monotonic() - started)
        if soft is not None and not await wait_done(task, soft) and not (begun and begun.done()):
            stand_in = self._work.standing_in(flight)
            if stand_in is not None:
                self._flights.let_go(flight, self._background_seconds)
                return stand_in
        hard = None if self._hard is None or (begun and begun.done()) else self._hard - (time.monotonic() - started)
        left = None if deadline is None else deadline.remaining()
        limits = [limit for limit in (hard, left) if limit is not None]
        if await wait_done(task, min(limits) if limits else None):
            return None
        if left is not None and (hard is None or left < hard):  # the others go on waiting
            raise self._too_late(deadline, time.monotonic() - started)
        if begun and begun.done():
            await wait_done(task, left)
            return None
        self._flights.let_go(flight, self._background_seconds)
        stand_in = self._work.standing_in(flight)
        if stand_in is None:
            raise PrimitiveTimeoutError(self._operation, self._hard or 0.0, time.monotonic() - started, kind="hard")
        return stand_in

    def _too_late(self, deadline: Deadline | None, elapsed: float) -> PrimitiveTimeoutError:
        return PrimitiveTimeoutError(
            self._operation, elapsed, elapsed, kind="deadline",
            cleanup="clean" if elapsed else "refused", deadline_source="inherited", deadline=deadline,
        )  # fmt: skip

    def _handed(self, asked: Asked, brought: Brought, leading: bool) -> Served:
        if leading and brought.tier == "call":
            asked.miss("expired")  # unless it was counted when the call began
            return Served(brought.value, "call")
        entry = brought.entry
        age = 0.0 if entry is None else time.monotonic() - entry.created
        tokens = 0 if entry is None else entry.tokens
        if leading:
            freshness = {"stale": "stale", "remote": "coalesced"}.get(brought.tier, "fresh")
            tier = "memory" if self._levels.shared is None else "backend"
            if brought.tier == "semantic":
                tier = "semantic"
            return Served(brought.value, tier, freshness, age, tokens)
        # A structure is handed to each caller anew, so that none can change another's.
        value = self._levels.hand_out(brought.kept)
        if value is ABSENT:
            return Served(None, "uncopyable")
        return Served(value, "flight", "stale" if brought.tier == "stale" else "coalesced", age, tokens)

    def _late(self, asked: Asked, entry: Entry) -> Served | None:
        value = self._levels.value_of(asked.digest, entry)
        if value is ABSENT:
            return None
        CACHE_STALE_SERVED.series(self._operation, "timeout").add()
        return Served(value, "memory", "stale", time.monotonic() - entry.created, entry.tokens)

    def _taken(self, asked: Asked, found: Found, *, current: bool) -> Brought | None:
        """An entry that the shared store had, if it may be served at once."""
        entry, now = found.entry, time.monotonic()
        fresh = now < entry.fresh_until
        if not fresh and not (current and self._freshness.may_revalidate(entry, now)):
            return None
        if current:
            self._levels.remember(asked.digest, entry)
        if fresh:
            return Brought(found.value, "backend", entry.kept, entry)
        CACHE_STALE_SERVED.series(self._operation, "revalidating").add()
        self._refresher.refresh(asked, entry)
        return Brought(found.value, "stale", entry.kept, entry)

    def under_way(self, digest: bytes, tags: Sequence[str] = ()) -> asyncio.Task[Any] | None:
        """What makes the entry for `digest` in this event loop; None if one of its tags was invalidated meanwhile."""
        flight = self._flights.join(digest)
        if flight is None or (flight.void_tags and not flight.void_tags.isdisjoint(map(self._keys.tag, tags))):
            return None
        return flight.task

    def abandon(self, digest: bytes) -> None:
        """Cancels the flight for `digest` in this event loop: nobody wants what it brings."""
        flight = self._flights.join(digest)
        if flight is not None:
            flight.give_up()

    # Forgetting -----------------------------------------------------------------------------------------------------

    async def forget(self, digest: bytes) -> None:
        """Forgets an entry everywhere; what is under way for it is not kept."""
        self._flights.forget(digest)
        self._outdate_looks(digest)
        await self._levels.forget(digest)

    def _outdate_looks(self, digest: bytes) -> None:
        for loop, looked_for in list(self._looks):
            if looked_for == digest:
                self._looks.pop((loop, looked_for), None)

    async def forget_tag(self, tag: str) -> None:
        """Forgets everything with the tag (its hash) everywhere; what is under way with it is not kept."""
        self._flights.void_tag(tag)
        self._looks.clear()
        await self._levels.forget_tag(tag)

    async def clear(self) -> None:
        """Forgets everything; what is under way is not kept."""
        self._flights.forget_all()
        self._looks.clear()
        await self._levels.clear()

    def _heard(self, note: Note) -> None:
        """Another process, or another cache of this one, has changed something."""
        if note.action == "clear":
            self._flights.forget_all()
            self._looks.clear()
            self._memory.clear()
        elif note.action == "tag":
            self._flights.void_tag(note.tag)
            self._looks.clear()
            self._memory.delete_tagged(note.tag)
        elif note.action in ("set", "delete"):
            try:
                digest = bytes.fromhex(note.name)
            except ValueError as error:
                note_fault("cache.note", error)
                return
            self._memory.delete(digest)
            self._outdate_looks(digest)
            if note.action == "delete":
                self._flights.forget(digest)

    async def aclose(self) -> None:
        """Ends what nobody waits for in this loop, stops listening, and closes what the store opened itself."""
        ending = self._flights.unattended()
        for flight in ending:
            flight.give_up()
        tasks = [flight.task for flight in ending if flight.task is not None]
        if tasks:
            await asyncio.wait(tasks, timeout=_ENDING_SECONDS)
        if self._channel is not None:
            await self._channel.aclose()
        await self._levels.aclose()
