"""HedgePrimitive: when the first call is slow, makes a second one, and takes the answer that begins first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic, cast

from observability_integration.checks import check_at_least, check_callable, check_cost
from observability_integration.context import WorkflowContext
from observability_integration.primitives.base import ChunkStream, In, Out, Step, WorkflowPrimitive
from observability_integration.primitives.lifting import lift
from observability_integration.resilience.faults import Classifier
from observability_integration.resilience.retry_budget import RetryBudget
from observability_integration.telemetry.tracing import spans
from observability_integration.telemetry.tracing.spans import OperationSpan

from .delay import HedgeDelay
from .race import HedgeRace, Rules, Side
from .record import HedgeRecord

_OWN: Any = object()
_RATIO = 0.15  # of which operations earn 0.10: twice what a quantile of 0.95 needs while times do not change


class HedgePrimitive(WorkflowPrimitive[In, Out], Generic[In, Out]):
    """Makes a second call when the first is slow, and takes the answer that begins first.

    A call is slow when it has not begun to answer after the time in which `quantile` of the recent ones had: the first
    content of a stream, also of one that `execute` collects, and else the whole result. The other call is cancelled
    then, and its end is waited for in the background, up to the grace.

    ===============================================  =================================================================
    what happens                                     what follows
    ===============================================  =================================================================
    the first fails before the second is made        its error passes unchanged: to ask again is for a retry
    one fails while the other is under way, or its   the other one decides
    stream ends without any content
    the first fails for its content, credentials or  its error passes at once: no other target is to be asked that
    request
    both fail                                        the error of the first passes unchanged; an empty answer is better
    the winner fails after its first content         its error passes unchanged: the other one is gone
    the caller is cancelled                          both are cancelled, and waited for up to the grace
    ===============================================  =================================================================

    A second call costs as much as a first one, and a provider has it to answer whoever wins. So nothing is hedged
    unless you wrap it, no more of the calls than are slow, and no more than the budget allows.

    Args:
        primitive: what to call.
        hedge: what to call if that is slow, best another provider; None calls the same again.
        quantile: of the times of recent first answers, between 0 and 1. About ``1 - quantile`` of the calls are hedged,
            so it should be well below the share of calls whose times are normal. 0.95 as in "The Tail at Scale" (Dean
            and Barroso, CACM 56(2), 2013).
        delay_seconds: a fixed time after which a call is slow, >= 0, instead of a measured one.
        min_delay_seconds: a measured one is never shorter, >= 0. A provider takes longer than the default to begin;
            what answers sooner is a cache further in.
        warmup_calls: answers it takes to know what slow is, from 1 to 512; until then nothing is hedged.
        budget: bounds the second calls of all operations together; share one with the retries that lead to the same
            target. By default each primitive has its own ``RetryBudget(0.15)``; None is no bound.
        grace_seconds: how long a cancelled call may take to end before it is left behind and counted, >= 0.
        cost_per_call: USD, for the metrics.
        hedge_cost_per_call: USD of a call of `hedge`; None for the same.
        classifier: asked first what kind of fault an exception is (see `resilience.faults.classify`).
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
        budget: RetryBudget | None = _OWN,
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

        def delay() -> HedgeDelay:
            return HedgeDelay(
                quantile, fixed_seconds=delay_seconds, least_seconds=min_delay_seconds, warmup_calls=warmup_calls
            )

        self._step: WorkflowPrimitive[Any, Any] = lift(primitive)
        self._hedge: WorkflowPrimitive[Any, Any] | None = None if hedge is None else lift(hedge)
        self._whole, self._first_content = delay(), delay()
        self._operation = operation_name or self._step.name
        record = HedgeRecord(self, self._operation, {"primary": cost_per_call, "hedge": hedge_cost_per_call})
        self._record = record
        self.budget = RetryBudget(_RATIO) if budget is _OWN else budget
        if self.budget is not None:
            self.budget.watch(record.exhausted)
        self._rules = Rules(record, self.budget, grace_seconds, classifier)
        second = self._step if self._hedge is None else self._hedge
        # Where both collect, who reads the stream and gathers it gets what `execute` returns, whoever has won.
        self._sides = (
            Side("primary", self._step),
            Side("hedge", second, self._step.join_chunks if self.execute_reads_stream else None),
        )

    @property
    def name(self) -> str:
        """The operation's name."""
        return self._operation

    @property
    def execute_reads_stream(self) -> bool:
        """Whether what is called does, and what is called if that is slow."""
        return self._step.execute_reads_stream and (self._hedge is None or self._hedge.execute_reads_stream)

    def join_chunks(self, chunks: list[Any]) -> Any:
        """What the wrapped primitive makes of the chunks."""
        return self._step.join_chunks(chunks)

    def steps(self) -> Sequence[tuple[str, WorkflowPrimitive[Any, Any]]]:
        """What is called, and what is called if that is slow."""
        if self._hedge is None:
            return [("", self._step)]
        return [("primary", self._step), ("hedge", self._hedge)]

    def _label(self) -> str:
        fixed = self._whole.fixed_seconds
        slow = f"p{self._whole.quantile * 100:g}" if fixed is None else f"{fixed:g} s"
        return f"hedge {self._operation} (after {slow})"

    def current_delay_seconds(self, *, streaming: bool = False) -> float | None:
        """After how long a call is slow now, in seconds; None while too few answers are known.

        Args:
            streaming: of `stream` instead of `execute`, if the two are not the same.
        """
        return self._delays(streaming).seconds()

    def _delays(self, streaming: bool) -> HedgeDelay:
        return self._first_content if streaming or self._step.execute_reads_stream else self._whole

    async def execute(self, input_data: In, context: WorkflowContext | None = None) -> Out:
        """Makes one call, or two.

        Raises:
            Exception: the error of the first call, unchanged, or that of the second if it had begun to answer.
        """
        record = self._record
        span = self._begin(context)
        token = spans.tracing.activate(span)
        race = HedgeRace(self._rules, self._delays(streaming=False), span, context)
        primary, hedge = self._sides
        try:
            attempt = await race.decide(
                lambda: primary.ask(input_data, context), lambda: hedge.ask(input_data, context)
            )
            result = await race.result(attempt)
        except Exception as error:
            record.failed(span)
            spans.tracing.mark_failed(span, error)
            raise
        except GeneratorExit:  # thrown away, which leaves no time to wait for anything
            race.throw_away()
            record.cancelled(span)
            raise
        except BaseException:
            try:
                await race.leave()
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
        """Streams from whichever begins first."""
        from .stream import HedgeStream

        delays = self._delays(streaming=True)
        primary, hedge = self._sides
        return HedgeStream(
            self._record,
            lambda: self._begin(context),
            lambda span: HedgeRace(self._rules, delays, span, context),
            (lambda: primary.step.stream(input_data, context), lambda: hedge.step.stream(input_data, context)),
        )

    def _begin(self, context: WorkflowContext | None) -> OperationSpan:
        span = spans.tracing.begin(self._record.span_name, {})
        if context is not None:
            spans.identify(span, context)
        return span
