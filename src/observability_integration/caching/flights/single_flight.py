"""Single flight: equal calls that overlap in time become one.

A flight is a task of its own that no caller owns. A caller that is cancelled cancels no other: the other waiters still
get their value, and the entry is still stored. If the call fails, all waiters share its error.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Coroutine
from typing import Any

import msgspec

from observability_integration.caching.entry import Entry
from observability_integration.tasks import cancel_until_done, spawn_detached

from .waiting import CallNode, begin_wait, end_wait


class Flight(msgspec.Struct, eq=False):
    """One call in flight.

    Attributes:
        span: span of the leader, the caller that started the flight; followers link to it.
        stale_entry: a stale entry that may be served if the call fails or is late.
        task: the task that makes the call; None until `SingleFlight.start`.
        loop_key: the event loop of the flight, and its key.
        void_tags: hashes of the tags invalidated since the flight started: a value with one of them is not kept.
        tags: hashes of the tags of the computed value, once they are known.
        cancel_timer: cancels the flight after a time, waiters or not.
        unwaited_timer: cancels the flight after a time, unless a waiter is added before.
        cancel_requested: whether the cache itself cancelled the flight.
        waiters: one future for each waiter.
        node: the call, among those that wait for each other.
    """

    span: Any
    stale_entry: Entry | None
    task: asyncio.Task[Any] | None = None
    loop_key: Any = None
    void_tags: set[str] = set()
    tags: tuple[str, ...] = ()
    cancel_timer: asyncio.TimerHandle | None = None
    unwaited_timer: asyncio.TimerHandle | None = None
    cancel_requested: bool = False
    waiters: dict[asyncio.Future[None], None] = {}
    node: CallNode = msgspec.field(default_factory=CallNode)

    def add_waiter(self) -> asyncio.Future[None]:
        """Returns a future that is done when the flight finishes; it stays pending if the flight has finished already.

        Each waiter must be removed with `remove_waiter`.
        """
        if self.unwaited_timer is not None:
            self.unwaited_timer.cancel()
            self.unwaited_timer = None
        waiter: asyncio.Future[None] = self.loop_key[0].create_future()
        self.waiters[waiter] = None
        return waiter

    def remove_waiter(self, waiter: asyncio.Future[None]) -> bool:
        """Removes a waiter; returns whether the flight now runs without any."""
        self.waiters.pop(waiter, None)
        return not self.waiters and self.task is not None and not self.task.done()

    def wake_waiters(self) -> None:
        """Wakes all waiters and stops the timers."""
        waiters, self.waiters = self.waiters, {}
        for waiter in waiters:
            if not waiter.done():
                waiter.set_result(None)
        if self.cancel_timer is not None:
            self.cancel_timer.cancel()
        if self.unwaited_timer is not None:
            self.unwaited_timer.cancel()

    def cancel(self, again_seconds: float = 0.1) -> None:
        """Cancels the flight. A caller that has joined it meanwhile is not cancelled, but looks again.

        Args:
            again_seconds: until a task that has not ended is cancelled again.
        """
        self.cancel_requested = True
        if self.task is not None:
            cancel_until_done(self.task, again_seconds)


class SingleFlight:
    """The flights of one cache, by event loop and key: a task can be awaited in its own loop only."""

    def __init__(self) -> None:
        self._flights: dict[tuple[asyncio.AbstractEventLoop, bytes], Flight] = {}
        self._in_flight: set[Flight] = set()  # the loop holds tasks weakly, and a forgotten flight goes on

    def running(self, key: bytes) -> Flight | None:
        """The flight for `key` that runs in this event loop, or None."""
        flight = self._flights.get((asyncio.get_running_loop(), key))
        return None if flight is None or (flight.task is not None and flight.task.done()) else flight

    def start(
        self,
        key: bytes,
        flight: Flight,
        work: Coroutine[Any, Any, Any],
        context: Any = None,
    ) -> asyncio.Task[Any]:
        """Starts the flight for `key`, in a copy of the current context or in `context`."""
        loop = asyncio.get_running_loop()
        # Before there is a task: an eager one may be done by the time it is made.
        flight.loop_key = loop_key = loop, key
        self._flights[loop_key] = flight
        self._in_flight.add(flight)
        waiting = begin_wait(flight.node)  # an eager task runs before its caller can wait for it
        try:
            if context is None:
                task = loop.create_task(work, name="cache flight")
            else:
                task = spawn_detached(loop, work, name="cache flight", context=context)
            flight.task = task
        except BaseException:
            self.finish(flight)
            raise
        finally:
            end_wait(waiting, flight.node)
        task.add_done_callback(functools.partial(self._on_task_done, flight))
        return task

    def finish(self, flight: Flight) -> None:
        """Ends a flight. Called in the last step of its task, which wakes waiters one iteration of the loop sooner."""
        self._in_flight.discard(flight)
        if self._flights.get(flight.loop_key) is flight:
            del self._flights[flight.loop_key]
        flight.wake_waiters()

    def _on_task_done(self, flight: Flight, task: asyncio.Task[Any]) -> None:
        if flight in self._in_flight:  # a task that is cancelled before it begins has no last step
            self.finish(flight)
        if not task.cancelled():
            task.exception()  # marks it as retrieved: all waiters may be gone

    def cancel_after(self, flight: Flight, seconds: float) -> None:
        """Cancels a flight after a time, waiters or not; a second call does not extend the time."""
        if flight.cancel_timer is None and flight in self._in_flight:
            flight.cancel_timer = flight.loop_key[0].call_later(seconds, flight.cancel)

    def cancel_if_unwaited(self, flight: Flight, seconds: float) -> None:
        """Cancels a flight without waiters after a time; a new waiter keeps it going."""
        if flight.cancel_timer is None:
            flight.unwaited_timer = flight.loop_key[0].call_later(seconds, flight.cancel)

    def forget(self, key: bytes) -> None:
        """Detaches the flights for `key`: no caller can join them any more, and their values are not kept."""
        for loop, flight_key in list(self._flights):
            if flight_key == key:
                self._flights.pop((loop, flight_key), None)

    def forget_all(self) -> None:
        """Detaches every flight, as `forget` does."""
        self._flights.clear()

    def void_tag(self, tag: str) -> None:
        """Prevents the flights in progress from storing a value with the tag."""
        for flight in list(self._in_flight):
            flight.void_tags.add(tag)

    def is_current(self, flight: Flight) -> bool:
        """Whether a flight is still the one for its key; to be called from inside it."""
        return self._flights.get(flight.loop_key) is flight

    def unwaited(self) -> list[Flight]:
        """The flights of this event loop without waiters, forgotten ones included."""
        loop = asyncio.get_running_loop()
        return [flight for flight in list(self._in_flight) if not flight.waiters and flight.loop_key[0] is loop]

    def __len__(self) -> int:
        return len(self._flights)
