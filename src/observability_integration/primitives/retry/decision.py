"""Decides after a failed attempt: another attempt after a wait, or the reason why there is none."""

from __future__ import annotations

from observability_integration.context import WorkflowContext, bounded_by
from observability_integration.resilience.backoff import Backoff
from observability_integration.resilience.faults import Classifier, Fault, classify
from observability_integration.resilience.faults.sdk_retries import sdk_retries_of
from observability_integration.resilience.retry_budget import RetryBudget

from . import testing_mode
from .record import GaveUp, RetryRecord


class RetryDecision:
    """Decides on attempts for one `RetryPrimitive`.

    Args:
        max_attempts: attempts in all, >= 1.
        backoff: the waits between attempts.
        budget: bounds the retries of all calls; None for no bound.
        classifier: classifies an exception before the rules of `resilience.faults` do.
        record: of the primitive.
    """

    def __init__(
        self,
        max_attempts: int,
        backoff: Backoff,
        budget: RetryBudget | None,
        classifier: Classifier | None,
        record: RetryRecord,
    ) -> None:
        self.max_attempts = max_attempts
        self.backoff = backoff
        self.budget = budget
        self.record = record
        self._classifier = classifier

    def fault_of(self, error: Exception) -> Fault:
        """Classifies an exception."""
        return classify(error, self._classifier)

    def charge_sdk_retries(self, error: Exception, handled: BaseException | None) -> int:
        """Returns how many retries the client made by itself in the failed attempt; takes their tokens of the budget.

        Args:
            error: the error of the attempt.
            handled: what the caller was handling when the call began: the client's retries then are not charged again.
        """
        retries = sdk_retries_of(error, handled)
        if retries:
            self.record.sdk_retried()
            if self.budget is not None:
                self.budget.charge(retries)
        return retries

    def decide(self, error: Exception, attempts: int, context: WorkflowContext | None) -> tuple[Fault, float] | GaveUp:
        """Returns the fault and the wait before the next attempt, in seconds; or why there is no other attempt.

        Args:
            error: the error of the attempt.
            attempts: the number of attempts made, the client's own retries included.
            context: of the call.
        """
        fault = self.fault_of(error)
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


def is_late(context: WorkflowContext | None) -> bool:
    """Whether the deadline has passed during the wait, as where the event loop was blocked."""
    return _remaining(context) == 0.0


def _remaining(context: WorkflowContext | None) -> float | None:
    deadline = bounded_by(context)
    return None if deadline is None else deadline.remaining()
