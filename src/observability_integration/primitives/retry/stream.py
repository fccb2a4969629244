"""How a stream is attempted again: only as long as none of its content was handed out."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from observability_integration.context import WorkflowContext
from observability_integration.primitives.base import ChunkStream
from observability_integration.primitives.first_content import FirstContent, broken_off
from observability_integration.primitives.streams import ObservedStream, Outcome
from observability_integration.resilience.retry_budget import Payment, leave, pay
from observability_integration.telemetry.tracing.spans import OperationSpan

from .record import GaveUp, RetryRecord

if TYPE_CHECKING:
    from .primitive import RetryPrimitive


class RetryStream(ObservedStream):
    """One streamed call of a `RetryPrimitive`.

    Args:
        owner: decides whether there is another attempt.
        record: of the owner.
        begin: begins the span.
        open_again: begins an attempt.
        context: of the call.
    """

    def __init__(
        self,
        owner: RetryPrimitive[Any, Any],
        record: RetryRecord,
        begin: Callable[[], OperationSpan],
        open_again: Callable[[], ChunkStream],
        context: WorkflowContext | None,
    ) -> None:
        self._owner = owner
        self._records = record
        self._begin_span = begin
        self._open_again = open_again
        self._context = context
        self._attempts = 0
        self._attempt: FirstContent | None = None
        self._gave_up: GaveUp = "not_retryable"
        self._payment: Payment | None = None

    def _begin(self) -> OperationSpan:
        return self._begin_span()

    async def _open(self) -> None:
        """The first chunk that is asked for opens the first attempt."""

    async def _next(self) -> Any:
        while True:
            if self._attempt is None:
                if self._attempts == 0:
                    self._payment = pay(self._owner.budget)
                self._attempt = FirstContent(self._open_again())
                self._attempts += 1
            attempt = self._attempt
            try:
                with self._payment or nullcontext():
                    return await attempt.next()
            except Exception as error:
                if isinstance(error, StopAsyncIteration):
                    raise
                if attempt.shown:
                    told = broken_off(self._owner.name, attempt.chunks, self._owner.fault_of(error), error)
                    if told is error:
                        raise
                    raise told from error
                turn = self._owner.turn(error, self._attempts, self._context)
                if not isinstance(turn, tuple):
                    self._gave_up = turn
                    raise
                fault, wait_seconds = turn
                self._records.retrying(self._span, fault, wait_seconds)
                self._attempt = None
                await attempt.give_up(error)
            await asyncio.sleep(wait_seconds)

    async def _close(self) -> None:
        if self._attempt is not None:
            await self._attempt.close()

    def _record(self, outcome: Outcome, error: BaseException | None) -> None:
        leave(self._payment)
        attempts = self._attempts
        if attempts == 0:
            return  # nobody asked for a chunk, so nothing was asked for
        if error is not None:
            self._records.failed(self._span, attempts, self._gave_up)
        elif outcome == "cancelled":
            self._records.cancelled(self._span, attempts)
        else:
            self._records.closed(self._span, attempts, outcome)
