"""What we serve, as the real promtool and the real Prometheus see it."""

from __future__ import annotations

import json
import subprocess
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.processes import free_port, require_binary

pytest.importorskip("opentelemetry.exporter.prometheus")

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.view import ExponentialBucketHistogramAggregation, View
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from prometheus_client.exposition import generate_latest

from observability_integration import initialize_observability, observability_status, shutdown_observability
from observability_integration.telemetry.catalogue import CATALOGUE
from observability_integration.telemetry.metrics import instruments
from observability_integration.telemetry.prometheus.reader import PrometheusReader
from observability_integration.telemetry.prometheus.server import ScrapeServer

pytestmark = [
    pytest.mark.once,
    pytest.mark.unmeasured,
    pytest.mark.needs_otel,
    pytest.mark.needs_prometheus,
    pytest.mark.promise("M2", "M4"),
]

WAIT_SECONDS = 20.0
TOKEN = "s3cret"
AWKWARD = 'a "b"\\ c\nd é \x00 \r 😀'


@pytest.fixture(scope="module")
def reader() -> PrometheusReader:
    """A reader whose provider has measured what is hard to put on the wire."""
    reader = PrometheusReader()
    provider = MeterProvider(
        [reader],
        Resource({"service.name": "shop", "a.b": "1", "a_b": "2"}),
        views=[View(instrument_name="wide", aggregation=ExponentialBucketHistogramAggregation())],
        shutdown_on_exit=False,
    )
    tracer = TracerProvider(shutdown_on_exit=False).get_tracer("shop")
    first, second = provider.get_meter("first"), provider.get_meter("second")
    with tracer.start_as_current_span("call"):
        first.create_counter("calls", description="Calls made.").add(2, {"model": "m", "op": "chat"})
        second.create_counter("calls", description="Calls, told otherwise.").add(3, {"op": "chat", "error.type": "e"})
        timer = first.create_histogram(
            "duration", "s", "Time taken.", explicit_bucket_boundaries_advisory=[0.1, 1.0, 10.0]
        )
        timer.record(0.5, {"op": "chat"})
        second.create_histogram("wide", "s", "Without buckets.").record(3.0)
    second.create_gauge("level", description='Says "this"\\ and\nthat.').set(1e21, {"note": AWKWARD})
    second.create_gauge("calls", description="A gauge in disguise.").set(1)
    return reader


class Prometheus:
    """A private Prometheus that scrapes an address for each job."""

    def __init__(self, directory: Path, ports: dict[str, int]) -> None:
        binary = require_binary("prometheus")
        configuration = directory / "prometheus.yml"
        jobs = [
            {
                "job_name": job,
                "scrape_interval": "1s",
                "scrape_timeout": "1s",
                "authorization": {"credentials": TOKEN},
                "static_configs": [{"targets": [f"localhost:{port}"]}],
            }
            for job, port in ports.items()
        ]
        configuration.write_text(json.dumps({"scrape_configs": jobs}), encoding="utf-8")
        self._url = f"http://127.0.0.1:{free_port()}"
        self._log = (directory / "prometheus.log").open("w+b")
        self._process = subprocess.Popen(
            [
                *(binary, f"--config.file={configuration}", f"--storage.tsdb.path={directory / 'data'}"),
                *(f"--web.listen-address={self._url.removeprefix('http://')}", "--enable-feature=exemplar-storage"),
            ],
            stdout=self._log,
            stderr=subprocess.STDOUT,
        )

    def ask(self, path: str, **parameters: str) -> Any:
        """The data of an answer of the HTTP API."""
        url = f"{self._url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=WAIT_SECONDS) as response:
            return json.load(response)["data"]

    def own_metrics(self) -> str:
        """What it says about itself."""
        with urllib.request.urlopen(f"{self._url}/metrics", timeout=WAIT_SECONDS) as response:
            text: str = response.read().decode("utf-8")
        return text

    def wait_for(self, path: str, done: Callable[[Any], bool], **parameters: str) -> Any:
        """Asks again and again until the answer is `done`, for `WAIT_SECONDS` at most."""
        deadline = time.monotonic() + WAIT_SECONDS
        answer: Any = None
        while time.monotonic() < deadline:
            try:
                answer = self.ask(path, **parameters)
            except OSError as error:
                answer = error  # it is still starting
            else:
                if done(answer):
                    return answer
            if self._process.poll() is not None:
                break
            time.sleep(0.1)  # a real process has no event to wait for
        self._log.seek(0)
        log = self._log.read().decode("utf-8", "replace")
        pytest.fail(f"Prometheus did not answer {path} {parameters} as hoped but {answer!r}; it logged:\n{log}")

    def stop(self) -> None:
        """Ends it by its process id."""
        self._process.terminate()
        try:
            self._process.wait(WAIT_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._log.close()


@pytest.fixture(scope="module")
def own_url() -> Iterator[str]:
    """Where the library serves its own metrics, each of them recorded once."""
    initialize_observability("own", prometheus_port=0, prometheus_bearer_token=TOKEN, gen_ai_profile="both")
    for instrument in instruments.ALL.values():
        series = instrument.series(*(f"a {label}" for label in instrument.spec.labels))
        if isinstance(series, instruments.HistogramSeries):
            series.record(1)
        elif isinstance(series, instruments.CounterSeries):
            series.add()  # a gauge is shown at 0, and forgotten at the next start
    yield observability_status().prometheus_url or "nothing is served"
    shutdown_observability(0.0)


@pytest.fixture(scope="module")
def prometheus(
    tmp_path_factory: pytest.TempPathFactory, reader: PrometheusReader, own_url: str
) -> Iterator[Prometheus]:
    """One for all tests, as it takes five seconds until its first scrape."""
    server = ScrapeServer(reader.registry, port=0, bearer_token=TOKEN)
    server.start()
    try:
        ports = {"shop": server.port, "own": urllib.parse.urlsplit(own_url).port or 0}
        prometheus = Prometheus(tmp_path_factory.mktemp("prometheus"), ports)
        yield prometheus
        prometheus.stop()
    finally:
        server.close()


def _checked(metrics: bytes) -> tuple[int, bytes, bytes]:
    promtool = [require_binary("promtool"), "check", "metrics"]
    checked = subprocess.run(promtool, input=metrics, capture_output=True, timeout=WAIT_SECONDS)
    return checked.returncode, checked.stdout, checked.stderr


def test_promtool_finds_nothing_to_complain_about(reader: PrometheusReader) -> None:
    """It parses strictly, and lints names and help texts."""
    assert (0, b"", b"") == _checked(generate_latest(reader.registry))


def test_promtool_finds_nothing_to_complain_about_in_our_own_metrics(own_url: str) -> None:
    """Names and help texts of the catalogue, as they are served."""
    request = urllib.request.Request(own_url, headers={"Authorization": f"Bearer {TOKEN}"})
    with urllib.request.urlopen(request, timeout=WAIT_SECONDS) as response:
        assert (0, b"", b"") == _checked(response.read())


def test_prometheus_takes_every_series_in(prometheus: Prometheus) -> None:
    """One series that it rejects fails the whole target; a duplicate is dropped with a warning."""

    def are_scraped(targets: Any) -> bool:
        return bool(targets["activeTargets"]) and all(
            target["health"] != "unknown" for target in targets["activeTargets"]
        )

    targets = prometheus.wait_for("targets", are_scraped)["activeTargets"]
    assert [("up", "")] * 2 == [(target["health"], target["lastError"]) for target in targets]

    def value(query: str) -> list[tuple[dict[str, str], float]]:
        result = prometheus.wait_for("query", lambda answer: bool(answer["result"]), query=query)["result"]
        return [
            ({name: text for name, text in found["metric"].items() if name != "instance"}, float(found["value"][1]))
            for found in result
        ]

    calls = {"__name__": "calls_total", "job": "shop", "op": "chat"}
    assert [({**calls, "model": "m"}, 2.0), ({**calls, "error_type": "e"}, 3.0)] == sorted(
        value("calls_total"), key=lambda found: found[1]
    )
    assert [({"job": "shop", "op": "chat"}, 0.55)] == value("histogram_quantile(0.5, duration_seconds_bucket)")
    assert [({"__name__": "wide_seconds_sum", "job": "shop"}, 3.0)] == value("wide_seconds_sum")
    assert [({"__name__": "level", "job": "shop", "note": AWKWARD}, 1e21)] == value("level")
    assert [({"__name__": "target_info", "a_b": "1;2", "job": "shop", "service_name": "shop"}, 1.0)] == value(
        'target_info{job="shop"}'
    )
    ((_, age),) = value("time() - duration_seconds_created")
    assert -1.0 < age < 60.0


def test_prometheus_has_every_metric_of_the_catalogue_by_its_documented_name(prometheus: Prometheus) -> None:
    """Whoever copies a name out of the documentation into a query finds the metric, with its labels."""

    def found(name: str) -> Any:
        query = f'{name}{{job="own"}}'
        return prometheus.wait_for("query", lambda answer: bool(answer["result"]), query=query)["result"]

    known = {spec.prometheus_name + ("_count" if spec.buckets else ""): spec for spec in CATALOGUE}
    assert found("cache_entry_size_bytes_count")
    names = prometheus.ask("label/__name__/values", **{"match[]": '{job="own"}'})
    assert set() == set(known) - set(names)
    for name in ("router_decisions_total", "cache_hit_rate", "timeout_execution_seconds_count"):
        # Objects of other tests, not yet collected, may have series of their own.
        labels = set(zip(known[name].prometheus_labels, (f"a {label}" for label in known[name].labels), strict=True))
        assert any(series["metric"].items() >= labels for series in found(name))
    assert "0.5" in {series["value"][1] for series in found("cache_hit_rate")}


def test_prometheus_drops_nothing_of_what_it_takes_in(prometheus: Prometheus) -> None:
    """Duplicates and stale exemplars do not fail a scrape: they vanish, and only these counters tell."""
    prometheus.wait_for("query", lambda answer: bool(answer["result"]), query="count_over_time(up[1m]) > 2")
    own = prometheus.own_metrics()
    for fault in ("sample_duplicate_timestamp", "sample_out_of_order", "sample_out_of_bounds", "exemplar_out_of_order"):
        assert f"\nprometheus_target_scrapes_{fault}_total 0\n" in own
    # The same exemplar comes with every scrape, and is stored once: two counters, a bucket, and the one of "wide".
    assert "\nprometheus_tsdb_exemplar_exemplars_in_storage 4\n" in own


def test_prometheus_finds_the_trace_behind_a_bucket(prometheus: Prometheus) -> None:
    """The way from a slow bucket in a dashboard to the span that was slow."""
    now = time.time()
    window = {"start": str(now - 3600), "end": str(now + 3600)}
    for query, value in (("duration_seconds_bucket", 0.5), ('calls_total{model="m"}', 2.0)):
        (found,) = prometheus.wait_for("query_exemplars", bool, query=query, **window)
        (exemplar,) = found["exemplars"]
        assert (value, 32, 16) == (
            float(exemplar["value"]),
            len(exemplar["labels"]["trace_id"]),
            len(exemplar["labels"]["span_id"]),
        )
        assert {"trace_id", "span_id"} == set(exemplar["labels"])
