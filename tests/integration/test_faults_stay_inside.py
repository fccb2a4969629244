"""Whatever telemetry is plugged into may fail: the call does not notice, the log says it once, a metric counts it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from observability_integration import initialize_observability, observability_status, shutdown_observability
from observability_integration.primitives import CachePrimitive, LLMCallPrimitive, RouterPrimitive, TimeoutPrimitive
from observability_integration.telemetry import guard
from tests.otlp_receiver import OtlpReceiver
from tests.scrapes import scrape

pytestmark = [pytest.mark.needs_otel, pytest.mark.promise("S9")]

_PROMPT = "the secret question"


@pytest.fixture(autouse=True)
def nothing_noted_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Each test sees the first fault of its kind; nothing stays on."""
    monkeypatch.setattr(guard, "_logged", set())
    yield
    shutdown_observability(0.0)


def _logged(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def _faults(site: str) -> float | None:
    return scrape(observability_status().prometheus_url).value("telemetry_faults_total", site=site)


async def _answer(question: str) -> str:
    return question.upper()


def _pipeline() -> RouterPrimitive[str, str]:
    call = LLMCallPrimitive[str, str](_answer, model="small")
    bounded = TimeoutPrimitive(call, 5.0, operation_name="guarded")
    cached = CachePrimitive(bounded, lambda question: question, operation_name="guarded")
    return RouterPrimitive({"fast": cached}, lambda question, context: "fast", name="guarded")


async def test_an_exploding_span_processor(caplog: pytest.LogCaptureFixture) -> None:
    """A processor that somebody added runs inside the user's call, twice a span; the others must still be served."""
    from opentelemetry import trace
    from opentelemetry.sdk.trace import SpanProcessor

    class Exploding(SpanProcessor):
        def on_start(self, span: Any, parent_context: Any = None) -> None:
            raise RuntimeError(_PROMPT)

        def on_end(self, span: Any) -> None:
            raise RuntimeError(_PROMPT)

        def _on_ending(self, span: Any) -> None:
            raise RuntimeError(_PROMPT)

        def force_flush(self, timeout_millis: int = 0) -> bool:
            raise RuntimeError(_PROMPT)

        def shutdown(self) -> None:
            raise RuntimeError(_PROMPT)

    with OtlpReceiver() as receiver:
        initialize_observability(prometheus_port=0, otlp_endpoint=receiver.endpoint)
        provider: Any = trace.get_tracer_provider()
        provider.add_span_processor(Exploding())
        assert _PROMPT.upper() == await _pipeline().execute(_PROMPT)
        trace.get_tracer("mine").start_span("of the user").end()
        assert await asyncio.to_thread(provider.force_flush) is False
        # 4 spans of the pipeline twice, the user's three times, the flush.
        assert 12 == _faults("tracing.processor")
        shutdown_observability()
        assert 5 == len(receiver.spans(5))
    (line,) = _logged(caplog)
    assert line.startswith("tracing.processor raised RuntimeError at ")
    assert line.endswith("the call went on without it (logged once)")
    assert _PROMPT not in caplog.text


async def test_an_exploding_span_exporter(caplog: pytest.LogCaptureFixture) -> None:
    """An exporter of the user's runs in the SDK's thread; neither the call nor the shutdown is its business."""
    from opentelemetry import trace
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter

    class Exploding(SpanExporter):
        def export(self, spans: Any) -> Any:
            raise RuntimeError("no")

        def shutdown(self) -> None:
            raise RuntimeError("no")

    initialize_observability(prometheus_port=0)
    provider: Any = trace.get_tracer_provider()
    provider.add_span_processor(BatchSpanProcessor(Exploding()))
    assert "A" == await _pipeline().execute("a")
    shutdown_observability()
    assert any("Exception while exporting" in line for line in _logged(caplog))


async def test_an_exploding_sampler(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """A sampler is asked before every span. Its fault costs the span; its parent stays current, so the rest fits."""
    from opentelemetry import trace
    from opentelemetry.sdk.trace.sampling import ALWAYS_ON

    from observability_integration.telemetry.tracing import spans

    class Exploding:
        def should_sample(self, *args: Any, **kwargs: Any) -> Any:
            if args[2].startswith(("cache", "timeout")):
                raise RuntimeError(_PROMPT)
            return ALWAYS_ON.should_sample(*args, **kwargs)

    with OtlpReceiver() as receiver:
        initialize_observability(prometheus_port=0, otlp_endpoint=receiver.endpoint)
        monkeypatch.setattr(spans.tracing, "_sampler", Exploding())
        monkeypatch.setattr(spans.tracing, "_always", False)
        assert _PROMPT.upper() == await _pipeline().execute(_PROMPT)
        assert 2 == _faults("tracing.begin")
        assert not trace.get_current_span().is_recording()
        shutdown_observability()
        chat, router = receiver.spans(2)
        assert (chat.name, chat.parent_id) == ("chat small", router.span_id)
    assert 1 == len(_logged(caplog))
    assert _PROMPT not in caplog.text


async def test_an_exploding_observable(caplog: pytest.LogCaptureFixture) -> None:
    """A callback that a user registered fails its own metric, not the scrape of all the others."""
    from opentelemetry import metrics

    armed = True

    def exploding(_: Any) -> Any:
        if armed:
            raise RuntimeError("no")
        return []

    initialize_observability(prometheus_port=0)
    metrics.get_meter("mine").create_observable_gauge("broken.level", [exploding])
    flow = _pipeline()
    await flow.execute("a")
    found = scrape(observability_status().prometheus_url)
    armed = False  # a meter keeps its callbacks for as long as the process lives
    assert 1 == found.value("timeout_successes_total", operation="guarded")
    assert "broken_level" not in found.families


async def test_an_exploding_reader_of_metrics() -> None:
    """What collects fails outside of the call; the next scrape, of a mended process, has every number."""
    from observability_integration.telemetry.metrics import sdk_bridge

    initialize_observability(prometheus_port=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sdk_bridge, "snapshot", lambda: 1 / 0)
        assert "A" == await _pipeline().execute("a")
        with pytest.raises(OSError, match="500"):
            scrape(observability_status().prometheus_url)
    flow = _pipeline()
    await flow.execute("b")
    assert 1 == _faults("prometheus.scrape")


async def test_an_exploding_instrument_where_metrics_are_pushed(caplog: pytest.LogCaptureFixture) -> None:
    """With OTLP each measurement also passes through the SDK; a fault there must not multiply itself for ever."""
    from opentelemetry.sdk.metrics._internal.measurement_consumer import SynchronousMeasurementConsumer

    def exploding(*_: Any) -> Any:
        raise RuntimeError(_PROMPT)

    with OtlpReceiver() as receiver, pytest.MonkeyPatch.context() as patch:
        initialize_observability(enable_prometheus=False, otlp_endpoint=receiver.endpoint)
        flow = _pipeline()
        patch.setattr(SynchronousMeasurementConsumer, "consume_measurement", exploding)
        assert "A" == await flow.execute("a")
        patch.undo()
        shutdown_observability()
    assert ["metrics.forward raised RuntimeError"] == [line.split(" at ")[0] for line in _logged(caplog)]
    assert _PROMPT not in caplog.text


async def test_functions_of_the_user_that_fail_cost_their_own_effect_only(caplog: pytest.LogCaptureFixture) -> None:
    """A key or routing function with a bug must not take the answers down with it."""

    def failing(*_: Any) -> str:
        raise KeyError(_PROMPT)

    initialize_observability(prometheus_port=0)
    cached = CachePrimitive(_answer, failing, operation_name="keyless")
    router: RouterPrimitive[str, str] = RouterPrimitive({"fast": cached}, failing)
    for _ in range(3):
        assert "A" == await router.execute("a")
    assert 3 == _faults("cache.key_fn")
    assert 3 == _faults("router.router_fn")
    assert 2 == len(_logged(caplog))
    assert _PROMPT not in caplog.text
