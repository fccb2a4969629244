"""Instruments: they aggregate measurements in the process, and exporters read them through `snapshot`.

A synchronous instrument of the OpenTelemetry SDK costs 5 to 10 µs a measurement, mostly to look up the attribute set.
Here a primitive looks its series up once and adds to it. Nothing in this file needs OpenTelemetry: while telemetry is
off, a measurement returns at once.

Every instrument is capped at `MAX_SERIES` label sets. Further ones share one overflow series with the attribute
``otel.metric.overflow`` = true, as the OpenTelemetry metrics SDK specification requires.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from bisect import bisect_left
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

from .spec import Kind, MetricSpec, Profile

MAX_SERIES = 2000  # the default cardinality limit of the OpenTelemetry metrics SDK specification
MAX_LABEL_LENGTH = 128  # real model and operation names are shorter; callers may pass any text
OVERFLOW = "otel.metric.overflow"

Labels = tuple[str | None, ...]
Attributes = Mapping[str, str | bool]  # the only bool is the mark of the overflow series
Exemplar = tuple[float, int, Any]  # value, Unix time in ns, span context
Forward = Callable[[float, Attributes], None]

# Re-entrant: a finaliser (an abandoned stream) may record while this very thread is recording.
lock = threading.RLock()


class _Switch:
    """Global state that every measurement reads: whether to record, with exemplars, and for which gen_ai profiles."""

    __slots__ = ("exemplars", "on", "profiles", "started_ns")

    def __init__(self) -> None:
        self.on = False
        self.exemplars = False
        self.profiles = frozenset({Profile.ALWAYS, Profile.V1_41})
        self.started_ns = time.time_ns()


switch = _Switch()


class Series:
    """One label set of one instrument."""

    __slots__ = ("attributes", "forward", "owners")

    def __init__(self, attributes: Attributes, forward: Forward | None) -> None:
        self.attributes = attributes
        self.forward = forward
        self.owners: weakref.WeakSet[Any] | None = None

    def show(self) -> None:
        """Forwards the initial value, where the kind has one."""

    def reset(self) -> None:
        """Drops all measurements."""

    @property
    def in_use(self) -> bool:
        """Whether a live owner declared this series; if so, `Instrument.reset` keeps it."""
        return bool(self.owners)


class CounterSeries(Series):
    """A sum that only grows."""

    __slots__ = ("value",)

    def __init__(self, attributes: Attributes, forward: Forward | None) -> None:
        super().__init__(attributes, forward)
        self.value: float = 0

    def add(self, amount: float = 1) -> None:
        """Adds `amount` (0 or more)."""
        if not switch.on:
            return
        lock.acquire()  # at half the cost of a with statement
        try:
            self.value += amount
        finally:
            lock.release()
        if self.forward is not None:
            self.forward(amount, self.attributes)

    def show(self) -> None:
        """Forwards a 0."""
        if self.forward is not None:
            self.forward(0, self.attributes)

    def reset(self) -> None:
        """Sets the sum to 0."""
        self.value = 0


class GaugeSeries(Series):
    """A current value. It is kept while telemetry is off and across resets, because it stays true."""

    __slots__ = ("value",)

    def __init__(self, attributes: Attributes, forward: Forward | None) -> None:
        super().__init__(attributes, forward)
        self.value: float = 0

    def set(self, value: float) -> None:
        """Sets the value."""
        self.value = value

    def add(self, amount: float) -> None:
        """Changes the value by `amount`, which may be negative."""
        lock.acquire()  # at half the cost of a with statement
        try:
            self.value += amount
        finally:
            lock.release()

    @property
    def in_use(self) -> bool:
        """Whether a live owner declared it, or its value is not 0."""
        return bool(self.owners) or self.value != 0


class HistogramSeries(Series):
    """A distribution over fixed buckets, with the last exemplar per bucket."""

    __slots__ = ("bounds", "count", "counts", "exemplars", "maximum", "minimum", "total")

    def __init__(self, attributes: Attributes, forward: Forward | None, bounds: Sequence[float]) -> None:
        super().__init__(attributes, forward)
        self.bounds = bounds
        self.counts: list[int]
        self.exemplars: dict[int, Exemplar]
        self.count: int
        self.total: float
        self.minimum: float
        self.maximum: float
        self.reset()

    def record(self, value: float, span: object = None) -> None:
        """Records `value`; a sampled `span` becomes the exemplar of its bucket."""
        if not switch.on:
            return
        index = bisect_left(self.bounds, value)
        context = getattr(span, "exemplar_context", None) if switch.exemplars else None
        exemplar = None if context is None else (value, time.time_ns(), context)
        with lock:
            self.counts[index] += 1
            self.count += 1
            self.total += value
            if value < self.minimum:
                self.minimum = value
            if value > self.maximum:
                self.maximum = value
            if exemplar is not None:
                self.exemplars[index] = exemplar
        if self.forward is not None:
            self.forward(value, self.attributes)

    def reset(self) -> None:
        """Drops all measurements."""
        self.counts = [0] * (len(self.bounds) + 1)
        self.exemplars = {}
        self.count = 0
        self.total = 0.0
        self.minimum = float("inf")
        self.maximum = float("-inf")


S = TypeVar("S", bound=Series)


def _clip(value: str | None) -> str | None:
    return value if value is None or len(value) <= MAX_LABEL_LENGTH else value[:MAX_LABEL_LENGTH]


class Instrument(Generic[S]):
    """All series of one metric."""

    __slots__ = ("_make", "_overflow", "_series", "forward", "spec")

    def __init__(self, spec: MetricSpec, make: Callable[[Attributes, Forward | None], S]) -> None:
        self.spec = spec
        self.forward: Forward | None = None
        self._make = make
        self._series: dict[Labels, S] = {}
        self._overflow: S | None = None

    def series(self, *values: str | None) -> S:
        """The series with these label values, in the order of ``spec.labels``; None leaves a label out."""
        found = self._series.get(values)
        return found if found is not None else self._add(values)

    def _add(self, values: Labels) -> S:
        if len(values) != len(self.spec.labels):
            raise ValueError(f"{self.spec.name} takes the labels {self.spec.labels}, got {len(values)} values")
        values = tuple(map(_clip, values))
        with lock:
            found = self._series.get(values)
            if found is not None:
                return found
            if len(self._series) >= MAX_SERIES:
                if self._overflow is None:
                    self._overflow = self._make({OVERFLOW: True}, self.forward)
                return self._overflow
            pairs = zip(self.spec.labels, values, strict=True)
            made = self._make({label: value for label, value in pairs if value is not None}, self.forward)
            self._series[values] = made
            return made

    def declare(self, owner: object, *values: str | None) -> S:
        """Like `series`, but exported from 0 on while `owner` lives, so that ``rate()`` sees the first event."""
        series = self.series(*values)
        with lock:
            if series.owners is None:
                series.owners = weakref.WeakSet()
            series.owners.add(owner)
        series.show()
        return series

    def reset(self) -> None:
        """Resets every series that is in use and removes the others."""
        with lock:
            self._series = {values: series for values, series in self._series.items() if series.in_use}
            if self._overflow is not None and not self._overflow.in_use:
                self._overflow = None
            for series in self:
                series.reset()

    def set_forward(self, forward: Forward | None) -> None:
        """Passes each further measurement on to `forward` too; None ends that."""
        with lock:
            self.forward = forward
            for series in self:
                series.forward = forward

    def __iter__(self) -> Iterator[S]:
        with lock:
            series = list(self._series.values())
            if self._overflow is not None:
                series.append(self._overflow)
        return iter(series)


SPECS: dict[str, MetricSpec] = {}  # by name, in the order of declaration
ALL: dict[str, Instrument[Any]] = {}  # the same without ratios, which have no series of their own


def _declare(spec: MetricSpec) -> MetricSpec:
    if spec.name in SPECS:
        raise ValueError(f"metric {spec.name!r} is already declared")
    SPECS[spec.name] = spec
    return spec


def _instrument(spec: MetricSpec, make: Callable[[Attributes, Forward | None], S]) -> Instrument[S]:
    with lock:
        instrument = ALL[spec.name] = Instrument(_declare(spec), make)
    return instrument


def counter(
    name: str, labels: tuple[str, ...], description: str, unit: str = "", *, profile: Profile = Profile.ALWAYS
) -> Instrument[CounterSeries]:
    """Declares a counter; `MetricSpec` explains the arguments.

    Raises:
        ValueError: a metric of this name exists.
    """
    return _instrument(MetricSpec(name, Kind.COUNTER, labels, description, unit, profile=profile), CounterSeries)


def gauge(name: str, labels: tuple[str, ...], description: str) -> Instrument[GaugeSeries]:
    """Declares a gauge without a unit; `MetricSpec` explains the arguments.

    Raises:
        ValueError: a metric of this name exists.
    """
    return _instrument(MetricSpec(name, Kind.GAUGE, labels, description), GaugeSeries)


def histogram(
    name: str,
    labels: tuple[str, ...],
    description: str,
    unit: str,
    buckets: tuple[float, ...],
    *,
    profile: Profile = Profile.ALWAYS,
) -> Instrument[HistogramSeries]:
    """Declares a histogram; `MetricSpec` explains the arguments.

    Raises:
        ValueError: a metric of this name exists.
    """

    def make(attributes: Attributes, forward: Forward | None) -> HistogramSeries:
        return HistogramSeries(attributes, forward, buckets)

    return _instrument(MetricSpec(name, Kind.HISTOGRAM, labels, description, unit, buckets, profile=profile), make)


def ratio(
    name: str,
    labels: tuple[str, ...],
    description: str,
    part: Instrument[CounterSeries],
    whole: Sequence[Instrument[CounterSeries]],
) -> MetricSpec:
    """Declares a gauge that each snapshot computes as `part` / sum of `whole`.

    Raises:
        ValueError: a metric of this name exists.
    """
    counters = tuple(instrument.spec.name for instrument in (part, *whole))
    return _declare(MetricSpec(name, Kind.GAUGE, labels, description, ratio=counters))


def start(*, exemplars: bool, profiles: frozenset[Profile]) -> None:
    """Starts recording, from zero."""
    with lock:
        for instrument in ALL.values():
            instrument.reset()
        switch.started_ns = time.time_ns()
        switch.exemplars = exemplars
        switch.profiles = profiles | {Profile.ALWAYS}
        switch.on = True


def stop() -> None:
    """Stops recording; the series stay readable until the next start."""
    switch.on = False
    for instrument in ALL.values():
        instrument.set_forward(None)


def _before_fork() -> None:
    lock.acquire()


def _after_fork_in_parent() -> None:
    lock.release()


def _after_fork_in_child() -> None:
    for instrument in ALL.values():
        instrument.reset()  # the parent exports its own counts
    lock.release()


# Held while forking: no other thread is then inside a measurement, and the child can release the lock.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
