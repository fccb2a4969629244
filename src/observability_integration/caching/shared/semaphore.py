"""Limits how many accesses to the shared store run at once, so that a burst queues here and not inside the client."""

from __future__ import annotations

import asyncio
from collections import deque

from observability_integration.tasks import wait_done


class ConcurrencyGate:
    """A number of places for each event loop, given in the order of asking.

    Args:
        limit: places in each loop.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._inside: dict[asyncio.AbstractEventLoop, int] = {}
        self._waiting: dict[asyncio.AbstractEventLoop, deque[asyncio.Future[None]]] = {}

    def try_enter(self) -> bool:
        """Takes a place, to be given back with `leave`; False when there is none now."""
        loop = asyncio.get_running_loop()
        inside = self._inside.get(loop, 0)
        if inside >= self._limit:
            return False
        self._inside[loop] = inside + 1
        return True

    async def enter(self, timeout_seconds: float) -> bool:
        """Takes a place, to be given back with `leave`; False when none became free in time."""
        if self.try_enter():
            return True
        loop = asyncio.get_running_loop()
        turn: asyncio.Future[None] = loop.create_future()
        self._waiting.setdefault(loop, deque()).append(turn)
        try:
            if await wait_done(turn, timeout_seconds):
                return True
        except asyncio.CancelledError:
            if turn.done():
                self.leave()
            else:
                turn.cancel()
            raise
        turn.cancel()
        return False

    def widen(self, limit: int) -> None:
        """Raises the number of places, and lets waiting accesses of this loop in."""
        self._limit = limit
        loop = asyncio.get_running_loop()
        waiting = self._waiting.get(loop)
        while waiting and self._inside.get(loop, 0) < limit:
            turn = waiting.popleft()
            if not turn.done():
                self._inside[loop] = self._inside.get(loop, 0) + 1
                turn.set_result(None)

    def leave(self) -> None:
        """Gives a place back, to the access that has waited longest, if any."""
        loop = asyncio.get_running_loop()
        waiting = self._waiting.get(loop)
        while waiting:
            turn = waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                return
        # A loop without accesses is forgotten: it may be closed and never come back.
        self._waiting.pop(loop, None)
        if self._inside[loop] == 1:
            del self._inside[loop]
        else:
            self._inside[loop] -= 1
