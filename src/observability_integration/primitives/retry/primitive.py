"""RetryPrimitive: retries a call to the same target while time and budget allow."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from typing import Any, Generic, cast

from observability_integration.checks import check_callable, check_count
from observability_integration.context import WorkflowContext, deadline_var
from observability_integration.primitives.base import (
    ChunkStream,
    In,
    Out,
    Step,
    WorkflowPrimitive,
    check_time_left,
)
from observability_integration.primitives.lifting import call_of, lift
from observability_integration.resilience.backoff import Backoff
from observability_integration.resilience.faults import Classifier
from observability_integration.resilience.question import Question, asked_again
from observability_integration.resilience.retry_budget import BudgetScope, RetryBudget, enter_scope, leave_scope
from observability_integration.telemetry.metrics.instruments import switch
from observability_integration.telemetry.tracing import spans
from observability_integration.telemetry.tracing.spans import NO_SPAN

from .decision import RetryDecision, is_late
from .record import RetryRecord
from .stream import RetryStream

_OWN_BUDGET: Any = object()


class RetryPrimitive(WorkflowPrimitive[In, Out], Generic[In, Out]):
    """Makes up to `max_attempts` attempts at a call that fails for a passing reason (the table in `resilience.faults`).

    The wait between attempts is random and grows exponentially (full jitter). It is never shorter than the provider's
    Retry-After. If the wait would not end before the deadline, the last error is raised at once, unchanged.

    Place it around one target, outside of that target's circuit breaker, so that the breaker sees every attempt. For a
    lone target the breaker counts one failure for all of them (see `BreakerPolicy`).

    The SDK inside should make no retries of its own (``max_retries=0``): their waits know neither the deadline nor the
    budget. Those that its error tells of are charged to `max_attempts` and to the budget: openai and anthropic, and
    others with the header ``x-stainless-retry-count``; botocore; litellm; tenacity's ``RetryError``; requests and
    urllib3. One attempt of such a client may be several, so the target may get more than `max_attempts` requests.

    A stream is retried only before its first content: two answers are never spliced.

    Args:
        primitive: the step to attempt.
        max_attempts: attempts in all, the first and the client's own retries included, >= 1.
        backoff: the waits between attempts.
        budget: bounds the retries of all calls together; share one between all primitives that lead to the same target.
            By default each primitive has its own `RetryBudget`; None for no bound.
        classifier: classifies an exception before the rules do (see `resilience.faults.classify`).
        operation_name: label of the metrics; by default the wrapped primitive's name.

    Raises:
        ConfigurationError: `max_attempts` is not a whole number >= 1.
    """

    def __init__(
        self,
        primitive: Step[In, Out],
        max_attempts: int = 3,
        *,
        backoff: Backoff | None = None,
        budget: RetryBudget | None = _OWN_BUDGET,
        classifier: Classifier | None = None,
        operation_name: str | None = None,
    ) -> None:
        check_count("max_attempts", max_attempts)
        check_callable("classifier", classifier, optional=True)
        self._step: WorkflowPrimitive[Any, Any] = lift(primitive)
        self._call = call_of(self._step)
        self._operation = operation_name or self._step.name
        self._record = RetryRecord(self, self._operation)
        chosen = RetryBudget() if budget is _OWN_BUDGET else budget
        if chosen is not None:
            chosen.watch(self._record.exhausted)
        self._decision = RetryDecision(max_attempts, backoff or Backoff(), chosen, classifier, self._record)

    @property
    def name(self) -> str:
        """The operation's name."""
        return self._operation

    @property
    def max_attempts(self) -> int:
        """Attempts in all, >= 1; a change holds from the next decision on, as of the other two."""
        return self._decision.max_attempts

    @max_attempts.setter
    def max_attempts(self, attempts: int) -> None:
        check_count("max_attempts", attempts)
        self._decision.max_attempts = attempts

    @property
    def backoff(self) -> Backoff:
        """The waits between attempts."""
        return self._decision.backoff

    @backoff.setter
    def backoff(self, backoff: Backoff) -> None:
        self._decision.backoff = backoff

    @property
    def budget(self) -> RetryBudget | None:
        """The budget of the retries; None for no bound."""
        return self._decision.budget

    @budget.setter
    def budget(self, budget: RetryBudget | None) -> None:
        self._decision.budget = budget

    def steps(self) -> Sequence[tuple[str, WorkflowPrimitive[Any, Any]]]:
        """The step that is attempted."""
        return [("", self._step)]

    def _label(self) -> str:
        return f"retry {self._operation} ({self.max_attempts} attempts)"

    async def execute(self, input_data: In, context: WorkflowContext | None = None) -> Out:
        """Attempts the call until it succeeds, or another attempt would be useless or is not allowed.

        Raises:
            PrimitiveTimeoutError: the deadline has passed.
            Exception: the error of the last attempt, unchanged.
        """
        if deadline_var.get() is not None or context is not None:
            check_time_left(self, context)
        attempts, sdk_retries = 1, 0
        handled = sys.exception()  # inside of the `except` below it would be the attempt's own
        failure: Exception | None = None
        question: Question | None = None
        scope: BudgetScope | None = None
        budget = self._decision.budget
        if budget is not None:
            if budget.is_shared:
                scope = enter_scope(budget)
            else:  # as `enter_scope` does, at half the cost
                budget.deposit()
        tracing = spans.tracing
        span, token = NO_SPAN, None
        if tracing.enabled:
            span = spans.begin(self._record.span_name, context)
            token = tracing.activate(span)
        try:
            while True:
                try:
                    result = await self._call(input_data, context)
                except Exception as error:
                    sdk_retries += self._decision.charge_sdk_retries(error, handled)
                    decided = self._decision.decide(error, attempts + sdk_retries, context)
                    if not isinstance(decided, tuple):
                        self._record.failed(span, attempts, sdk_retries, decided)
                        tracing.mark_failed(span, error)
                        raise
                    self._record.retrying(span, *decided)
                    if question is None and (question := asked_again(error, handled)) is not None:
                        question.__enter__()
                    failure = error
                else:
                    if switch.on or span is not NO_SPAN:
                        self._record.succeeded(span, attempts, sdk_retries)
                    return cast("Out", result)
                await asyncio.sleep(decided[1])
                if is_late(context):
                    self._record.failed(span, attempts, sdk_retries, "deadline")
                    tracing.mark_failed(span, failure)
                    raise failure
                attempts += 1
        except asyncio.CancelledError:
            self._record.cancelled(span, attempts, sdk_retries)
            raise
        finally:
            failure = None  # its traceback holds this frame
            if question is not None:
                question.end()
            if scope is not None:
                leave_scope(scope)
            if span is not NO_SPAN:
                tracing.deactivate(token)
                span.end()

    def stream(self, input_data: In, context: WorkflowContext | None = None) -> ChunkStream:
        """Streams, and retries while no content has been returned."""
        return RetryStream(self._decision, lambda: self._step.stream(input_data, context), context)
