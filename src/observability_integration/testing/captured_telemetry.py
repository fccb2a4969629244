"""What this library measures while a test runs: spans, metric points and events, in the process."""

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

_SPECS = {spec.name: spec for spec in CATALOGUE}
_Key = tuple[str, frozenset[tuple[str, str | bool]]]


class CapturedTelemetry:
    """What was measured since the capture began; once it has ended, until then.

    Attributes:
        spans: the spans of this library, in the order in which they began.
        events: its events (see `observability_integration.events`), in the order in which they came.
    """

    def __init__(self) -> None:
        self.spans: list[CapturedSpan] = []
        self.events: list[Event] = []
        self._before = _states()
        self._started_ns = instruments.switch.started_ns
        self._frozen: dict[str, list[Point]] | None = None

    def span(self, name: str) -> CapturedSpan:
        """The only span of that name.

        Raises:
            AssertionError: there is none, or more than one.
        """
        found = [span for span in self.spans if span.name == name]
        if len(found) != 1:
            names = sorted({span.name for span in self.spans})
            raise AssertionError(f"{len(found)} spans are named {name!r}; there are {names}")
        return found[0]

    def points(self) -> Mapping[str, list[Point]]:
        """The points by metric name: counters and histograms as the capture has seen them grow, gauges as they stand.

        The extremes of a histogram are those since telemetry was switched on; a series that did not move is there too.
        """
        return self._now() if self._frozen is None else self._frozen

    def value(self, metric: str, **labels: str) -> float | None:
        """What a metric stands at, summed over the series that have these labels; of a histogram, how many values.

        Args:
            metric: its name as the catalogue has it, such as ``timeout.failures``.
            labels: as much of them as matters; ``**{"gen_ai.request.model": ...}`` where a name has dots.

        Returns:
            None where there is no such series.

        Raises:
            ConfigurationError: there is no metric of that name, or it has no such label.
        """
        spec = _SPECS.get(metric)
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
        """Keeps the points as they are now."""
        self._frozen = self._now()

    def _now(self) -> dict[str, list[Point]]:
        # Whoever has switched telemetry on or off in the meantime has set all counts to zero.
        before = self._before if instruments.switch.started_ns == self._started_ns else {}
        return {spec.name: [_since(before, spec, point) for point in points] for spec, points in snapshot()}


@contextmanager
def capture_telemetry() -> Generator[CapturedTelemetry, None, None]:
    """Collects what this library measures within the block, without a network and without OpenTelemetry.

    Usage::

        with capture_telemetry() as captured:
            await guarded.execute("question")
        assert captured.value("timeout.successes", operation="ask") == 1
        assert captured.span("timeout ask").status == "unset"

    Telemetry that is on goes on as it was: spans are exported and counts are kept as if nobody looked. If it is off, it
    is on within the block and exports nothing. Spans that began before the block, or that are made by other libraries,
    are not collected. The whole process is: do not run calls of another test at the same time.
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
        # Unless telemetry was switched on or off within the block: then that is how it is to stay.
        if spans.tracing is tracing:
            spans.install(before if before.enabled else None)
        if not was_on and instruments.switch.started_ns == started_ns:
            instruments.stop()


def _states() -> dict[_Key, Point]:
    return {_key(spec, point): point for spec, points in snapshot() for point in points}


def _key(spec: MetricSpec, point: Point) -> _Key:
    return spec.name, frozenset(point.attributes.items())


def _since(before: Mapping[_Key, Point], spec: MetricSpec, point: Point) -> Point:
    earlier = before.get(_key(spec, point))
    if earlier is None or spec.kind is Kind.GAUGE:
        return point
    counts = tuple(now - then for now, then in zip(point.counts, earlier.counts, strict=True))
    return replace(point, value=round(point.value - earlier.value, 10), counts=counts)
