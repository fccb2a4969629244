"""A stream that is retried until its first content is returned."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from observability_integration.context import WorkflowContext
from observability_integration.primitives.base import ChunkStream
from observability_integration.primitives.first_content import FirstContent, broken_off
from observability_integration.primitives.streams import ObservedStream, Outcome
from observability_integration.resilience.faults.caller import mark_begun
from observability_integration.resilience.question import Question, asked_again
from observability_integration.resilience.retry_budget import BudgetScope, leave_scope, open_scope
from observability_integration.telemetry.tracing import spans
from observability_integration.telemetry.tracing.spans import OperationSpan

from .decision import RetryDecision, is_late
from .record import GaveUp


class RetryStream(ObservedStream):
    """One streamed call of a `RetryPrimitive`.

    Args:
        decision: decides whether there is another attempt.
        open_attempt: opens the stream of an attempt.
        context: of the call.
    """

    def __init__(
        self, decision: RetryDecision, open_attempt: Callable[[], ChunkStream], context: WorkflowContext | None
    ) -> None:
        super().__init__(decision.record.operation, context)
        self._decision = decision
        self._records = decision.record
        self._open_attempt = open_attempt
        self._attempts = 0
        self._sdk_retries = 0
        self._attempt: FirstContent | None = None
        self._gave_up: GaveUp = "not_retryable"
        self._scope: BudgetScope | None = None
        self._question: Question | None = None

    def _begin(self) -> OperationSpan:
        return spans.begin(self._records.span_name, self._context)

    async def _open(self) -> None:
        """Opens nothing: the first attempt begins with the first chunk that is requested."""

    async def _next(self) -> Any:
        handled = sys.exception()  # inside of the `except` below it would be the attempt's own
        while True:
            if self._attempt is None:
                if self._attempts == 0:
                    self._scope = open_scope(self._decision.budget)
                self._attempt = FirstContent(self._open_attempt())
                self._attempts += 1
            attempt = self._attempt
            try:
                if self._scope is None and self._question is None:  # nearly always
                    return await attempt.next()
                with self._scope or nullcontext(), self._question or nullcontext():
                    return await attempt.next()
            except Exception as error:
                if isinstance(error, StopAsyncIteration):
                    raise
                if attempt.begun:
                    mark_begun(error)
                self._sdk_retries += self._decision.charge_sdk_retries(error, handled)
                if attempt.shown:
                    broken = broken_off(self._records.operation, attempt.chunks, self._decision.fault_of(error), error)
                    if broken is error:
                        raise
                    raise broken from error
                decided = self._decision.decide(error, self._attempts + self._sdk_retries, self._context)
                if not isinstance(decided, tuple):
                    self._gave_up = decided
                    raise
                self._records.retrying(self._span, *decided)
                self._question = self._question or asked_again(error, handled)
                self._attempt = None
                await attempt.give_up(error)
                failure = error
            await asyncio.sleep(decided[1])
            if is_late(self._context):
                self._gave_up = "deadline"
                raise failure
            del failure  # its traceback holds this frame

    async def _close(self) -> None:
        if self._attempt is not None:
            await self._attempt.close()

    def _record(self, outcome: Outcome, error: BaseException | None) -> None:
        leave_scope(self._scope)
        if self._question is not None:
            self._question.end()
        attempts, sdk_retries = self._attempts, self._sdk_retries
        if attempts == 0:
            return  # no chunk was requested, so no attempt was made
        if error is not None:
            self._records.failed(self._span, attempts, sdk_retries, self._gave_up)
        elif outcome == "cancelled":
            self._records.cancelled(self._span, attempts, sdk_retries)
        else:
            self._records.closed(self._span, attempts, sdk_retries, outcome)
