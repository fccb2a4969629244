"""How long one call may take."""

from __future__ import annotations

from dataclasses import dataclass

from observability_integration.context import Deadline

from .clocks import Alarm


@dataclass(frozen=True, slots=True)
class Plan:
    """Limits of one call, counted from its start.

    Attributes:
        limit_seconds: after that it is late.
        cancel_seconds: after that the work is cancelled: at the limit, or, if it may finish during the grace, after it.
        grace_seconds: how long the cancelled work is waited for; None for as long as it takes.
        inherited: the deadline from further out, if that one comes first.
    """

    limit_seconds: float
    cancel_seconds: float
    grace_seconds: float | None
    inherited: Deadline | None = None

    @property
    def alarm(self) -> Alarm:
        """The clock that has fired when the work is cancelled."""
        if self.inherited is None:
            return Alarm("total", self.limit_seconds, 0.0)
        return Alarm("deadline", max(self.cancel_seconds, 0.0), 0.0)

    def until(self, deadline: Deadline, left_seconds: float) -> Plan:
        """This plan, cut short by a `deadline` from further out that passes in `left_seconds`."""
        grace, finish = self.grace_seconds, self.cancel_seconds - self.limit_seconds
        if finish > 0:  # what is left of limit and grace together, because the work has had its time to finish
            grace = min(finish, self.cancel_seconds - left_seconds)
        return Plan(min(left_seconds, self.limit_seconds), left_seconds, grace, deadline)
