"""Snapshots: the state of all instruments at one moment, and the ratios computed from it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from observability_integration.telemetry import catalogue
from observability_integration.telemetry.catalogue import MetricSpec

from . import instruments
from .instruments import Attributes, CounterSeries, Exemplar, GaugeSeries, HistogramSeries, lock


@dataclass(frozen=True, slots=True)
class Point:
    """The state of one series at one moment.

    Attributes:
        attributes: the labels.
        value: the value of a counter or gauge; the sum of a histogram.
        counts: the bucket counts of a histogram; one more than its bounds.
        minimum: smallest value of a histogram.
        maximum: largest value of a histogram.
        exemplars: at most one per bucket of a histogram: (value, Unix time in ns, span context).
    """

    attributes: Attributes
    value: float
    counts: tuple[int, ...] = ()
    minimum: float = 0.0
    maximum: float = 0.0
    exemplars: tuple[Exemplar, ...] = ()


def _point(series: CounterSeries | GaugeSeries | HistogramSeries) -> Point:
    if isinstance(series, HistogramSeries):
        return Point(
            series.attributes,
            series.total,
            tuple(series.counts),
            series.minimum,
            series.maximum,
            tuple(series.exemplars.values()),
        )
    # Adding floats leaves noise in the last digits (3 x 0.009 USD is not 0.026999999999999996).
    return Point(series.attributes, round(series.value, 10))


def _ratio_points(spec: MetricSpec) -> Iterable[Point]:
    part, *whole = spec.ratio
    sums: dict[str | bool, list[float]] = {}
    for position, names in ((0, (part,)), (1, whole)):
        for name in names:
            for series in instruments.ALL[name]:
                operation = series.attributes.get("operation")
                if operation is not None:
                    sums.setdefault(operation, [0.0, 0.0])[position] += series.value
    return [Point({"operation": operation}, part_ / all_) for operation, (part_, all_) in sums.items() if all_ > 0]


def points_of(spec: MetricSpec) -> list[Point]:
    """The current points of one metric."""
    with lock:
        return list(_ratio_points(spec)) if spec.ratio else [_point(series) for series in instruments.ALL[spec.name]]


def snapshot() -> list[tuple[MetricSpec, list[Point]]]:
    """Every metric that has points, with them, in the order of the catalogue."""
    result: list[tuple[MetricSpec, list[Point]]] = []
    with lock:
        for spec in catalogue.CATALOGUE:
            if spec.profile not in instruments.switch.profiles:
                continue
            points = points_of(spec)
            if points:
                result.append((spec, points))
    return result
