"""Settings of telemetry, resolved from arguments, environment and defaults.

They refuse an invalid value when they are built, by the name of the argument of `initialize_observability`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, cast, get_args
from urllib.parse import urlsplit

from observability_integration.checks import check_choice, check_port, check_positive
from observability_integration.errors import ConfigurationError

GenAIProfile = Literal["v1.41", "latest", "both"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PrometheusSettings:
    """The scrape endpoint.

    Attributes:
        host: interface to listen on; ``localhost`` means the loopback addresses only.
        port: 0 to 65535; 0 picks a free one.
        bearer_token: if set, a scrape must send it.
        tls_certificate_file: PEM file; enables TLS.
        tls_key_file: PEM file of the private key; None if the key is in the certificate's file.
        tls_client_ca_file: PEM file; if set, a scraper must present a certificate signed by it.
        scope_labels: whether each series carries ``otel_scope_*`` labels.

    Raises:
        ConfigurationError: a value is impossible, or needs another that is missing.
    """

    host: str = "localhost"
    port: int = 9464
    bearer_token: str | None = field(default=None, repr=False)
    tls_certificate_file: str | None = None
    tls_key_file: str | None = None
    tls_client_ca_file: str | None = None
    scope_labels: bool = False

    def __post_init__(self) -> None:
        check_port("prometheus_port", self.port)
        host, token = cast("tuple[object, object]", (self.host, self.bearer_token))
        if not isinstance(host, str) or not host.strip():
            raise ConfigurationError(
                "prometheus_host must be a name or an address, and not empty; say 0.0.0.0 to listen on every address"
            )
        if token is not None and (not isinstance(token, str) or not token or token != token.strip()):
            raise ConfigurationError("prometheus_bearer_token must not be empty, nor begin or end with white space")
        if self.tls_certificate_file is None:
            for knob in ("tls_key_file", "tls_client_ca_file"):
                if getattr(self, knob) is not None:
                    raise ConfigurationError(f"prometheus_{knob} needs prometheus_tls_certificate_file too")


@dataclass(frozen=True, slots=True, kw_only=True)
class OtlpSettings:
    """Push over OTLP (http/protobuf).

    Attributes:
        endpoint: base URL; None means the ``OTEL_EXPORTER_OTLP_*`` variables.
        headers: extra headers, e.g. for authentication.
        traces: whether spans are pushed.
        metrics: whether metrics are pushed.
        metric_interval_seconds: time between two pushes of metrics; None means ``OTEL_METRIC_EXPORT_INTERVAL`` (60 s).

    Raises:
        ConfigurationError: the endpoint is no URL, or the interval is not a finite number > 0.
    """

    endpoint: str | None = None
    headers: Mapping[str, str] | None = field(default=None, repr=False)
    traces: bool = True
    metrics: bool = False
    metric_interval_seconds: float | None = None

    def __post_init__(self) -> None:
        if self.endpoint is not None and not is_http_url(self.endpoint):
            # The message does not repeat the URL: it may hold a password.
            raise ConfigurationError("otlp_endpoint must be a URL such as http://localhost:4318, with http or https")
        check_positive("otlp_metric_interval_seconds", self.metric_interval_seconds, optional=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The input of `providers.start`.

    Attributes:
        resource_attributes: of the resource, beside ``OTEL_SERVICE_NAME`` and ``OTEL_RESOURCE_ATTRIBUTES``.
        prometheus: the scrape endpoint; None means none.
        otlp: the push over OTLP; None means none.
        console: whether spans are printed.
        gen_ai_profile: version of the gen_ai conventions for metrics.

    Raises:
        ConfigurationError: there is no such profile.
    """

    resource_attributes: Mapping[str, str] = field(default_factory=dict[str, str])
    prometheus: PrometheusSettings | None = None
    otlp: OtlpSettings | None = None
    console: bool = False
    gen_ai_profile: GenAIProfile = "v1.41"

    def __post_init__(self) -> None:
        check_choice("gen_ai_profile", self.gen_ai_profile, get_args(GenAIProfile))


def is_http_url(text: object) -> bool:
    """Whether `text` is a URL that OTLP can be sent to."""
    if not isinstance(text, str):
        return False
    try:
        parts = urlsplit(text)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is no number, a bracket that is not closed
        return False
