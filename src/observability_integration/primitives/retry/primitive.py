"""RetryPrimitive: asks the same target again when that may help, as long as there is time and budget."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Generic, cast

from observability_integration.context import WorkflowContext, current_deadline, earliest
from observability_integration.errors import ConfigurationError
from observability_integration.primitives.base import ChunkStream, In, Out, Step, WorkflowPrimitive
from observability_integration.primitives.lifting import call_of, lift
from observability_integration.resilience.backoff import Backoff, check_count
from observability_integration.resilience.faults import Classifier, Fault, classify
from observability_integration.resilience.retry_budget import Payment, RetryBudget, enter, leave
from observability_integration.telemetry.metrics.instruments import switch
from observability_integration.telemetry.tracing import spans
from observability_integration.telemetry.tracing.spans import OperationSpan

from . import testing_mode
from .record import GaveUp, RetryRecord

_SHARED: Any = object()


class RetryPrimitive(WorkflowPrimitive[In, Out], Generic[In, Out]):
    """Makes up to `max_attempts` attempts at a call, of faults that may pass: see the table in `resilience.faults`.

    Between attempts it waits at random for an exponentially growing time (full jitter), never less than the provider's
    Retry-After. A wait that would not end before the deadline is not begun: the last error passes at once, unchanged.

    Place it around one target, outside of that target's circuit breaker, so that every attempt feeds the breaker. The
    SDK inside should make no retries of its own (``max_retries=0``): they would multiply.

    Args:
        primitive: what to attempt.
        max_attempts: attempts in all, the first included, >= 1.
        backoff: the waits between them.
        budget: bounds the retries of all calls together; share one between everything that leads to the same target.
            By default each primitive has its own `RetryBudget`; None is no bound.
        classifier: asked first what kind of fault an exception is (see `resilience.faults.classify`).
        operation_name: label of the metrics; by default the wrapped primitive's name.

    A stream is attempted again only until its first content: two answers are never spliced.

    Raises:
        ConfigurationError: `max_attempts` is not a whole number >= 1.
    """

    def __init__(
        self,
        primitive: Step[In, Out],
        max_attempts: int = 3,
        *,
        backoff: Backoff | None = None,
        budget: RetryBudget | None = _SHARED,
        classifier: Classifier | None = None,
        operation_name: str | None = None,
    ) -> None:
        check_count("max_attempts", max_attempts)
        if classifier is not None and not callable(classifier):
            raise ConfigurationError("classifier must be a function of an exception")
        self.max_attempts = max_attempts
        self.backoff = Backoff() if backoff is None else backoff
        self._step: WorkflowPrimitive[Any, Any] = lift(primitive)
        self._call = call_of(self._step)
        self._classifier = classifier
        self._operation = operation_name or self._step.name
        self._record = RetryRecord(self, self._operation)
        self.budget = RetryBudget() if budget is _SHARED else budget
        if self.budget is not None:
            self.budget.watch(self._record.exhausted)

    @property
    def name(self) -> str:
        """The operation's name."""
        return self._operation

    def steps(self) -> Sequence[tuple[str, WorkflowPrimitive[Any, Any]]]:
        """What is attempted."""
        return [("", self._step)]

    def _label(self) -> str:
        return f"retry {self._operation} ({self.max_attempts} attempts)"

    async def execute(self, input_data: In, context: WorkflowContext | None = None) -> Out:
        """Attempts the call until it succeeds, or until another attempt would not help or is not allowed.

        Raises:
            Exception: the last attempt's own error, unchanged.
        """
        attempts = 1
        payment: Payment | None = None
        budget = self.budget
        if budget is not None:
            if budget.is_shared:
                payment = enter(budget)
            else:  # what `enter` would do, at half the cost
                budget.deposit()
        if not switch.on and not spans.tracing.enabled:
            try:
                while True:
                    try:
                        return cast("Out", await self._call(input_data, context))
                    except Exception as error:
                        wait_seconds = self._again(spans.NO_SPAN, error, attempts, context)
                        if wait_seconds is None:
                            raise
                    await asyncio.sleep(wait_seconds)
                    attempts += 1
            finally:
                if payment is not None:
                    leave(payment)
        span = self._begin(context)
        token = spans.tracing.activate(span)
        try:
            while True:
                try:
                    result = await self._call(input_data, context)
                except Exception as error:
                    wait_seconds = self._again(span, error, attempts, context)
                    if wait_seconds is None:
                        raise
                else:
                    self._record.succeeded(span, attempts)
                    return cast("Out", result)
                await asyncio.sleep(wait_seconds)
                attempts += 1
        except asyncio.CancelledError:
            self._record.cancelled(span, attempts)
            raise
        finally:
            leave(payment)
            spans.tracing.deactivate(token)
            span.end()

    def _again(
        self, span: OperationSpan, error: Exception, attempts: int, context: WorkflowContext | None
    ) -> float | None:
        """After how many seconds another attempt is made; None if there is none, and `error` is the call's."""
        turn = self.turn(error, attempts, context)
        if isinstance(turn, tuple):
            fault, wait_seconds = turn
            self._record.retrying(span, fault, wait_seconds)
            return wait_seconds
        self._record.failed(span, attempts, turn)
        spans.tracing.mark_failed(span, error)
        return None

    def stream(self, input_data: In, context: WorkflowContext | None = None) -> ChunkStream:
        """Streams, and attempts anew what fails before its first content."""
        from .stream import RetryStream

        return RetryStream(
            self, self._record, lambda: self._begin(context), lambda: self._step.stream(input_data, context), context
        )

    def _begin(self, context: WorkflowContext | None) -> OperationSpan:
        span = spans.tracing.begin(self._record.span_name, {})
        if context is not None:
            spans.identify(span, context)
        return span

    def fault_of(self, error: Exception) -> Fault:
        """What kind of fault an exception is."""
        return classify(error, self._classifier)

    def turn(self, error: Exception, attempts: int, context: WorkflowContext | None) -> tuple[Fault, float] | GaveUp:
        """What follows from the failure of an attempt: the wait before the next one, or why there is none.

        Args:
            error: what the attempt raised.
            attempts: how many were made.
            context: of the call.
        """
        fault = self.fault_of(error)
        self._record.note(error)
        if not fault.retries_same_target:
            return "not_retryable"
        mode = testing_mode.active()
        if attempts >= (self.max_attempts if mode is None else mode.attempts_of(self.max_attempts)):
            return "attempts"
        waits = mode is None or mode.wait
        wait_seconds = self.backoff.wait_for(
            attempts, fault.retry_after_seconds, _remaining(context) if waits else None
        )
        if wait_seconds is None:
            after = fault.retry_after_seconds
            return "retry_after" if after is not None and after > self.backoff.max_retry_after_seconds else "deadline"
        if self.budget is not None and not self.budget.withdraw():
            return "budget"
        return fault, (wait_seconds if waits else 0.0)


def _remaining(context: WorkflowContext | None) -> float | None:
    deadline = current_deadline()
    if context is not None:
        deadline = earliest(deadline, context.deadline)
    return None if deadline is None else deadline.remaining()
