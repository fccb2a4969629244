"""Translates OpenTelemetry metrics of several scopes into Prometheus families that are valid together in one scrape.

A family has one HELP and one TYPE, and each series appears once: duplicates are added up (counters, histograms,
up-down counters) or overwritten (gauges). A metric that conflicts with an earlier one is logged and left out.
"""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    ExponentialHistogram,
    ExponentialHistogramDataPoint,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    NumberDataPoint,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.resources import Resource
from prometheus_client.core import Metric as Family
from prometheus_client.core import Sample
from prometheus_client.utils import floatToGoString  # pyright: ignore[reportUnknownVariableType] - not annotated

from .exemplars import ExemplarKey, ExemplarStore, LabelKey
from .names import family_name, labels_of, number_of, scope_labels_of, text, unit_word

logger = logging.getLogger("observability_integration")

Kind = Literal["counter", "gauge", "histogram", "info"]

# The exported names of a family, in either format; two families must not share one.
_SUFFIXES: dict[Kind, tuple[str, ...]] = {
    "counter": ("", "_total", "_created"),
    "gauge": ("",),
    "histogram": ("", "_bucket", "_count", "_sum", "_created"),
    "info": ("", "_info"),
}
_NS_PER_SECOND = 1_000_000_000  # an int: a float would first round the time to about 200 ns
_MAX_NOTICES = 1000


class Notices:
    """Logs each warning once, however often its metric is scraped."""

    def __init__(self) -> None:
        self._given: set[tuple[str, str]] = set()

    def once(self, message: str, name: str) -> None:
        """Logs `message`, which has one placeholder for the metric's `name`."""
        if (message, name) in self._given or len(self._given) >= _MAX_NOTICES:
            return
        self._given.add((message, name))
        logger.warning(message, name)


@dataclass(slots=True)
class _Series:
    """One label set: a number, or a distribution with the sum `value` (None without one)."""

    labels: dict[str, str]
    value: float | None
    start_ns: int | None = None
    additive: bool = True
    bounds: tuple[float, ...] = ()
    counts: list[int] = field(default_factory=list[int])

    def merge(self, other: _Series) -> bool:
        """Merges a second point with the same labels; False if its buckets differ."""
        if self.bounds != other.bounds:
            return False
        if not (self.additive and other.additive):
            self.value = other.value
            return True
        self.value = None if self.value is None or other.value is None else self.value + other.value
        self.counts = [mine + theirs for mine, theirs in zip(self.counts, other.counts, strict=True)]
        self.start_ns = min((start for start in (self.start_ns, other.start_ns) if start), default=None)
        return True

    def created(self, family: str) -> list[Sample]:
        """The sample with the start time, if that is known."""
        if not self.start_ns:
            return []
        return [Sample(f"{family}_created", self.labels, self.start_ns / _NS_PER_SECOND)]


@dataclass(slots=True)
class _Family:
    name: str
    kind: Kind
    unit: str
    help: str
    series: dict[LabelKey, _Series] = field(default_factory=dict[LabelKey, _Series])


def _kind_of(data: object) -> Kind | None:
    """The kind of family for the data of a metric; None if Prometheus has none for it."""
    if isinstance(data, Gauge):
        return "gauge"
    if not isinstance(data, Sum | Histogram | ExponentialHistogram):
        return None
    if data.aggregation_temporality != AggregationTemporality.CUMULATIVE:
        return None
    if isinstance(data, Sum):
        return "counter" if data.is_monotonic else "gauge"
    return "histogram"


def _number_series(point: NumberDataPoint, labels: dict[str, str], *, counter: bool, additive: bool) -> _Series:
    start_ns = point.start_time_unix_nano if counter else None
    return _Series(labels, number_of(point.value), start_ns, additive)


def _distribution(point: HistogramDataPoint | ExponentialHistogramDataPoint, labels: dict[str, str]) -> _Series:
    bounds: tuple[float, ...] = ()
    counts: Sequence[int] = ()
    if isinstance(point, HistogramDataPoint):
        bounds, counts = tuple(point.explicit_bounds), point.bucket_counts
    if not bounds:
        counts = [point.count]
    if len(counts) != len(bounds) + 1:
        raise ValueError(f"{len(counts)} bucket counts for {len(bounds)} bounds")
    # OpenMetrics: with negative buckets the sum is not a counter and must be absent.
    total = None if bounds and bounds[0] < 0 else number_of(point.sum)
    return _Series(labels, total, point.start_time_unix_nano, bounds=bounds, counts=list(counts))


def _le(bounds: Sequence[float], index: int) -> str:
    if index == len(bounds):
        return "+Inf"
    return str(floatToGoString(bounds[index]))  # type: ignore[no-untyped-call]


class FamilySet:
    """The families of one scrape, in the order of their first metrics."""

    def __init__(self, exemplars: ExemplarStore, notices: Notices, *, scope_labels: bool) -> None:
        self._exemplars = exemplars
        self._notices = notices
        self._scope_labels = scope_labels
        self._families: dict[str, _Family] = {}
        self._taken: set[str] = set()

    def add_target(self, resource: Resource) -> None:
        """Adds ``target_info`` with the attributes of the resource."""
        labels = labels_of(resource.attributes)
        family = self._family("target", "info", "", "Target metadata")
        if labels and family is not None:
            family.series[()] = _Series(labels, 1.0)

    def add(self, scope_metrics: ScopeMetrics) -> None:
        """Adds the metrics of one instrumentation scope.

        Raises:
            Exception: a point is broken; the log names its metric.
        """
        scope = scope_labels_of(scope_metrics.scope) if self._scope_labels else {}
        for metric in scope_metrics.metrics:
            try:
                self._add_metric(metric, scope)
            except Exception:
                self._notices.once("Metric %s is broken; scrapes fail until it is mended", metric.name)
                raise

    def _add_metric(self, metric: Metric, scope: Mapping[str, str]) -> None:
        kind = _kind_of(metric.data)
        if kind is None:
            self._notices.once("Metric %s is left out of scrapes: only cumulative data can be scraped", metric.name)
            return
        unit = unit_word(metric.unit or "")
        name = family_name(metric.name, unit, counter=kind == "counter")
        additive = isinstance(metric.data, Sum)
        for point in metric.data.data_points or ():
            family = self._family(name, kind, unit, text(metric.description or ""))
            if family is None:
                return
            labels = {**labels_of(point.attributes, reserved="le" if kind == "histogram" else ""), **scope}
            if isinstance(point, NumberDataPoint):
                series = _number_series(point, labels, counter=kind == "counter", additive=additive)
            else:
                series = _distribution(point, labels)
            if isinstance(point, ExponentialHistogramDataPoint):
                self._notices.once(
                    "Metric %s is an exponential histogram, which the text formats cannot carry: only its count and "
                    "sum are exported. Give it a View with ExplicitBucketHistogramAggregation to have buckets",
                    metric.name,
                )
            self._put(family, series, point)

    def _family(self, name: str, kind: Kind, unit: str, help_text: str) -> _Family | None:
        family = self._families.get(name)
        if family is not None and family.kind == kind:
            if help_text and help_text != family.help:
                self._notices.once("Metric %s has several descriptions; the first is exported", name)
            return family
        names = {name + suffix for suffix in _SUFFIXES[kind]}
        if names & self._taken:
            self._notices.once(f"Metric %s ({kind}) is left out of scrapes: another metric has its exported name", name)
            return None
        self._taken |= names
        self._families[name] = family = _Family(name, kind, unit, help_text)
        return family

    def _put(
        self,
        family: _Family,
        series: _Series,
        point: NumberDataPoint | HistogramDataPoint | ExponentialHistogramDataPoint,
    ) -> None:
        labels = tuple(sorted(series.labels.items()))
        present = family.series.setdefault(labels, series)
        if present is not series and not present.merge(series):
            self._notices.once(
                "Metric %s has points with the same labels but other buckets; the first wins", family.name
            )
            return
        if not point.exemplars or family.kind == "gauge":
            return
        if family.kind == "counter":
            self._exemplars.offer(ExemplarKey(family.name, labels), point.exemplars)
            return
        for exemplar in point.exemplars:
            le = _le(series.bounds, bisect_left(series.bounds, exemplar.value))
            self._exemplars.offer(ExemplarKey(family.name, labels, le), [exemplar])

    def render(self) -> list[Family]:
        """The families in the form of prometheus_client."""
        return [self._rendered(family) for family in self._families.values() if family.series]

    def _rendered(self, family: _Family) -> Family:
        rendered = Family(family.name, family.help, family.kind, family.unit)
        for labels, series in family.series.items():
            if family.kind == "histogram":
                rendered.samples += self._histogram_samples(family.name, labels, series)
            elif family.kind == "counter":
                exemplar = self._exemplars.get(ExemplarKey(family.name, labels))
                rendered.samples.append(
                    Sample(f"{family.name}_total", series.labels, series.value or 0.0, None, exemplar)
                )
            else:
                suffix = "_info" if family.kind == "info" else ""
                rendered.samples.append(Sample(f"{family.name}{suffix}", series.labels, series.value or 0.0))
            rendered.samples += series.created(family.name)
        return rendered

    def _histogram_samples(self, name: str, labels: LabelKey, series: _Series) -> list[Sample]:
        samples: list[Sample] = []
        running = 0
        buckets: dict[str, int] = {}  # a duplicate bound makes one bucket
        for index, count in enumerate(series.counts):
            running += count
            buckets[_le(series.bounds, index)] = running
        for le, count in buckets.items():
            exemplar = self._exemplars.get(ExemplarKey(name, labels, le))
            samples.append(Sample(f"{name}_bucket", {**series.labels, "le": le}, count, None, exemplar))
        if series.value is not None:
            samples.append(Sample(f"{name}_count", series.labels, running))
            samples.append(Sample(f"{name}_sum", series.labels, series.value))
        return samples
