"""What comes after the finish reason of an answer, waited for no longer than it is worth."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from observability_integration.context import current_deadline
from observability_integration.telemetry.guard import note_fault

#: What comes after the reason, a report of the usage and an end marker, is sent in the same breath. A provider that
#: hangs after it has given its answer all the same.
TRAILING_SECONDS = 2.0


class TrailingTime:
    """The time that is left to a source to say the rest."""

    __slots__ = ("_left",)

    def __init__(self) -> None:
        self._left = TRAILING_SECONDS

    def begin_anew(self) -> None:
        """There was content after all: some servers give a reason with every chunk."""
        self._left = TRAILING_SECONDS

    async def next(self, chunks: AsyncIterator[Any]) -> Any:
        """The next chunk.

        It is awaited in the reader's own task, and that is cancelled when the time is up: a source may hold cancel
        scopes and tokens of context variables, which can be given back only where they were taken.

        Raises:
            StopAsyncIteration: there is none, or the time is up.
        """
        task = asyncio.current_task()
        if task is None:
            return await anext(chunks)
        expired = False

        def expire() -> None:
            nonlocal expired
            expired = True
            task.cancel()

        loop, before, deadline = asyncio.get_running_loop(), task.cancelling(), current_deadline()
        began = loop.time()
        # Not to the last of a deadline: who watches that would find an answer that is whole too late.
        left = self._left if deadline is None else min(self._left, deadline.remaining() / 2)
        timer = loop.call_later(max(0.0, left), expire)
        try:
            return await anext(chunks)
        except asyncio.CancelledError:
            if not expired or task.cancelling() > before + 1:
                raise  # it is the reader who was cancelled, with or without us
            raise StopAsyncIteration from None
        except Exception as error:
            if not expired or task.cancelling() > before + 1 or isinstance(error, StopAsyncIteration):
                raise
            note_fault("llm_call.close", error)  # of what it did when it was cancelled
            raise StopAsyncIteration from None
        finally:
            timer.cancel()
            if expired:
                task.uncancel()
            self._left -= loop.time() - began
