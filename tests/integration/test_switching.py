"""Switching telemetry on and off: what is returned, what is refused, and who wins."""

from __future__ import annotations

import inspect
import logging
import os
import socket
from collections.abc import Iterator
from typing import Any

import pytest

import observability_integration
from observability_integration import (
    get_meter,
    get_tracer,
    initialize_observability,
    is_observability_enabled,
    observability_status,
    shutdown_observability,
)
from observability_integration.errors import ConfigurationError
from tests.otlp_receiver import OtlpReceiver
from tests.processes import free_port
from tests.scrapes import scrape
from tests.scripts import run_script

_SWITCHES = ("ENABLE_APM", "ENVIRONMENT")


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No variable of whoever runs the suite decides, and nothing stays on."""
    for name in list(os.environ):
        if name.startswith("OTEL_") or name in _SWITCHES:
            monkeypatch.delenv(name)
    yield
    shutdown_observability(0.0)


def _warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


@pytest.fixture
def settings(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The settings that telemetry would be started with; nothing is started."""
    from observability_integration.telemetry import providers

    asked: list[Any] = []

    def start(settings: Any) -> Any:
        asked.append(settings)
        return providers.Running()

    monkeypatch.setattr(providers, "start", start)
    return asked


@pytest.mark.needs_otel
@pytest.mark.promise("S1")
def test_true_means_that_metrics_are_served() -> None:
    """The port that True stands for must really answer: a True over a closed port hides that nothing is measured."""
    assert initialize_observability("shop", prometheus_port=0) is True

    status = observability_status()
    assert is_observability_enabled()
    assert status.enabled
    assert ("prometheus",) == status.metrics
    assert () == status.problems
    assert f"http://localhost:{status.prometheus_port}/metrics" == status.prometheus_url
    assert status.prometheus_url in status.reason
    assert 1 == len(scrape(status.prometheus_url).series("target_info", service_name="shop"))


@pytest.mark.needs_otel
@pytest.mark.promise("S1")
def test_nothing_asked_for_is_false_with_one_line(caplog: pytest.LogCaptureFixture) -> None:
    """Whoever switches every signal off must not be told that something is exported."""
    assert initialize_observability(enable_prometheus=False) is False

    status = observability_status()
    assert not status.enabled
    assert not is_observability_enabled()
    assert status.reason == "neither Prometheus, OTLP nor console traces are switched on"
    assert [f"Observability off: {status.reason}"] == _warnings(caplog)


@pytest.mark.promise("S1", "S10")
def test_without_opentelemetry_the_message_says_how_to_install_it() -> None:
    """A service that forgot the packages goes on, and its log has the line to copy."""
    out = run_script(
        """
        import logging, sys
        sys.modules["opentelemetry"] = None
        logging.basicConfig(stream=sys.stdout, format="%(levelname)s %(message)s")
        from observability_integration import initialize_observability, observability_status, get_tracer, get_meter
        print(initialize_observability(prometheus_port=0), observability_status().enabled, get_tracer(), get_meter())
        print(observability_status().reason)
        """
    )
    line = "Install with: uv add opentelemetry-api opentelemetry-sdk opentelemetry-exporter-prometheus"
    logged, results, reason = out.splitlines()
    assert logged.startswith("WARNING Observability off: OpenTelemetry not available.")
    assert line in logged
    assert results == "False False None None"
    assert line in reason


@pytest.mark.needs_otel
@pytest.mark.promise("S2")
def test_a_missing_prometheus_client_leaves_the_rest_on() -> None:
    """An incomplete installation is the environment's fault: it costs one signal, not all, and not the start."""
    out = run_script(
        """
        import sys
        sys.modules["prometheus_client"] = None
        from observability_integration import initialize_observability, observability_status, shutdown_observability
        print(initialize_observability(prometheus_port=0), initialize_observability(enable_console_traces=True))
        print(observability_status().traces, observability_status().problems)
        shutdown_observability()
        """
    )
    assert "False True" == out.splitlines()[0]
    assert "('console',)" in out
    assert "cannot serve Prometheus on localhost:9464: import of prometheus_client" in out


@pytest.mark.parametrize(
    ("variable", "value", "reason"),
    [
        ("OTEL_SDK_DISABLED", "true", "OTEL_SDK_DISABLED is set"),
        ("OTEL_SDK_DISABLED", " TRUE ", "OTEL_SDK_DISABLED is set"),
        ("ENABLE_APM", "false", "ENABLE_APM is false"),
        ("ENABLE_APM", "0", "ENABLE_APM is false"),
        ("ENABLE_APM", "Off", "ENABLE_APM is false"),
    ],
)
@pytest.mark.promise("S1")
def test_the_environment_can_switch_everything_off(
    variable: str, value: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An operator's switch must keep the port closed too, not only the counters still."""
    port = free_port()
    monkeypatch.setenv(variable, value)

    assert initialize_observability(prometheus_port=port) is False
    assert reason == observability_status().reason
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(("127.0.0.1", port))


@pytest.mark.needs_otel
@pytest.mark.parametrize(("variable", "value"), [("OTEL_SDK_DISABLED", "false"), ("ENABLE_APM", "true")])
def test_a_switch_that_says_on_switches_nothing_off(variable: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The variable's mere presence must not count as its opposite."""
    monkeypatch.setenv(variable, value)
    assert initialize_observability(prometheus_port=0) is True


@pytest.mark.needs_otel
@pytest.mark.promise("S1", "S2")
def test_a_taken_port_without_another_signal_is_false(caplog: pytest.LogCaptureFixture) -> None:
    """Two services on one machine is an everyday mistake: no exception, no True, one line."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert initialize_observability(prometheus_port=port) is False

    status = observability_status()
    assert f"cannot serve Prometheus on localhost:{port}: Address already in use" in status.reason
    assert status.prometheus_url is None
    assert [f"Observability off: {status.reason}"] == _warnings(caplog)


@pytest.mark.needs_otel
@pytest.mark.promise("S1", "S2")
def test_a_taken_port_beside_otlp_costs_the_scrape_only(caplog: pytest.LogCaptureFixture) -> None:
    """The traces must not go dark because somebody else holds 9464."""
    with OtlpReceiver() as receiver, socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert initialize_observability(prometheus_port=port, otlp_endpoint=receiver.endpoint) is True
        status = observability_status()
        assert ("otlp",) == status.traces
        assert () == status.metrics
        assert status.prometheus_port is None
        assert f"localhost:{port}" in status.problems[0]
        assert [f"Observability: {status.problems[0]}"] == _warnings(caplog)
        tracer = get_tracer("mine")
        assert tracer is not None
        tracer.start_span("still traced").end()
        shutdown_observability()
        assert ["still traced"] == [span.name for span in receiver.spans(1)]


@pytest.mark.needs_otel
@pytest.mark.promise("S4")
def test_a_second_call_changes_nothing() -> None:
    """Frameworks import an application twice; the second time must neither fail nor move the port."""
    initialize_observability("first", prometheus_port=0)
    status = observability_status()
    assert initialize_observability("second", prometheus_port=0, enable_console_traces=True) is True
    assert status == observability_status()
    assert 1 == len(scrape(status.prometheus_url).series("target_info", service_name="first"))


def test_tracer_and_meter_are_none_while_off() -> None:
    """The older interface promised None, and callers test for it."""
    assert get_tracer("mine") is None
    assert get_meter("mine") is None


@pytest.mark.needs_otel
def test_tracer_and_meter_are_opentelemetrys_own_while_on() -> None:
    """Users measure what is theirs through the same pipes."""
    from opentelemetry.metrics import Meter
    from opentelemetry.trace import Tracer

    initialize_observability(prometheus_port=0)
    meter, tracer = get_meter("mine"), get_tracer("mine")
    assert isinstance(tracer, Tracer)
    assert isinstance(meter, Meter)
    meter.create_counter("orders").add(3, {"shop": "north"})
    assert 3 == scrape(observability_status().prometheus_url).value("orders_total", shop="north")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prometheus_port": -1}, "prometheus_port"),
        ({"prometheus_bearer_token": ""}, "prometheus_bearer_token"),
        ({"prometheus_bearer_token": "secret\n"}, "prometheus_bearer_token"),
        ({"prometheus_host": 9464}, "prometheus_host"),
        ({"prometheus_bearer_token": 5}, "prometheus_bearer_token"),
        ({"prometheus_tls_key_file": "key.pem"}, "prometheus_tls_key_file needs prometheus_tls_certificate_file"),
        ({"prometheus_tls_client_ca_file": "ca.pem"}, "prometheus_tls_client_ca_file needs"),
        ({"prometheus_tls_key_file": "key.pem", "enable_prometheus": False}, "prometheus_tls_key_file"),
        ({"otlp_endpoint": ""}, "otlp_endpoint"),
        ({"otlp_endpoint": "grpc://localhost:4317"}, "otlp_endpoint"),
        ({"otlp_endpoint": "http://"}, "otlp_endpoint"),
        ({"otlp_endpoint": "http://localhost:port"}, "otlp_endpoint"),
        ({"otlp_endpoint": "http://[::1"}, "otlp_endpoint"),
        ({"otlp_endpoint": 4318}, "otlp_endpoint"),
    ],
)
@pytest.mark.promise("S2")
def test_a_wrong_argument_is_refused_by_name(arguments: dict[str, Any], message: str) -> None:
    """A typing slip must surface where it was made, with or without OpenTelemetry, and leave nothing half on."""
    with pytest.raises(ConfigurationError, match=message):
        initialize_observability(**arguments)
    assert not is_observability_enabled()


def test_the_bearer_token_is_in_no_error() -> None:
    """An error goes to logs that more people read than may read the token."""
    with pytest.raises(ConfigurationError) as caught:
        initialize_observability(prometheus_bearer_token="s3cret ")
    assert "s3cret" not in str(caught.value)
    with pytest.raises(ConfigurationError) as caught:
        initialize_observability(otlp_endpoint="grpc://collector:s3cret@localhost:4317")
    assert "s3cret" not in str(caught.value)


@pytest.mark.needs_otel
def test_the_key_may_lie_in_the_certificates_file(settings: list[Any]) -> None:
    """A PEM file often holds both; what the server takes, the switch must not refuse."""
    initialize_observability(prometheus_tls_certificate_file="both.pem", prometheus_tls_client_ca_file="ca.pem")
    assert ("both.pem", None) == (settings[0].prometheus.tls_certificate_file, settings[0].prometheus.tls_key_file)


@pytest.mark.parametrize("variable", ["OTEL_SDK_DISABLED", "OTEL_EXPORTER_PROMETHEUS_PORT"])
def test_a_wrong_argument_is_refused_before_the_environment_is_read(
    variable: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The slip must not hide until the day when telemetry is switched on."""
    monkeypatch.setenv(variable, "true")
    with pytest.raises(ConfigurationError, match=r"^gen_ai_profile must be 'v1\.41', 'latest' or"):
        initialize_observability(gen_ai_profile="v1.0")  # type: ignore[arg-type]
    assert [] == _warnings(caplog)


@pytest.mark.needs_otel
@pytest.mark.parametrize(
    ("variable", "value"),
    [
        ("OTEL_EXPORTER_PROMETHEUS_PORT", "94 64"),
        ("OTEL_EXPORTER_PROMETHEUS_PORT", "70000"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "localhost:4318"),
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "nowhere"),
        ("OTEL_RESOURCE_ATTRIBUTES", "no equals sign"),
        ("OTEL_TRACES_SAMPLER", "sometimes"),
        ("OTEL_BSP_SCHEDULE_DELAY", "soon"),
        ("OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT", "many"),
        ("OTEL_METRIC_EXPORT_INTERVAL", "often"),
    ],
)
@pytest.mark.promise("S2")
def test_a_malformed_variable_costs_a_warning_only(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A slip in a deployment file must not keep the service, or its other signals, from starting."""
    monkeypatch.setenv(variable, value)
    # The variable of the port counts only where no port is given, and the default one may be taken on this machine.
    given: dict[str, Any] = {} if "PORT" in variable else {"prometheus_port": 0}
    given["otlp_metrics"] = variable == "OTEL_METRIC_EXPORT_INTERVAL"

    assert initialize_observability(enable_console_traces=True, **given) is True
    assert "PORT" in variable or "prometheus" in observability_status().metrics
    assert _warnings(caplog)


@pytest.mark.needs_otel
@pytest.mark.promise("S2")
def test_a_malformed_variable_of_one_signal_spares_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the SDK refuses for spans must not take the metrics along, and the other way round."""
    monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "0")
    monkeypatch.setenv("OTEL_METRIC_EXPORT_INTERVAL", "-5")
    with OtlpReceiver() as receiver:
        assert initialize_observability(prometheus_port=0, otlp_endpoint=receiver.endpoint, otlp_metrics=True)
        status = observability_status()
        assert () == status.traces
        assert ("prometheus",) == status.metrics
        assert ["cannot send spans over OTLP", "cannot send metrics over OTLP"] == [
            problem.split(":")[0] for problem in status.problems
        ]
        shutdown_observability()
        monkeypatch.delenv("OTEL_BSP_SCHEDULE_DELAY")
        monkeypatch.delenv("OTEL_METRIC_EXPORT_INTERVAL")
        monkeypatch.setenv("OTEL_METRICS_EXEMPLAR_FILTER", "some")
        assert initialize_observability(prometheus_port=0, otlp_endpoint=receiver.endpoint, otlp_metrics=True)
        status = observability_status()
        assert ("otlp",) == status.traces
        assert () == status.metrics
        assert status.prometheus_url is None
        assert "cannot measure: Unknown exemplar filter" in status.problems[0]


@pytest.mark.needs_otel
@pytest.mark.promise("S3")
@pytest.mark.parametrize(
    ("arguments", "variables", "expected"),
    [
        ({}, {}, {"service.name": "unknown_service:python", "service.version": "0.1.0"}),
        ({"service_name": "given"}, {"OTEL_SERVICE_NAME": "named"}, {"service.name": "given"}),
        ({}, {"OTEL_SERVICE_NAME": "named"}, {"service.name": "named"}),
        ({}, {"OTEL_RESOURCE_ATTRIBUTES": "service.name=listed"}, {"service.name": "listed"}),
        ({"service_version": "0.1.0"}, {"OTEL_RESOURCE_ATTRIBUTES": "service.version=9"}, {"service.version": "0.1.0"}),
        ({}, {"OTEL_RESOURCE_ATTRIBUTES": "service.version=9"}, {"service.version": "9"}),
        ({"environment": "given"}, {"ENVIRONMENT": "set"}, {"deployment.environment.name": "given"}),
        ({}, {"ENVIRONMENT": "staging"}, {"deployment.environment.name": "staging"}),
        (
            {},
            {"ENVIRONMENT": "set", "OTEL_RESOURCE_ATTRIBUTES": "deployment.environment.name=listed"},
            {"deployment.environment.name": "listed"},
        ),
        (
            {"resource_attributes": {"service.name": "attribute", "team": "north"}},
            {"OTEL_SERVICE_NAME": "named", "OTEL_RESOURCE_ATTRIBUTES": "team=south,zone=a"},
            {"service.name": "attribute", "team": "north", "zone": "a"},
        ),
    ],
)
def test_resource_argument_wins_over_variable_wins_over_default(
    arguments: dict[str, Any], variables: dict[str, str], expected: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever wrote the code, and whoever deploys it, must know which of them decides."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    initialize_observability(prometheus_port=0, **arguments)

    (target,) = scrape(observability_status().prometheus_url).series("target_info")
    labels = dict(target)
    assert expected == {key: labels.get(key.replace(".", "_")) for key in expected}


@pytest.mark.needs_otel
@pytest.mark.promise("S3")
@pytest.mark.parametrize(
    ("arguments", "variables", "expected"),
    [
        ({}, {}, ("localhost", 9464)),
        ({}, {"OTEL_EXPORTER_PROMETHEUS_PORT": "9500"}, ("localhost", 9500)),
        ({"prometheus_port": 9464}, {"OTEL_EXPORTER_PROMETHEUS_PORT": "9500"}, ("localhost", 9464)),
        ({}, {"OTEL_EXPORTER_PROMETHEUS_HOST": "0.0.0.0"}, ("0.0.0.0", 9464)),
        ({"prometheus_host": "::1"}, {"OTEL_EXPORTER_PROMETHEUS_HOST": "0.0.0.0"}, ("::1", 9464)),
        ({}, {"OTEL_EXPORTER_PROMETHEUS_HOST": "", "OTEL_EXPORTER_PROMETHEUS_PORT": ""}, ("localhost", 9464)),
    ],
)
def test_scrape_argument_wins_over_variable_wins_over_default(
    arguments: dict[str, Any],
    variables: dict[str, str],
    expected: tuple[str, int],
    settings: list[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also where the argument happens to be the default's own number: the caller has said it."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    initialize_observability(**arguments)
    assert expected == (settings[0].prometheus.host, settings[0].prometheus.port)


_BASE = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://collector:4318"}


@pytest.mark.needs_otel
@pytest.mark.promise("S3")
@pytest.mark.parametrize(
    ("arguments", "variables", "expected"),
    [
        ({}, {}, None),
        ({"otlp_endpoint": "http://given:4318"}, _BASE, ("http://given:4318", True, False)),
        ({}, _BASE, (None, True, False)),
        ({"enable_prometheus": False}, _BASE, (None, True, True)),
        ({"otlp_metrics": True}, _BASE, (None, True, True)),
        ({"enable_prometheus": False, "otlp_metrics": False}, _BASE, (None, True, False)),
        ({}, _BASE | {"OTEL_METRICS_EXPORTER": "prometheus, otlp"}, (None, True, True)),
        ({"enable_prometheus": False}, _BASE | {"OTEL_METRICS_EXPORTER": "none"}, (None, True, False)),
        ({}, _BASE | {"OTEL_TRACES_EXPORTER": "none"}, None),
        (
            {"otlp_endpoint": "http://given:4318"},
            {"OTEL_TRACES_EXPORTER": "none"},
            ("http://given:4318", True, False),
        ),
        ({}, {"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "http://t/v1/traces"}, (None, True, False)),
        ({}, {"OTEL_EXPORTER_OTLP_METRICS_ENDPOINT": "http://m/v1/metrics"}, (None, False, True)),
        ({}, {"OTEL_EXPORTER_OTLP_ENDPOINT": "collector"}, None),
        ({}, _BASE | {"OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}, (None, True, False)),
    ],
)
def test_otlp_is_on_where_an_endpoint_is(
    arguments: dict[str, Any],
    variables: dict[str, str],
    expected: tuple[str | None, bool, bool] | None,
    settings: list[Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing is sent anywhere that nobody named, and metrics are not sent twice unless somebody wants them twice."""
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    initialize_observability(**arguments)
    otlp = settings[0].otlp
    assert expected == (None if otlp is None else (otlp.endpoint, otlp.traces, otlp.metrics))


@pytest.mark.needs_otel
@pytest.mark.promise("S3")
@pytest.mark.parametrize(
    ("asked", "environment", "expected"),
    [(None, None, ()), (None, "development", ("console",)), (None, "production", ()), (False, "development", ())],
)
def test_console_only_if_asked_or_in_development(
    asked: bool | None, environment: str | None, expected: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A production log must not fill with spans because a variable is missing."""
    if environment is not None:
        monkeypatch.setenv("ENVIRONMENT", environment)
    initialize_observability(prometheus_port=0, enable_console_traces=asked)
    assert expected == observability_status().traces


@pytest.mark.needs_otel
def test_console_prints_the_spans(capsys: pytest.CaptureFixture[str]) -> None:
    """Asked for, a span is on the screen at the latest when telemetry ends."""
    initialize_observability(enable_prometheus=False, enable_console_traces=True)
    tracer = get_tracer("mine")
    assert tracer is not None
    tracer.start_span("seen on the screen").end()
    shutdown_observability()
    assert '"name": "seen on the screen"' in capsys.readouterr().out


@pytest.mark.needs_otel
def test_otlp_headers_are_sent_and_not_shown(settings: list[Any]) -> None:
    """Headers authenticate; a settings object that ends up in a log must not print them."""
    secret = {"authorization": "Bearer s3cret"}
    initialize_observability(
        otlp_endpoint="http://collector:4318", otlp_headers=secret, prometheus_bearer_token="t0ken"
    )
    assert secret == settings[0].otlp.headers
    assert "s3cret" not in repr(settings[0])
    assert "t0ken" not in repr(settings[0])


@pytest.mark.needs_otel
@pytest.mark.promise("S2")
def test_an_sdk_that_cannot_start_is_false_and_leaves_nothing_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is wrong with an installation, the service goes on without telemetry."""
    from observability_integration.telemetry import providers

    def broken(settings: Any) -> Any:
        raise ImportError("two versions that do not fit")

    monkeypatch.setattr(providers, "start", broken)
    assert initialize_observability(prometheus_port=0) is False
    assert observability_status().reason == "telemetry could not start: ImportError: two versions that do not fit"


def test_the_older_call_by_position_still_fits() -> None:
    """Callers of the older interface pass these five by position."""
    names = list(inspect.signature(initialize_observability).parameters)[:5]
    expected = ["service_name", "service_version", "enable_prometheus", "enable_console_traces", "prometheus_port"]
    assert expected == names
    assert 9464 == inspect.signature(initialize_observability).parameters["prometheus_port"].default
    assert "0.1.0" == inspect.signature(initialize_observability).parameters["service_version"].default
    assert "shutdown_observability" in observability_integration.__all__
