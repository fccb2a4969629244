"""The metrics, logs, events and span attributes of a circuit breaker."""

from __future__ import annotations

import logging
import threading
from weakref import WeakKeyDictionary, WeakValueDictionary, finalize, ref

from observability_integration import events
from observability_integration.telemetry.catalogue.resilience import BREAKER_CALLS, BREAKER_STATE, BREAKER_TRANSITIONS
from observability_integration.telemetry.metrics.instruments import GaugeSeries
from observability_integration.telemetry.tracing.spans import OperationSpan

from .breaker import Breaker, State, Why

logger = logging.getLogger("observability_integration")

_LEVELS: dict[State, int] = {"closed": 0, "half_open": 1, "open": 2}
_EVENTS: dict[State, str] = {
    "closed": "circuit_breaker.closed",
    "half_open": "circuit_breaker.half_opened",
    "open": "circuit_breaker.opened",
}
_TRANSITIONS: dict[State, tuple[Why, ...]] = {
    "open": ("failure_ratio", "consecutive_failures", "probe_failed"),
    "half_open": ("due",),
    "closed": ("probe_succeeded",),
}

_lock = threading.Lock()
_records: WeakKeyDictionary[Breaker, dict[str, BreakerRecord]] = WeakKeyDictionary()
_gauges: WeakValueDictionary[GaugeSeries, _Gauge] = WeakValueDictionary()


class _Gauge:
    """The state gauge of a target: the worst state of all breakers of that name."""

    def __init__(self, series: GaugeSeries) -> None:
        self._series = series
        self._breakers: tuple[ref[Breaker], ...] = ()
        self._lock = threading.Lock()
        self._stale = False

    @classmethod
    def of(cls, series: GaugeSeries) -> _Gauge:
        gauge = _gauges.get(series)
        if gauge is None:
            gauge = _gauges[series] = cls(series)
        return gauge

    def add(self, breaker: Breaker) -> None:
        self._breakers = *(known for known in self._breakers if known() is not None), ref(breaker)
        # A breaker that is collected while open must not keep the gauge at its level.
        finalize(breaker, self.update).atexit = False

    def update(self) -> None:
        # A finaliser may run in the middle of this, in this very thread: then the loop runs once more, without a wait.
        self._stale = True
        while self._stale and self._lock.acquire(blocking=False):
            try:
                self._stale = False
                breakers = [known() for known in self._breakers]
                self._series.set(max((_LEVELS[each.state] for each in breakers if each is not None), default=0))
            finally:
                self._lock.release()


class BreakerRecord:
    """Records the calls of a breaker under a target's name: `succeeded`, `failed`, `ignored` or `refused`."""

    def __init__(self, target: str) -> None:
        self.target = target
        self.span_name = f"circuit_breaker {target}"
        self.gauge = _Gauge.of(BREAKER_STATE.declare(self, target))
        self._successes = BREAKER_CALLS.declare(self, target, "success")
        self._failures = BREAKER_CALLS.declare(self, target, "failure")
        self._ignored = BREAKER_CALLS.declare(self, target, "ignored")
        self._refused = BREAKER_CALLS.declare(self, target, "refused")
        for state, reasons in _TRANSITIONS.items():
            for reason in reasons:
                BREAKER_TRANSITIONS.declare(self, target, state, reason)

    @classmethod
    def of(cls, breaker: Breaker, target: str) -> BreakerRecord:
        """Returns the record of this breaker under this name, which all primitives share."""
        with _lock:
            known = _records.setdefault(breaker, {})
            record = known.get(target)
            if record is None:
                record = known[target] = cls(target)
                record.gauge.add(breaker)
                breaker.watch(record.transitioned)
                record.gauge.update()
        return record

    def succeeded(self) -> None:
        """Counts a call that the target served."""
        self._successes.add()

    def failed(self, span: OperationSpan) -> None:
        """Counts a call that the target failed."""
        self._failures.add()
        span.set_attribute("circuit_breaker.counted", True)

    def ignored(self) -> None:
        """Counts a call whose end says nothing about the target."""
        self._ignored.add()

    def refused(self, span: OperationSpan) -> None:
        """Counts a call that the breaker refused."""
        self._refused.add()
        span.set_attribute("circuit_breaker.refused", True)

    def transitioned(self, old: State, new: State, why: Why) -> None:
        """Records a change of state."""
        self.gauge.update()
        BREAKER_TRANSITIONS.series(self.target, new, why).add()
        # A person should know when it opens and when it closes; probes come every few seconds.
        level = logging.WARNING if new == "closed" or old == "closed" else logging.INFO
        logger.log(level, "Circuit of '%s': %s, was %s (%s)", self.target, new, old, why)
        events.emit(_EVENTS[new], target=self.target, reason=why)
