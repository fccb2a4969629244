"""This library's metrics as OpenTelemetry data: for its own exporters, or recorded into an SDK meter."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from opentelemetry.metrics import CallbackOptions, Meter, Observation
from opentelemetry.sdk.metrics import Exemplar
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    DataPointT,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    NumberDataPoint,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from observability_integration.telemetry.catalogue import CATALOGUE, Kind, MetricSpec
from observability_integration.telemetry.guard import note_fault

from . import instruments
from .instruments import Attributes, Forward
from .snapshot import Point, points_of, snapshot


def _exemplars(point: Point) -> list[Exemplar]:
    return [Exemplar({}, value, ns, context.span_id, context.trace_id) for value, ns, context in point.exemplars]


def _data_point(spec: MetricSpec, point: Point, start_ns: int, now_ns: int) -> DataPointT:
    if spec.kind is Kind.HISTOGRAM:
        return HistogramDataPoint(
            point.attributes,
            start_ns,
            now_ns,
            sum(point.counts),
            point.value,
            point.counts,
            spec.buckets,
            point.minimum,
            point.maximum,
            _exemplars(point),
        )
    return NumberDataPoint(point.attributes, start_ns, now_ns, point.value)


def _metric(spec: MetricSpec, points: Sequence[Point], now_ns: int) -> Metric:
    data_points: list[Any] = [_data_point(spec, point, instruments.switch.started_ns, now_ns) for point in points]
    data: Sum | Gauge | Histogram
    if spec.kind is Kind.COUNTER:
        data = Sum(data_points, AggregationTemporality.CUMULATIVE, True)
    elif spec.kind is Kind.GAUGE:
        data = Gauge(data_points)
    else:
        data = Histogram(data_points, AggregationTemporality.CUMULATIVE)
    return Metric(spec.name, spec.description, spec.unit, data)


def collect(scope: InstrumentationScope) -> list[ScopeMetrics]:
    """A snapshot of all metrics of this library, as one instrumentation scope."""
    now_ns = time.time_ns()
    metrics = [_metric(spec, points, now_ns) for spec, points in snapshot()]
    return [ScopeMetrics(scope, metrics, scope.schema_url or "")] if metrics else []


def _observe(spec: MetricSpec) -> Callable[[CallbackOptions], Iterable[Observation]]:
    def observe(_: CallbackOptions) -> Iterable[Observation]:
        if not instruments.switch.on:
            return []
        return [Observation(point.value, point.attributes) for point in points_of(spec)]

    return observe


def feed(meter: Meter) -> None:
    """Forwards every measurement to an instrument of `meter` too, so that the readers of its provider see it.

    Needed for the application's provider and for readers of deltas: the SDK takes measurements, not finished
    distributions. Each measurement then also costs what the SDK's costs.
    """
    for spec in CATALOGUE:
        if spec.profile not in instruments.switch.profiles:
            continue
        if spec.kind is Kind.GAUGE:
            meter.create_observable_gauge(spec.name, [_observe(spec)], spec.unit, spec.description)
            continue
        instrument = instruments.ALL[spec.name]
        if spec.kind is Kind.COUNTER:
            instrument.set_forward(_guarded(meter.create_counter(spec.name, spec.unit, spec.description).add))
        else:
            histogram = meter.create_histogram(
                spec.name, spec.unit, spec.description, explicit_bucket_boundaries_advisory=list(spec.buckets)
            )
            instrument.set_forward(_guarded(histogram.record))
        for series in instrument:
            series.show()


def _guarded(record: Callable[[float, Any], None]) -> Forward:
    noting = False

    def forward(amount: float, attributes: Attributes) -> None:
        nonlocal noting
        try:
            record(amount, attributes)
        except Exception as error:  # noqa: BLE001 - the application's provider, inside the user's call
            if not noting:  # the measurement may be the count of faults itself
                noting = True
                note_fault("metrics.forward", error)
                noting = False

    return forward
