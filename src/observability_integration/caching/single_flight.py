"""Single flight: equal calls that overlap in time become one.

The flight is a task of its own that no caller owns, so a cancelled caller takes nobody with it: the others still get
their value, and what was paid for is still stored. A failure is one error that all of them share.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from typing import Any


class SingleFlight:
    """The flights of one cache, by event loop and key: a task can be awaited in its own loop only."""

    def __init__(self) -> None:
        self._flights: dict[tuple[asyncio.AbstractEventLoop, bytes], asyncio.Task[Any]] = {}
        self._aloft: set[asyncio.Task[Any]] = set()  # the loop holds tasks weakly, and a forgotten flight goes on

    def join(self, key: bytes) -> asyncio.Task[Any] | None:
        """The flight for `key` that is under way in this event loop, if any."""
        flight = self._flights.get((asyncio.get_running_loop(), key))
        return None if flight is None or flight.done() else flight

    def depart(self, key: bytes, work: Callable[[], Coroutine[Any, Any, Any]]) -> asyncio.Task[Any]:
        """Starts the flight for `key`."""
        loop = asyncio.get_running_loop()
        here = loop, key
        flight = self._flights[here] = loop.create_task(work(), name="cache flight")
        self._aloft.add(flight)
        flight.add_done_callback(functools.partial(self._landed, here))
        return flight

    def _landed(self, here: tuple[asyncio.AbstractEventLoop, bytes], flight: asyncio.Task[Any]) -> None:
        self._aloft.discard(flight)
        if self._flights.get(here) is flight:
            del self._flights[here]
        if not flight.cancelled():
            flight.exception()  # marks it as retrieved: everybody who waited may be gone

    def forget(self, key: bytes) -> None:
        """Lets nobody join the flights for `key` any more, and keeps them from storing what they bring."""
        for loop, flying in list(self._flights):
            if flying == key:
                self._flights.pop((loop, flying), None)

    def forget_all(self) -> None:
        """The same for every flight."""
        self._flights.clear()

    def is_current(self, key: bytes) -> bool:
        """From inside a flight: whether it is still the one for `key`."""
        return self._flights.get((asyncio.get_running_loop(), key)) is asyncio.current_task()

    def __len__(self) -> int:
        return len(self._flights)
