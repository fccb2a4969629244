"""Selects the next target by the kind of fault and the context windows, and keeps the progress of one call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from observability_integration.context import WorkflowContext, bounded_by
from observability_integration.errors import AllTargetsFailedError, TargetFailure
from observability_integration.primitives.base import WorkflowPrimitive
from observability_integration.primitives.lifting import call_of
from observability_integration.resilience.faults import Classifier, Fault, FaultKind, classify
from observability_integration.telemetry.tracing.spans import OperationSpan

from .record import Failed, FallbackRecord

Action = Literal["next", "larger_window", "raise"]


class Target:
    """A target of a fallback, as it was configured."""

    __slots__ = ("call", "context_window", "name", "step")

    def __init__(self, name: str, step: WorkflowPrimitive[Any, Any], context_window: int | None) -> None:
        self.name = name
        self.step = step
        self.call = call_of(step)
        self.context_window = context_window


class Search:
    """The progress of one call through the targets.

    Attributes:
        index: index of the current target.
        previous: index of the target before it.
        failures: the failures of the targets before it.
        fault: the kind of the last failure.
    """

    __slots__ = ("_larger_than", "_targets", "failures", "fault", "index", "previous")

    def __init__(self, targets: Sequence[Target]) -> None:
        self._targets = targets
        self._larger_than = 0
        self.index = 0
        self.previous = 0
        self.failures: list[TargetFailure] = []
        self.fault: FaultKind | None = None

    @property
    def target(self) -> Target:
        """The current target."""
        return self._targets[self.index]

    def is_last_resort(self, outer: bool | None) -> bool | None:
        """Whether all other targets have failed, or cannot serve; None if there are no others anywhere.

        Args:
            outer: the same for the fallback around this one, which may have targets left; None without such a fallback.
        """
        if len(self._targets) == 1:
            return outer
        is_last = self._next(self.index + 1) is None
        return is_last and (outer is True or (outer is None and self.index > 0))

    def _next(self, start: int) -> int | None:
        for index in range(start, len(self._targets)):
            window = self._targets[index].context_window
            if window is None or window > self._larger_than:
                return index
        return None

    def advance(self, fault: FaultKind, *, larger: bool) -> bool:
        """Moves to the next target that may serve; False if none is left."""
        if larger:
            self._larger_than = max(self._larger_than, self.target.context_window or 0)
        following = self._next(self.index + 1)
        if following is None:
            return False
        self.previous, self.index, self.fault = self.index, following, fault
        return True


class Failover:
    """Decides for one `FallbackPrimitive` what to do about the failure of a target.

    Args:
        targets: in order of preference.
        policy: overrides the default action by kind of fault.
        classifier: classifies an exception before the rules of `resilience.faults` do.
        restart_streams: whether readers of a cut stream get a restart instead of an error.
        record: of the primitive.
    """

    def __init__(
        self,
        targets: Sequence[Target],
        policy: Mapping[FaultKind, Action],
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
        """Classifies an exception."""
        return classify(error, self._classifier)

    def advance(self, span: OperationSpan, search: Search, error: Exception, context: WorkflowContext | None) -> None:
        """Moves `search` to the next target, or raises the error for the caller.

        Raises:
            AllTargetsFailedError: no target is left, and more than one was asked.
            Exception: `error` itself, where no other target may be asked.
        """
        fault = self.fault_of(error)
        search.failures.append(TargetFailure(search.target.name, fault.kind, error))
        reason: Failed
        if _deadline_passed(context):
            reason = "deadline"
        elif (action := self._action_of(fault)) == "raise":
            reason = "fault"
        elif search.advance(fault.kind, larger=action == "larger_window"):
            self.record.failed_over(span, search.previous, fault.kind)
            return
        else:
            reason = "exhausted"
        self.record.failed(span, reason)
        if reason == "exhausted" and len(search.failures) > 1:
            raise AllTargetsFailedError(self.record.operation, search.failures) from error
        raise error

    def _action_of(self, fault: Fault) -> Action:
        if fault.kind in self._policy:
            return self._policy[fault.kind]
        if fault.turns_to_next:
            return "next"
        return "larger_window" if fault.turns_to_larger_window else "raise"


def _deadline_passed(context: WorkflowContext | None) -> bool:
    deadline = bounded_by(context)
    return deadline is not None and deadline.remaining() <= 0
