"""Shutting down: everything is delivered, or given up in time, and nobody hears of it as an exception."""

from __future__ import annotations

import logging
import socket
import time
from collections.abc import Iterator

import pytest

from observability_integration import (
    get_tracer,
    initialize_observability,
    is_observability_enabled,
    observability_status,
    shutdown_observability,
)
from observability_integration.primitives import TimeoutPrimitive
from observability_integration.telemetry.catalogue.timeout import TIMEOUT_SUCCESSES
from tests.otlp_receiver import OtlpReceiver
from tests.processes import free_port
from tests.scripts import run_script

pytestmark = pytest.mark.promise("S7")

# A limit that no flush of the SDK keeps to (its own are 10 s and 30 s), with room for a busy machine.
_LIMIT_SECONDS = 0.3
_SLACK_SECONDS = 2.0


@pytest.fixture(autouse=True)
def switched_off_afterwards() -> Iterator[None]:
    """Nothing stays on."""
    yield
    shutdown_observability(0.0)


async def _answer(question: str) -> str:
    return question.upper()


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that accepts connections and requests and never answers."""
    with socket.create_server(("127.0.0.1", 0), backlog=16) as listener:
        yield listener.getsockname()[1]


@pytest.mark.needs_otel
async def test_what_was_measured_is_delivered() -> None:
    """The last seconds before a restart are the interesting ones: they must not be lost in a batch."""
    with OtlpReceiver() as receiver:
        initialize_observability(enable_prometheus=False, otlp_endpoint=receiver.endpoint)
        await TimeoutPrimitive(_answer, 5.0, operation_name="last words").execute("hi")
        shutdown_observability()
        assert ["timeout last words"] == [span.name for span in receiver.spans()]
        counted = receiver.metrics()["timeout.successes"].points
        assert [1] == [point.value for point in counted if point.attributes == {"operation": "last words"}]


@pytest.mark.needs_otel
@pytest.mark.parametrize("kind", ["dead", "silent"])
def test_it_returns_in_time_from_a_collector_that_is_dead_or_silent(
    kind: str, silent_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    """A deployment must not hang, and be killed, because the collector is being restarted too."""
    port = silent_port if kind == "silent" else free_port()
    initialize_observability(prometheus_port=0, otlp_endpoint=f"http://127.0.0.1:{port}", otlp_metrics=True)
    tracer = get_tracer("mine")
    assert tracer is not None
    tracer.start_span("undeliverable").end()

    began = time.monotonic()
    shutdown_observability(_LIMIT_SECONDS)
    assert time.monotonic() - began < _LIMIT_SECONDS + _SLACK_SECONDS
    messages = [record.getMessage() for record in caplog.records if record.name == "observability_integration"]
    assert "Observability: some telemetry was not delivered within 0.3s" in messages


@pytest.mark.needs_otel
def test_it_can_be_switched_on_again_right_after_a_silent_collector(silent_port: int) -> None:
    """What was left behind to be flushed must not hold a lock that the next life needs."""
    initialize_observability(prometheus_port=0, otlp_endpoint=f"http://127.0.0.1:{silent_port}", otlp_metrics=True)
    tracer = get_tracer("mine")
    assert tracer is not None
    tracer.start_span("undeliverable").end()
    shutdown_observability(0.05)

    with OtlpReceiver() as receiver:
        began = time.monotonic()
        initialize_observability(enable_prometheus=False, otlp_endpoint=receiver.endpoint)
        tracer.start_span("delivered").end()
        shutdown_observability()
        assert time.monotonic() - began < 5.0 + _SLACK_SECONDS
        assert ["delivered"] == [span.name for span in receiver.spans(1)]


@pytest.mark.needs_otel
def test_the_port_is_free_when_it_returns() -> None:
    """A restart in the same second must find its port."""
    for _ in range(2):
        initialize_observability(prometheus_port=0)
        port = observability_status().prometheus_port
        shutdown_observability()
        assert port is not None
        with socket.create_server(("127.0.0.1", port)) as listener:
            assert port == listener.getsockname()[1]


@pytest.mark.needs_otel
def test_twice_is_once(caplog: pytest.LogCaptureFixture) -> None:
    """Both a framework's hook and the application's own code may call it."""
    initialize_observability(prometheus_port=0)
    shutdown_observability()
    status = observability_status()
    assert not is_observability_enabled()
    assert status.reason == "shutdown_observability() was called"
    shutdown_observability()
    assert status == observability_status()
    assert [] == [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_without_an_initialise_it_does_nothing() -> None:
    """Clean-up code runs also where the start failed."""
    shutdown_observability()
    assert not is_observability_enabled()


@pytest.mark.needs_otel
@pytest.mark.parametrize("timeout_seconds", [0.0, -1.0, float("nan"), float("inf")])
def test_any_number_is_a_timeout(timeout_seconds: float) -> None:
    """It never raises: the number may come from a configuration, or be what is left of a deadline."""
    initialize_observability(prometheus_port=0)
    shutdown_observability(timeout_seconds)
    assert not is_observability_enabled()


@pytest.mark.needs_otel
async def test_primitives_go_on_after_it() -> None:
    """Requests that are still being served when telemetry has ended are served."""
    bounded = TimeoutPrimitive(_answer, 5.0, operation_name="afterwards")
    initialize_observability(prometheus_port=0)
    await bounded.execute("a")
    shutdown_observability()
    assert "B" == await bounded.execute("b")
    assert 2 == bounded.get_stats()["successes"]
    counted = [s.value for s in TIMEOUT_SUCCESSES if s.attributes == {"operation": "afterwards"}]
    assert [1] == counted, "measuring goes on although nobody looks"


@pytest.mark.needs_otel
def test_calling_the_providers_own_shutdown_ends_nothing_for_good() -> None:
    """Code that knows OpenTelemetry only calls shutdown() on the global providers; that must flush, and not break."""
    from opentelemetry import metrics, trace

    with OtlpReceiver() as receiver:
        initialize_observability(enable_prometheus=False, otlp_endpoint=receiver.endpoint)
        trace.get_tracer("mine").start_span("first").end()
        trace.get_tracer_provider().shutdown()
        assert ["first"] == [span.name for span in receiver.spans()]
        metrics.get_meter("mine").create_counter("orders").add(2)
        metrics.get_meter_provider().shutdown()
        assert [2] == [point.value for point in receiver.metrics()["orders"].points]
        trace.get_tracer("mine").start_span("second").end()
        shutdown_observability()
        assert ["first", "second"] == [span.name for span in receiver.spans()]
        assert trace.get_tracer_provider().force_flush()
        assert metrics.get_meter_provider().force_flush()
        trace.get_tracer_provider().shutdown()
        metrics.get_meter_provider().shutdown()


@pytest.mark.needs_otel
def test_the_end_of_the_process_delivers() -> None:
    """A script that ends, or a server that is stopped, must not need a line of clean-up to keep its last spans."""
    with OtlpReceiver() as receiver:
        out = run_script(
            """
            import asyncio, sys
            from observability_integration import initialize_observability
            from observability_integration.primitives import TimeoutPrimitive

            async def answer(question):
                return question

            initialize_observability("script", enable_prometheus=False, otlp_endpoint=sys.argv[1])
            asyncio.run(TimeoutPrimitive(answer, 5.0).execute("hi"))
            """,
            receiver.endpoint,
            OTEL_BSP_SCHEDULE_DELAY="60000",
        )
        assert "" == out
        (span,) = receiver.spans(1)
        assert ("timeout answer", "script") == (span.name, span.resource["service.name"])
        assert "timeout.successes" in receiver.metrics()


@pytest.mark.needs_otel
def test_the_end_of_the_process_does_not_wait_for_a_silent_collector(silent_port: int) -> None:
    """Five seconds are allowed at exit; the SDK alone would take thirty, and be killed by the supervisor."""
    began = time.monotonic()
    run_script(
        """
        import sys
        import observability_integration.apm_setup as apm_setup
        apm_setup._EXIT_SECONDS = 0.3
        apm_setup.initialize_observability(enable_prometheus=False, otlp_endpoint=sys.argv[1])
        apm_setup.get_tracer("mine").start_span("undeliverable").end()
        """,
        f"http://127.0.0.1:{silent_port}",
    )
    assert time.monotonic() - began < 8.0
