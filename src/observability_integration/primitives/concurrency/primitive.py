"""ConcurrencyLimitPrimitive: limits concurrent calls. Excess calls wait in a bounded queue."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Coroutine
from typing import Any, cast, overload

from observability_integration.checks import check_at_least, check_callable
from observability_integration.context import WorkflowContext, deadline_of, mapping_of
from observability_integration.errors import ConcurrencyLimitError, ConfigurationError, PrimitiveTimeoutError
from observability_integration.primitives.base import In, Out, Step
from observability_integration.primitives.guard import GuardPrimitive
from observability_integration.primitives.lifting import lift, takes_context
from observability_integration.resilience.aimd import OVERLOAD_FAULTS, Aimd
from observability_integration.resilience.faults import Classifier, classify
from observability_integration.telemetry.guard import note_fault
from observability_integration.telemetry.tracing.spans import OperationSpan

from .limit import ConcurrencyLimit
from .permits import ConcurrencyPermit, Outcome, PermitRefused
from .queue import Priority, tier_of
from .record import ConcurrencyRecord

PriorityFunction = Callable[[Any, WorkflowContext], Priority] | Callable[[Any], Priority]

_MAX_QUEUED = 1000


class ConcurrencyLimitPrimitive(GuardPrimitive[In, Out, ConcurrencyPermit]):
    """Limits concurrent calls; excess calls wait by priority (see `ConcurrencyLimit`).

    The limit counts the calls of this process, in all threads and event loops. A stream counts from its opening until
    it has ended, was closed, or is garbage-collected.

    With an `Aimd` the limit adapts: it rises by a step while calls succeed, and falls by a tenth at a rate limit, an
    overload or a timeout (`OVERLOAD_FAULTS`). Calls that were cancelled, that failed in another way, whose quota is
    used up, or that reached a deadline from outside change nothing: the wait in the queue may have used up the time.

    A call that has to wait takes its priority from ``context.tags["priority"]``, else from `priority`.

    Args:
        primitive: the step to limit.
        limit: concurrent calls, >= 1; an `Aimd`, for this limit alone, adapts it.
        max_queued: the most waiters, >= 0.
        max_wait_seconds: the longest wait, >= 0; None for as long as the deadline of a call allows.
        priority: ``critical``, ``high``, ``low`` or ``best_effort``, or a synchronous function of ``(input, context)``
            or ``(input)`` that returns it. An error of the function or an unknown priority is counted, and ``high``
            is used.
        classifier: classifies an exception before the rules do (see `resilience.faults.classify`); used only where
            the limit adapts.
        operation_name: label of the metrics; by default the wrapped primitive's name.
        limiter: a limit that is shared with other primitives, instead of a limit of its own.

    Raises:
        ConfigurationError: an argument out of range, or `limiter` together with `limit` or `max_queued`.
    """

    @overload
    def __init__(
        self,
        primitive: Step[In, Out],
        limit: int | Aimd,
        *,
        max_queued: int = _MAX_QUEUED,
        max_wait_seconds: float | None = None,
        priority: Priority | PriorityFunction = "high",
        classifier: Classifier | None = None,
        operation_name: str | None = None,
    ) -> None: ...

    @overload
    def __init__(
        self,
        primitive: Step[In, Out],
        *,
        limiter: ConcurrencyLimit,
        max_wait_seconds: float | None = None,
        priority: Priority | PriorityFunction = "high",
        classifier: Classifier | None = None,
        operation_name: str | None = None,
    ) -> None: ...

    def __init__(
        self,
        primitive: Step[In, Out],
        limit: int | Aimd | None = None,
        *,
        max_queued: int = _MAX_QUEUED,
        max_wait_seconds: float | None = None,
        priority: Priority | PriorityFunction = "high",
        classifier: Classifier | None = None,
        operation_name: str | None = None,
        limiter: ConcurrencyLimit | None = None,
    ) -> None:
        if limiter is None and limit is None:
            raise ConfigurationError("limit is required, or a limiter to share")
        if limiter is not None and (limit is not None or max_queued != _MAX_QUEUED):
            raise ConfigurationError("limit and max_queued are the limiter's own; give either them or a limiter")
        check_at_least("max_wait_seconds", max_wait_seconds, 0, optional=True)
        check_callable("classifier", classifier, optional=True)
        self._priority_fn: Callable[..., Any] | None = priority if callable(priority) else None
        self._priority_with_context = callable(priority) and _takes_context(priority)
        self._default_priority: Priority = "high" if callable(priority) else _known(priority)
        self.limiter = limiter or ConcurrencyLimit(cast("int | Aimd", limit), max_queued=max_queued)
        self.max_wait_seconds = max_wait_seconds
        self._classifier = classifier
        step = lift(primitive)
        self._operation = operation_name or step.name
        self._record = ConcurrencyRecord(self._operation, self.limiter, self._default_priority)
        self._in_flight = self._record.in_flight
        super().__init__(step, self._record.span_name)

    @property
    def name(self) -> str:
        """The operation's name."""
        return self._operation

    def _label(self) -> str:
        adaptive = "adaptive, now " if self.limiter.adapts else ""
        return f"concurrency {self._operation} ({adaptive}{self.limiter.limit} at once)"

    def enter(
        self, span: OperationSpan, input_data: Any, context: WorkflowContext | None
    ) -> ConcurrencyPermit | Coroutine[Any, Any, ConcurrencyPermit]:
        """Acquires a permit, or waits for one.

        Raises:
            ConcurrencyLimitError: no permit became free in time, or the queue is full.
        """
        permit = self.limiter.try_acquire()
        if permit is None:
            return self._wait(span, input_data, context)
        self._in_flight.add(1)
        return permit

    def leave(
        self,
        ticket: ConcurrencyPermit,
        span: OperationSpan,
        error: BaseException | None,
        began: float,
        answer: Any = None,
        seen: Any = None,
    ) -> None:
        """Releases the permit; an adaptive limit adapts to the outcome."""
        self._in_flight.add(-1)
        outcome: Outcome = "success" if error is None else "neutral"
        try:
            if isinstance(error, Exception):
                outcome = self._outcome_of(error)
        finally:  # a signal may interrupt the classifier
            self.limiter.give_back(ticket, outcome)

    async def _wait(self, span: OperationSpan, input_data: Any, context: WorkflowContext | None) -> ConcurrencyPermit:
        tier = self._record.tier(self._priority_of(input_data, context))
        deadline = deadline_of(context)
        loop = asyncio.get_running_loop()
        began = loop.time()
        tier.queued.add(1)
        try:
            permit = await self.limiter.acquire(tier.priority, self.max_wait_seconds, deadline)
        except PermitRefused as refusal:
            tier.refused(span, refusal.reason, refusal.waited_seconds)
            error = ConcurrencyLimitError(self._operation, refusal.reason, refusal.waited_seconds, self.limiter.limit)
        else:
            tier.admitted(span, loop.time() - began)
            self._in_flight.add(1)
            return permit
        finally:
            tier.queued.add(-1)
        raise error

    def _outcome_of(self, error: Exception) -> Outcome:
        if not self.limiter.adapts:
            return "neutral"
        fault = classify(error, self._classifier)
        exhausted = fault.kind == "rate_limited" and fault.should_retry is False
        # A lower limit would make the wait longer, and the wait may be what used up the time.
        outer_deadline = isinstance(error, PrimitiveTimeoutError) and error.deadline_source == "inherited"
        return "neutral" if fault.kind not in OVERLOAD_FAULTS or exhausted or outer_deadline else "overload"

    def _priority_of(self, input_data: Any, context: WorkflowContext | None) -> Priority:
        try:
            if context is not None and "priority" in (tags := mapping_of(context, "tags")):
                return _known(tags["priority"])
        except Exception as error:  # noqa: BLE001 - what a request carries must not fail the user's call
            note_fault("concurrency.priority_tag", error)
        if self._priority_fn is None:
            return self._default_priority
        try:
            if self._priority_with_context:
                return _known(self._priority_fn(input_data, WorkflowContext() if context is None else context))
            return _known(self._priority_fn(input_data))
        except Exception as error:  # noqa: BLE001 - the user's function must not fail the user's call
            note_fault("concurrency.priority", error)
            return self._default_priority


def _takes_context(function: Callable[..., Any]) -> bool:
    if inspect.iscoroutinefunction(function):
        raise ConfigurationError("priority must be a synchronous function: it is asked while others wait")
    return takes_context(function)


def _known(priority: Any) -> Priority:
    if inspect.iscoroutine(cast("object", priority)):
        priority.close()  # Python would warn that it was never awaited
    tier_of(priority)
    return cast("Priority", priority)
