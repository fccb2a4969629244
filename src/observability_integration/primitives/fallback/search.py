"""Which target is asked next: the table of faults, the context windows, and how far one call has come."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from observability_integration.context import WorkflowContext, current_deadline, earliest
from observability_integration.errors import AllTargetsFailedError, TargetFailure
from observability_integration.primitives.base import WorkflowPrimitive
from observability_integration.primitives.lifting import call_of
from observability_integration.resilience.faults import Classifier, Fault, FaultKind, classify
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

    def advance(self, fault: FaultKind, *, larger: bool) -> bool:
        """Moves to the next target that may serve; False if there is none."""
        if larger:
            self._larger_than = max(self._larger_than, self.target.context_window or 0)
        following = self._next(self.index + 1)
        if following is None:
            return False
        self.before, self.index, self.fault = self.index, following, fault
        return True


class Failover:
    """Decides, for one `FallbackPrimitive`, what follows from the failure of a target.

    Args:
        targets: in order of preference.
        policy: what follows from a kind of fault, where it differs from the table.
        classifier: asked first what kind of fault an exception is.
        restart_streams: whether live readers get a restart instead of an error.
        record: of the primitive.
    """

    def __init__(
        self,
        targets: Sequence[Target],
        policy: Mapping[FaultKind, Turn],
        classifier: Classifier | None,
        record: FallbackRecord,
        *,
        restart_streams: bool,
    ) -> None:
        self.targets = targets
        self.record = record
        self.restart_streams = restart_streams
        self._policy = policy
        self._classifier = classifier

    def fault_of(self, error: Exception) -> Fault:
        """The kind of fault of an exception."""
        return classify(error, self._classifier)

    def advance(self, span: OperationSpan, search: Search, error: Exception, context: WorkflowContext | None) -> None:
        """Moves `search` to the target that is asked next, or raises what the caller is told.

        Raises:
            AllTargetsFailedError: no target is left, and more than one was asked.
            Exception: `error` itself, where no other target is to be asked.
        """
        fault = self.fault_of(error)
        search.failures.append(TargetFailure(search.target.name, fault.kind, error))
        reason: Failed
        if _is_over(context):
            reason = "deadline"
        elif (turn := self._turn_of(fault)) == "raise":
            reason = "fault"
        elif search.advance(fault.kind, larger=turn == "larger_window"):
            self.record.failed_over(span, search.before, fault.kind)
            return
        else:
            reason = "exhausted"
        self.record.failed(span, reason)
        if reason == "exhausted" and len(search.failures) > 1:
            raise AllTargetsFailedError(self.record.operation, search.failures) from error
        raise error

    def _turn_of(self, fault: Fault) -> Turn:
        if fault.kind in self._policy:
            return self._policy[fault.kind]
        if fault.turns_to_next:
            return "next"
        return "larger_window" if fault.turns_to_larger_window else "raise"


def _is_over(context: WorkflowContext | None) -> bool:
    deadline = current_deadline()
    if context is not None:
        deadline = earliest(deadline, context.deadline)
    return deadline is not None and deadline.remaining() <= 0
