"""Captures spans, metric points and events of this library in memory, for a test."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import replace

from observability_integration.errors import ConfigurationError
from observability_integration.events import Event, subscribe
from observability_integration.telemetry.catalogue import CATALOGUE, Kind, MetricSpec
from observability_integration.telemetry.metrics import instruments
from observability_integration.telemetry.metrics.snapshot import Point, snapshot
from observability_integration.telemetry.tracing import spans

from .captured_spans import CapturedSpan, CapturingTracing

_SPEC_BY_NAME = {spec.name: spec for spec in CATALOGUE}
_Key = tuple[str, frozenset[tuple[str, str | bool]]]


class CapturedTelemetry:
    """The telemetry from the start of the capture until now, or until its end.

    Attributes:
        spans: the spans of this library, in the order in which they began.
        events: the events of this library (see `observability_integration.events`), in order.
    """

    def __init__(self) -> None:
        self.spans: list[CapturedSpan] = []
        self.events: list[Event] = []
        self._before = _current_points()
        self._started_ns = instruments.switch.started_ns
        self._final: dict[str, list[Point]] | None = None

    def span(self, name: str) -> CapturedSpan:
        """Returns the only span of that name.

        Raises:
            AssertionError: there is no such span, or more than one.
        """
        found = [span for span in self.spans if span.name == name]
        if len(found) != 1:
            names = sorted({span.name for span in self.spans})
            raise AssertionError(f"{len(found)} spans are named {name!r}; there are {names}")
        return found[0]

    def points(self) -> Mapping[str, list[Point]]:
        """Returns the points by metric name: growth since the start for counters and histograms, values for gauges.

        Minimum and maximum of a histogram are those since telemetry was switched on. Unchanged series are included.
        """
        return self._now() if self._final is None else self._final

    def value(self, metric: str, **labels: str) -> float | None:
        """Returns the value of a metric, or the count of a histogram, summed over the series with these labels.

        Args:
            metric: name in the catalogue, such as ``timeout.failures``.
            labels: any of the metric's labels; ``**{"gen_ai.request.model": ...}`` for a name with dots.

        Returns:
            The sum, or None if there is no such series.

        Raises:
            ConfigurationError: there is no such metric, or it has no such label.
        """
        spec = _SPEC_BY_NAME.get(metric)
        if spec is None:
            raise ConfigurationError(f"there is no metric {metric!r}")
        if unknown := sorted(set(labels) - set(spec.labels)):
            raise ConfigurationError(f"{metric} has the labels {spec.labels}, not {unknown}")
        values = [
            sum(point.counts) if spec.kind is Kind.HISTOGRAM else point.value
            for point in self.points().get(metric, [])
            if labels.items() <= point.attributes.items()
        ]
        return sum(values) if values else None

    def freeze(self) -> None:
        """Keeps the current points as the final ones."""
        self._final = self._now()

    def _now(self) -> dict[str, list[Point]]:
        # Switching telemetry on or off in the meantime has reset all counts to zero.
        before = self._before if instruments.switch.started_ns == self._started_ns else {}
        return {spec.name: [_difference(before, spec, point) for point in points] for spec, points in snapshot()}


@contextmanager
def capture_telemetry() -> Generator[CapturedTelemetry, None, None]:
    """Collects the telemetry of this library in the block, without a network and without OpenTelemetry.

    Usage::

        with capture_telemetry() as captured:
            await guarded.execute("question")
        assert captured.value("timeout.successes", operation="ask") == 1
        assert captured.span("timeout ask").status == "unset"

    Telemetry that is on stays on: spans are exported and counts are kept as without the capture. Telemetry that is off
    is on in the block, and exports nothing. Spans that began before the block and spans of other libraries are not
    collected. The capture covers the whole process: do not run calls of another test at the same time.
    """
    was_on = instruments.switch.on
    if not was_on:
        instruments.start(exemplars=False, profiles=instruments.switch.profiles)
    started_ns = instruments.switch.started_ns
    captured = CapturedTelemetry()
    before = spans.tracing
    tracing = CapturingTracing(before, captured.spans)
    spans.install(tracing)
    unsubscribe = subscribe(captured.events.append)
    try:
        yield captured
    finally:
        captured.freeze()
        unsubscribe()
        # If telemetry was switched on or off in the block, it stays so.
        if spans.tracing is tracing:
            spans.install(before if before.enabled else None)
        if not was_on and instruments.switch.started_ns == started_ns:
            instruments.stop()


def _current_points() -> dict[_Key, Point]:
    return {_key(spec, point): point for spec, points in snapshot() for point in points}


def _key(spec: MetricSpec, point: Point) -> _Key:
    return spec.name, frozenset(point.attributes.items())


def _difference(before: Mapping[_Key, Point], spec: MetricSpec, point: Point) -> Point:
    earlier = before.get(_key(spec, point))
    if earlier is None or spec.kind is Kind.GAUGE:
        return point
    counts = tuple(now - then for now, then in zip(point.counts, earlier.counts, strict=True))
    return replace(point, value=round(point.value - earlier.value, 10), counts=counts)
