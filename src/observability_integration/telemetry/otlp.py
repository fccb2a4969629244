"""Push over OTLP (http/protobuf): spans in batches, metrics at intervals."""

from __future__ import annotations

from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

from .settings import OtlpSettings


def _signal_url(endpoint: str | None, signal: str) -> str | None:
    # With None the exporter reads its own environment variables, signal-specific ones included.
    return None if endpoint is None else f"{endpoint.rstrip('/')}/v1/{signal}"


def _headers(settings: OtlpSettings) -> dict[str, str] | None:
    return None if settings.headers is None else dict(settings.headers)


def span_exporter(settings: OtlpSettings) -> OTLPSpanExporter:
    """An exporter of spans."""
    return OTLPSpanExporter(endpoint=_signal_url(settings.endpoint, "traces"), headers=_headers(settings))


def metric_exporter(settings: OtlpSettings) -> OTLPMetricExporter:
    """An exporter of metrics."""
    return OTLPMetricExporter(endpoint=_signal_url(settings.endpoint, "metrics"), headers=_headers(settings))


def metric_reader(exporter: OTLPMetricExporter, settings: OtlpSettings) -> PeriodicExportingMetricReader:
    """Collects and pushes at intervals; without one in the settings, ``OTEL_METRIC_EXPORT_INTERVAL`` decides."""
    interval = settings.metric_interval_seconds
    return PeriodicExportingMetricReader(exporter, None if interval is None else interval * 1000)
