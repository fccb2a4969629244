"""Exporters over OTLP (http/protobuf): spans in batches, metrics at intervals."""

from __future__ import annotations

from typing import Any

from opentelemetry.exporter.otlp.proto.http.metric_exporter import OTLPMetricExporter
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.metrics.export import PeriodicExportingMetricReader

from .settings import OtlpSettings


def _signal_url(endpoint: str | None, signal: str) -> str | None:
    # None makes the exporter read its own environment variables, those per signal included.
    return None if endpoint is None else f"{endpoint.rstrip('/')}/v1/{signal}"


def _headers(settings: OtlpSettings) -> dict[str, str] | None:
    return None if settings.headers is None else dict(settings.headers)


def span_exporter(settings: OtlpSettings) -> OTLPSpanExporter:
    """Creates the exporter of spans."""
    return OTLPSpanExporter(endpoint=_signal_url(settings.endpoint, "traces"), headers=_headers(settings))


def metric_exporter(settings: OtlpSettings) -> OTLPMetricExporter:
    """Creates the exporter of metrics."""
    return OTLPMetricExporter(endpoint=_signal_url(settings.endpoint, "metrics"), headers=_headers(settings))


class PushReader(PeriodicExportingMetricReader):
    """Collects and pushes at intervals; an interval of None means ``OTEL_METRIC_EXPORT_INTERVAL``."""

    def __init__(self, exporter: OTLPMetricExporter, interval_seconds: float | None) -> None:
        super().__init__(exporter, None if interval_seconds is None else interval_seconds * 1000)
        self._ended = False

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        """Pushes the last metrics and ends; a second call does nothing, where the SDK's reader logs a warning."""
        if not self._ended:
            self._ended = True
            super().shutdown(timeout_millis, **kwargs)  # pyright: ignore[reportUnknownMemberType] - untyped there
