"""What a circuit breaker counts, logs and tells, and what its calls write on their spans."""

from __future__ import annotations

import logging
import threading
from weakref import WeakKeyDictionary

from observability_integration import events
from observability_integration.resilience.breaker import Breaker, State, Why
from observability_integration.telemetry.instruments import BREAKER_CALLS, BREAKER_STATE, BREAKER_TRANSITIONS
from observability_integration.telemetry.spans import OperationSpan

logger = logging.getLogger("observability_integration")

_LEVELS: dict[State, int] = {"closed": 0, "half_open": 1, "open": 2}
_EVENTS: dict[State, str] = {
    "closed": "circuit_breaker.closed",
    "half_open": "circuit_breaker.half_opened",
    "open": "circuit_breaker.opened",
}
_TURNS: dict[State, tuple[Why, ...]] = {
    "open": ("failure_ratio", "consecutive_failures", "probe_failed"),
    "half_open": ("due",),
    "closed": ("probe_succeeded",),
}

_lock = threading.Lock()
_records: WeakKeyDictionary[Breaker, dict[str, BreakerRecord]] = WeakKeyDictionary()


class BreakerRecord:
    """One breaker under the name of one target. Each call ends in exactly one of the four methods that say so."""

    def __init__(self, target: str) -> None:
        self.target = target
        self.span_name = f"circuit_breaker {target}"
        self._state = BREAKER_STATE.declare(self, target)
        self._successes = BREAKER_CALLS.declare(self, target, "success")
        self._failures = BREAKER_CALLS.declare(self, target, "failure")
        self._ignored = BREAKER_CALLS.declare(self, target, "ignored")
        self._refused = BREAKER_CALLS.declare(self, target, "refused")
        for state, reasons in _TURNS.items():
            for reason in reasons:
                BREAKER_TRANSITIONS.declare(self, target, state, reason)

    @classmethod
    def of(cls, breaker: Breaker, target: str) -> BreakerRecord:
        """The record of this breaker under this name: one, however many primitives share them."""
        with _lock:
            known = _records.setdefault(breaker, {})
            record = known.get(target)
            if record is None:
                record = known[target] = cls(target)
                record._state.set(_LEVELS[breaker.state])
                breaker.watch(record.turned)
        return record

    def succeeded(self) -> None:
        """The target has served."""
        self._successes.add()

    def failed(self, span: OperationSpan) -> None:
        """The target has failed."""
        self._failures.add()
        span.set_attribute("circuit_breaker.counted", True)

    def ignored(self) -> None:
        """The call ended in a way that says nothing about the target."""
        self._ignored.add()

    def refused(self, span: OperationSpan) -> None:
        """The call was never made."""
        self._refused.add()
        span.set_attribute("circuit_breaker.refused", True)

    def turned(self, old: State, new: State, why: Why) -> None:
        """The state has changed."""
        self._state.set(_LEVELS[new])
        BREAKER_TRANSITIONS.series(self.target, new, why).add()
        # What a person should know of is that it opened and that it is well again; probes come every few seconds.
        level = logging.WARNING if new == "closed" or old == "closed" else logging.INFO
        logger.log(level, "Circuit of '%s': %s, was %s (%s)", self.target, new, old, why)
        events.emit(_EVENTS[new], target=self.target, reason=why)
