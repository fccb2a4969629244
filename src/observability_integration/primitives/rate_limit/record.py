"""The metrics and span attributes of a RateLimitPrimitive."""

from __future__ import annotations

import asyncio
import math
import weakref
from typing import TYPE_CHECKING

from observability_integration.telemetry.catalogue.resilience import (
    RATE_LIMIT_BACKEND_ERRORS,
    RATE_LIMIT_CALLS,
    RATE_LIMIT_REMAINING,
    RATE_LIMIT_TOKENS,
    RATE_LIMIT_WAIT,
)

if TYPE_CHECKING:
    from observability_integration.telemetry.tracing.spans import OperationSpan

    from .limiter import RateLimit
    from .wait_queue import Reservation, ReservationRefused

_REFRESH_SECONDS = 1.0


class RateLimitRecord:
    """Records the calls of one operation.

    Each call is `admitted` or `refused`, or was cancelled before; a call that was made is `settled`.
    """

    def __init__(self, owner: object, operation: str) -> None:
        self.operation = operation
        self.span_name = f"rate_limit {operation}"
        self.counts = {"admitted": 0, "waited": 0, "refused": 0}
        self.tokens = 0.0
        self._owner = weakref.ref(owner)
        self._calls = {outcome: RATE_LIMIT_CALLS.declare(owner, operation, outcome) for outcome in self.counts}
        self._wait = RATE_LIMIT_WAIT.declare(owner, operation)
        self._tokens = RATE_LIMIT_TOKENS.declare(owner, operation)
        self._limit: RateLimit | None = None
        self._refresh_due = -math.inf

    def watch(self, limit: RateLimit) -> None:
        """Exports from now on what is left of a limit."""
        self._limit = limit

    def admitted(self, span: OperationSpan, reservation: Reservation) -> None:
        """Counts an admitted call and its wait."""
        waited = reservation.waited_seconds
        outcome = "waited" if waited > 0 else "admitted"
        self._count(outcome)
        if waited > 0:
            self._wait.record(waited, span)
        span.set_attribute("rate_limit.wait_seconds", waited)
        if reservation.began >= self._refresh_due:
            self._refresh_later(asyncio.get_running_loop())

    def refused(self, span: OperationSpan, refusal: ReservationRefused) -> None:
        """Counts a refused call."""
        self._count("refused")
        span.set_attribute("rate_limit.wait_seconds", refusal.waited_seconds)
        span.set_attribute("rate_limit.limit", refusal.limit)

    def settled(self, tokens: float) -> None:
        """Counts the tokens of a call, as reported or as reserved."""
        self.tokens += tokens
        self._tokens.add(tokens)

    def backend_failed(self, error_type: str) -> None:
        """Counts a failed access to the shared limit."""
        RATE_LIMIT_BACKEND_ERRORS.series(self.operation, error_type).add()

    def _count(self, outcome: str) -> None:
        self.counts[outcome] += 1
        self._calls[outcome].add()

    def _refresh_later(self, loop: asyncio.AbstractEventLoop) -> None:
        # The buckets refill without calls, so what is left is exported once a second until they are full.
        self._refresh_due = loop.time() + _REFRESH_SECONDS
        loop.call_later(_REFRESH_SECONDS, self._refresh, loop)

    def _refresh(self, loop: asyncio.AbstractEventLoop) -> None:
        owner, limit = self._owner(), self._limit
        if owner is None or limit is None:
            return
        full = True
        for name, left, capacity in zip(("requests", "tokens"), limit.left(), limit.capacities, strict=True):
            if left is not None and capacity is not None:
                RATE_LIMIT_REMAINING.declare(owner, self.operation, name).set(left)
                full = full and left >= capacity
        if not full:
            self._refresh_later(loop)
