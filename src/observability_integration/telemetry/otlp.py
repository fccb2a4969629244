"""Push over OTLP (http/protobuf): spans in batches, metrics at intervals."""

from __future__ import annotations

from typing import Any

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


class PushReader(PeriodicExportingMetricReader):
    """Collects and pushes at intervals; without one given, ``OTEL_METRIC_EXPORT_INTERVAL`` decides."""

    def __init__(self, exporter: OTLPMetricExporter, interval_seconds: float | None) -> None:
        super().__init__(exporter, None if interval_seconds is None else interval_seconds * 1000)
        self._ended = False

    def shutdown(self, timeout_millis: float = 30_000, **kwargs: Any) -> None:
        """Pushes what there is and ends; more than once does no harm, while the SDK's own would log a warning."""
        if not self._ended:
            self._ended = True
            super().shutdown(timeout_millis, **kwargs)  # pyright: ignore[reportUnknownMemberType] - untyped there
