"""Instruments: what is added is counted once, whoever adds it, up to a cap; what is declared is shown at once."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from observability_integration.telemetry import catalogue
from observability_integration.telemetry.catalogue import Kind, MetricSpec, Profile
from observability_integration.telemetry.metrics import instruments
from observability_integration.telemetry.metrics.instruments import (
    MAX_LABEL_LENGTH,
    MAX_SERIES,
    OVERFLOW,
    CounterSeries,
    GaugeSeries,
    HistogramSeries,
    Instrument,
)
from observability_integration.telemetry.metrics.snapshot import points_of, snapshot

_COUNTER = MetricSpec("test.counter", Kind.COUNTER, ("name",), "A counter.")
_PAIR = MetricSpec("test.pair", Kind.COUNTER, ("first", "second"), "A counter with two labels.")
_GAUGE = MetricSpec("test.gauge", Kind.GAUGE, ("name",), "A gauge.")
_HISTOGRAM = MetricSpec("test.histogram", Kind.HISTOGRAM, ("name",), "A histogram.", "s", (0.1, 1.0, 10.0))


class _Owner:
    """Somebody who declares a series."""


@pytest.fixture(autouse=True)
def switched_on() -> Iterator[None]:
    """Measurements are kept during a test, and of no other test."""
    instruments.start(exemplars=False, profiles=frozenset({Profile.V1_41}))
    yield
    instruments.stop()
    instruments.start(exemplars=False, profiles=frozenset({Profile.V1_41}))
    instruments.stop()


def _counter(spec: MetricSpec = _COUNTER) -> Instrument[CounterSeries]:
    return Instrument(spec, CounterSeries)


def _histogram() -> Instrument[HistogramSeries]:
    return Instrument(_HISTOGRAM, lambda attributes, forward: HistogramSeries(attributes, forward, _HISTOGRAM.buckets))


def test_a_series_is_found_again_by_its_labels() -> None:
    """A primitive asks once and keeps what it got; somebody else with the same labels must add to the same sum."""
    instrument = _counter(_PAIR)
    instrument.series("a", "b").add(2)
    instrument.series("a", "b").add(0.5)
    instrument.series("a", None).add()
    assert [({"first": "a", "second": "b"}, 2.5), ({"first": "a"}, 1)] == [(s.attributes, s.value) for s in instrument]


@pytest.mark.parametrize("values", [(), ("a", "b")])
def test_the_wrong_number_of_labels_is_an_error_of_ours(values: tuple[str, ...]) -> None:
    """It would otherwise end up as a series that no query finds."""
    with pytest.raises(ValueError, match=r"test\.counter takes the labels \('name',\)"):
        _counter().series(*values)


@pytest.mark.promise("M6")
def test_beyond_the_cap_everything_is_added_up_in_one_series() -> None:
    """Labels that callers control must not grow the process; and nothing that happened may be lost."""
    instrument = _counter()
    for number in range(10_000):
        instrument.series(f"name {number}").add()
    shown = list(instrument)
    assert MAX_SERIES + 1 == len(shown)
    assert {OVERFLOW: True} == shown[-1].attributes
    assert 10_000 - MAX_SERIES == shown[-1].value
    instrument.series("name 5").add()
    assert 2 == instrument.series("name 5").value, "a series that was there before the cap goes on"


@pytest.mark.promise("M6")
def test_no_metric_of_the_catalogue_is_without_the_cap() -> None:
    """Routes, operations, reasons and error types come from code that is not ours, like models from requests."""
    for instrument in instruments.ALL.values():
        for number in range(MAX_SERIES + 10):
            instrument.series(*[f"value {number}"] * len(instrument.spec.labels))
        assert MAX_SERIES + 1 == len(list(instrument)), instrument.spec.name


def test_a_long_label_is_cut() -> None:
    """The same long name must also lead to the same series again."""
    instrument = _counter()
    for _ in range(2):
        instrument.series("x" * 10_000).add()
    (series,) = instrument
    assert ({"name": "x" * MAX_LABEL_LENGTH}, 2) == (series.attributes, series.value)


def test_nothing_is_kept_while_telemetry_is_off() -> None:
    """A counter that grew in secret would jump when telemetry is switched on."""
    counter, histogram = _counter().series("a"), _histogram().series("a")
    instruments.stop()
    counter.add(5)
    histogram.record(5.0)
    assert (0, 0) == (counter.value, histogram.count)


def test_a_gauge_is_true_whether_or_not_anybody_looks() -> None:
    """Work that is running when telemetry is switched on is running, and must not count below 0 when it ends."""
    gauge = Instrument(_GAUGE, GaugeSeries)
    instruments.stop()
    running = gauge.series("jobs")
    running.add(2)
    gauge.reset()
    running.add(-1)
    assert [1] == [series.value for series in gauge]
    running.set(0)
    gauge.reset()
    assert [] == list(gauge), "a level of 0 that nobody declared has nothing to tell"


@pytest.mark.promise("M7")
def test_declared_series_live_as_long_as_their_owner() -> None:
    """`rate()` needs their 0 from the start; but a primitive that is gone must not be shown in the next life."""
    instrument = _counter()
    first, second = _Owner(), _Owner()
    kept = instrument.declare(first, "shared")
    instrument.declare(second, "shared")
    instrument.series("undeclared").add()
    kept.add(3)
    assert ["shared", "undeclared"] == [series.attributes["name"] for series in instrument]
    instrument.reset()
    assert [("shared", 0)] == [(series.attributes["name"], series.value) for series in instrument]
    kept.add(1)
    assert [1] == [series.value for series in instrument], "the owner still adds to what is shown"
    del first
    gc.collect()
    instrument.reset()
    assert 1 == len(list(instrument))
    del second
    gc.collect()
    instrument.reset()
    assert [] == list(instrument)


def test_an_owner_beyond_the_cap_is_still_counted_after_a_restart() -> None:
    """The primitive holds the overflow series; forgetting that one would lose its counts for ever."""
    instrument = _counter()
    for number in range(MAX_SERIES):
        instrument.series(f"name {number}")
    owner = _Owner()
    beyond = instrument.declare(owner, "one too many")
    beyond.add(7)
    instrument.reset()
    beyond.add(2)
    assert [({OVERFLOW: True}, 2)] == [(series.attributes, series.value) for series in instrument]
    del owner
    gc.collect()
    instrument.reset()
    assert [] == list(instrument)


def test_a_histogram_counts_into_its_buckets() -> None:
    """A bound belongs to the bucket below it, as Prometheus's `le` has it."""
    series = _histogram().series("a")
    for value in (0.05, 0.1, 0.100001, 1.0, 10.0, 11.0):
        series.record(value)
    assert ([2, 2, 1, 1], 6) == (series.counts, series.count)
    assert pytest.approx(22.250001) == series.total
    assert (0.05, 11.0) == (series.minimum, series.maximum)
    series.reset()
    assert ([0, 0, 0, 0], 0, 0.0) == (series.counts, series.count, series.total)


@pytest.mark.promise("M4")
def test_the_last_exemplar_of_each_bucket_is_kept_where_spans_are_exported() -> None:
    """It leads from a slow bucket to the trace of a slow call; without exported traces it would lead nowhere."""

    class Sampled:
        def __init__(self, exemplar_context: object) -> None:
            self.exemplar_context = exemplar_context

    series = _histogram().series("a")
    series.record(0.05, Sampled("nobody looks"))
    assert {} == series.exemplars
    instruments.switch.exemplars = True
    for value, context in ((0.05, "old"), (0.06, "new"), (5.0, "slow"), (6.0, None)):
        series.record(value, Sampled(context))
    series.record(50.0)
    assert {0: (0.06, "new"), 2: (5.0, "slow")} == {
        index: (value, context) for index, (value, _, context) in series.exemplars.items()
    }


def test_measurements_are_forwarded_from_now_on() -> None:
    """Where the application's own reader collects, each measurement also goes to an instrument of its provider."""
    forwarded: list[tuple[float, Any]] = []
    counter, histogram = _counter(), _histogram()
    early = counter.series("early")
    early.add()
    for instrument in (counter, histogram):
        instrument.set_forward(lambda amount, attributes: forwarded.append((amount, attributes["name"])))
    early.add(2)
    histogram.series("late").record(0.5)
    owner = _Owner()
    counter.declare(owner, "declared")
    histogram.declare(owner, "declared")
    assert [(2, "early"), (0.5, "late"), (0, "declared")] == forwarded
    counter.set_forward(None)
    early.add(3)
    counter.declare(owner, "quiet")
    assert 3 == len(forwarded)
    assert 6 == early.value


def test_a_finaliser_may_measure_while_its_own_thread_measures() -> None:
    """The garbage collector runs where it likes: a stream that is dropped then records, under the lock that is held."""
    instrument = _counter()

    class Dropped:
        def __del__(self) -> None:
            instrument.series("finalised").add()

    with instruments.lock:
        dropped: Any = Dropped()
        del dropped
    assert 1 == instrument.series("finalised").value


def test_threads_that_add_at_once_lose_nothing() -> None:
    """Callers run in many threads and loops; a lost increment would never be noticed, and never be right."""
    counter, histogram, gauge = _counter(), _histogram(), Instrument(_GAUGE, GaugeSeries)
    start = threading.Barrier(8)

    def work(number: int) -> None:
        start.wait()
        for step in range(2000):
            counter.series("shared").add()
            counter.series(f"own {number}-{step % 10}").add()
            histogram.series("shared").record(0.5)
            gauge.series("shared").add(1 if step % 2 else -1)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 16_000 == counter.series("shared").value
    assert 32_000 == sum(series.value for series in counter)
    shared = histogram.series("shared")
    assert (16_000, [0, 16_000, 0, 0], 8000.0) == (shared.count, shared.counts, shared.total)
    assert 0 == gauge.series("shared").value


@pytest.mark.promise("M7")
def test_a_ratio_is_absent_before_there_is_a_whole() -> None:
    """0 of 0 is not 0 %: an alert on a low hit rate must not fire on an idle service."""
    assert [] == points_of(catalogue.cache.CACHE_HIT_RATE)
    owner = _Owner()
    catalogue.cache.CACHE_HITS.declare(owner, "ratio")
    catalogue.cache.CACHE_MISSES.declare(owner, "ratio")
    assert [] == points_of(catalogue.cache.CACHE_HIT_RATE)
    catalogue.cache.CACHE_MISSES.series("ratio").add(1)
    catalogue.cache.CACHE_HITS.series("ratio").add(3)
    (point,) = points_of(catalogue.cache.CACHE_HIT_RATE)
    assert ({"operation": "ratio"}, 0.75) == (point.attributes, point.value)


def test_a_ratio_sums_over_the_labels_that_it_does_not_have() -> None:
    """A timeout is a timeout, whichever clock fired; and what was added up beyond the cap has no operation to show."""
    catalogue.timeout.TIMEOUT_SUCCESSES.series("summed").add(2)
    catalogue.timeout.TIMEOUT_FAILURES.series("summed", "total").add(1)
    catalogue.timeout.TIMEOUT_FAILURES.series("summed", "idle").add(1)
    for number in range(MAX_SERIES):
        catalogue.timeout.TIMEOUT_SUCCESSES.series(f"filler {number}")
    catalogue.timeout.TIMEOUT_SUCCESSES.series("beyond").add(5)
    assert [({"operation": "summed"}, 0.5)] == [
        (point.attributes, point.value) for point in points_of(catalogue.timeout.TIMEOUT_RATE)
    ]


def test_a_snapshot_holds_what_has_something_to_show_in_the_order_of_the_catalogue() -> None:
    """A metric without a point is a HELP line without a number, and another profile's spelling is not asked for."""
    gc.collect()
    instruments.start(exemplars=False, profiles=frozenset({Profile.LATEST}))
    catalogue.gen_ai.GEN_AI_DURATION.series("chat", None, "m", None, None).record(1.0)
    catalogue.gen_ai.GEN_AI_INFERENCE_DURATION.series("chat", None, "m", None, None).record(1.0)
    catalogue.own.TELEMETRY_FAULTS.series("snapshot").add()
    catalogue.router.ROUTER_ERRORS.series("snapshot", "E").add()
    names = [spec.name for spec, points in snapshot() if points]
    assert names == [spec.name for spec in catalogue.CATALOGUE if spec.name in names]
    assert {"router.errors", "gen_ai.client.inference.duration", "telemetry.faults"} <= set(names)
    assert "gen_ai.client.operation.duration" not in names


def test_sums_of_dollars_carry_no_noise() -> None:
    """3 × 0.009 USD must not be shown as 0.026999999999999996."""
    for _ in range(3):
        catalogue.cache.CACHE_COST_SAVINGS.series("noise").add(0.009)
    values = [
        p.value for p in points_of(catalogue.cache.CACHE_COST_SAVINGS.spec) if p.attributes == {"operation": "noise"}
    ]
    assert [0.027] == values


def test_a_start_counts_from_zero_and_says_when_it_began() -> None:
    """`rate()` over a restart is right only if the start time moves with the counts."""
    began = instruments.switch.started_ns
    catalogue.own.TELEMETRY_FAULTS.series("before").add()
    instruments.start(exemplars=True, profiles=frozenset({Profile.V1_41}))
    assert began < instruments.switch.started_ns
    assert instruments.switch.exemplars
    assert {Profile.ALWAYS, Profile.V1_41} == instruments.switch.profiles
    assert "before" not in [series.attributes["site"] for series in catalogue.own.TELEMETRY_FAULTS]
