"""Slots: how many accesses to the shared store run at once, so that a burst queues here and not inside the client."""

from __future__ import annotations

import asyncio
from collections import deque

from observability_integration.tasks import wait_done


class Slots:
    """A number of slots for each event loop, handed on in the order of asking.

    Args:
        limit: slots in each loop.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._taken: dict[asyncio.AbstractEventLoop, int] = {}
        self._waiting: dict[asyncio.AbstractEventLoop, deque[asyncio.Future[None]]] = {}

    async def take(self, timeout_seconds: float) -> bool:
        """Takes a slot, to be given back with `give_back`; False when none was to be had in time."""
        loop = asyncio.get_running_loop()
        taken = self._taken.get(loop, 0)
        if taken < self._limit:
            self._taken[loop] = taken + 1
            return True
        turn: asyncio.Future[None] = loop.create_future()
        self._waiting.setdefault(loop, deque()).append(turn)
        try:
            if await wait_done(turn, timeout_seconds):
                return True
        except asyncio.CancelledError:
            if turn.done():
                self.give_back()
            else:
                turn.cancel()
            raise
        turn.cancel()
        return False

    def widen(self, limit: int) -> None:
        """Raises the number of slots, and lets those in who wait for one in this loop."""
        self._limit = limit
        loop = asyncio.get_running_loop()
        waiting = self._waiting.get(loop)
        while waiting and self._taken.get(loop, 0) < limit:
            turn = waiting.popleft()
            if not turn.done():
                self._taken[loop] = self._taken.get(loop, 0) + 1
                turn.set_result(None)

    def give_back(self) -> None:
        """Hands a slot to whoever has waited longest, if anybody still does."""
        loop = asyncio.get_running_loop()
        waiting = self._waiting.get(loop)
        while waiting:
            turn = waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        # A loop that has nothing under way is forgotten: it may be closed and never come back.
        self._waiting.pop(loop, None)
        if self._taken[loop] == 1:
            del self._taken[loop]
        else:
            self._taken[loop] -= 1
