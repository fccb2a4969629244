"""Starts telemetry for both sides: ours with `initialize_observability`, the other with the SDK set up by hand."""

from __future__ import annotations

import http.client
from urllib.parse import urlsplit

from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from observability_integration import initialize_observability, observability_status, shutdown_observability

from .by_hand.kit import ByHand

Counts = dict[tuple[str, tuple[tuple[str, str], ...]], float]


class OurTelemetry:
    """`initialize_observability` with Prometheus on a free port and spans over OTLP."""

    def __init__(self, endpoint: str) -> None:
        if not initialize_observability("benchmark", prometheus_port=0, otlp_endpoint=endpoint):
            raise RuntimeError(f"telemetry is off: {observability_status().reason}")

    def flush(self) -> None:
        """Exports all ended spans."""
        trace.get_tracer_provider().force_flush()  # type: ignore[attr-defined]

    def counts(self) -> Counts:
        """Returns the counts of a scrape."""
        url = urlsplit(observability_status().prometheus_url or "")
        connection = http.client.HTTPConnection(url.hostname or "", url.port, timeout=10.0)
        try:
            connection.request("GET", url.path)
            return _counts(connection.getresponse().read().decode())
        finally:
            connection.close()

    def close(self) -> None:
        """Shuts telemetry down."""
        shutdown_observability()


class SdkTelemetry:
    """The SDK's providers with the same exporters."""

    def __init__(self, endpoint: str) -> None:
        resource = Resource.create({"service.name": "benchmark"})
        self._registry = CollectorRegistry()
        reader = PrometheusMetricReader(registry=self._registry)
        self._meters = MeterProvider([reader], resource, shutdown_on_exit=False)
        self._tracers = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._tracers.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint=f"{endpoint}/v1/traces")))
        self.kit = ByHand(self._tracers.get_tracer("by_hand"), self._meters.get_meter("by_hand"))

    def flush(self) -> None:
        """Exports all ended spans."""
        self._tracers.force_flush()

    def counts(self) -> Counts:
        """Returns the counts of a scrape."""
        return _counts(generate_latest(self._registry).decode())

    def close(self) -> None:
        """Shuts telemetry down."""
        self._tracers.shutdown()
        self._meters.shutdown()


def _counts(scrape: str) -> Counts:
    # Counters, and the number of values of each histogram; the values are times, which differ.
    counts: Counts = {}
    for family in text_string_to_metric_families(scrape):
        wanted = {"counter": f"{family.name}_total", "histogram": f"{family.name}_count"}.get(family.type)
        for sample in family.samples:
            if sample.name == wanted and sample.value > 0:
                labels = {k: v for k, v in sample.labels.items() if not k.startswith("otel_scope_")}
                counts[sample.name, tuple(sorted(labels.items()))] = round(sample.value, 6)
    return counts
