"""Operation spans on a provider of the application's, and spans that began while tracing was off."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextvars import copy_context
from typing import Any

import pytest

pytest.importorskip("opentelemetry.sdk")

from opentelemetry import context as context_api
from opentelemetry import trace
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from observability_integration.telemetry.providers import Running
from observability_integration.telemetry.tracing import spans
from observability_integration.telemetry.tracing.otel_tracing import ForeignTracing
from observability_integration.telemetry.tracing.processors import GuardedProcessor
from observability_integration.telemetry.tracing.spans import NO_SPAN

pytestmark = pytest.mark.needs_otel


@pytest.fixture
def exporter() -> InMemorySpanExporter:
    """Keeps what ended."""
    return InMemorySpanExporter()


@pytest.fixture
def provider(exporter: InMemorySpanExporter) -> TracerProvider:
    """A provider as an application makes it."""
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    return provider


@pytest.fixture
def tracing(provider: TracerProvider) -> Iterator[ForeignTracing]:
    """Our operation spans on it, as the primitives find them; off again afterwards."""
    spans.install(ForeignTracing(provider.get_tracer("scope")))
    active = spans.tracing
    assert isinstance(active, ForeignTracing)
    yield active
    spans.install(None)


@pytest.mark.promise("S6", "X2")
def test_a_span_of_the_applications_provider_carries_all_that_ours_would(
    tracing: ForeignTracing, exporter: InMemorySpanExporter
) -> None:
    """Kind, attributes, events, links, status and parent: the primitives must not know whose span it is."""
    first = tracing.begin("first", {"a": 1})
    token = tracing.activate(first)
    assert trace.get_current_span() is not trace.INVALID_SPAN
    second = tracing.begin("second", {}, client=True, links=[tracing.link_to(first)])
    second.set_attribute("b", 2)
    second.add_event("happened", {"c": 3})
    tracing.mark_failed(second, ValueError("the secret question"))
    second.end()
    second.end()
    tracing.deactivate(token)
    first.end()
    inner, outer = exporter.get_finished_spans()
    assert outer.context == inner.parent == inner.links[0].context
    assert ("CLIENT", "INTERNAL") == (inner.kind.name, outer.kind.name)
    assert {"b": 2, "error.type": "ValueError"} == dict(inner.attributes or {})
    assert [("happened", {"c": 3})] == [(event.name, dict(event.attributes or {})) for event in inner.events]
    assert ("ERROR", None) == (inner.status.status_code.name, inner.status.description)
    assert trace.get_current_span() is trace.INVALID_SPAN


@pytest.mark.promise("S9")
def test_what_began_while_tracing_was_off_ends_as_nothing(tracing: ForeignTracing) -> None:
    """A stream that was open when telemetry came up holds a span that is none."""
    assert tracing.activate(NO_SPAN) is None
    tracing.deactivate(None)
    tracing.mark_failed(NO_SPAN, ValueError())
    assert tracing.link_to(NO_SPAN) is None
    NO_SPAN.set_attribute("a", 1)
    NO_SPAN.add_event("a")
    NO_SPAN.end()


@pytest.mark.promise("S9")
def test_what_was_made_current_is_undone_after_tracing_was_switched_off(tracing: ForeignTracing) -> None:
    """Else every later span of that task would hang under one that has long ended."""
    token = tracing.activate(tracing.begin("work", {}))
    spans.install(None)
    spans.tracing.deactivate(token)
    assert trace.get_current_span() is trace.INVALID_SPAN
    assert spans.tracing.begin("off", {}) is NO_SPAN
    assert spans.tracing.activate(NO_SPAN) is None
    assert spans.tracing.link_to(NO_SPAN) is None
    spans.tracing.mark_failed(NO_SPAN, ValueError())


@pytest.mark.promise("B4")
def test_what_was_made_current_elsewhere_is_left_alone(
    tracing: ForeignTracing, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A coroutine that dies with its loop ends in the context of the collection; to log an error helps nobody."""
    span, other = tracing.begin("work", {}), tracing.begin("other", {})
    token = copy_context().run(tracing.activate, span)
    around = tracing.activate(other)
    current = trace.get_current_span()
    tracing.deactivate(token)
    assert current is trace.get_current_span()
    # What the application left behind goes with the span that it is inside of.
    token = tracing.activate(span)
    context_api.attach(trace.set_span_in_context(trace.INVALID_SPAN))
    tracing.deactivate(token)
    assert current is trace.get_current_span()
    tracing.deactivate(around)
    assert trace.get_current_span() is trace.INVALID_SPAN
    assert [] == caplog.records
    # Where contexts are kept in another way, a token may be anything.
    detached: list[object] = []
    monkeypatch.setattr(context_api, "detach", detached.append)
    tracing.deactivate("token")
    assert ["token"] == detached


@pytest.mark.promise("S6")
def test_a_processor_that_has_left_is_not_called_any_more() -> None:
    """A provider has no way to remove a processor, so ours goes deaf instead."""
    called: list[str] = []

    class Recording(SpanProcessor):
        def on_start(self, span: Any, parent_context: Any = None) -> None:
            called.append("start")

        def _on_ending(self, span: Any) -> None:
            called.append("ending")

        def on_end(self, span: Any) -> None:
            called.append("end")

        def force_flush(self, timeout_millis: int = 30000) -> bool:
            called.append("flush")
            return True

        def shutdown(self) -> None:
            called.append("shutdown")

    provider = TracerProvider(shutdown_on_exit=False)
    guarded = GuardedProcessor(Recording())
    provider.add_span_processor(guarded)
    provider.get_tracer("scope").start_span("work").end()
    assert guarded.force_flush()
    guarded.shutdown()
    guarded.shutdown()
    provider.get_tracer("scope").start_span("work").end()
    assert guarded.force_flush()
    assert ["start", "ending", "end", "flush", "shutdown"] == called


@pytest.mark.promise("S7")
def test_telemetry_ends_even_where_no_thread_can_be_started(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Some Pythons start no thread while they go down; the flush at exit must then run in the one there is."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    def fails(seconds: float) -> None:
        raise OSError

    ended: list[float] = []
    running = Running()
    running.on_stop(ended.append)
    running.on_stop(fails)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert running.stop(1.0)
    assert 1 == len(ended)
    assert "Telemetry could not be ended cleanly: OSError" in caplog.text
