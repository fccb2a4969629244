"""What users' tests see of this library's telemetry, with OpenTelemetry and without."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from contextvars import copy_context
from typing import Any

import pytest

from observability_integration import initialize_observability, shutdown_observability
from observability_integration.errors import ConfigurationError, PrimitiveTimeoutError
from observability_integration.events import emit
from observability_integration.primitives import SequentialPrimitive, TimeoutPrimitive
from observability_integration.telemetry.metrics import instruments
from observability_integration.telemetry.tracing import spans
from observability_integration.testing import abandoned_work, assert_no_abandoned, capture_telemetry


async def answer(question: str) -> str:
    return question.upper()


async def hang(_: str) -> None:
    await asyncio.Event().wait()


async def fail(_: str) -> None:
    raise KeyError("no")


@pytest.fixture
def telemetry_on() -> Iterator[None]:
    assert initialize_observability("shop", prometheus_port=0)
    yield
    shutdown_observability(0.0)


async def test_counts_spans_and_events() -> None:
    """The whole of it in one block, though nothing is switched on and OpenTelemetry may be absent."""
    with capture_telemetry() as captured:
        assert "A" == await TimeoutPrimitive(answer, 30.0, operation_name="ask").execute("a")
        emit("cache.backend.degraded", operation="ask")

    assert 1 == captured.value("timeout.successes", operation="ask")
    assert 1 == captured.value("timeout.execution", operation="ask")
    assert 0 == captured.value("timeout.failures", operation="ask")
    assert 0 == captured.value("timeout.failures", operation="ask", kind="total")
    assert captured.value("timeout.successes", operation="other") is None
    assert captured.value("cache.hits", operation="ask") is None
    span = captured.span("timeout ask")
    assert ("internal", "unset", True, None) == (span.kind, span.status, span.ended, span.parent)
    assert {"timeout.limit_seconds": 30.0, "outcome": "success"} == span.attributes
    assert span.duration_ms > 0
    assert ["cache.backend.degraded"] == [event.name for event in captured.events]


async def test_failures_and_parents() -> None:
    """Spans know what they were inside of, and how they failed."""
    with capture_telemetry() as captured:
        chain = SequentialPrimitive(
            [TimeoutPrimitive(answer, 30.0, operation_name="a"), TimeoutPrimitive(fail, 30.0, operation_name="b")]
        )
        with pytest.raises(KeyError):
            await chain.execute("q")
        with pytest.raises(PrimitiveTimeoutError):
            await TimeoutPrimitive(hang, 0.01, operation_name="c").execute("q")

    root = captured.span("sequence")
    assert [root, root, None] == [captured.span(f"timeout {name}").parent for name in "abc"]
    assert ["unset", "error", "error"] == [captured.span(f"timeout {name}").status for name in "abc"]
    assert "KeyError" == captured.span("timeout b").attributes["error.type"]
    assert 1 == captured.value("timeout.failures")
    assert 1 == captured.value("timeout.errors", operation="b", error_type="KeyError")


async def test_what_is_over_is_over() -> None:
    """After the block nothing is collected any more, and all is off again."""
    primitive = TimeoutPrimitive(answer, 30.0, operation_name="ask")
    with capture_telemetry() as captured:
        await primitive.execute("a")
    emit("cache.backend.degraded")
    with capture_telemetry() as later:
        await primitive.execute("a")
        await primitive.execute("a")

    assert (1, 1, 0) == (captured.value("timeout.successes"), len(captured.spans), len(captured.events))
    assert (2, 2) == (later.value("timeout.successes"), len(later.spans))
    assert not instruments.switch.on
    assert spans.off is spans.tracing


async def test_captures_inside_captures() -> None:
    """Each sees its own time, and the outer one goes on after the inner."""
    primitive = TimeoutPrimitive(answer, 30.0, operation_name="ask")
    with capture_telemetry() as outer:
        await primitive.execute("a")
        with capture_telemetry() as inner:
            await primitive.execute("a")
        await primitive.execute("a")

    assert (3, 1) == (outer.value("timeout.successes"), inner.value("timeout.successes"))
    assert (3, 1) == (outer.value("timeout.execution"), inner.value("timeout.execution"))
    assert (3, 1) == (len(outer.spans), len(inner.spans))
    assert all(span.ended for span in outer.spans)


async def test_open_spans() -> None:
    """A span is there from its beginning; what comes after its end is not on it; a span from before is none of ours."""
    early = spans.tracing.begin("early", {})
    with capture_telemetry() as captured:
        tracing = spans.tracing
        token = tracing.activate(early)
        first = tracing.begin("first", {"a": 1}, client=True)
        tracing.deactivate(token)
        second = tracing.begin("second", {}, links=[tracing.link_to(first), tracing.link_to(early)])
        tracing.link(first, second)
        tracing.link(early, first)
        tracing.link(first, early)
        tracing.mark_failed(early, KeyError())
        assert not captured.span("first").ended
        first.add_event("here", {"b": 2})
        for _ in range(2):
            first.end()
            first.add_event("too late")
            first.set_attribute("c", 3)
            tracing.mark_failed(first, KeyError())

    span, other = captured.spans
    assert ("client", {"a": 1}, [("here", {"b": 2})], "unset") == (span.kind, span.attributes, span.events, span.status)
    assert ([other], [span], None) == (span.links, other.links, span.parent)
    assert not other.ended
    with pytest.raises(AssertionError, match=r"0 spans are named 'third'; there are \['first', 'second'\]"):
        captured.span("third")


def test_misspelt_metrics() -> None:
    """A test with a typo must not pass because nothing is there."""
    with capture_telemetry() as captured:
        with pytest.raises(ConfigurationError, match=r"no metric 'timeout\.success'"):
            captured.value("timeout.success")
        with pytest.raises(ConfigurationError, match=r"not \['operatoin'\]"):
            captured.value("timeout.successes", operatoin="ask")


@pytest.mark.needs_otel
async def test_while_telemetry_is_on(telemetry_on: None) -> None:
    """Captured beside what is exported: both see the same spans, in the same order of parents, and counts go on."""
    from observability_integration.telemetry.tracing.trace_memory import remember_traces

    memory = remember_traces()
    primitive = SequentialPrimitive([TimeoutPrimitive(answer, 30.0, operation_name="ask"), answer])
    await primitive.execute("a")
    before = spans.tracing.begin("before", {})
    token = spans.tracing.activate(before)
    with capture_telemetry() as captured:
        await primitive.execute("a")
        spans.tracing.deactivate(token)
    before.end()
    await primitive.execute("a")

    assert ["sequence", "timeout ask"] == [span.name for span in captured.spans]
    assert 1 == captured.value("timeout.successes")
    assert memory is not None
    first, second, third = memory.traces()
    assert ["sequence", "timeout ask"] == [span.name for span in first] == [span.name for span in third]
    assert ["before", "sequence", "timeout ask"] == [span.name for span in second]
    assert [span.span_id for span in second[:2]] == [span.parent_id for span in second[1:]]
    assert captured.spans[1].exemplar_context is not None
    with capture_telemetry() as rest:
        assert 0 == rest.value("timeout.successes")


@pytest.mark.needs_otel
async def test_links_while_telemetry_is_on(telemetry_on: None) -> None:
    """A link is one between the exported spans too, and a failure fails both."""
    from observability_integration.telemetry.tracing.lean_span import LeanSpan

    with capture_telemetry() as captured:
        tracing = spans.tracing
        first = tracing.begin("first", {})
        second = tracing.begin("second", {}, links=[tracing.link_to(first)])
        tracing.mark_failed(second, KeyError())
        tracing.link(first, second)
        for span in (first, second):
            span.end()

    exported: Any = [span._inner for span in captured.spans]
    assert all(isinstance(span, LeanSpan) for span in exported)
    assert exported[0].get_span_context() == exported[1].links[0].context
    assert exported[1].get_span_context() == exported[0].links[0].context
    assert "KeyError" == exported[1].attributes["error.type"]


@pytest.mark.needs_otel
async def test_switched_on_within() -> None:
    """Whoever switches telemetry on within a capture finds it on afterwards, with counts from there on."""
    primitive = TimeoutPrimitive(answer, 30.0, operation_name="ask")
    with capture_telemetry() as captured:
        await primitive.execute("a")
        assert initialize_observability("shop", prometheus_port=0)
        tracing = spans.tracing
        await primitive.execute("a")

    try:
        assert 1 == captured.value("timeout.successes")
        assert tracing is spans.tracing
        assert instruments.switch.on
    finally:
        shutdown_observability(0.0)


@pytest.mark.needs_otel
async def test_switched_off_and_on_within(telemetry_on: None) -> None:
    """A new start sets all counts to zero: what had been counted before it must not be taken off again."""
    primitive = TimeoutPrimitive(answer, 30.0, operation_name="ask")
    await primitive.execute("a")
    await primitive.execute("a")
    with capture_telemetry() as captured:
        shutdown_observability(0.0)
        assert initialize_observability("shop", prometheus_port=0)
        await primitive.execute("a")

    assert 1 == captured.value("timeout.successes")


async def test_no_abandoned() -> None:
    """Work that will not end is found, by name, for as long as it runs, even with telemetry off."""
    release = asyncio.Event()

    async def stubborn(_: str) -> None:
        while not release.is_set():
            with contextlib.suppress(asyncio.CancelledError):
                await release.wait()

    assert_no_abandoned()
    with pytest.raises(PrimitiveTimeoutError):
        await TimeoutPrimitive(stubborn, 0.01, operation_name="dig", grace_period_seconds=0).execute("q")
    try:
        with pytest.raises(AssertionError, match=r"still running: dig \(1\)"):
            assert_no_abandoned()
        assert_no_abandoned(abandoned_work())
    finally:
        release.set()
    for _ in range(5):
        await asyncio.sleep(0)
    assert_no_abandoned()


def test_no_thread_is_needed() -> None:
    """Capturing starts nothing that a test would have to stop."""
    before = threading.active_count()
    with capture_telemetry():
        assert before == threading.active_count()


async def test_a_call_that_is_closed_from_elsewhere() -> None:
    """It was open in a context of its own; that its span cannot be taken out of there must not break the closing."""
    with capture_telemetry() as captured:
        call = SequentialPrimitive([hang, answer]).execute("q")
        copy_context().run(call.send, None)
        call.close()
    assert captured.spans
    assert all(span.ended for span in captured.spans)
