"""Switches telemetry on and off: resolves arguments and environment, and reports the status."""

from __future__ import annotations

import atexit
import importlib.util
import logging
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from observability_integration.telemetry import environment as env
from observability_integration.telemetry.settings import GenAIProfile, OtlpSettings, PrometheusSettings, Settings

if TYPE_CHECKING:
    from observability_integration.telemetry.providers import Meter, Running, Tracer

logger = logging.getLogger("observability_integration")

MISSING_OPENTELEMETRY = (
    "OpenTelemetry not available. "
    "Install with: uv add opentelemetry-api opentelemetry-sdk opentelemetry-exporter-prometheus"
)
_EXIT_SECONDS = 5.0
_CHILD_SECONDS = 1.0  # to flush inherited telemetry, before a forked child starts its own


class _DefaultPort(int):
    """Marks the default port, as callers may pass the same number."""


class _DefaultVersion(str):
    """Marks the default version, as callers may pass the same text."""

    __slots__ = ()


_PORT = _DefaultPort(9464)
_VERSION = _DefaultVersion("0.1.0")


@dataclass(frozen=True, slots=True)
class ObservabilityStatus:
    """The state of telemetry.

    Attributes:
        enabled: whether any signal is exported.
        reason: one sentence: the active exporters, or why telemetry is off.
        traces: exporters of spans: ``otlp``, ``console``.
        metrics: exporters of metrics: ``prometheus``, ``otlp``.
        attached: the signals (``traces``, ``metrics``) that the application's own providers export too.
        prometheus_url: URL to scrape; None without a scrape endpoint.
        prometheus_port: the open port; None without a scrape endpoint.
        problems: sentences about requested parts that failed to start.
    """

    enabled: bool
    reason: str
    traces: tuple[str, ...] = ()
    metrics: tuple[str, ...] = ()
    attached: tuple[str, ...] = ()
    prometheus_url: str | None = None
    prometheus_port: int | None = None
    problems: tuple[str, ...] = ()


_lock = threading.RLock()
_running: Running | None = None
_inherited = False  # whether `_running` was started by the parent, before it forked this process
_status = ObservabilityStatus(False, "initialize_observability() has not been called")
_atexit_registered = False


def initialize_observability(
    service_name: str | None = None,
    service_version: str = _VERSION,
    enable_prometheus: bool = True,
    enable_console_traces: bool | None = None,
    prometheus_port: int = _PORT,
    *,
    prometheus_host: str | None = None,
    otlp_endpoint: str | None = None,
    otlp_headers: Mapping[str, str] | None = None,
    otlp_metrics: bool | None = None,
    otlp_metric_interval_seconds: float | None = None,
    environment: str | None = None,
    resource_attributes: Mapping[str, str] | None = None,
    prometheus_bearer_token: str | None = None,
    prometheus_tls_certificate_file: str | None = None,
    prometheus_tls_key_file: str | None = None,
    prometheus_tls_client_ca_file: str | None = None,
    prometheus_scope_labels: bool = False,
    gen_ai_profile: GenAIProfile = "v1.41",
) -> bool:
    """Switches telemetry on, also again after a shutdown. A call while it is on changes nothing.

    An argument overrides the standard ``OTEL_*`` variable, which overrides the default. If the application has set
    OpenTelemetry SDK providers before, they are used, and keep running after the shutdown.

    Args:
        service_name: ``service.name``; else ``OTEL_SERVICE_NAME``, else ``unknown_service:python``.
        service_version: ``service.version``.
        enable_prometheus: whether to serve metrics for Prometheus to scrape.
        enable_console_traces: whether to print spans; None means only if ``ENVIRONMENT=development`` is set.
        prometheus_port: 0 to 65535; 0 picks a free one (see `observability_status`); else
            ``OTEL_EXPORTER_PROMETHEUS_PORT``, else 9464.
        prometheus_host: name or address to listen on; else ``OTEL_EXPORTER_PROMETHEUS_HOST``, else ``localhost``.
        otlp_endpoint: base URL of an OTLP receiver (http/protobuf), e.g. ``http://localhost:4318`` for Jaeger or a
            Collector; else ``OTEL_EXPORTER_OTLP_ENDPOINT``, else none.
        otlp_headers: headers for the receiver, e.g. for authentication.
        otlp_metrics: whether metrics are pushed too; None means only if they are not served for scraping, or
            ``OTEL_EXPORTER_OTLP_METRICS_ENDPOINT`` is set, or ``OTEL_METRICS_EXPORTER`` names ``otlp``.
        otlp_metric_interval_seconds: time between two pushes; else ``OTEL_METRIC_EXPORT_INTERVAL``, else 60.
        environment: ``deployment.environment.name``; else ``ENVIRONMENT``.
        resource_attributes: further attributes of the resource.
        prometheus_bearer_token: if given, a scrape must send ``Authorization: Bearer <token>``.
        prometheus_tls_certificate_file: PEM file; serves HTTPS.
        prometheus_tls_key_file: PEM file of the certificate's key; by default the key is in the certificate's file.
        prometheus_tls_client_ca_file: PEM file; scrapers must present a certificate signed by it.
        prometheus_scope_labels: whether each series carries ``otel_scope_*`` labels.
        gen_ai_profile: version of the gen_ai metrics: ``v1.41``, ``latest`` or ``both``.

    Returns:
        True if any signal is exported, by this library or by the application's providers. False if none is:
        OpenTelemetry is missing or disabled, or the port is taken and there is no other exporter;
        `observability_status` and one log line have the reason.

    Raises:
        ConfigurationError: an argument is invalid. An invalid environment never raises.
    """
    # A wrong argument is refused here, by the settings, in whatever state telemetry and the environment are.
    prometheus = PrometheusSettings(
        host="localhost" if prometheus_host is None else prometheus_host,
        port=prometheus_port,
        bearer_token=prometheus_bearer_token,
        tls_certificate_file=prometheus_tls_certificate_file,
        tls_key_file=prometheus_tls_key_file,
        tls_client_ca_file=prometheus_tls_client_ca_file,
        scope_labels=prometheus_scope_labels,
    )
    otlp = OtlpSettings(
        endpoint=otlp_endpoint, headers=otlp_headers, metric_interval_seconds=otlp_metric_interval_seconds
    )
    settings = Settings(gen_ai_profile=gen_ai_profile)
    named = {
        "service.name": service_name,
        "service.version": None if service_version is _VERSION else service_version,
        "deployment.environment.name": environment,
    }
    given = {**(resource_attributes or {}), **{key: value for key, value in named.items() if value}}
    with _lock:
        if _running is not None and not _inherited:
            logger.info("Observability already initialized")
            return True
        reason = env.disabled_reason() or _missing_packages()
        if reason is not None:
            return _off(reason)
        prometheus = replace(
            prometheus,
            host=env.prometheus_host() if prometheus_host is None else prometheus_host,
            port=env.prometheus_port() if prometheus_port is _PORT else prometheus_port,
        )
        return _start(
            replace(
                settings,
                resource_attributes=env.resource_attributes(given, _VERSION),
                prometheus=prometheus if enable_prometheus else None,
                otlp=env.otlp(otlp, otlp_metrics, scraped=enable_prometheus),
                console=env.is_development() if enable_console_traces is None else enable_console_traces,
            )
        )


def _start(settings: Settings) -> bool:
    global _running, _inherited, _status, _atexit_registered
    try:
        from observability_integration.telemetry import providers  # imports OpenTelemetry, which is slow

        if _running is not None:  # inherited from the parent
            _running.stop(_CHILD_SECONDS)
        _running, _inherited = None, False
        running = providers.start(settings)
    except Exception as error:
        logger.debug("Telemetry could not start", exc_info=True)
        return _off(f"telemetry could not start: {type(error).__name__}: {error}")
    if not running.exporting:
        running.stop(0.0)
        return _off("; ".join(running.problems) or "neither Prometheus, OTLP nor console traces are switched on")
    for problem in running.problems:
        logger.warning("Observability: %s", problem)
    _running = running
    _status = _describe(running)
    logger.info("Observability on: %s", _status.reason)
    if not _atexit_registered:
        atexit.register(shutdown_observability, _EXIT_SECONDS)
        _atexit_registered = True
    return True


def shutdown_observability(timeout_seconds: float = 5.0) -> None:
    """Flushes and ends telemetry within `timeout_seconds`, even if a collector does not answer. Never raises."""
    global _running, _inherited, _status
    with _lock:
        running, _running, _inherited = _running, None, False
        if running is None:
            return
        _status = ObservabilityStatus(False, "shutdown_observability() was called")
        if not running.stop(max(0.0, timeout_seconds)):
            logger.warning("Observability: some telemetry was not delivered within %gs", timeout_seconds)


def is_observability_enabled() -> bool:
    """Whether any signal is exported."""
    return _running is not None


def observability_status() -> ObservabilityStatus:
    """The state of telemetry."""
    return _status


def get_tracer(name: str = "observability_integration") -> Tracer | None:
    """Returns an OpenTelemetry tracer; None while telemetry is off."""
    if _running is None:
        return None
    from observability_integration.telemetry import providers

    return providers.tracer(name)


def get_meter(name: str = "observability_integration") -> Meter | None:
    """Returns an OpenTelemetry meter; None while telemetry is off."""
    if _running is None:
        return None
    from observability_integration.telemetry import providers

    return providers.meter(name)


def _off(reason: str) -> Literal[False]:
    global _status
    _status = ObservabilityStatus(False, reason)
    logger.warning("Observability off: %s", reason)
    return False


def _describe(running: Running) -> ObservabilityStatus:
    parts: list[str] = []
    if running.scrape_url is not None:
        parts.append(f"metrics at {running.scrape_url}")
    if "otlp" in running.metrics:
        parts.append("metrics over OTLP")
    if running.traces:
        parts.append(f"traces to {' and '.join(running.traces)}")
    if running.attached:
        parts.append(f"{' and '.join(running.attached)} to the application's own providers")
    return ObservabilityStatus(
        True,
        ", ".join(parts),
        running.traces,
        running.metrics,
        running.attached,
        running.scrape_url,
        running.scrape_port,
        running.problems,
    )


def _missing_packages() -> str | None:
    try:
        found = importlib.util.find_spec("opentelemetry.sdk") and importlib.util.find_spec("opentelemetry.trace")
    except ImportError:
        found = None
    return None if found else MISSING_OPENTELEMETRY


def _after_fork_in_child() -> None:
    # Spans and pushed metrics continue, as the SDK restarts its threads; only the parent serves the scrape port.
    global _lock, _running, _inherited, _status
    _lock = threading.RLock()
    if _running is None:
        return
    _running.forget_after_fork()
    if _running.exporting:
        _inherited = True
        _status = _describe(_running)
        return
    _running = None
    _status = ObservabilityStatus(False, "forked: the parent serves Prometheus; call initialize_observability() here")
    from .telemetry.metrics import instruments
    from .telemetry.tracing import spans

    instruments.stop()
    spans.install(None)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
