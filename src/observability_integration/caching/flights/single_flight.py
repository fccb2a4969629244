"""Single flight: equal calls that overlap in time become one.

The flight is a task of its own that no caller owns, so a cancelled caller takes nobody with it: the others still get
their value, and what was paid for is still stored. A failure is one error that all of them share.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Coroutine
from typing import Any

import msgspec

from observability_integration.caching.entry import Entry
from observability_integration.tasks import begin_apart, cancel_until_done


class Flight(msgspec.Struct, eq=False):
    """One call under way.

    Attributes:
        span: the span of the caller who started it, for the others to link to.
        stand_in: a stale entry that may be served if the call fails or is late.
        task: what makes it; None until it has departed.
        here: the event loop it belongs to, and the key.
        void_tags: hashes of tags that were invalidated meanwhile: what is made with one of them is not kept.
        tags: hashes of the tags of what it made, once that is known.
        ends: ends the flight in a while, whoever waits.
        deserted: ends it in a while, if nobody waits for it any more.
        given_up: whether it was cancelled because nobody waited for it, and not by what it calls.
        waiters: who waits for it.
    """

    span: Any
    stand_in: Entry | None
    task: asyncio.Task[Any] | None = None
    here: Any = None
    void_tags: set[str] = set()
    tags: tuple[str, ...] = ()
    ends: asyncio.TimerHandle | None = None
    deserted: asyncio.TimerHandle | None = None
    given_up: bool = False
    waiters: dict[asyncio.Future[None], None] = {}

    def board(self) -> asyncio.Future[None]:
        """For one who waits: done when it lands, unless it has already. Whoever boards has to leave."""
        if self.deserted is not None:
            self.deserted.cancel()
            self.deserted = None
        waiter: asyncio.Future[None] = self.here[0].create_future()
        self.waiters[waiter] = None
        return waiter

    def leave(self, waiter: asyncio.Future[None]) -> bool:
        """For one who waits no longer; says whether nobody does now, though it is still under way."""
        self.waiters.pop(waiter, None)
        return not self.waiters and self.task is not None and not self.task.done()

    def wake(self) -> None:
        """Wakes all who wait, and stops its timers."""
        waiters, self.waiters = self.waiters, {}
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
        if self.ends is not None:
            self.ends.cancel()
        if self.deserted is not None:
            self.deserted.cancel()

    def give_up(self) -> None:
        """Cancels the flight; whoever joined it all the same is not cancelled with it."""
        self.given_up = True
        if self.task is not None:
            cancel_until_done(self.task)


class SingleFlight:
    """The flights of one cache, by event loop and key: a task can be awaited in its own loop only."""

    def __init__(self) -> None:
        self._flights: dict[tuple[asyncio.AbstractEventLoop, bytes], Flight] = {}
        self._aloft: set[Flight] = set()  # the loop holds tasks weakly, and a forgotten flight goes on

    def join(self, key: bytes) -> Flight | None:
        """The flight for `key` that is under way in this event loop, if any."""
        flight = self._flights.get((asyncio.get_running_loop(), key))
        return None if flight is None or (flight.task is not None and flight.task.done()) else flight

    def depart(
        self,
        key: bytes,
        flight: Flight,
        work: Coroutine[Any, Any, Any],
        context: Any = None,
    ) -> asyncio.Task[Any]:
        """Starts the flight for `key`, in a copy of the current context or in `context`."""
        loop = asyncio.get_running_loop()
        # Before there is a task: an eager one may be done by the time it is made.
        flight.here = here = loop, key
        self._flights[here] = flight
        self._aloft.add(flight)
        try:
            if context is None:
                task = loop.create_task(work, name="cache flight")
            else:
                task = begin_apart(loop, work, name="cache flight", context=context)
            flight.task = task
        except BaseException:
            self.land(flight)
            raise
        task.add_done_callback(functools.partial(self._ended, flight))
        return task

    def land(self, flight: Flight) -> None:
        """Ends a flight: in the last step of its task, which wakes those who wait a turn of the loop sooner."""
        self._aloft.discard(flight)
        if self._flights.get(flight.here) is flight:
            del self._flights[flight.here]
        flight.wake()

    def _ended(self, flight: Flight, task: asyncio.Task[Any]) -> None:
        if flight in self._aloft:  # cancelled before it began, the task had no last step
            self.land(flight)
        if not task.cancelled():
            task.exception()  # marks it as retrieved: everybody who waited may be gone

    def let_go(self, flight: Flight, seconds: float) -> None:
        """Gives a flight up after so many seconds, whoever waits for it by then; nobody makes it longer."""
        if flight.ends is None and flight in self._aloft:
            flight.ends = flight.here[0].call_later(seconds, flight.give_up)

    def desert(self, flight: Flight, seconds: float) -> None:
        """The same for one that nobody waits for; if somebody comes, it goes on."""
        if flight.ends is None:
            flight.deserted = flight.here[0].call_later(seconds, flight.give_up)

    def forget(self, key: bytes) -> None:
        """Lets nobody join the flights for `key` any more, and keeps them from storing what they bring."""
        for loop, flying in list(self._flights):
            if flying == key:
                self._flights.pop((loop, flying), None)

    def forget_all(self) -> None:
        """The same for every flight."""
        self._flights.clear()

    def void_tag(self, tag: str) -> None:
        """Keeps the flights under way from storing what has the tag."""
        for flight in list(self._aloft):
            flight.void_tags.add(tag)

    def is_current(self, flight: Flight) -> bool:
        """From inside a flight: whether it is still the one for its key."""
        return self._flights.get(flight.here) is flight

    def unattended(self) -> list[Flight]:
        """The flights of this event loop for which nobody waits, also those that were forgotten."""
        loop = asyncio.get_running_loop()
        return [flight for flight in list(self._aloft) if not flight.waiters and flight.here[0] is loop]

    def __len__(self) -> int:
        return len(self._flights)
