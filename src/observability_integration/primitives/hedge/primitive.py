"""`HedgePrimitive`: makes a second call if the first is slow, and takes the answer that begins first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic, cast

from observability_integration.checks import check_at_least, check_callable, check_cost
from observability_integration.context import WorkflowContext
from observability_integration.primitives.base import (
    ChunkStream,
    In,
    Out,
    Step,
    WorkflowPrimitive,
    check_time_left,
)
from observability_integration.primitives.lifting import lift
from observability_integration.resilience.faults import Classifier
from observability_integration.resilience.retry_budget import RetryBudget
from observability_integration.telemetry.tracing import spans

from .delay import HedgeDelay
from .race import HedgeRace, HedgeTarget, RaceSettings
from .record import HedgeRecord

_OWN_BUDGET: Any = object()
_RATIO = 0.15  # operations earn 0.10 of it: twice what a quantile of 0.95 needs while times are stable


class HedgePrimitive(WorkflowPrimitive[In, Out], Generic[In, Out]):
    """Makes a second call, the hedge, if the first is slow, and takes the answer that begins first.

    A call is slow if its answer has not begun within the `quantile` of the recent times. An answer begins with the
    first content of a stream, also of one that `execute` reads, else with the whole result. The other call is then
    cancelled, and ends in the background, within the grace.

    ===============================================  =================================================================
    what happens                                     what follows
    ===============================================  =================================================================
    the first fails before the second is made        its error passes unchanged: a second attempt is a retry's task
    one fails while the other is in flight, or its   the other one decides
    stream ends without any content
    the first fails for its content, credentials or  its error passes at once: no other target may get that request
    request, or a mistake of the calling program
    both fail                                        the error of the first passes unchanged; an empty answer is better
    the winner fails after its first content         its error passes unchanged: the other one is cancelled
    the caller is cancelled                          both are cancelled; the caller waits up to the grace
    ===============================================  =================================================================

    A hedge costs as much as a first call, and loads the provider even if it loses. So only wrapped calls are hedged,
    only slow ones, and no more than the budget allows.

    Args:
        primitive: the first call.
        hedge: the second call if the first is slow, best to another provider; None repeats `primitive`.
        quantile: quantile of the recent times to the first answer, between 0 and 1. About ``1 - quantile`` of the calls
            are hedged, so it should be well below the share of calls with normal times. 0.95 as in "The Tail at Scale"
            (Dean and Barroso, CACM 56(2), 2013).
        delay_seconds: a fixed time after which a call is slow, >= 0, instead of a measured one.
        min_delay_seconds: lower bound of a measured delay, >= 0. Providers take longer than the default to begin;
            faster answers come from a cache below.
        warmup_calls: answers needed before a delay is measured, from 1 to 512; until then no call is hedged.
        budget: bounds the hedges of all operations together; share it with the retries of the same target. By default
            each primitive has its own ``RetryBudget(0.15)``; None means no bound.
        grace_seconds: time for a cancelled call to end before it counts as abandoned, >= 0.
        cost_per_call: USD, for the metrics.
        hedge_cost_per_call: USD of a call of `hedge`; None means the same.
        classifier: classifies an exception before the built-in rules (see `resilience.faults.classify`).
        operation_name: label of the metrics; by default the wrapped primitive's name.

    Raises:
        ConfigurationError: a value out of range.
    """

    def __init__(
        self,
        primitive: Step[In, Out],
        hedge: Step[In, Out] | None = None,
        *,
        quantile: float = 0.95,
        delay_seconds: float | None = None,
        min_delay_seconds: float = 0.05,
        warmup_calls: int = 100,
        budget: RetryBudget | None = _OWN_BUDGET,
        grace_seconds: float = 5.0,
        cost_per_call: float = 0.0,
        hedge_cost_per_call: float | None = None,
        classifier: Classifier | None = None,
        operation_name: str | None = None,
    ) -> None:
        check_at_least("grace_seconds", grace_seconds, 0)
        check_cost("cost_per_call", cost_per_call)
        if hedge_cost_per_call is None:
            hedge_cost_per_call = cost_per_call
        check_cost("hedge_cost_per_call", hedge_cost_per_call)
        check_callable("classifier", classifier, optional=True)

        def new_delay() -> HedgeDelay:
            return HedgeDelay(
                quantile, fixed_seconds=delay_seconds, min_seconds=min_delay_seconds, warmup_calls=warmup_calls
            )

        self._step: WorkflowPrimitive[Any, Any] = lift(primitive)
        self._hedge: WorkflowPrimitive[Any, Any] | None = None if hedge is None else lift(hedge)
        self._result_delay, self._first_content_delay = new_delay(), new_delay()
        self._operation = operation_name or self._step.name
        record = HedgeRecord(self, self._operation, {"primary": cost_per_call, "hedge": hedge_cost_per_call})
        self._record = record
        self.budget = RetryBudget(_RATIO) if budget is _OWN_BUDGET else budget
        if self.budget is not None:
            self.budget.watch(record.exhausted)
        self._settings = RaceSettings(record, self.budget, grace_seconds, classifier)
        hedged = self._step if self._hedge is None else self._hedge
        # If both targets stream, a reader that joins the chunks itself gets the result of `execute`, whichever wins.
        join_chunks = self._step.join_chunks if self.execute_reads_stream else None
        self._targets = HedgeTarget("primary", self._step), HedgeTarget("hedge", hedged, join_chunks)

    @property
    def name(self) -> str:
        """The operation's name."""
        return self._operation

    @property
    def execute_reads_stream(self) -> bool:
        """Whether `execute` of both targets only reads their streams."""
        return self._step.execute_reads_stream and (self._hedge is None or self._hedge.execute_reads_stream)

    def join_chunks(self, chunks: list[Any]) -> Any:
        """Joins the chunks as the wrapped primitive does."""
        return self._step.join_chunks(chunks)

    def steps(self) -> Sequence[tuple[str, WorkflowPrimitive[Any, Any]]]:
        """The target of the first call and, if it is another one, that of the hedge."""
        if self._hedge is None:
            return [("", self._step)]
        return [("primary", self._step), ("hedge", self._hedge)]

    def _label(self) -> str:
        fixed = self._result_delay.fixed_seconds
        slow = f"p{self._result_delay.quantile * 100:g}" if fixed is None else f"{fixed:g} s"
        return f"hedge {self._operation} (after {slow})"

    def current_delay_seconds(self, *, streaming: bool = False) -> float | None:
        """Returns the delay after which a call is slow now, in seconds; None until the warm-up is over.

        Args:
            streaming: the delay of `stream` instead of `execute`, if the two differ.
        """
        return self._delay_of(streaming).seconds()

    def _delay_of(self, streaming: bool) -> HedgeDelay:
        return self._first_content_delay if streaming or self._step.execute_reads_stream else self._result_delay

    async def execute(self, input_data: In, context: WorkflowContext | None = None) -> Out:
        """Makes one call or two.

        Raises:
            PrimitiveTimeoutError: the deadline has passed.
            Exception: the error of the first call, unchanged; that of the hedge if its answer had begun.
        """
        check_time_left(self, context)
        record = self._record
        span = spans.begin(record.span_name, context)
        token = spans.tracing.activate(span)
        race = HedgeRace(self._settings, self._delay_of(streaming=False), span, context)
        primary, hedge = self._targets
        try:
            attempt = await race.decide(
                lambda: primary.start(input_data, context), lambda: hedge.start(input_data, context)
            )
            result = await race.result(attempt)
        except Exception as error:
            record.failed(span)
            spans.tracing.mark_failed(span, error)
            raise
        except GeneratorExit:  # a finaliser closes the coroutine, which cannot await
            race.cancel_now()
            record.cancelled(span)
            raise
        except BaseException:
            try:
                await race.cancel()
            finally:
                record.cancelled(span)
            raise
        else:
            record.succeeded(span, race.winner)
            return cast("Out", result)
        finally:
            race.end()
            spans.tracing.deactivate(token)
            span.end()

    def stream(self, input_data: In, context: WorkflowContext | None = None) -> ChunkStream:
        """Streams the answer that begins first."""
        from .stream import HedgeStream

        delay = self._delay_of(streaming=True)
        primary, hedge = self._targets
        return HedgeStream(
            self._record,
            context,
            lambda span: HedgeRace(self._settings, delay, span, context),
            (lambda: primary.step.stream(input_data, context), lambda: hedge.step.stream(input_data, context)),
        )
