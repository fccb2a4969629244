"""FallbackPrimitive: asks the next target when one cannot serve, and no other when no other could."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Generic, Literal, cast, get_args

from observability_integration.context import WorkflowContext, current_deadline, earliest
from observability_integration.errors import AllTargetsFailedError, ConfigurationError, TargetFailure
from observability_integration.primitives.base import ChunkStream, In, Out, Step, WorkflowPrimitive
from observability_integration.primitives.lifting import call_of, lift
from observability_integration.resilience.backoff import check_count
from observability_integration.resilience.faults import FAULT_KINDS, Classifier, Fault, FaultKind, classify
from observability_integration.resilience.last_resort import last_resort
from observability_integration.telemetry.metrics.instruments import switch
from observability_integration.telemetry.tracing import spans
from observability_integration.telemetry.tracing.spans import OperationSpan

from .record import Failed, FallbackRecord

Turn = Literal["next", "larger_window", "raise"]


class Target:
    """One target of a fallback, as it was given."""

    __slots__ = ("call", "context_window", "name", "step")

    def __init__(self, name: str, step: WorkflowPrimitive[Any, Any], context_window: int | None) -> None:
        self.name = name
        self.step = step
        self.call = call_of(step)
        self.context_window = context_window


class FallbackPrimitive(WorkflowPrimitive[In, Out], Generic[In, Out]):
    """Asks the targets in order until one gives an answer.

    ===================================================  ===============================================================
    fault of a target                                    what follows
    ===================================================  ===============================================================
    content filter, wrong credentials, wrong request     it passes unchanged: no other target is to be asked that
    longer than the context window                       the next target whose window is larger, or not known
    any other: timeout, overloaded, cut stream, refused  the next target, at once
    the deadline has passed                              it passes unchanged
    ===================================================  ===============================================================

    The last target that is left is asked even if its circuit is open: the breaker lets one probe through (see
    `CircuitBreakerPrimitive`).

    With `execute` nothing of an answer has been seen before all of it is there, so a stream that is cut in the middle
    leads to the next target and a whole answer. A live reader of `stream` gets a `StreamInterruptedError` then, unless
    `restart_streams` is set: then a `StreamRestart` comes in between, after which the answer begins anew.

    Args:
        targets: primitives or async callables in order of preference; a mapping gives them names, which are labels.
        policy: what follows from a kind of fault, where it should differ from the table: ``next``, ``larger_window`` or
            ``raise``.
        context_windows: by target name, in tokens; a target that is not named has one of unknown size.
        restart_streams: whether live readers get a restart instead of an error.
        classifier: asked first what kind of fault an exception is (see `resilience.faults.classify`).
        operation_name: label of the metrics.

    Raises:
        ConfigurationError: no targets, names that occur twice, an unknown kind, turn or name, or a window below 1.
    """

    def __init__(
        self,
        targets: Sequence[Step[In, Out]] | Mapping[str, Step[In, Out]],
        *,
        policy: Mapping[FaultKind, Turn] | None = None,
        context_windows: Mapping[str, int] | None = None,
        restart_streams: bool = False,
        classifier: Classifier | None = None,
        operation_name: str = "fallback",
    ) -> None:
        windows = dict(context_windows or {})
        self._targets = [
            Target(name, step, windows.pop(name, None)) for name, step in _named(cast("Any", targets)).items()
        ]
        if not self._targets:
            raise ConfigurationError("a fallback needs at least one target")
        if windows:
            raise ConfigurationError(f"context_windows names no target: {', '.join(map(repr, windows))}")
        for target in self._targets:
            if target.context_window is not None:
                check_count("context_windows", target.context_window)
        self._alone = len(self._targets) == 1
        self._policy: dict[FaultKind, Turn] = {kind: _checked(kind, turn) for kind, turn in (policy or {}).items()}
        if classifier is not None and not callable(classifier):
            raise ConfigurationError("classifier must be a function of an exception")
        self._classifier = classifier
        self.restart_streams = restart_streams
        self._operation = operation_name
        self._record = FallbackRecord(self, operation_name, [target.name for target in self._targets])

    @property
    def name(self) -> str:
        """The operation's name."""
        return self._operation

    def steps(self) -> Sequence[tuple[str, WorkflowPrimitive[Any, Any]]]:
        """The targets, by their names."""
        return [(target.name, target.step) for target in self._targets]

    async def execute(self, input_data: In, context: WorkflowContext | None = None) -> Out:
        """Asks the targets in order.

        Raises:
            AllTargetsFailedError: two or more targets were asked in vain; the last one's error is its cause.
            Exception: the error of the only target that was asked, unchanged.
        """
        if not switch.on and not spans.tracing.enabled:
            search, target = None, self._targets[0]
            is_last = self._alone and last_resort.get() is True
            while True:
                resort = last_resort.set(is_last)
                try:
                    result = await target.call(input_data, context)
                except Exception as error:  # noqa: BLE001 - raised again unless another target is asked
                    search = search or Search(self._targets)
                    self.turn(spans.NO_SPAN, search, error, context)
                    target = search.target
                else:
                    if search is not None:
                        self._record.answered(search.index, search.fault)
                    elif self._record.restless:
                        self._record.answered(0, None)
                    return cast("Out", result)
                finally:
                    last_resort.reset(resort)
                is_last = search.is_last_resort(last_resort.get())
        span = self._begin(context)
        token = spans.tracing.activate(span)
        search = Search(self._targets)
        try:
            while True:
                resort = last_resort.set(search.is_last_resort(last_resort.get()))
                try:
                    result = await search.target.call(input_data, context)
                except Exception as error:  # noqa: BLE001 - raised again unless another target is asked
                    self.turn(span, search, error, context)
                else:
                    self._record.served(span, search.index, search.fault)
                    return cast("Out", result)
                finally:
                    last_resort.reset(resort)
        except asyncio.CancelledError:
            self._record.cancelled(span)
            raise
        except Exception as error:
            spans.tracing.mark_failed(span, error)
            raise
        finally:
            spans.tracing.deactivate(token)
            span.end()

    def stream(self, input_data: In, context: WorkflowContext | None = None) -> ChunkStream:
        """Streams from the first target whose answer begins."""
        from .stream import FallbackStream

        return FallbackStream(
            self,
            self._record,
            Search(self._targets),
            lambda: self._begin(context),
            lambda target: target.step.stream(input_data, context),
            context,
        )

    def _begin(self, context: WorkflowContext | None) -> OperationSpan:
        span = spans.tracing.begin(self._record.span_name, {})
        if context is not None:
            spans.identify(span, context)
        return span

    def fault_of(self, error: Exception) -> Fault:
        """What kind of fault an exception is."""
        return classify(error, self._classifier)

    def turn(self, span: OperationSpan, search: Search, error: Exception, context: WorkflowContext | None) -> None:
        """Turns `search` to the target that is asked next, or raises what the caller is told.

        Raises:
            AllTargetsFailedError: there is none left, and this was not the only one.
            Exception: `error` itself, if there is no use in asking another one.
        """
        fault = self.fault_of(error)
        search.failures.append(TargetFailure(search.target.name, fault.kind, error))
        reason: Failed
        if _is_over(context):
            reason = "deadline"
        elif (turn := self._turn_of(fault)) == "raise":
            reason = "fault"
        elif search.move_on(fault.kind, larger=turn == "larger_window"):
            self._record.turned(span, search.before, fault.kind)
            return
        else:
            reason = "exhausted"
        self._record.failed(span, reason)
        if reason == "exhausted" and len(search.failures) > 1:
            raise AllTargetsFailedError(self._operation, search.failures) from error
        raise error

    def _turn_of(self, fault: Fault) -> Turn:
        if fault.kind in self._policy:
            return self._policy[fault.kind]
        if fault.turns_to_next:
            return "next"
        return "larger_window" if fault.turns_to_larger_window else "raise"


class Search:
    """How far one call has come through the targets.

    Attributes:
        index: the number of the target that is asked.
        before: the number of the one that was asked before it.
        failures: what happened at those before.
        fault: the kind of the last one's.
    """

    __slots__ = ("_larger_than", "_targets", "before", "failures", "fault", "index")

    def __init__(self, targets: Sequence[Target]) -> None:
        self._targets = targets
        self._larger_than = 0
        self.index = 0
        self.before = 0
        self.failures: list[TargetFailure] = []
        self.fault: FaultKind | None = None

    @property
    def target(self) -> Target:
        """The target that is asked."""
        return self._targets[self.index]

    def is_last_resort(self, outer: bool | None) -> bool:
        """Whether all others were asked in vain, or could not serve.

        Args:
            outer: the same of a fallback further out, which may have targets left; None where there is none.
        """
        alone = self._next(self.index + 1) is None
        return alone and (outer is True or (outer is None and self.index > 0))

    def _next(self, start: int) -> int | None:
        for index in range(start, len(self._targets)):
            window = self._targets[index].context_window
            if window is None or window > self._larger_than:
                return index
        return None

    def move_on(self, fault: FaultKind, *, larger: bool) -> bool:
        """Turns to the next target that may serve; False if there is none."""
        if larger:
            self._larger_than = max(self._larger_than, self.target.context_window or 0)
        following = self._next(self.index + 1)
        if following is None:
            return False
        self.before, self.index, self.fault = self.index, following, fault
        return True


def _is_over(context: WorkflowContext | None) -> bool:
    deadline = current_deadline()
    if context is not None:
        deadline = earliest(deadline, context.deadline)
    return deadline is not None and deadline.remaining() <= 0


def _named(targets: Any) -> dict[str, WorkflowPrimitive[Any, Any]]:
    if isinstance(targets, Mapping):
        return {str(name): lift(step) for name, step in cast("Mapping[str, Any]", targets).items()}
    steps: list[WorkflowPrimitive[Any, Any]] = [lift(step) for step in targets]
    named: dict[str, WorkflowPrimitive[Any, Any]] = {}
    for step in steps:
        name, number = step.name, 1
        while name in named:  # two clients of the same model have the same name
            number += 1
            name = f"{step.name} {number}"
        named[name] = step
    return named


def _checked(kind: object, turn: object) -> Turn:
    if kind not in FAULT_KINDS:
        raise ConfigurationError(f"policy: a kind of fault is one of {', '.join(FAULT_KINDS)}, got {kind!r}")
    if turn not in get_args(Turn):
        raise ConfigurationError(f"policy[{kind!r}] must be 'next', 'larger_window' or 'raise', got {turn!r}")
    return cast("Turn", turn)
