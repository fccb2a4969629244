"""Single flight: equal calls that overlap in time become one.

The flight is a task of its own that no caller owns, so a cancelled caller takes nobody with it: the others still get
their value, and what was paid for is still stored. A failure is one error that all of them share.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from observability_integration.tasks import announce, cancel_until_done

from .entry import Entry


class Flight:
    """One call under way.

    Attributes:
        task: what makes it.
        span: the span of the caller who started it, for the others to link to.
        stand_in: a stale entry that may be served if the call fails or is late.
        void_tags: hashes of tags that were invalidated meanwhile: what is made with one of them is not kept.
        tags: hashes of the tags of what it made, once that is known.
        here: the event loop it belongs to, and the key.
        deserted: ends the flight in a while, if nobody waits for it any more.
        given_up: whether it was cancelled because nobody waited for it, and not by what it calls.
    """

    __slots__ = ("_waiters", "deserted", "given_up", "here", "span", "stand_in", "tags", "task", "void_tags")

    def __init__(self, span: Any, stand_in: Entry | None) -> None:
        self.task: asyncio.Task[Any]
        self.here: tuple[asyncio.AbstractEventLoop, bytes]
        self.span = span
        self.stand_in = stand_in
        self.void_tags: set[str] = set()
        self.tags: tuple[str, ...] = ()
        self.deserted: asyncio.TimerHandle | None = None
        self.given_up = False
        self._waiters: dict[asyncio.Future[None], None] = {}

    def board(self) -> asyncio.Future[None]:
        """For one who waits: done when it has landed. Whoever boards has to `leave`."""
        if self.deserted is not None:
            self.deserted.cancel()
        waiter = self.here[0].create_future()
        self._waiters[waiter] = None
        return waiter

    def leave(self, waiter: asyncio.Future[None]) -> bool:
        """For one who waits no longer; says whether nobody does now, though it is still under way."""
        self._waiters.pop(waiter, None)
        if self.task.done():
            self.heed()  # who leaves may have been cancelled just now, and never ask for the error
            return False
        return not self._waiters

    @property
    def is_waited_for(self) -> bool:
        """Whether anybody waits."""
        return bool(self._waiters)

    def wake(self) -> None:
        """Wakes all who wait."""
        waiters, self._waiters = self._waiters, {}
        for waiter in waiters:
            announce(waiter)

    def heed(self) -> None:
        """Marks the error of the ended task, if it has one, as seen, or asyncio would log it."""
        if not self.task.cancelled():
            self.task.exception()

    def give_up(self) -> None:
        """Cancels the flight; whoever joined it all the same is not cancelled with it."""
        self.given_up = True
        cancel_until_done(self.task)


class SingleFlight:
    """The flights of one cache, by event loop and key: a task can be awaited in its own loop only."""

    def __init__(self) -> None:
        self._flights: dict[tuple[asyncio.AbstractEventLoop, bytes], Flight] = {}
        self._aloft: set[Flight] = set()  # the loop holds tasks weakly, and a forgotten flight goes on

    def join(self, key: bytes) -> Flight | None:
        """The flight for `key` that is under way in this event loop, if any."""
        flight = self._flights.get((asyncio.get_running_loop(), key))
        return None if flight is None or flight.task.done() else flight

    def depart(
        self,
        key: bytes,
        flight: Flight,
        work: Coroutine[Any, Any, Any],
        context: Any = None,
    ) -> None:
        """Starts the flight for `key`, in a copy of the current context or in `context`."""
        loop = asyncio.get_running_loop()
        flight.here = here = loop, key
        flight.task = loop.create_task(work, name="cache flight", context=context)
        self._flights[here] = flight
        self._aloft.add(flight)

    def land(self, flight: Flight) -> None:
        """In the last step of a flight's task: ends the flight, and wakes who waits a turn of the loop sooner."""
        self._aloft.discard(flight)
        if self._flights.get(flight.here) is flight:
            del self._flights[flight.here]
        flight.wake()

    def let_go(self, flight: Flight, seconds: float) -> asyncio.TimerHandle:
        """Leaves a flight to itself for so many seconds, after which it is given up; the timer may be cancelled.

        Sees to its end: a task that is cancelled before it began has no last step, and asyncio would log an error that
        nobody has asked for.
        """
        timer = asyncio.get_running_loop().call_later(seconds, flight.give_up)

        def end(_: object) -> None:
            timer.cancel()
            self.land(flight)
            flight.heed()

        flight.task.add_done_callback(end)
        return timer

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

    def is_current(self, key: bytes, flight: Flight) -> bool:
        """From inside a flight: whether it is still the one for `key`."""
        return self._flights.get((asyncio.get_running_loop(), key)) is flight

    def unattended(self) -> list[Flight]:
        """The flights of this event loop for which nobody waits, also those that were forgotten."""
        loop = asyncio.get_running_loop()
        return [flight for flight in list(self._aloft) if not flight.is_waited_for and flight.task.get_loop() is loop]

    def __len__(self) -> int:
        return len(self._flights)
