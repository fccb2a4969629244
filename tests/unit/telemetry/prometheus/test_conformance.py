"""What a scrape must look like, whatever OpenTelemetry was asked to measure.

Every input was also put through the official exporter (opentelemetry-exporter-prometheus 0.66b2), with a stand-in that
hands it the metrics which here are "own". Where it answers otherwise, the test's docstring says so after "Official
exporter:"; a test without such a line passes there as well.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum
from types import MappingProxyType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("opentelemetry.exporter.prometheus")

from opentelemetry import trace
from opentelemetry.metrics import Observation
from opentelemetry.sdk.metrics import Exemplar, MeterProvider
from opentelemetry.sdk.metrics.export import (
    AggregationTemporality,
    ExponentialHistogram,
    Gauge,
    Histogram,
    HistogramDataPoint,
    Metric,
    NumberDataPoint,
    ScopeMetrics,
    Sum,
)
from opentelemetry.sdk.metrics.view import (
    ExplicitBucketHistogramAggregation,
    ExponentialBucketHistogramAggregation,
    View,
)
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from prometheus_client import REGISTRY
from prometheus_client.exposition import generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from observability_integration.telemetry.prometheus import reader as prometheus_reader
from observability_integration.telemetry.prometheus.exemplars import ExemplarKey, ExemplarStore
from observability_integration.telemetry.prometheus.reader import PrometheusReader

pytestmark = [pytest.mark.once, pytest.mark.needs_otel, pytest.mark.promise("M3", "M4", "M5", "M8")]

CUMULATIVE = AggregationTemporality.CUMULATIVE
NO_ATTRIBUTES: Mapping[str, str] = MappingProxyType({})
NOW_NS = 1_700_000_000_123_456_789


def number(
    value: Any, attributes: Any = NO_ATTRIBUTES, *, start_ns: int = 0, exemplars: Sequence[Exemplar] = ()
) -> NumberDataPoint:
    return NumberDataPoint(attributes, start_ns, NOW_NS, value, exemplars)


def distribution(
    counts: Sequence[int], bounds: Sequence[float], total: float, attributes: Any = NO_ATTRIBUTES, **more: Any
) -> HistogramDataPoint:
    start_ns = more.pop("start_ns", 0)
    return HistogramDataPoint(attributes, start_ns, NOW_NS, sum(counts), total, counts, bounds, 0.0, 0.0, **more)


def counter(name: str, *points: NumberDataPoint, unit: str = "", description: str = "d") -> Metric:
    return Metric(name, description, unit, Sum(points, CUMULATIVE, is_monotonic=True))


def up_down(name: str, *points: NumberDataPoint) -> Metric:
    return Metric(name, "d", "", Sum(points, CUMULATIVE, is_monotonic=False))


def gauge(name: str, *points: NumberDataPoint, unit: str = "", description: str = "d") -> Metric:
    return Metric(name, description, unit, Gauge(points))


def histogram(name: str, *points: HistogramDataPoint, unit: str = "", description: str = "d") -> Metric:
    return Metric(name, description, unit, Histogram(points, CUMULATIVE))


def scope(name: str, *metrics: Metric) -> ScopeMetrics:
    return ScopeMetrics(InstrumentationScope(name, "1.0"), metrics, "")


def attached(reader: PrometheusReader, **options: Any) -> PrometheusReader:
    """The reader, known to a provider that has no instruments."""
    MeterProvider([reader], shutdown_on_exit=False, **options)
    return reader


def reading(*scopes: ScopeMetrics, **options: Any) -> PrometheusReader:
    options.setdefault("target_info", False)
    return attached(PrometheusReader(own_metrics=lambda: scopes, **options))


def text_of(reader: PrometheusReader) -> list[str]:
    """A scrape in the text format."""
    return generate_latest(reader.registry).decode("utf-8").splitlines()


def openmetrics_of(reader: PrometheusReader) -> list[str]:
    """A scrape in the OpenMetrics format; the strict parser of prometheus_client must accept it."""
    body = generate_openmetrics(reader.registry).decode("utf-8")
    list(parse_openmetrics(body))
    return body.splitlines()


def samples_of(*scopes: ScopeMetrics, **options: Any) -> list[str]:
    """The sample lines of a scrape in the text format, which must also be legal OpenMetrics."""
    reader = reading(*scopes, **options)
    openmetrics_of(reader)
    return [line for line in text_of(reader) if not line.startswith("#")]


class _Messages(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage())


@pytest.fixture
def warnings_of_ours() -> Iterator[list[str]]:
    """The messages that are logged, filled in as the test goes."""
    logger, handler = logging.getLogger("observability_integration"), _Messages()
    logger.addHandler(handler)
    yield handler.messages
    logger.removeHandler(handler)


@pytest.fixture
def in_span() -> Iterator[trace.SpanContext]:
    """Runs the test in a sampled span, as exemplars need one."""
    provider = TracerProvider(shutdown_on_exit=False)
    with provider.get_tracer("test").start_as_current_span("call") as span:
        yield span.get_span_context()


class TestLabels:
    def test_scopes_with_other_labels_share_a_family_and_keep_their_own(self) -> None:
        """Two instrumentations that measure under one name is what happens to gen_ai metrics.

        Official exporter: the second scope's values appear under the first scope's labels.
        """
        lines = samples_of(
            scope("a", counter("calls", number(1, {"model": "m", "op": "chat"}))),
            scope("b", counter("calls", number(2, {"error.type": "timeout", "op": "chat", "zz": "z"}))),
        )
        assert [
            'calls_total{model="m",op="chat"} 1.0',
            'calls_total{error_type="timeout",op="chat",zz="z"} 2.0',
        ] == lines

    def test_a_label_that_a_point_lacks_is_absent(self) -> None:
        """Absent and empty are one series to Prometheus, but text that pads is longer and misleads its readers.

        Official exporter: pads with ``error_type=""``.
        """
        metric = histogram("h", distribution([1], [], 1.0, {"error.type": "e"}), distribution([2], [], 3.0, {}))
        assert [
            'h_bucket{error_type="e",le="+Inf"} 1.0',
            'h_count{error_type="e"} 1.0',
            'h_sum{error_type="e"} 1.0',
            'h_bucket{le="+Inf"} 2.0',
            "h_count 2.0",
            "h_sum 3.0",
        ] == samples_of(scope("a", metric))

    def test_an_empty_value_is_no_label_and_makes_no_second_series(self) -> None:
        """Prometheus would take ``{x=""}`` and ``{}`` for the same series and refuse one of the two.

        Official exporter: exports both.
        """
        assert ["c_total 3.0"] == samples_of(scope("a", counter("c", number(1, {"x": ""}), number(2, {}))))

    def test_colliding_keys_are_joined_in_the_order_of_the_original_keys(self) -> None:
        """The compatibility specification says MUST; losing one of the values silently merges series.

        Official exporter: the last one wins.
        """
        lines = samples_of(scope("a", counter("c", number(1, {"a_b": "second", "a.b": "first", "a-b": "zeroth"}))))
        assert ['c_total{a_b="zeroth;first;second"} 1.0'] == lines

    def test_an_attribute_called_le_does_not_break_the_buckets(self) -> None:
        """A label ``le`` on a histogram would be taken for its bucket bound.

        Official exporter: the two are mixed up, and a strict parser rejects the scrape.
        """
        lines = samples_of(scope("a", histogram("h", distribution([1, 0], [5], 1.0, {"le": "mine"}))))
        assert [
            'h_bucket{exported_le="mine",le="5.0"} 1.0',
            'h_bucket{exported_le="mine",le="+Inf"} 1.0',
            'h_count{exported_le="mine"} 1.0',
            'h_sum{exported_le="mine"} 1.0',
        ] == lines

    @pytest.mark.parametrize(
        ("key", "label"),
        [("gen_ai.request.model", "gen_ai_request_model"), ("1st", "_st"), ("a..b", "a_b"), ("__name__", "_name_"),
         ("größe", "gr_e"), ("", "_"), ("a__b", "a_b"), ("ns:key", "ns_key")],
    )  # fmt: skip
    def test_keys_are_spelled_as_label_names(self, key: str, label: str) -> None:
        """Anything but letters, digits and single underscores is illegal or reserved.

        Official exporter: an empty key yields an empty label name, which no parser accepts.
        """
        assert [f'g{{{label}="v"}} 1.0'] == samples_of(scope("a", gauge("g", number(1, {key: "v"}))))

    def test_values_are_escaped_and_encodable_whatever_they_are(self) -> None:
        """A single label value must not cost the whole scrape.

        Official exporter: a lone surrogate fails the whole scrape, and a str enum shows its Python name.
        """

        class Colour(str, Enum):  # noqa: UP042 - the older kind, whose str() differs from its value
            RED = "red"

        values = {
            "back": "a\\b", "bool": True, "dict": {"k": 1}, "enum": Colour.RED, "float": 0.5, "line": "a\nb",
            "list": ["é", 1], "lone": "x\ud800y", "none": None, "pair": "\ud83d\ude00", "quote": 'a"b', "uni": "né😀",
        }  # fmt: skip
        (line,) = samples_of(scope("a", gauge("g", number(1, values))))
        assert (
            r'g{back="a\\b",bool="true",dict="{\"k\": 1}",enum="red",float="0.5",line="a\nb",list="[\"\\u00e9\", 1]",'
            'lone="x\N{REPLACEMENT CHARACTER}y",pair="\N{GRINNING FACE}",quote="a\\"b",uni="né\N{GRINNING FACE}"} 1.0'
        ) == line

    def test_points_without_attributes_are_a_series_without_labels(self) -> None:
        """Attributes are optional in the data model.

        Official exporter: fails on attributes that are None.
        """
        assert ["g 1.0"] == samples_of(scope("a", gauge("g", number(1, None))))


class TestFamilies:
    def test_other_descriptions_share_one_help(self, warnings_of_ours: list[str]) -> None:
        """The specification forbids a second HELP; the points must survive, and the author must hear of it.

        Official exporter: repeats HELP and TYPE.
        """
        reader = reading(
            scope("a", counter("c", number(1, {"s": "a"}), description="first")),
            scope("b", counter("c", number(2, {"s": "b"}), description="second")),
            scope("c", counter("c", number(3, {"s": "c"}), description="")),
        )
        for _ in range(2):
            assert [
                "# HELP c_total first",
                "# TYPE c_total counter",
                'c_total{s="a"} 1.0',
                'c_total{s="b"} 2.0',
                'c_total{s="c"} 3.0',
            ] == text_of(reader)
        assert ["Metric c has several descriptions; the first is exported"] == warnings_of_ours

    @pytest.mark.parametrize(
        ("first", "second", "kept"),
        [
            (counter("x", number(1)), gauge("x", number(2)), ["x_total 1.0"]),
            (gauge("x", number(2)), counter("x", number(1)), ["x 2.0"]),
            (counter("x", number(1)), gauge("x.total", number(2)), ["x_total 1.0"]),
            (gauge("x.count", number(2)), histogram("x", distribution([1], [], 1.0)), ["x_count 2.0"]),
            (gauge("x.created", number(2)), counter("x", number(1)), ["x_created 2.0"]),
        ],
        ids=["counter-gauge", "gauge-counter", "total", "count", "created"],
    )
    def test_a_metric_of_another_type_under_a_taken_name_is_left_out(
        self, first: Metric, second: Metric, kept: list[str], warnings_of_ours: list[str]
    ) -> None:
        """One name with two types makes Prometheus reject or misread the scrape; suffixes count as well.

        Official exporter: exports both.
        """
        reader = reading(scope("a", first), scope("b", second))
        assert kept == [line for line in text_of(reader) if not line.startswith("#")]
        assert openmetrics_of(reader)
        assert 1 == len(warnings_of_ours)
        assert "is left out of scrapes: another metric has its exported name" in warnings_of_ours[0]

    def test_the_same_series_from_two_scopes_is_added_up(self) -> None:
        """Without scope labels two scopes may end in one series; a duplicate makes Prometheus drop one of them.

        Official exporter: exports the series twice.
        """
        lines = samples_of(
            scope(
                "a",
                counter("c", number(1, {"x": "1"})),
                histogram("h", distribution([1, 2, 0], [1, 5], 7.0)),
                up_down("u", number(3)),
                gauge("g", number(1)),
            ),
            scope(
                "b",
                counter("c", number(2.5, {"x": "1"})),
                histogram("h", distribution([0, 1, 1], [1, 5], 12.5)),
                up_down("u", number(-1)),
                gauge("g", number(9)),
            ),
        )
        assert [
            'c_total{x="1"} 3.5',
            'h_bucket{le="1.0"} 1.0',
            'h_bucket{le="5.0"} 4.0',
            'h_bucket{le="+Inf"} 5.0',
            "h_count 5.0",
            "h_sum 19.5",
            "u 2.0",
            "g 9.0",
        ] == lines

    def test_the_same_histogram_series_with_other_bounds_is_not_added_up(self, warnings_of_ours: list[str]) -> None:
        """Counts of different buckets have no sum.

        Official exporter: exports both, with the buckets of either interleaved.
        """
        lines = samples_of(
            scope("a", histogram("h", distribution([1, 0], [1], 1.0))),
            scope("b", histogram("h", distribution([4, 4], [2], 9.0))),
        )
        assert ['h_bucket{le="1.0"} 1.0', 'h_bucket{le="+Inf"} 1.0', "h_count 1.0", "h_sum 1.0"] == lines
        assert ["Metric h has points with the same labels but other buckets; the first wins"] == warnings_of_ours

    def test_created_of_added_up_series_is_the_earlier_one(self) -> None:
        """The sum began when the first of its parts did.

        Official exporter: has no start times.
        """
        reader = reading(
            scope("a", counter("c", number(1, start_ns=5_000_000_000))),
            scope("b", counter("c", number(1, start_ns=3_000_000_000))),
        )
        assert "c_created 3.0" in openmetrics_of(reader)

    def test_what_cannot_be_scraped_is_left_out_and_harms_nothing(self, warnings_of_ours: list[str]) -> None:
        """Deltas make no sense to a scraper, and a metric may be empty or of a kind that is yet to be invented.

        Official exporter: exports delta sums as if they were totals, and fails on missing data.
        """
        delta = AggregationTemporality.DELTA
        nothing: Any = None
        lines = samples_of(
            scope("a", Metric("delta", "d", "", Sum([number(1)], delta, is_monotonic=True))),
            scope("a", Metric("delta.h", "d", "", Histogram([distribution([1], [], 1.0)], delta))),
            scope("a", Metric("delta.e", "d", "", ExponentialHistogram([], delta))),
            scope("a", Metric("none", "d", "", nothing), Metric("no.points", "d", "", Gauge(nothing))),
            scope("a", counter("empty"), gauge("rest", number(1))),
            scope("nothing"),
        )
        assert ["rest 1.0"] == lines
        assert 4 == len(warnings_of_ours)
        assert all("only cumulative data can be scraped" in message for message in warnings_of_ours)

    def test_metadata_may_be_missing(self) -> None:
        """Description and unit are optional in the data model."""
        assert [
            "# HELP g ",
            "# TYPE g gauge",
            "g 1.0",
        ] == text_of(reading(scope("a", Metric("g", None, None, Gauge([number(1)])))))


class TestNamesAndValues:
    NAMES = (
        ("counter", "router.cost_savings_usd", "", "router_cost_savings_usd_total"),
        ("counter", "requests.total", "", "requests_total"),
        ("counter", "busy.total", "s", "busy_seconds_total"),
        ("counter", "tokens", "{token}", "tokens_total"),
        ("gauge", "router.execution", "s", "router_execution_seconds"),
        ("gauge", "router.execution.seconds", "s", "router_execution_seconds"),
        ("gauge", "cache.hit_rate", "1", "cache_hit_rate"),
        ("gauge", "memory", "By", "memory_bytes"),
        ("gauge", "speed", "m/s", "speed_meters_per_second"),
        ("gauge", "rate", "{request}/s", "rate_per_second"),
        ("gauge", "odd", "{a}/{b}", "odd"),
        ("gauge", "cpu", "%", "cpu_percent"),
        ("gauge", "price", "USD", "price_USD"),
        ("gauge", "lag", "ms", "lag_milliseconds"),
        ("gauge", "a--b..c__d", "", "a_b_c_d"),
        ("gauge", "ns:name", "", "ns:name"),
        ("gauge", "a.total", "", "a_total"),
    )

    @pytest.mark.parametrize(("kind", "name", "unit", "expected"), NAMES, ids=[f"{n[1]}-{n[2]}" for n in NAMES])
    def test_units_and_suffixes_appear_once(self, kind: str, name: str, unit: str, expected: str) -> None:
        """The names that rules and dashboards are written against; the official exporter spells them the same."""
        metric = counter(name, number(1), unit=unit) if kind == "counter" else gauge(name, number(1), unit=unit)
        assert [f"{expected} 1.0"] == samples_of(scope("a", metric))

    def test_a_unit_is_announced_in_openmetrics(self) -> None:
        """Prometheus shows it as metadata."""
        reader = reading(scope("a", counter("busy", number(1), unit="s")))
        assert "# UNIT busy_seconds seconds" in openmetrics_of(reader)

    def test_values_that_are_no_plain_numbers_are_spelled_as_prometheus_reads_them(self) -> None:
        """An observable callback may return anything that is a number.

        Official exporter: an int beyond the range of floats fails the whole scrape.
        """
        values = [math.nan, math.inf, -math.inf, 10**400, -(10**400), True, 1e21]
        points = [number(value, {"n": str(index)}) for index, value in enumerate(values)]
        assert [
            "NaN",
            "+Inf",
            "-Inf",
            "+Inf",
            "-Inf",
            "1.0",
            "1e+21",
        ] == [line.rpartition(" ")[2] for line in samples_of(scope("a", gauge("g", *points)))]

    def test_bounds_are_spelled_as_floats(self) -> None:
        """OpenMetrics wants canonical floats in ``le``; 1 and 1.0 would be two series of one bucket.

        Official exporter: ``le="1"`` where the bound was given as an int.
        """
        lines = samples_of(scope("a", histogram("h", distribution([1, 0, 0], [1, 16777216], 1.0))))
        assert [
            'h_bucket{le="1.0"',
            'h_bucket{le="1.6777216e+07"',
            'h_bucket{le="+Inf"',
        ] == [line.partition("}")[0] for line in lines[:3]]

    def test_a_bound_that_is_given_twice_makes_one_bucket(self) -> None:
        """The SDK takes bounds as they come, infinity included.

        Official exporter: repeats the series, and writes infinity as ``inf``, which no parser accepts.
        """
        lines = samples_of(scope("a", histogram("h", distribution([1, 0, 2, 0, 0], [1, 1, 5, math.inf], 9.0))))
        assert ['h_bucket{le="1.0"} 1.0', 'h_bucket{le="5.0"} 3.0', 'h_bucket{le="+Inf"} 3.0'] == lines[:3]
        assert ["h_count 3.0", "h_sum 9.0"] == lines[3:]

    def test_a_histogram_without_buckets_has_its_count(self) -> None:
        """The data model allows a distribution of count and sum only.

        Official exporter: fails the whole scrape.
        """
        point = HistogramDataPoint({}, 0, NOW_NS, 4, 2.0, (), (), 0.0, 0.0)
        assert ['h_bucket{le="+Inf"} 4.0', "h_count 4.0", "h_sum 2.0"] == samples_of(scope("a", histogram("h", point)))

    def test_negative_buckets_come_without_a_sum(self) -> None:
        """OpenMetrics: a sum that may fall is no counter."""
        lines = samples_of(scope("a", histogram("h", distribution([1, 1], [-1.0], -3.0))))
        assert ['h_bucket{le="-1.0"} 1.0', 'h_bucket{le="+Inf"} 2.0'] == lines

    def test_start_times_are_exported_as_created(self) -> None:
        """It tells a counter that was reset from one that was never seen; gauges have no beginning.

        Official exporter: has no start times.
        """
        start = {"start_ns": 1_700_000_000_250_000_000}
        reader = reading(
            scope(
                "a",
                counter("c", number(1, {"x": "1"}, **start), number(1, {"x": "2"})),
                histogram("h", distribution([1], [], 1.0, **start)),
                gauge("g", number(1, **start)),
            )
        )
        created = [line for line in openmetrics_of(reader) if "_created" in line]
        assert ['c_created{x="1"} 1.70000000025e+09', "h_created 1.70000000025e+09"] == created

    @settings(max_examples=60, deadline=None)
    @given(
        st.dictionaries(st.text(max_size=8), st.text(max_size=12), max_size=4),
        st.floats(),
        st.text(max_size=12),
    )
    def test_no_text_breaks_the_exposition(self, attributes: dict[str, str], value: float, description: str) -> None:
        """Whatever comes from users, both formats can be read back and say the same.

        Official exporter: an empty key or a lone surrogate makes the scrape unreadable.
        """
        reader = reading(scope("a", gauge("g", number(value, attributes), description=description)))
        (read,) = parse_openmetrics(generate_openmetrics(reader.registry).decode("utf-8"))
        (as_text,) = parse_text(generate_latest(reader.registry).decode("utf-8"))
        (sample,), (sample_as_text,) = read.samples, as_text.samples
        assert sample.labels == sample_as_text.labels
        for of in (sample, sample_as_text):
            assert of.value == value or (math.isnan(of.value) and math.isnan(value))


class TestExponentialHistograms:
    def test_count_and_sum_survive_and_the_log_says_what_to_do(self, warnings_of_ours: list[str]) -> None:
        """Some distributions of OpenTelemetry make these the default, and one must not cost every other metric.

        Official exporter: the whole scrape fails with AttributeError.
        """
        reader = PrometheusReader(target_info=False)
        view = View(instrument_name="h", aggregation=ExponentialBucketHistogramAggregation())
        provider = MeterProvider([reader], views=[view], shutdown_on_exit=False)
        meter = provider.get_meter("a")
        recorded = meter.create_histogram("h", "s", "d")
        for value in (0.5, 2.0, 100.0):
            recorded.record(value, {"x": "1"})
        meter.create_counter("c").add(1)
        for _ in range(2):
            assert [
                'h_seconds_bucket{le="+Inf",x="1"} 3.0',
                'h_seconds_count{x="1"} 3.0',
                'h_seconds_sum{x="1"} 102.5',
                "c_total 1.0",
            ] == [line for line in text_of(reader) if not line.startswith("#") and "_created" not in line]
        (message,) = warnings_of_ours
        assert message.startswith("Metric h is an exponential histogram")
        assert "ExplicitBucketHistogramAggregation" in message


class TestExemplars:
    def exemplar(self, value: float, span_id: int, time_ns: int = NOW_NS) -> Exemplar:
        return Exemplar({"prompt": "secret"}, value, time_ns, span_id, 0xABC)

    def test_buckets_and_counters_lead_to_their_span_for_every_scraper(self, in_span: trace.SpanContext) -> None:
        """The way from a slow bucket to its trace; the SDK hands an exemplar out once, so we keep it.

        Official exporter: has no exemplars.
        """
        reader = PrometheusReader(target_info=False)
        provider = MeterProvider([reader], shutdown_on_exit=False)
        meter = provider.get_meter("a")
        timer = meter.create_histogram("h", "s", "d", explicit_bucket_boundaries_advisory=[1.0, 5.0])
        timer.record(0.5, {"x": "1"})
        timer.record(9.0, {"x": "1"})
        meter.create_counter("c").add(2)
        ids = f'{{span_id="{in_span.span_id:016x}",trace_id="{in_span.trace_id:032x}"}}'
        first = openmetrics_of(reader)
        exemplars = [line.partition(" # ")[0::2] for line in first if " # " in line]
        assert [
            'h_seconds_bucket{le="1.0",x="1"} 1.0',
            'h_seconds_bucket{le="+Inf",x="1"} 2.0',
            "c_total 2.0",
        ] == [line for line, _ in exemplars]
        assert [f"{ids} 0.5", f"{ids} 9.0", f"{ids} 2.0"] == [exemplar.rsplit(" ", 1)[0] for _, exemplar in exemplars]
        assert first == openmetrics_of(reader)

    def test_time_is_exact_and_filtered_attributes_stay_here(self) -> None:
        """What a View has taken off a metric (often a prompt or a user) must not come back with the exemplar.

        Official exporter: has no exemplars.
        """
        reader = reading(scope("a", counter("c", number(1, exemplars=[self.exemplar(1.0, 0xD)]))))
        ids = f'{{span_id="{0xD:016x}",trace_id="{0xABC:032x}"}}'
        assert f"c_total 1.0 # {ids} 1.0 1700000000.123456789" in openmetrics_of(reader)

    def test_a_newer_exemplar_replaces_and_an_older_one_does_not(self) -> None:
        """The last span that was measured is the one still to be found in the trace store.

        Official exporter: has no exemplars.
        """
        points: list[NumberDataPoint] = []
        own = [scope("a", Metric("c", "d", "", Sum(points, CUMULATIVE, is_monotonic=True)))]
        reader = attached(PrometheusReader(own_metrics=lambda: own, target_info=False))
        shown: list[bool] = []
        for offset, span_id in ((0, 1), (5, 2), (3, 3)):
            exemplars = [self.exemplar(0.5, span_id, NOW_NS + offset), self.exemplar(0.5, 9, NOW_NS - 1)]
            points[:] = [number(1, exemplars=exemplars)]
            (line,) = (line for line in openmetrics_of(reader) if " # " in line)
            shown.append(f'span_id="{span_id:016x}"' in line)
        assert [True, True, False] == shown

    def test_an_exemplar_without_a_span_or_on_a_gauge_is_left_out(self) -> None:
        """Nothing to follow; and on a gauge the format forbids it, so that the whole scrape would fail."""
        loose = Exemplar({}, 1.0, NOW_NS)
        reader = reading(
            scope(
                "a",
                counter("c", number(1, exemplars=[loose])),
                up_down("u", number(1, exemplars=[self.exemplar(1.0, 1)])),
                gauge("g", number(1, exemplars=[self.exemplar(1.0, 1)])),
            )
        )
        assert not [line for line in openmetrics_of(reader) if " # " in line]

    def test_an_exemplar_on_a_bound_belongs_to_the_bucket_below(self) -> None:
        """Bounds are inclusive; an exemplar outside its bucket is rejected by strict parsers.

        Official exporter: has no exemplars.
        """
        reader = reading(scope("a", histogram("h", distribution([1, 0], [5], 5.0, exemplars=[self.exemplar(5.0, 1)]))))
        (line,) = (line for line in openmetrics_of(reader) if " # " in line)
        assert line.startswith('h_bucket{le="5.0"} 1.0 # ')

    def test_the_text_format_goes_without(self) -> None:
        """It has no place for them; Prometheus would reject the line."""
        reader = reading(scope("a", counter("c", number(1, exemplars=[self.exemplar(1.0, 1)]))))
        assert "c_total 1.0" in text_of(reader)

    def test_memory_is_bounded(self) -> None:
        """Series come and go over months; what is kept of them must not grow."""
        store = ExemplarStore(limit=2)
        keys = [ExemplarKey("h", (("x", str(index)),), "1.0") for index in range(3)]
        for time_ns, key in enumerate([keys[0], keys[1], keys[0], keys[2]], start=1):
            store.offer(key, [self.exemplar(1.0, 1, time_ns)])
        assert [True, False, True] == [store.get(key) is not None for key in keys]


class TestScopesAndResource:
    def test_no_scope_labels_unless_asked_for(self) -> None:
        """Three more labels on every series cost storage and mostly say what the name says already.

        Official exporter: has them on by default.
        """
        assert ["c_total 1.0"] == samples_of(scope("a", counter("c", number(1))))

    def test_scope_labels_when_asked_for(self) -> None:
        """They keep series of two libraries apart; the scope's own fields win over attributes of the same name.

        Official exporter: the attribute of the point wins, and fields that are empty become labels.
        """
        instrumentation = InstrumentationScope("lib", "2.0", None, {"short.name": "l", "version": "not this"})
        metrics = [counter("c", number(1, {"otel.scope.name": "nor this"}))]
        lines = samples_of(ScopeMetrics(instrumentation, metrics, ""), scope_labels=True)
        assert ['c_total{otel_scope_name="lib",otel_scope_short_name="l",otel_scope_version="2.0"} 1.0'] == lines

    def test_target_info_comes_once_from_the_resource_that_was_given(self) -> None:
        """It joins every series of the process to its service, also before the first instrument exists.

        Official exporter: nothing comes before the first instrument.
        """
        reader = PrometheusReader(resource=Resource({"service.name": "shop", "a.b": "1", "a_b": 2}))
        provider = MeterProvider([reader], resource=Resource({"service.name": "other"}), shutdown_on_exit=False)
        expected = 'target_info{a_b="1;2",service_name="shop"} 1.0'
        assert ["# HELP target_info Target metadata", "# TYPE target_info gauge", expected] == text_of(reader)
        provider.get_meter("a").create_counter("c").add(1)
        assert [expected] == [line for line in text_of(reader) if line.startswith("target_info")]

    def test_target_info_is_by_default_that_of_the_provider(self) -> None:
        """A reader attached to the application's provider describes the application."""
        reader = PrometheusReader()
        provider = MeterProvider([reader], resource=Resource({"service.name": "shop"}), shutdown_on_exit=False)
        for name in ("a", "b"):
            provider.get_meter(name).create_counter("c").add(1)
        lines = openmetrics_of(reader)
        assert [
            "# HELP target Target metadata",
            "# TYPE target info",
            'target_info{service_name="shop"} 1.0',
        ] == lines[:3]
        assert 3 == sum("target" in line for line in lines)

    def test_target_info_is_left_out_where_it_says_nothing(self) -> None:
        """An empty resource describes nothing, and it can be switched off."""
        assert [] == text_of(attached(PrometheusReader(resource=Resource({}))))
        assert [] == text_of(attached(PrometheusReader(resource=Resource({"a": "b"}), target_info=False)))

    def test_a_metric_cannot_pass_for_target_info(self) -> None:
        """There must be one, and joins depend on it.

        Official exporter: exports a second target_info.
        """
        reader = reading(scope("a", gauge("target_info", number(7))), target_info=True, resource=Resource({"a": "b"}))
        assert ['target_info{a="b"} 1.0'] == [line for line in text_of(reader) if not line.startswith("#")]


class TestReader:
    def test_sdk_and_own_metrics_are_one_scrape(self) -> None:
        """What the application measures with the SDK and what we count ourselves may be the same family.

        Official exporter: repeats HELP and TYPE, as with any two deliveries.
        """
        own = [scope("own", counter("c", number(5, {"from": "own"})))]
        reader = PrometheusReader(own_metrics=lambda: own, target_info=False)
        provider = MeterProvider([reader], shutdown_on_exit=False)
        provider.get_meter("a").create_counter("c", description="d").add(1, {"from": "sdk"})
        lines = [line for line in text_of(reader) if "_created" not in line]
        assert [
            "# HELP c_total d",
            "# TYPE c_total counter",
            'c_total{from="sdk"} 1.0',
            'c_total{from="own"} 5.0',
        ] == lines

    def test_every_instrument_of_the_sdk_comes_out(self) -> None:
        """The kinds of instruments, as the SDK aggregates them."""
        reader = PrometheusReader(target_info=False)
        view = View(instrument_name="h", aggregation=ExplicitBucketHistogramAggregation((1.0,)))
        meter = MeterProvider([reader], views=[view], shutdown_on_exit=False).get_meter("a")
        meter.create_counter("c").add(1)
        meter.create_up_down_counter("u").add(-2)
        meter.create_gauge("g").set(3)
        meter.create_histogram("h").record(4)
        meter.create_observable_counter("oc", [lambda _: [Observation(5)]])
        meter.create_observable_up_down_counter("ou", [lambda _: [Observation(6)]])
        meter.create_observable_gauge("og", [lambda _: [Observation(7)]])
        lines = [line for line in openmetrics_of(reader) if not line.startswith("#") and "_created" not in line]
        expected = [
            "c_total 1.0",
            "u -2.0",
            "g 3.0",
            "oc_total 5.0",
            "ou 6.0",
            "og 7.0",
            "h_count 1.0",
            "h_sum 4.0",
        ]
        assert {*expected, 'h_bucket{le="1.0"} 0.0', 'h_bucket{le="+Inf"} 1.0'} == set(lines)

    def test_own_metrics_that_raise_fail_this_scrape_only(self) -> None:
        """Half a scrape looks like series that vanished; a failed one looks like what it is."""
        broken = [True]

        def own() -> list[ScopeMetrics]:
            if broken:
                raise LookupError
            return [scope("own", counter("c", number(1)))]

        reader = attached(PrometheusReader(own_metrics=own, target_info=False))
        with pytest.raises(LookupError):
            generate_latest(reader.registry)
        broken.clear()
        assert "c_total 1.0" in text_of(reader)

    @pytest.mark.parametrize(
        "metric",
        [
            counter("broken", number("not a number")),
            counter("broken", number(None)),
            histogram("broken", distribution([1, 2], [1, 2], 1.0)),
        ],
        ids=["text", "nothing", "buckets"],
    )
    def test_a_broken_point_fails_the_scrape_and_its_metric_is_named_once(
        self, metric: Metric, warnings_of_ours: list[str]
    ) -> None:
        """The error alone would not tell which of some hundred metrics to look at.

        Official exporter: does not name it, and exports buckets that do not add up.
        """
        reader = reading(scope("a", metric))
        for _ in range(2):
            with pytest.raises((ValueError, TypeError)):
                generate_latest(reader.registry)
        assert ["Metric broken is broken; scrapes fail until it is mended"] == warnings_of_ours

    def test_a_callback_that_raises_costs_its_own_metric_only(self, caplog: pytest.LogCaptureFixture) -> None:
        """The SDK catches it; the rest of the process must stay visible."""

        def fail(_: object) -> Any:
            raise LookupError

        reader = PrometheusReader(target_info=False)
        meter = MeterProvider([reader], shutdown_on_exit=False).get_meter("a")
        meter.create_observable_gauge("g", [fail])
        meter.create_up_down_counter("u").add(1)
        with caplog.at_level(logging.CRITICAL):
            assert "u 1.0" == text_of(reader)[-1]

    def test_a_flush_is_no_scrape_and_counts_nothing_twice(self) -> None:
        """A flush of the application's provider ends in every reader, and may come at any time.

        Official exporter: every flush adds a copy of everything to the next scrape.
        """
        reader = PrometheusReader(target_info=False)
        provider = MeterProvider([reader], shutdown_on_exit=False)
        meter = provider.get_meter("a")
        meter.create_counter("c").add(1)
        assert provider.force_flush()
        assert provider.force_flush()
        samples = [line for line in text_of(reader) if not line.startswith("#") and "_created" not in line]
        assert ["c_total 1.0"] == samples

    def test_concurrent_scrapes_take_turns_and_see_the_same(self) -> None:
        """Two Prometheus servers scrape one process, and exemplars must reach both."""
        own = [scope("own", *(counter(f"c{index}", number(1)) for index in range(50)))]
        reader = attached(PrometheusReader(own_metrics=lambda: own, target_info=False))
        seen: list[bytes] = []
        threads = [threading.Thread(target=lambda: seen.append(generate_latest(reader.registry))) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(20)
        assert 8 == len(seen)
        assert 1 == len(set(seen))

    def test_a_scrape_does_not_wait_for_ever_behind_a_stuck_one(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A callback that hangs would otherwise collect one thread per scrape interval.

        Official exporter: lets scrapes run into each other.
        """
        monkeypatch.setattr(prometheus_reader, "_LOCK_SECONDS", 0.01)
        inside, leave = threading.Event(), threading.Event()

        def own() -> list[ScopeMetrics]:
            inside.set()
            leave.wait(20)
            return []

        reader = attached(PrometheusReader(own_metrics=own, target_info=False))
        stuck = threading.Thread(target=generate_latest, args=(reader.registry,))
        stuck.start()
        assert inside.wait(20)
        with pytest.raises(TimeoutError, match="still being collected"):
            generate_latest(reader.registry)
        leave.set()
        stuck.join(20)
        assert b"" == generate_latest(reader.registry)

    def test_shutdown_may_come_from_the_provider_and_again_from_us(self) -> None:
        """Who shuts down first depends on whose provider it is.

        Official exporter: the second one raises KeyError.
        """
        reader = PrometheusReader(own_metrics=lambda: [scope("own", counter("c", number(1)))])
        provider = MeterProvider([reader], shutdown_on_exit=False)
        provider.shutdown()
        reader.shutdown()
        reader.shutdown()
        assert [] == text_of(reader)

    def test_the_global_registry_is_left_alone(self) -> None:
        """Python process metrics of prometheus_client are the application's affair, and readers must not meet there.

        Official exporter: registers there by default.
        """
        before = {family.name for family in REGISTRY.collect()}
        reader = reading(scope("a", counter("c", number(1))))
        assert before == {family.name for family in REGISTRY.collect()}
        assert ["c"] == [family.name for family in reader.registry.collect()]

    def test_a_cardinality_limit_holds_for_every_kind_of_instrument(self) -> None:
        """A label with unbounded values must not take the process or Prometheus down.

        Official exporter: keeps the limit, but pads the overflow series with empty labels.
        """
        reader = PrometheusReader(cardinality_limit=3, target_info=False)
        meter = MeterProvider([reader], shutdown_on_exit=False).get_meter("a")
        count, level = meter.create_counter("c"), meter.create_gauge("g")
        for index in range(10):
            count.add(1, {"x": str(index)})
            level.set(1, {"x": str(index)})
        lines = text_of(reader)
        assert 'c_total{otel_metric_overflow="true"} 7.0' in lines
        assert 'g{otel_metric_overflow="true"} 1.0' in lines
        with pytest.raises(ValueError, match="positive"):
            PrometheusReader(cardinality_limit=0)
