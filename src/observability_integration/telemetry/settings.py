"""What telemetry is to be switched on with, after arguments, environment and defaults have been weighed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

GenAIProfile = Literal["v1.41", "latest", "both"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PrometheusSettings:
    """The scrape endpoint.

    Attributes:
        host: interface to listen on; ``localhost`` means the loopback addresses only.
        port: 0 to 65535; 0 picks a free one.
        bearer_token: when set, a scrape must carry it.
        tls_certificate_file: PEM file; switches TLS on.
        tls_key_file: PEM file of the private key.
        tls_client_ca_file: PEM file; when set, a scraper must show a certificate signed by it.
        scope_labels: whether each series carries ``otel_scope_*`` labels.
    """

    host: str = "localhost"
    port: int = 9464
    bearer_token: str | None = field(default=None, repr=False)
    tls_certificate_file: str | None = None
    tls_key_file: str | None = None
    tls_client_ca_file: str | None = None
    scope_labels: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class OtlpSettings:
    """Push over OTLP (http/protobuf).

    Attributes:
        endpoint: base URL given by the caller; None leaves all endpoints to the ``OTEL_EXPORTER_OTLP_*`` variables.
        headers: extra headers, e.g. for authentication.
        traces: whether spans are pushed.
        metrics: whether metrics are pushed.
        metric_interval_seconds: time between two pushes of metrics; None leaves it to the environment (60 s).
    """

    endpoint: str | None = None
    headers: Mapping[str, str] | None = field(default=None, repr=False)
    traces: bool = True
    metrics: bool = False
    metric_interval_seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Everything `providers.start` needs.

    Attributes:
        resource_attributes: what the resource says beyond ``OTEL_SERVICE_NAME`` and ``OTEL_RESOURCE_ATTRIBUTES``.
        prometheus: the scrape endpoint, or None for none.
        otlp: push, or None for none.
        console: whether spans are printed.
        gen_ai_profile: which spelling of the gen_ai conventions metrics use.
    """

    resource_attributes: Mapping[str, str] = field(default_factory=dict[str, str])
    prometheus: PrometheusSettings | None = None
    otlp: OtlpSettings | None = None
    console: bool = False
    gen_ai_profile: GenAIProfile = "v1.41"
