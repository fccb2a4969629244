"""Bounds the wait for chunks after the finish reason of an answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from observability_integration.context import current_deadline
from observability_integration.telemetry.guard import note_fault

#: Our choice: providers send the usage report and the end marker right after the finish reason. If they hang there, the
#: answer is complete anyway.
TAIL_SECONDS = 2.0


class TailTimeout:
    """The time left for chunks after the finish reason, `TAIL_SECONDS` in total."""

    __slots__ = ("_left",)

    def __init__(self) -> None:
        self._left = TAIL_SECONDS

    def restart(self) -> None:
        """Restarts the time after a chunk with content: some servers send a finish reason with every chunk."""
        self._left = TAIL_SECONDS

    async def next(self, chunks: AsyncIterator[Any]) -> Any:
        """Returns the next chunk.

        Awaits it in the reader's own task, and cancels that task at the timeout: a source may hold cancel scopes and
        tokens of context variables, which only the task that took them can give back.

        Raises:
            StopAsyncIteration: the chunks have ended, or the time is up.
        """
        task = asyncio.current_task()
        if task is None:
            return await anext(chunks)
        expired = False

        def expire() -> None:
            nonlocal expired
            expired = True
            task.cancel()

        loop, cancellations, deadline = asyncio.get_running_loop(), task.cancelling(), current_deadline()
        began = loop.time()
        # Half of a deadline's rest: a timeout around this call must not find a complete answer late.
        left = self._left if deadline is None else min(self._left, deadline.remaining() / 2)
        timer = loop.call_later(max(0.0, left), expire)
        try:
            return await anext(chunks)
        except asyncio.CancelledError:
            if not expired or task.cancelling() > cancellations + 1:
                raise  # the reader was cancelled, too or instead
            raise StopAsyncIteration from None
        except Exception as error:
            if not expired or task.cancelling() > cancellations + 1 or isinstance(error, StopAsyncIteration):
                raise
            note_fault("llm_call.close", error)  # an error of the source's clean-up
            raise StopAsyncIteration from None
        finally:
            timer.cancel()
            if expired:
                task.uncancel()
            self._left -= loop.time() - began
