"""The order of making and switching on does not matter, and switching on works again after switching off."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from observability_integration import (
    get_meter,
    get_tracer,
    initialize_observability,
    observability_status,
    shutdown_observability,
)
from observability_integration.primitives import CachePrimitive, RouterPrimitive, TimeoutPrimitive
from tests.otlp_receiver import OtlpReceiver
from tests.scrapes import Scrape, scrape
from tests.scripts import run_script

pytestmark = pytest.mark.needs_otel


@pytest.fixture(autouse=True)
def switched_off_afterwards() -> Iterator[None]:
    """Nothing stays on."""
    yield
    shutdown_observability(0.0)


def _scrape() -> Scrape:
    return scrape(observability_status().prometheus_url)


async def _answer(question: str) -> str:
    return question.upper()


@pytest.mark.promise("S4")
async def test_initialise_shut_down_initialise_exports_again() -> None:
    """A server that reloads its configuration must not fall silent; and its second life counts from zero."""
    bounded = TimeoutPrimitive(_answer, 5.0, operation_name="reloaded")
    with OtlpReceiver() as receiver:
        for calls in (2, 3):
            assert initialize_observability(prometheus_port=0, otlp_endpoint=receiver.endpoint)
            for _ in range(calls):
                await bounded.execute("hi")
            assert calls == _scrape().value("timeout_successes_total", operation="reloaded")
            shutdown_observability()
        assert 5 == [span.name for span in receiver.spans(5)].count("timeout reloaded")


@pytest.mark.promise("S5")
async def test_a_primitive_made_before_reports_after() -> None:
    """Pipelines are built at import, telemetry is switched on in main(): the order must not cost the metrics."""
    router = RouterPrimitive(
        {"fast": CachePrimitive(TimeoutPrimitive(_answer, 5.0, operation_name="early"), str, operation_name="early")},
        lambda question, context: "fast",
        name="early",
    )
    await router.execute("counted nowhere")
    initialize_observability(prometheus_port=0)
    await router.execute("counted")
    found = _scrape()
    assert 1 == found.value("timeout_successes_total", operation="early")
    assert 1 == found.value("cache_misses_total", operation="early")
    shutdown_observability()


@pytest.mark.promise("S5")
def test_tracers_meters_and_instruments_of_one_life_work_in_the_next() -> None:
    """Libraries keep what they were given at import; after a restart of telemetry it must still report."""
    from opentelemetry import metrics, trace
    from opentelemetry.metrics import Observation

    initialize_observability(prometheus_port=0)
    tracer, meter = get_tracer("kept"), get_meter("kept")
    assert tracer is not None
    assert meter is not None
    orders = meter.create_counter("kept.orders")
    levels = meter.create_up_down_counter("kept.levels")
    sizes = meter.create_histogram("kept.sizes", explicit_bucket_boundaries_advisory=[1.0, 2.0])
    gauge = meter.create_gauge("kept.gauge")
    observed = [
        meter.create_observable_gauge("kept.heat", [lambda _: [Observation(21)]]),
        meter.create_observable_counter("kept.seen", [lambda _: [Observation(7)]]),
        meter.create_observable_up_down_counter("kept.open", [lambda _: [Observation(-3)]]),
    ]
    shutdown_observability()
    orders.add(100)
    levels.add(100)
    sizes.record(100.0)
    gauge.set(100)
    tracer.start_span("nobody listens").end()

    with OtlpReceiver() as receiver:
        initialize_observability(prometheus_port=0, otlp_endpoint=receiver.endpoint)
        orders.add(2)
        levels.add(-2)
        sizes.record(1.5)
        gauge.set(4)
        assert orders is meter.create_counter("kept.orders")
        assert meter is metrics.get_meter("kept")
        with tracer.start_as_current_span("outer"):
            trace.get_tracer("late").start_span("inner").end()
        found = _scrape()
        values = {
            name: found.value(name)
            for name in ("kept_orders_total", "kept_levels", "kept_gauge", "kept_heat", "kept_seen_total", "kept_open")
        }
        assert {
            "kept_orders_total": 2,
            "kept_levels": -2,
            "kept_gauge": 4,
            "kept_heat": 21,
            "kept_seen_total": 7,
            "kept_open": -3,
        } == values
        assert {"1.0": 0, "2.0": 1, "+Inf": 1} == found.buckets("kept_sizes")
        shutdown_observability()
        inner, outer = receiver.spans(2)
        assert (inner.name, inner.parent_id) == ("inner", outer.span_id)
    assert len(observed) == 3


def test_a_meter_may_carry_attributes_of_any_kind() -> None:
    """What cannot be part of a dictionary's key is still a legal scope attribute."""
    from opentelemetry import metrics

    initialize_observability(prometheus_port=0)
    first = metrics.get_meter("scoped", attributes={"teams": ["north", "south"]})
    assert first is metrics.get_meter("scoped", attributes={"teams": ["north", "south"]})
    assert first is not metrics.get_meter("scoped", attributes={"teams": ["north"]})


def test_an_instrument_the_sdk_refuses_does_not_stop_telemetry(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name with a blank, made while telemetry was off, must not make switching it on fail."""
    from opentelemetry import metrics

    from observability_integration.telemetry.delegates import meter_provider

    # Meters live as long as the process; this one shall not be refused again in every later test.
    monkeypatch.setattr(meter_provider, "_meters", dict(meter_provider._meters))
    initialize_observability(prometheus_port=0)
    shutdown_observability()
    meter = metrics.get_meter("refused")
    refused = meter.create_counter("not a name")
    assert initialize_observability(prometheus_port=0)
    refused.add(1)
    meter.create_counter("a.name").add(1)
    assert 1 == _scrape().value("a_name_total")


@pytest.mark.promise("S5")
def test_what_was_made_before_the_very_first_time_reports_after() -> None:
    """Before any provider is set, OpenTelemetry hands out stand-ins of its own; they must find ours."""
    out = run_script(
        """
        import urllib.request
        from opentelemetry import metrics, trace
        from opentelemetry.metrics import Observation
        tracer, meter = trace.get_tracer("early"), metrics.get_meter("early")
        counter = meter.create_counter("early.orders")
        histogram = meter.create_histogram("early.sizes", explicit_bucket_boundaries_advisory=[1.0])
        meter.create_observable_gauge("early.heat", [lambda _: [Observation(21)]])

        @tracer.start_as_current_span("decorated")
        def decorated():
            return trace.get_current_span().get_span_context().is_valid

        from observability_integration import initialize_observability, observability_status, shutdown_observability
        assert not decorated()
        for life in range(2):
            assert initialize_observability(prometheus_port=0)
            assert decorated(), life
            counter.add(5)
            histogram.record(0.5)
            text = urllib.request.urlopen(observability_status().prometheus_url).read().decode()
            shutdown_observability()
            assert not decorated()
            print(*(line for line in text.splitlines() if line.startswith("early") and "created" not in line))
        """
    )
    line = (
        'early_orders_total 5.0 early_sizes_bucket{le="1.0"} 1.0 early_sizes_bucket{le="+Inf"} 1.0 '
        "early_sizes_count 1.0 early_sizes_sum 0.5 early_heat 21.0"
    )
    assert [line, line] == out.splitlines()


async def test_decorated_coroutines_are_traced_to_their_end() -> None:
    """A tracer is also used as a decorator; on a coroutine function the span must last as long as the coroutine."""
    with OtlpReceiver() as receiver:
        initialize_observability(enable_prometheus=False, otlp_endpoint=receiver.endpoint, otlp_metrics=False)
        tracer = get_tracer("decorating")
        assert tracer is not None

        @tracer.start_as_current_span("whole")
        async def work() -> None:
            tracer.start_span("part").end()

        await work()
        shutdown_observability()
        part, whole = receiver.spans(2)
        assert (part.parent_id, whole.name) == (whole.span_id, "whole")


async def test_a_call_that_is_under_way_while_telemetry_is_switched_is_unharmed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Requests are in flight when telemetry comes up or goes down: no error, no log line, no context left behind."""
    from opentelemetry import trace

    async def switch(to: str) -> str:
        if to == "on":
            initialize_observability(prometheus_port=0)
        else:
            shutdown_observability()
        return to

    def made() -> RouterPrimitive[str, str]:
        bounded = TimeoutPrimitive(CachePrimitive(switch, str, operation_name="switched"), 5.0)
        return RouterPrimitive({"fast": bounded}, lambda question, context: "fast")

    assert "on" == await made().execute("on")
    assert not trace.get_current_span().get_span_context().is_valid
    assert "off" == await made().execute("off")
    assert not trace.get_current_span().get_span_context().is_valid
    with pytest.raises(ZeroDivisionError):
        await RouterPrimitive({"fast": _switch_and_fail}, lambda question, context: "fast").execute("on")
    assert [] == [record.getMessage() for record in caplog.records if "context" in record.getMessage().lower()]


async def _switch_and_fail(_: str) -> str:
    initialize_observability(prometheus_port=0)
    raise ZeroDivisionError


async def test_streams_that_are_open_while_telemetry_is_switched_are_unharmed() -> None:
    """A long stream outlives a reload: it goes on to its end, in whichever state telemetry is."""

    async def words(_: str):
        yield "one"
        yield "two"
        yield "three"

    router: RouterPrimitive[str, str] = RouterPrimitive({"fast": words}, lambda question, context: "fast")
    async with router.stream("?") as chunks:
        assert "one" == await anext(chunks)
        initialize_observability(prometheus_port=0)
        assert "two" == await anext(chunks)
        shutdown_observability()
        assert ["three"] == [chunk async for chunk in chunks]
