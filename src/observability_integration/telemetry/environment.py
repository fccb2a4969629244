"""Reads the environment variables of telemetry. An invalid value is logged and ignored.

Empty variables count as unset, as the OpenTelemetry specification requires.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import replace

from .settings import OtlpSettings, is_http_url

logger = logging.getLogger("observability_integration")

_DEFAULT_PORT = 9464  # OpenTelemetry specification, Prometheus exporter
_OTLP_ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
_NO = ("false", "0", "no", "off")


def _value(variable: str) -> str:
    return os.environ.get(variable, "").strip()


def disabled_reason() -> str | None:
    """The reason why the environment disables telemetry; None if it does not."""
    if _value("OTEL_SDK_DISABLED").lower() == "true":
        return "OTEL_SDK_DISABLED is set"
    if _value("ENABLE_APM").lower() in _NO:
        return "ENABLE_APM is false"
    return None


def prometheus_host() -> str:
    """The host of the scrape endpoint."""
    return _value("OTEL_EXPORTER_PROMETHEUS_HOST") or "localhost"


def prometheus_port() -> int:
    """The port of the scrape endpoint."""
    text = _value("OTEL_EXPORTER_PROMETHEUS_PORT")
    if text.isdecimal() and int(text) <= 65535:
        return int(text)
    if text:
        logger.warning("OTEL_EXPORTER_PROMETHEUS_PORT=%r is no port; using %d", text, _DEFAULT_PORT)
    return _DEFAULT_PORT


def is_development() -> bool:
    """Whether ``ENVIRONMENT`` is ``development``."""
    return _value("ENVIRONMENT").lower() == "development"


def resource_attributes(given: Mapping[str, str], default_version: str) -> dict[str, str]:
    """The attributes of the resource: `given`, and defaults for those set neither there nor by ``OTEL_*``."""
    named = {pair.partition("=")[0].strip() for pair in _value("OTEL_RESOURCE_ATTRIBUTES").split(",")}
    if _value("OTEL_SERVICE_NAME"):
        named.add("service.name")
    defaults = {
        "service.name": "unknown_service:python",
        "service.version": default_version,
        "deployment.environment.name": _value("ENVIRONMENT"),
    }
    return {**{key: value for key, value in defaults.items() if value and key not in named}, **given}


def _endpoint_for(signal: str) -> bool:
    """Whether the environment has a valid endpoint for a signal: in its own variable, else in the common one."""
    own = f"OTEL_EXPORTER_OTLP_{signal}_ENDPOINT"
    variable = own if _value(own) else _OTLP_ENDPOINT
    if not _value(variable):
        return False
    if not is_http_url(_value(variable)):
        logger.warning("%s is no URL such as http://localhost:4318; %s are not sent", variable, signal.lower())
        return False
    return True


def _exporters(variable: str) -> set[str]:
    return {name.strip().lower() for name in _value(variable).split(",") if name.strip()}


def otlp(given: OtlpSettings, metrics: bool | None, *, scraped: bool) -> OtlpSettings | None:
    """The OTLP settings; None if nothing is pushed.

    Args:
        given: arguments of the caller. The endpoint overrides the variables, ``OTEL_TRACES_EXPORTER=none`` included.
        metrics: argument of the caller; None means that the variables and `scraped` decide.
        scraped: whether the scrape endpoint serves metrics.
    """
    endpoint = given.endpoint
    traces = endpoint is not None or ("none" not in _exporters("OTEL_TRACES_EXPORTER") and _endpoint_for("TRACES"))
    if metrics is None:
        asked_for = _exporters("OTEL_METRICS_EXPORTER")
        wanted = not scraped or "otlp" in asked_for or bool(_value("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT"))
        metrics = wanted and "none" not in asked_for and (endpoint is not None or _endpoint_for("METRICS"))
    if not traces and not metrics:
        return None
    protocol = _value("OTEL_EXPORTER_OTLP_PROTOCOL").lower()
    if protocol not in ("", "http/protobuf"):
        logger.warning("OTEL_EXPORTER_OTLP_PROTOCOL=%s is not supported; using http/protobuf (port 4318)", protocol)
    return replace(given, traces=traces, metrics=metrics)
