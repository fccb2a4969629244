"""Where the application has set OpenTelemetry providers of its own, ours joins them and leaves them running.

Providers can be set once in a process, so each of these tests has a process of its own.
"""

from __future__ import annotations

import pytest

from tests.otlp_receiver import OtlpReceiver
from tests.scripts import run_script

pytestmark = [pytest.mark.needs_otel, pytest.mark.promise("S6")]

_APPLICATION = """
import asyncio, logging, sys, urllib.request
from opentelemetry import metrics, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

logging.basicConfig(stream=sys.stdout, level=logging.WARNING, format="LOG %(message)s")
resource = Resource.create({"service.name": "the-application"})
exporter, reader = InMemorySpanExporter(), InMemoryMetricReader()
tracers = TracerProvider(resource=resource)
tracers.add_span_processor(SimpleSpanProcessor(exporter))
meters = MeterProvider([reader], resource)
trace.set_tracer_provider(tracers)
metrics.set_meter_provider(meters)

from observability_integration import initialize_observability, observability_status, shutdown_observability
from observability_integration.primitives import CachePrimitive, RouterPrimitive, TimeoutPrimitive

async def answer(question):
    return question.upper()

def pipeline(name="attached"):
    bounded = TimeoutPrimitive(answer, 5.0, operation_name=name)
    return RouterPrimitive({"fast": CachePrimitive(bounded, str, operation_name=name)}, lambda q, c: "fast", name=name)

def run(flow, question):
    asyncio.run(flow.execute(question))

def points(name):
    return {
        tuple(sorted(point.attributes.items())): getattr(point, "value", None) or getattr(point, "sum", 0)
        for group in reader.get_metrics_data().resource_metrics
        for scoped in group.scope_metrics
        for metric in scoped.metrics
        if metric.name == name
        for point in metric.data.data_points
    }

def text():
    return urllib.request.urlopen(observability_status().prometheus_url).read().decode()
"""


def test_its_processors_and_readers_see_our_spans_and_metrics() -> None:
    """One pipeline is enough: what the application exports must include what we measure, nested in its own spans."""
    out = run_script(
        _APPLICATION
        + """
flow = pipeline()
assert initialize_observability("ignored", prometheus_port=0)
assert ("traces", "metrics") == observability_status().attached
with tracers.get_tracer("app").start_as_current_span("request"):
    run(flow, "a")
    run(flow, "a")
names = [(span.name, span.parent and span.parent.span_id) for span in exporter.get_finished_spans()]
by_id = {span.context.span_id: span.name for span in exporter.get_finished_spans()}
for span in exporter.get_finished_spans():
    parent = span.parent and by_id[span.parent.span_id]
    print(span.name, "<", parent, span.kind.name, span.resource.attributes["service.name"])
print(points("cache.hits"), points("cache.misses"), points("cache.hit_rate"), points("router.decisions"))
print(*sorted(line for line in text().splitlines() if line.startswith(("cache_hits_total", "target_info"))))
print(metrics.get_meter_provider() is meters, trace.get_tracer_provider() is tracers)
shutdown_observability()
"""
    )
    lines = out.splitlines()
    assert [
        "timeout attached < cache attached INTERNAL the-application",
        "cache attached < router attached INTERNAL the-application",
        "router attached < request INTERNAL the-application",
        "cache attached < router attached INTERNAL the-application",
        "router attached < request INTERNAL the-application",
        "request < None INTERNAL the-application",
    ] == lines[:6]
    operation = "(('operation', 'attached'),)"
    assert f"{{{operation}: 1}} {{{operation}: 1}} {{{operation}: 0.5}}" in lines[6]
    assert "(('reason', 'routing_function'), ('route', 'fast')): 2" in lines[6]
    assert 'cache_hits_total{operation="attached"} 1.0' in lines[7]
    assert 'service_name="the-application"' in lines[7]
    assert "True True" == lines[8]


def test_known_counters_are_zero_there_too() -> None:
    """`rate()` must see the first error, whichever pipeline carries the counter."""
    out = run_script(
        _APPLICATION
        + """
early = pipeline("early")
initialize_observability(prometheus_port=0)
late = pipeline("late")
shown = {dict(labels)["operation"] for labels in points("timeout.failures")}
print(sorted(shown), points("cache.hit_rate"))
shutdown_observability()
"""
    )
    assert "['early', 'late'] {}" == out.strip()


def test_shutdown_leaves_it_running_and_takes_ours_away() -> None:
    """The providers belong to the application: ours may flush and leave, and must not close what it did not open."""
    with OtlpReceiver() as receiver:
        out = run_script(
            _APPLICATION
            + """
flow = pipeline()
for life in (1, 2):
    assert initialize_observability(prometheus_port=0, otlp_endpoint=sys.argv[1], otlp_metrics=True)
    run(flow, str(life))
    shutdown_observability()
    tracers.get_tracer("app").start_span(f"after {life}").end()
    run(flow, "not measured")
print([span.name for span in exporter.get_finished_spans()])
print(points("timeout.successes"))
meters.get_meter("app").create_counter("app.orders").add(1)
print(points("app.orders"))
""",
            receiver.endpoint,
            OTEL_BSP_SCHEDULE_DELAY="60000",
        )
        sent = [span.name for span in receiver.spans()]
        metrics = receiver.metrics("timeout.successes")
    lines = out.splitlines()
    kept = ["timeout attached", "cache attached", "router attached"]
    assert str([*kept, "after 1", *kept, "after 2"]) == lines[0]
    assert [*kept, *kept] == sent
    assert "{(('operation', 'attached'),): 2}" == lines[1]
    assert "{(): 1}" == lines[2]
    # The reader of the second life has only seen the second life.
    assert [1] == [point.value for point in metrics["timeout.successes"].points]


def test_attached_alone_counts_as_exporting() -> None:
    """An application that exports by itself needs no port and no endpoint of ours to see the primitives."""
    out = run_script(
        _APPLICATION
        + """
print(initialize_observability(enable_prometheus=False), observability_status().reason)
run(pipeline(), "a")
print(len(exporter.get_finished_spans()), points("timeout.successes"))
shutdown_observability()
"""
    )
    assert "True traces and metrics to the application's own providers" in out
    assert "3 {(('operation', 'attached'),): 1}" in out


def test_only_one_signal_may_be_the_applications() -> None:
    """An application may trace by itself and leave the metrics to us."""
    out = run_script(
        """
        import asyncio
        from opentelemetry import metrics, trace
        from opentelemetry.sdk.trace import TracerProvider
        trace.set_tracer_provider(TracerProvider())
        from observability_integration import initialize_observability, observability_status, shutdown_observability
        initialize_observability(prometheus_port=0)
        print(observability_status().attached, type(metrics.get_meter_provider()).__name__)
        shutdown_observability()
        """
    )
    assert "('traces',) DelegatingMeterProvider" == out.strip()


def test_exploding_parts_of_the_application_do_not_reach_the_call() -> None:
    """Also where sampler, processor and views are not ours, the user's call is not theirs to fail."""
    out = run_script(
        _APPLICATION
        + """
from opentelemetry.sdk.trace import SpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_ON, Sampler

class ExplodingProcessor(SpanProcessor):
    def on_end(self, span):
        raise RuntimeError("end")

class ExplodingSampler(Sampler):
    def should_sample(self, *args, **kwargs):
        raise RuntimeError("sample")
    def get_description(self):
        return "explodes"

initialize_observability(prometheus_port=0)
flow = pipeline()
tracers.add_span_processor(ExplodingProcessor())
print(asyncio.run(flow.execute("processor")))
from observability_integration import __version__
tracers.get_tracer("observability_integration", __version__).sampler = ExplodingSampler()
print(asyncio.run(flow.execute("sampler")))
meters._measurement_consumer.consume_measurement = lambda *args: 1 / 0
print(asyncio.run(flow.execute("measurement")))
shutdown_observability()
"""
    )
    lines = out.splitlines()
    assert ["PROCESSOR", "SAMPLER", "MEASUREMENT"] == [line for line in lines if not line.startswith("LOG")]
    logged = [line.split(" raised ")[0] for line in lines if "raised" in line]
    assert ["LOG tracing.processor", "LOG tracing.begin", "LOG metrics.forward"] == logged
