"""After a known number of calls, the metrics say exactly that: on the scraped port, pushed, and in a foreign reader."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from observability_integration import initialize_observability, observability_status, shutdown_observability
from observability_integration.primitives import (
    CachePrimitive,
    LLMCallPrimitive,
    PrimitiveTimeoutError,
    RouterPrimitive,
    TimeoutPrimitive,
)
from observability_integration.telemetry.catalogue import CATALOGUE, GEN_AI_SECONDS, LLM_SECONDS, LOOKUP_SECONDS
from observability_integration.telemetry.metrics import instruments
from tests.otlp_receiver import OtlpReceiver
from tests.scrapes import Scrape, scrape

pytestmark = [pytest.mark.needs_otel, pytest.mark.promise("M1")]

_TIMED_OUT = "observability_integration.errors.PrimitiveTimeoutError"
_TIMEOUT_SECONDS = 0.05


class _Scripted:
    """A pipeline and a script of calls through it, with numbers that follow from the script alone."""

    def __init__(self) -> None:
        fast = LLMCallPrimitive[str, Any](self._call, model="small", provider="openai")
        best = LLMCallPrimitive[str, Any](self._call, model="large", provider="openai")
        self.router: RouterPrimitive[str, Any] = RouterPrimitive(
            {
                "cheap": TimeoutPrimitive(fast, _TIMEOUT_SECONDS * 100, operation_name="ask-cheap"),
                "dear": TimeoutPrimitive(best, _TIMEOUT_SECONDS, 1.0, operation_name="ask-dear"),
            },
            self._choose,
            "cheap",
            {"cheap": 0.001, "dear": 0.01},
            name="scripted",
        )
        self.cache = CachePrimitive(self.router, lambda question: question, cost_per_call=0.01, operation_name="ask")

    def _choose(self, question: str, context: Any) -> str:
        if question.startswith("no route"):
            raise LookupError(question)
        return question.split(":")[0]

    async def _call(self, question: str) -> Any:
        if "fails" in question:
            raise ValueError(question)
        if "hangs" in question:
            await asyncio.Event().wait()
        await asyncio.sleep(0)
        return {"model": "answering", "usage": {"prompt_tokens": 10, "completion_tokens": 3}}

    async def run(self) -> None:
        """15 misses, 12 hits; 16 routed calls, of which 10 succeed, 3 fail, 2 time out and 1 is cancelled."""
        for _ in range(3):
            for number in range(4):
                await self.cache.execute(f"cheap: {number}")  # 4 misses, 8 hits
        await asyncio.gather(*(self.cache.execute("dear: together") for _ in range(5)))  # 1 miss, 4 hits
        for number in range(2):
            await self.cache.execute(f"unknown: {number}")
        for number in range(3):
            await self.cache.execute(f"no route: {number}")
        for number in range(3):
            with pytest.raises(ValueError, match="fails"):
                await self.cache.execute(f"cheap: fails {number}")
        for number in range(2):
            with pytest.raises(PrimitiveTimeoutError):
                await self.cache.execute(f"dear: hangs {number}")
        task = asyncio.create_task(self.router.execute("dear: hangs"))
        for _ in range(5):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task


# What a scrape shows: name, labels, value. A histogram stands here with its number of observations.
_EXPECTED: list[tuple[str, dict[str, str], float]] = [
    ("router_decisions_total", {"route": "cheap", "reason": "routing_function"}, 7),
    ("router_decisions_total", {"route": "cheap", "reason": "invalid_route_fallback"}, 2),
    ("router_decisions_total", {"route": "cheap", "reason": "routing_error_fallback"}, 3),
    ("router_decisions_total", {"route": "dear", "reason": "routing_function"}, 4),
    ("router_execution_seconds", {"route": "cheap"}, 12),
    ("router_execution_seconds", {"route": "dear"}, 4),
    ("router_cost_savings_usd_total", {"route": "cheap"}, 0.081),
    ("router_cost_savings_usd_total", {"route": "dear"}, 0),
    ("router_errors_total", {"route": "cheap", "error_type": "LookupError"}, 3),
    ("router_errors_total", {"route": "cheap", "error_type": "ValueError"}, 3),
    ("router_errors_total", {"route": "dear", "error_type": _TIMED_OUT}, 2),
    ("cache_hits_total", {"operation": "ask"}, 12),
    ("cache_misses_total", {"operation": "ask"}, 15),
    ("cache_hit_rate", {"operation": "ask"}, 12 / 27),
    ("cache_latency_seconds", {"operation": "ask", "hit": "true"}, 12),
    ("cache_latency_seconds", {"operation": "ask", "hit": "false"}, 15),
    ("cache_cost_savings_usd_total", {"operation": "ask"}, 0.12),
    ("cache_served_total", {"operation": "ask", "tier": "memory", "freshness": "fresh"}, 8),
    ("cache_served_total", {"operation": "ask", "tier": "flight", "freshness": "coalesced"}, 4),
    ("cache_missed_total", {"operation": "ask", "reason": "absent"}, 15),
    ("cache_tier_latency_seconds", {"operation": "ask", "tier": "memory"}, 8),
    ("cache_lock_wait_seconds", {"operation": "ask", "reach": "process"}, 4),
    ("cache_entry_size_bytes", {"operation": "ask"}, 10),
    ("cache_hit_age_seconds", {"operation": "ask"}, 12),
    ("cache_saved_tokens_total", {"operation": "ask"}, 156),
    ("timeout_successes_total", {"operation": "ask-cheap"}, 9),
    ("timeout_successes_total", {"operation": "ask-dear"}, 1),
    ("timeout_failures_total", {"operation": "ask-cheap", "kind": "total"}, 0),
    ("timeout_failures_total", {"operation": "ask-dear", "kind": "total"}, 2),
    ("timeout_errors_total", {"operation": "ask-cheap", "error_type": "ValueError"}, 3),
    ("timeout_cancellations_total", {"operation": "ask-dear"}, 1),
    ("timeout_execution_seconds", {"operation": "ask-cheap"}, 12),
    ("timeout_execution_seconds", {"operation": "ask-dear"}, 4),
    ("timeout_rate", {"operation": "ask-cheap"}, 0),
    ("timeout_rate", {"operation": "ask-dear"}, 2 / 3),
]
_WHO = {"gen_ai_operation_name": "chat", "gen_ai_provider_name": "openai"}
_SMALL = _WHO | {"gen_ai_request_model": "small"}
_LARGE = _WHO | {"gen_ai_request_model": "large"}
_ANSWERED = {"gen_ai_response_model": "answering"}
_GEN_AI: dict[str, list[tuple[str, dict[str, str], float]]] = {
    "v1.41": [
        ("gen_ai_client_operation_duration_seconds", _SMALL | _ANSWERED, 9),
        ("gen_ai_client_operation_duration_seconds", _SMALL | {"error_type": "ValueError"}, 3),
        ("gen_ai_client_operation_duration_seconds", _LARGE | _ANSWERED, 1),
        ("gen_ai_client_operation_duration_seconds", _LARGE | {"error_type": "cancelled"}, 3),
        ("gen_ai_client_token_usage", _SMALL | _ANSWERED | {"gen_ai_token_type": "input"}, 9),
        ("gen_ai_client_token_usage", _LARGE | _ANSWERED | {"gen_ai_token_type": "output"}, 1),
    ],
    "latest": [
        ("gen_ai_client_inference_duration_seconds", _SMALL | _ANSWERED, 9),
        ("gen_ai_client_inference_duration_seconds", _LARGE | {"error_type": "cancelled"}, 3),
        ("gen_ai_client_inference_operation_input_tokens", _SMALL | _ANSWERED, 9),
        # The convention wants a 0 for a failed inference.
        ("gen_ai_client_inference_operation_output_tokens", _SMALL | {"error_type": "ValueError"}, 3),
        (
            "gen_ai_client_inference_usage_input_tokens_total",
            _SMALL | _ANSWERED | {"gen_ai_token_modality": "unknown"},
            90,
        ),
        (
            "gen_ai_client_inference_usage_output_tokens_total",
            _LARGE | _ANSWERED | {"gen_ai_token_modality": "unknown"},
            3,
        ),
    ],
}
_GEN_AI["both"] = _GEN_AI["v1.41"] + _GEN_AI["latest"]


@pytest.fixture(autouse=True)
def switched_off_afterwards() -> Iterator[None]:
    """Nothing stays on."""
    yield
    shutdown_observability(0.0)


def _scrape() -> Scrape:
    return scrape(observability_status().prometheus_url)


def _shown(found: Scrape, name: str, labels: dict[str, str]) -> float | None:
    value = found.value(name, **labels)
    return found.value(f"{name}_count", **labels) if value is None else value


def _table(expected: list[tuple[str, dict[str, str], float]]) -> dict[tuple[str, str], float]:
    return {(name, str(sorted(labels.items()))): value for name, labels, value in expected}


async def test_the_scraped_port_shows_every_series_with_exactly_the_numbers() -> None:
    """A dashboard is only as true as this: what was called, hit, saved, failed and timed out, to the last one."""
    initialize_observability(prometheus_port=0)
    scripted = _Scripted()
    await scripted.run()
    found = _scrape()
    expected = _EXPECTED + _GEN_AI["v1.41"]
    actual = [(name, labels, _shown(found, name, labels)) for name, labels, _ in expected]
    assert _table(expected) == pytest.approx(_table(actual))  # type: ignore[arg-type]
    assert {"hits": 12, "misses": 15} == {key: scripted.cache.get_stats()[key] for key in ("hits", "misses")}  # type: ignore[literal-required]
    # Nothing beyond what happened: no third route, no other operation.
    own = {"operation": "ask"}, {"operation": "ask-cheap"}, {"operation": "ask-dear"}
    assert {"cheap", "dear"} == {dict(series)["route"] for series in found.series("router_execution_seconds_count")}
    assert len(own) - 1 == len(found.series("timeout_successes_total"))
    assert 3 == found.value("telemetry_faults_total", site="router.router_fn")


def test_every_family_has_the_name_that_is_documented() -> None:
    """A metric under another name than in the documentation is never found; the reader adds the words of units."""
    initialize_observability(prometheus_port=0, gen_ai_profile="both")
    for instrument in instruments.ALL.values():
        series = instrument.series(*("x" for _ in instrument.spec.labels))
        if isinstance(series, instruments.HistogramSeries):
            series.record(1)
        elif isinstance(series, instruments.CounterSeries):
            series.add()  # a gauge is shown at 0, and forgotten at the next start
    shown = {
        f"{family.name}_total" if family.type == "counter" else family.name: family.type
        for family in _scrape().families.values()
        if not family.name.endswith("_created") and family.name != "target_info"
    }
    assert {spec.prometheus_name: spec.kind.value for spec in CATALOGUE} == shown


async def test_buckets_are_made_for_what_they_measure() -> None:
    """A lookup of microseconds and a call of a minute need other bounds; milliseconds as seconds would hide both."""
    initialize_observability(prometheus_port=0)
    scripted = _Scripted()
    await scripted.run()
    found = _scrape()

    def bounds(name: str, **labels: str) -> list[float]:
        return [float(le) for le in found.buckets(name, **labels)][:-1]

    assert list(LLM_SECONDS) == bounds("router_execution_seconds", route="cheap")
    assert list(LLM_SECONDS) == bounds("timeout_execution_seconds", operation="ask-dear")
    assert list(LOOKUP_SECONDS) == bounds("cache_latency_seconds", operation="ask", hit="true")
    assert list(GEN_AI_SECONDS) == bounds("gen_ai_client_operation_duration_seconds", **(_SMALL | _ANSWERED))
    assert (0.01, 120.0) == (LLM_SECONDS[0], LLM_SECONDS[-1])
    assert (0.0001, 1.0) == (LOOKUP_SECONDS[0], LOOKUP_SECONDS[-1])
    # The two calls that ran into the limit of 50 ms are beyond it, and everything is below infinity.
    dear = found.buckets("timeout_execution_seconds", operation="ask-dear")
    assert dear["0.05"] <= 2
    assert dear["+Inf"] == 4
    assert list(dear.values()) == sorted(dear.values())
    tokens = found.buckets("gen_ai_client_token_usage", **(_SMALL | _ANSWERED | {"gen_ai_token_type": "input"}))
    assert (0, 9) == (tokens["4.0"], tokens["16.0"])


@pytest.mark.promise("M7")
def test_before_the_first_event_counters_are_zero_and_rates_are_absent() -> None:
    """`rate()` needs the 0 to see the first error; a rate of 0 over nothing would raise an alert on an idle service."""
    initialize_observability(prometheus_port=0)
    scripted = _Scripted()
    found = _scrape()
    for name, labels in (
        ("router_decisions_total", {"route": "cheap", "reason": "routing_function"}),
        ("router_decisions_total", {"route": "cheap", "reason": "invalid_route_fallback"}),
        ("router_decisions_total", {"route": "cheap", "reason": "routing_error_fallback"}),
        ("router_decisions_total", {"route": "dear", "reason": "routing_function"}),
        ("router_cost_savings_usd_total", {"route": "cheap"}),
        ("router_execution_seconds_count", {"route": "cheap"}),
        ("cache_hits_total", {"operation": "ask"}),
        ("cache_misses_total", {"operation": "ask"}),
        ("cache_cost_savings_usd_total", {"operation": "ask"}),
        ("cache_latency_seconds_count", {"operation": "ask", "hit": "true"}),
        ("timeout_successes_total", {"operation": "ask-dear"}),
        ("timeout_failures_total", {"operation": "ask-dear", "kind": "total"}),
        ("timeout_execution_seconds_count", {"operation": "ask-dear"}),
    ):
        assert 0 == found.value(name, **labels), (name, labels)
    assert {} == found.series("cache_hit_rate", operation="ask")
    assert {} == found.series("timeout_rate", operation="ask-dear")
    assert {} == found.series("router_decisions_total", route="dear", reason="invalid_route_fallback")
    del scripted


@pytest.mark.promise("M8")
@pytest.mark.parametrize("wanted", [False, True])
async def test_scope_labels_only_where_they_are_wanted(wanted: bool) -> None:
    """Three more labels on every series make every query longer, and most have one scope only."""
    initialize_observability(prometheus_port=0, prometheus_scope_labels=wanted)
    scripted = _Scripted()
    await scripted.cache.execute("cheap: 1")
    found = _scrape()
    assert wanted is ("otel_scope" in found.text)
    labels = {"otel_scope_name": "observability_integration"} if wanted else {}
    assert 1 == len(found.series("cache_misses_total", operation="ask", **labels))


@pytest.mark.promise("M10")
@pytest.mark.parametrize("profile", ["v1.41", "latest", "both"])
async def test_gen_ai_metrics_follow_the_profile(profile: Any) -> None:
    """Dashboards of either spelling find their metric, and nobody pays for a spelling that was not asked for."""
    initialize_observability(prometheus_port=0, gen_ai_profile=profile)
    await _Scripted().run()
    found = _scrape()
    expected = _GEN_AI[profile]
    actual = [(name, labels, _shown(found, name, labels)) for name, labels, _ in expected]
    assert _table(expected) == _table(actual)  # type: ignore[arg-type]
    shown = {name for name in found.families if name.startswith("gen_ai") and not name.endswith("_created")}
    foreign = {name.removesuffix("_total") for spelling in ("v1.41", "latest") for name, _, _ in _GEN_AI[spelling]}
    foreign -= {name.removesuffix("_total") for name, _, _ in expected}
    assert set() == shown & foreign


_DOTTED = {spec.prometheus_name: spec for spec in CATALOGUE}


def _as_instrument(name: str, labels: dict[str, str]) -> tuple[str, str]:
    spec = _DOTTED[name]
    back = dict(zip(spec.prometheus_labels, spec.labels, strict=True))
    return spec.name, str(sorted((back[label], value) for label, value in labels.items()))


def _expected_instruments() -> dict[tuple[str, str], float]:
    return {_as_instrument(name, labels): value for name, labels, value in _EXPECTED + _GEN_AI["v1.41"]}


async def test_the_same_numbers_are_pushed_over_otlp() -> None:
    """Who pushes instead of being scraped, or does both, must not see another truth."""
    with OtlpReceiver() as receiver:
        early = _Scripted()
        initialize_observability(prometheus_port=0, otlp_endpoint=receiver.endpoint, otlp_metrics=True)
        await early.run()
        found = _scrape()
        shutdown_observability()
        received = receiver.metrics()
    actual = {
        (metric.name, str(sorted(point.attributes.items()))): point.count if metric.kind == "histogram" else point.value
        for metric in received.values()
        for point in metric.points
    }
    expected = _expected_instruments()
    assert expected == pytest.approx({key: actual.get(key) for key in expected})
    scraped = [(name, labels, _shown(found, name, labels)) for name, labels, _ in _EXPECTED]
    assert _table(_EXPECTED) == pytest.approx(_table(scraped))  # type: ignore[arg-type]
    for spec in CATALOGUE:
        if spec.name in received:
            assert (spec.unit, spec.description) == (received[spec.name].unit, received[spec.name].description)
            assert {spec.buckets} >= {point.bounds for point in received[spec.name].points}


async def test_the_same_numbers_are_in_a_reader_of_the_application(monkeypatch: pytest.MonkeyPatch) -> None:
    """An application with a provider of its own has one place to look, and finds the same there."""
    from opentelemetry import metrics
    from opentelemetry.sdk.metrics import MeterProvider
    from opentelemetry.sdk.metrics.export import InMemoryMetricReader

    reader = InMemoryMetricReader()
    provider = MeterProvider([reader], shutdown_on_exit=False)
    monkeypatch.setattr(metrics, "get_meter_provider", lambda: provider)
    initialize_observability(prometheus_port=0)
    scripted = _Scripted()
    await scripted.run()
    data: Any = reader.get_metrics_data()
    actual = {
        (metric.name, str(sorted(point.attributes.items()))): getattr(point, "count", None)
        or getattr(point, "value", 0)
        for group in data.resource_metrics
        for scoped in group.scope_metrics
        for metric in scoped.metrics
        for point in metric.data.data_points
    }
    expected = _expected_instruments()
    assert expected == pytest.approx({key: actual.get(key) for key in expected})
    found = _scrape()
    scraped = [(name, labels, _shown(found, name, labels)) for name, labels, _ in _EXPECTED]
    assert _table(_EXPECTED) == pytest.approx(_table(scraped))  # type: ignore[arg-type]
    provider.shutdown()


@pytest.mark.promise("M6")
@pytest.mark.parametrize("pushed", [False, True])
async def test_ten_thousand_names_cannot_grow_the_scrape_past_the_cap(
    pushed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Model names come from whoever sends the requests: the process and Prometheus must survive them all being new."""

    async def call(request: Any) -> Any:
        return None

    total = 2100 if pushed else 10_000  # each measurement costs far more where it is pushed too
    with OtlpReceiver() as receiver:
        if pushed:
            monkeypatch.setenv("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", f"{receiver.endpoint}/v1/metrics")
        initialize_observability(prometheus_port=0)
        attempt = LLMCallPrimitive[Any, Any](call)
        for number in range(total):
            await attempt.execute({"model": f"model {number}"})
        name = "gen_ai_client_operation_duration_seconds_count{"
        lines = [line for line in _scrape_lines() if line.startswith(name)]
        assert 2001 == len(lines)
        assert total == sum(float(line.split()[-1]) for line in lines)
        (overflow,) = (line for line in lines if "otel_metric_overflow" in line)
        assert overflow.startswith(name + 'otel_metric_overflow="true"}')
        shutdown_observability()
        if pushed:
            points = receiver.metrics()["gen_ai.client.operation.duration"].points
            assert (2001, total) == (len(points), sum(point.count for point in points))
            assert 1 == [point.attributes for point in points].count({"otel.metric.overflow": True})


def _scrape_lines() -> list[str]:
    import urllib.request

    with urllib.request.urlopen(observability_status().prometheus_url or "", timeout=30) as answer:
        return answer.read().decode().splitlines()


async def test_a_long_name_is_cut_before_it_becomes_a_label() -> None:
    """A model name of a megabyte, sent by a caller, must not be repeated in every series of every scrape."""
    initialize_observability(prometheus_port=0)

    async def call(request: Any) -> Any:
        return None

    attempt = LLMCallPrimitive[Any, Any](call)
    for _ in range(2):
        await attempt.execute({"model": "m" * 1_000_000})
    found = _scrape()
    assert 2 == found.value(
        "gen_ai_client_operation_duration_seconds_count", gen_ai_operation_name="chat", gen_ai_request_model="m" * 128
    )
