"""Builds the SDK's providers behind the delegating ones, or attaches to those the application has set.

`start` makes everything the settings ask for and returns a `Running`, which knows how to take it down again.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Any

from opentelemetry import metrics as metrics_api
from opentelemetry import trace as trace_api
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, SynchronousMultiSpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from observability_integration._version import __version__

from . import instruments, own_metrics, spans
from .catalogue import Profile
from .delegates import meter_provider as delegating_meters
from .delegates import tracer_provider as delegating_tracers
from .lean_span import ForeignTracing, LeanTracing
from .settings import GenAIProfile, OtlpSettings, PrometheusSettings, Settings

logger = logging.getLogger("observability_integration")

SCOPE_NAME = "observability_integration"
_PROFILES: dict[GenAIProfile, frozenset[Profile]] = {
    "v1.41": frozenset({Profile.V1_41}),
    "latest": frozenset({Profile.LATEST}),
    "both": frozenset({Profile.V1_41, Profile.LATEST}),
}


class _Detachable(SpanProcessor):
    """Lets go of a processor that was added to somebody else's provider, which has no way to remove one."""

    def __init__(self, inner: SpanProcessor) -> None:
        self._inner: SpanProcessor | None = inner

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        inner = self._inner
        if inner is not None:
            inner.on_start(span, parent_context)

    def on_end(self, span: ReadableSpan) -> None:
        inner = self._inner
        if inner is not None:
            inner.on_end(span)

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        inner = self._inner
        return True if inner is None else inner.force_flush(timeout_millis)

    def shutdown(self) -> None:
        inner, self._inner = self._inner, None
        if inner is not None:
            inner.shutdown()


class Running:
    """Telemetry in force: what is exported, and how to end it.

    Attributes:
        traces: where spans go, e.g. ``("otlp", "console")``.
        metrics: where metrics go, e.g. ``("prometheus",)``.
        attached: the signals for which the application's own provider is used.
        problems: what was asked for and could not be had, in words.
        scrape_url: where Prometheus is served, or None.
    """

    def __init__(self) -> None:
        self.traces: tuple[str, ...] = ()
        self.metrics: tuple[str, ...] = ()
        self.attached: tuple[str, ...] = ()
        self.problems: tuple[str, ...] = ()
        self.scrape_url: str | None = None
        self.scrape_port: int | None = None
        self._enders: list[Callable[[float], None]] = []
        self._interrupts: list[Callable[[], None]] = []
        self._server: Any = None

    @property
    def exporting(self) -> bool:
        """Whether anything leaves the process."""
        return bool(self.traces or self.metrics)

    def on_stop(self, ender: Callable[[float], None], interrupt: Callable[[], None] | None = None) -> None:
        """Registers what ends a part within the seconds it is given, and what makes it give up."""
        self._enders.append(ender)
        if interrupt is not None:
            self._interrupts.append(interrupt)

    def serve(self, server: Any) -> None:
        """Takes over a scrape server that has started."""
        self._server = server
        self.scrape_url = server.url
        self.scrape_port = server.port
        self.metrics = (*self.metrics, "prometheus")

    def stop(self, timeout_seconds: float) -> bool:
        """Flushes and ends everything; whether that was done within the time."""
        spans.install(None)
        instruments.stop()
        delegating_tracers.inner = None
        delegating_meters.install(None)
        deadline = time.monotonic() + timeout_seconds
        if self._server is not None:
            self._server.close(min(1.0, timeout_seconds))
            self._server = None
        # The SDK's own flushes do not keep to a time limit, so they run beside us and are left behind if need be.
        threads = [_in_thread(ender, max(0.0, deadline - time.monotonic())) for ender in self._enders]
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        in_time = not any(thread.is_alive() for thread in threads)
        if not in_time:
            for interrupt in self._interrupts:
                _in_thread(lambda _, interrupt=interrupt: interrupt(), 0.0)
        return in_time

    def forget_after_fork(self) -> None:
        """In a forked child: the scrape thread stayed with the parent, so the socket is let go."""
        if self._server is not None:
            self._server.release_after_fork()
            self._server = None
            self.scrape_url = self.scrape_port = None
            self.metrics = tuple(way for way in self.metrics if way != "prometheus")


def _in_thread(ender: Callable[[float], None], seconds: float) -> threading.Thread:
    def run() -> None:
        try:
            ender(seconds)
        except Exception as error:  # noqa: BLE001 - ending telemetry must not fail the application
            logger.warning("Telemetry could not be ended cleanly: %s", type(error).__name__)

    thread = threading.Thread(target=run, name="observability-shutdown", daemon=True)
    try:
        thread.start()
    except RuntimeError:  # the interpreter is going down and starts no thread any more
        run()
    return thread


def _resource(settings: Settings) -> Resource:
    attributes: dict[str, Any] = dict(settings.resource_attributes)
    if settings.service_name is not None:
        attributes["service.name"] = settings.service_name
    if settings.service_version is not None:
        attributes["service.version"] = settings.service_version
    if settings.environment is not None:
        attributes["deployment.environment.name"] = settings.environment
    return Resource.create(attributes)


def start(settings: Settings) -> Running:
    """Builds and installs what `settings` ask for. Faults of the environment end up in ``Running.problems``."""
    running = Running()
    resource = _resource(settings)
    scope = InstrumentationScope(SCOPE_NAME, __version__)
    instruments.start(exemplars=False, profiles=_PROFILES[settings.gen_ai_profile])
    _start_traces(running, settings, resource, scope)
    _start_metrics(running, settings, resource, scope)
    instruments.switch.exemplars = bool(running.traces)
    return running


def _span_processors(running: Running, settings: Settings) -> list[SpanProcessor]:
    processors: list[SpanProcessor] = []
    if settings.otlp is not None and settings.otlp.traces:
        exporter = _otlp_span_exporter(settings.otlp)
        processors.append(BatchSpanProcessor(exporter))
        running.on_stop(lambda _: None, exporter.shutdown)
        running.traces = (*running.traces, "otlp")
    if settings.console:
        processors.append(BatchSpanProcessor(ConsoleSpanExporter()))
        running.traces = (*running.traces, "console")
    return processors


def _otlp_span_exporter(settings: OtlpSettings) -> Any:
    from . import otlp  # the exporter takes 0.1 s to import

    return otlp.span_exporter(settings)


def _start_traces(running: Running, settings: Settings, resource: Resource, scope: InstrumentationScope) -> None:
    processors = _span_processors(running, settings)
    current = trace_api.get_tracer_provider()
    if isinstance(current, TracerProvider):
        for processor in processors:
            detachable = _Detachable(processor)
            current.add_span_processor(detachable)
            running.on_stop(lambda _, processor=detachable: processor.shutdown())
        running.attached = (*running.attached, "traces")
        spans.install(ForeignTracing(current.get_tracer(SCOPE_NAME, __version__)))
        return
    fan_out = SynchronousMultiSpanProcessor()
    provider = TracerProvider(resource=resource, active_span_processor=fan_out, shutdown_on_exit=False)
    for processor in processors:
        provider.add_span_processor(processor)
    running.on_stop(lambda _: provider.shutdown())
    delegating_tracers.inner = provider
    if isinstance(current, trace_api.ProxyTracerProvider):
        trace_api.set_tracer_provider(delegating_tracers)
    spans.install(LeanTracing(provider, fan_out, scope))


def _start_metrics(running: Running, settings: Settings, resource: Resource, scope: InstrumentationScope) -> None:
    current = metrics_api.get_meter_provider()
    attached = isinstance(current, MeterProvider)
    readers: list[MetricReader] = []
    push = settings.otlp is not None and settings.otlp.metrics
    # Pushed metrics, and those for the application's own readers, must go through the SDK's instruments; a scrape of
    # ours reads the process's own series, which is far cheaper.
    through_sdk = attached or push
    if settings.otlp is not None and push:
        readers.append(_otlp_metric_reader(running, settings.otlp))
    if settings.prometheus is not None:
        reader = _serve_prometheus(running, settings.prometheus, resource, None if through_sdk else scope)
        if reader is not None:
            readers.append(reader)
    if isinstance(current, MeterProvider):
        for reader in readers:
            current.add_metric_reader(reader)
            running.on_stop(lambda _, reader=reader: current.remove_metric_reader(reader))
        running.attached = (*running.attached, "metrics")
        own_metrics.feed(current.get_meter(SCOPE_NAME, __version__))
        return
    provider = MeterProvider(readers, resource, shutdown_on_exit=False)
    running.on_stop(lambda seconds: provider.shutdown(timeout_millis=seconds * 1000))
    delegating_meters.install(provider)
    if type(current).__name__ == "_ProxyMeterProvider":  # the API's own, not public: the slot is free
        metrics_api.set_meter_provider(delegating_meters)
    if through_sdk:
        own_metrics.feed(provider.get_meter(SCOPE_NAME, __version__))


def _otlp_metric_reader(running: Running, settings: OtlpSettings) -> MetricReader:
    from . import otlp  # the exporter takes 0.1 s to import

    exporter = otlp.metric_exporter(settings)
    running.on_stop(lambda _: None, exporter.shutdown)
    running.metrics = (*running.metrics, "otlp")
    return otlp.metric_reader(exporter, settings)


def _serve_prometheus(
    running: Running, settings: PrometheusSettings, resource: Resource, scope: InstrumentationScope | None
) -> MetricReader | None:
    from .prometheus import PrometheusReader  # prometheus_client is needed only here
    from .scrape_server import ScrapeServer

    own = None if scope is None else (lambda: own_metrics.collect(scope))
    reader = PrometheusReader(own_metrics=own, scope_labels=settings.scope_labels, resource=resource)
    server = ScrapeServer(
        reader.registry,
        host=settings.host,
        port=settings.port,
        bearer_token=settings.bearer_token,
        tls_certificate_file=settings.tls_certificate_file,
        tls_key_file=settings.tls_key_file,
        tls_client_ca_file=settings.tls_client_ca_file,
    )
    try:
        server.start()
    except OSError as error:
        problem = f"cannot serve Prometheus on {settings.host}:{settings.port}: {error.strerror or error}"
        running.problems = (*running.problems, problem)
        reader.shutdown()
        return None
    running.serve(server)
    return reader
