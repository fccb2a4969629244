"""Builds the SDK's providers behind the delegating ones, or attaches to the application's.

`start` builds everything in the settings and returns a `Running`, which stops it.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from opentelemetry import metrics as metrics_api
from opentelemetry import trace as trace_api
from opentelemetry.metrics import Meter
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import MetricReader, ScopeMetrics
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, SynchronousMultiSpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter, SpanExporter
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Tracer

from observability_integration._version import __version__

from .catalogue import Profile
from .delegates import meter_provider as delegating_meters
from .delegates import tracer_provider as delegating_tracers
from .metrics import instruments, sdk_bridge
from .settings import GenAIProfile, OtlpSettings, PrometheusSettings, Settings
from .tracing import spans
from .tracing.otel_tracing import ForeignTracing
from .tracing.processors import GuardedProcessor

if TYPE_CHECKING:
    from .prometheus.server import ScrapeServer

__all__ = ["Meter", "Running", "Tracer", "meter", "start", "tracer"]

logger = logging.getLogger("observability_integration")

SCOPE_NAME = "observability_integration"
_PROFILES: dict[GenAIProfile, frozenset[Profile]] = {
    "v1.41": frozenset({Profile.V1_41}),
    "latest": frozenset({Profile.LATEST}),
    "both": frozenset({Profile.V1_41, Profile.LATEST}),
}


class Running:
    """Running telemetry: its exporters and their shutdown.

    Attributes:
        traces: exporters of spans, e.g. ``("otlp", "console")``.
        metrics: exporters of metrics, e.g. ``("prometheus",)``.
        attached: the signals that use the application's own provider.
        problems: sentences about parts of the settings that failed to start.
        scrape_url: URL of the scrape endpoint; None without one.
        scrape_port: port of the scrape endpoint; None without one.
    """

    def __init__(self) -> None:
        self.traces: tuple[str, ...] = ()
        self.metrics: tuple[str, ...] = ()
        self.attached: tuple[str, ...] = ()
        self.problems: tuple[str, ...] = ()
        self.scrape_url: str | None = None
        self.scrape_port: int | None = None
        self._enders: list[Callable[[float], object]] = []
        self._interrupts: list[Callable[[], object]] = []
        self._server: ScrapeServer | None = None

    @property
    def exporting(self) -> bool:
        """Whether any signal is exported, by this library or through the application's own providers."""
        return bool(self.traces or self.metrics or self.attached)

    def on_stop(self, ender: Callable[[float], object]) -> None:
        """Registers `ender`, which `stop` calls with the seconds that are left."""
        self._enders.append(ender)

    def on_timeout(self, interrupt: Callable[[], object]) -> None:
        """Registers `interrupt`, which `stop` calls when its time is over; it makes a pending flush give up."""
        self._interrupts.append(interrupt)

    def cannot(self, what: str, error: BaseException) -> None:
        """Adds a problem: "cannot `what`", with the reason."""
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        self.problems = (*self.problems, f"cannot {what}: {why}")

    def serve(self, server: ScrapeServer) -> None:
        """Registers a started scrape server."""
        self._server = server
        self.scrape_url = server.url
        self.scrape_port = server.port
        self.metrics = (*self.metrics, "prometheus")

    def _unserve(self) -> ScrapeServer | None:
        server, self._server = self._server, None
        self.scrape_url = self.scrape_port = None
        self.metrics = tuple(way for way in self.metrics if way != "prometheus")
        return server

    def without_metrics(self) -> None:
        """Closes the exporters of metrics that have started."""
        server = self._unserve()
        self.metrics = ()
        if server is not None:
            server.close(0.0)

    def stop(self, timeout_seconds: float) -> bool:
        """Flushes and ends everything; returns whether that took no longer than `timeout_seconds`."""
        deadline = time.monotonic() + min(timeout_seconds, threading.TIMEOUT_MAX)

        def left() -> float:
            return max(0.0, deadline - time.monotonic())

        spans.install(None)
        delegating_tracers.inner = None
        delegating_meters.install(None)
        server = self._unserve()
        if server is not None:
            server.close(min(1.0, left()))
        # The SDK's flushes may exceed their time limit, so they run in threads of their own, which may be abandoned.
        threads = [thread for ender in self._enders if (thread := _in_thread(ender, left())) is not None]
        for thread in threads:
            thread.join(left())
        instruments.stop()  # after the flushes: the last push observes the gauges
        in_time = not any(thread.is_alive() for thread in threads)
        if not in_time:
            for interrupt in self._interrupts:
                _in_thread(lambda _, interrupt=interrupt: interrupt(), 0.0)  # type: ignore[misc]
        return in_time

    def forget_after_fork(self) -> None:
        """In a forked child: closes the inherited scrape socket, as its thread runs in the parent only."""
        server = self._unserve()
        if server is not None:
            server.release_after_fork()


def _in_thread(ender: Callable[[float], object], seconds: float) -> threading.Thread | None:
    def run() -> None:
        try:
            ender(seconds)
        except Exception as error:  # noqa: BLE001 - ending telemetry must not fail the application
            logger.warning("Telemetry could not be ended cleanly: %s", type(error).__name__)

    thread = threading.Thread(target=run, name="observability-shutdown", daemon=True)
    try:
        thread.start()
    except RuntimeError:  # Python 3.12.0 and 3.12.1 start no thread during interpreter shutdown
        run()
        return None
    return thread


def tracer(name: str) -> Tracer:
    """Returns a tracer of the global provider."""
    return trace_api.get_tracer(name)


def meter(name: str) -> Meter:
    """Returns a meter of the global provider."""
    return metrics_api.get_meter(name)


def start(settings: Settings) -> Running:
    """Builds and installs everything in `settings`. Errors of the environment end up in ``Running.problems``."""
    running = Running()
    resource = Resource.create(dict(settings.resource_attributes))
    scope = InstrumentationScope(SCOPE_NAME, __version__)
    instruments.start(exemplars=False, profiles=_PROFILES[settings.gen_ai_profile])
    for what, start_part in (("trace", _start_traces), ("measure", _start_metrics)):
        try:
            start_part(running, settings, resource, scope)
        except Exception as error:  # noqa: BLE001 - the SDK refuses some environment variables; the rest goes on
            running.cannot(what, error)
    instruments.switch.exemplars = bool(running.traces)
    return running


def _start_traces(running: Running, settings: Settings, resource: Resource, scope: InstrumentationScope) -> None:
    current = trace_api.get_tracer_provider()
    if isinstance(current, TracerProvider):
        for processor in _span_processors(running, settings):
            detachable = GuardedProcessor(processor)
            current.add_span_processor(detachable)
            running.on_stop(lambda _, leaving=detachable: leaving.shutdown())  # type: ignore[misc]
        running.attached = (*running.attached, "traces")
        spans.install(ForeignTracing(current.get_tracer(SCOPE_NAME, __version__)))
        return
    fan_out = SynchronousMultiSpanProcessor()  # type: ignore[no-untyped-call]
    provider = TracerProvider(resource=resource, active_span_processor=fan_out, shutdown_on_exit=False)
    tracing = _tracing(provider, fan_out, scope)  # before there are processors, which would see its check
    for processor in _span_processors(running, settings):
        provider.add_span_processor(processor)
    running.on_stop(lambda _: provider.shutdown())
    delegating_tracers.inner = provider
    if isinstance(current, trace_api.ProxyTracerProvider):
        trace_api.set_tracer_provider(delegating_tracers)
    spans.install(tracing)


def _tracing(provider: TracerProvider, fan_out: SpanProcessor, scope: InstrumentationScope) -> spans.Tracing:
    try:
        from .tracing.lean_span import LeanTracing, check_sdk

        tracing = LeanTracing(provider, fan_out, scope)
        check_sdk(tracing)
    except Exception as error:  # noqa: BLE001 - an SDK that is newer than this library; its own spans always fit
        logger.warning(
            "Spans are slower and exemplars missing, because this OpenTelemetry SDK is not supported: %s", error
        )
        return ForeignTracing(provider.get_tracer(SCOPE_NAME, __version__))
    return tracing


def _span_processors(running: Running, settings: Settings) -> list[SpanProcessor]:
    makers: list[tuple[str, str, Callable[[], SpanExporter]]] = []
    if settings.otlp is not None and settings.otlp.traces:
        makers.append(("otlp", "send spans over OTLP", partial(_otlp_span_exporter, settings.otlp)))
    if settings.console:
        # The exporter's own default would be the standard output at the time of its import.
        makers.append(("console", "print spans", partial(ConsoleSpanExporter, out=sys.stdout)))
    processors: list[SpanProcessor] = []
    for way, what, make in makers:
        try:
            exporter = make()
            processors.append(BatchSpanProcessor(exporter))
        except Exception as error:  # noqa: BLE001 - the SDK refuses some environment variables; the rest goes on
            running.cannot(what, error)
        else:
            running.on_timeout(exporter.shutdown)
            running.traces = (*running.traces, way)
    return processors


def _otlp_span_exporter(settings: OtlpSettings) -> SpanExporter:
    from . import otlp  # the exporter takes 0.1 s to import

    return otlp.span_exporter(settings)


def _start_metrics(running: Running, settings: Settings, resource: Resource, scope: InstrumentationScope) -> None:
    current = metrics_api.get_meter_provider()
    attached = isinstance(current, MeterProvider)
    push = settings.otlp is not None and settings.otlp.metrics
    # A push, and the application's own readers, need the SDK's instruments; the scrape endpoint reads this library's
    # series, which is far cheaper.
    through_sdk = attached or push
    readers: list[MetricReader] = []
    if settings.otlp is not None and push:
        readers += _otlp_metric_readers(running, settings.otlp)
    if settings.prometheus is not None:
        own = None if through_sdk else partial(sdk_bridge.collect, scope)
        readers += _serve_prometheus(running, settings.prometheus, None if attached else resource, own)
    if isinstance(current, MeterProvider):
        for reader in readers:
            current.add_metric_reader(reader)
            running.on_stop(partial(_detach, current, reader))
        running.attached = (*running.attached, "metrics")
        sdk_bridge.feed(current.get_meter(SCOPE_NAME, __version__))
        return
    try:
        provider = MeterProvider(readers, resource, shutdown_on_exit=False)
    except Exception:
        running.without_metrics()
        for reader in readers:
            _end(reader, 0.0)
        raise
    running.on_stop(lambda seconds: provider.shutdown(timeout_millis=seconds * 1000))
    delegating_meters.install(provider)
    if type(current).__name__ == "_ProxyMeterProvider":  # a private class of the API: no global provider is set yet
        metrics_api.set_meter_provider(delegating_meters)
    if through_sdk:
        sdk_bridge.feed(provider.get_meter(SCOPE_NAME, __version__))


def _end(reader: MetricReader, seconds: float) -> None:
    reader.shutdown(seconds * 1000)  # pyright: ignore[reportUnknownMemberType] - kwargs are untyped there


def _detach(provider: MeterProvider, reader: MetricReader, seconds: float) -> None:
    _end(reader, seconds)  # before the removal, after which it cannot flush
    provider.remove_metric_reader(reader)


def _otlp_metric_readers(running: Running, settings: OtlpSettings) -> list[MetricReader]:
    try:
        from . import otlp  # the exporter takes 0.1 s to import

        exporter = otlp.metric_exporter(settings)
        reader = otlp.PushReader(exporter, settings.metric_interval_seconds)
    except Exception as error:  # noqa: BLE001 - the SDK refuses some environment variables; the rest goes on
        running.cannot("send metrics over OTLP", error)
        return []
    running.on_timeout(partial(exporter.shutdown, 0.0))  # pyright: ignore[reportUnknownMemberType] - as above
    running.metrics = (*running.metrics, "otlp")
    return [reader]


def _serve_prometheus(
    running: Running,
    settings: PrometheusSettings,
    resource: Resource | None,
    own_metrics: Callable[[], Sequence[ScopeMetrics]] | None,
) -> list[MetricReader]:
    try:
        from .prometheus.reader import PrometheusReader
        from .prometheus.server import ScrapeServer

        reader = PrometheusReader(own_metrics=own_metrics, scope_labels=settings.scope_labels, resource=resource)
        server = ScrapeServer(
            reader.registry,
            host=settings.host,
            port=settings.port,
            bearer_token=settings.bearer_token,
            tls_certificate_file=settings.tls_certificate_file,
            tls_key_file=settings.tls_key_file,
            tls_client_ca_file=settings.tls_client_ca_file,
        )
        server.start()
    except Exception as error:  # noqa: BLE001 - a taken port, a missing file, an unknown host: the rest goes on
        running.cannot(f"serve Prometheus on {settings.host}:{settings.port}", error)
        return []
    running.serve(server)
    return [reader]
