"""Spans that go on from another process, or join several: with our own spans and with the application's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

pytest.importorskip("opentelemetry.sdk")

from opentelemetry import baggage, trace
from opentelemetry import context as context_api
from opentelemetry.sdk.trace import ReadableSpan, SynchronousMultiSpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import format_span_id, format_trace_id

from observability_integration import WorkflowContext
from observability_integration.primitives import SequentialPrimitive
from observability_integration.propagation import continue_from, fan_in, incoming, links_from, outgoing_headers
from observability_integration.telemetry.tracing import spans
from observability_integration.telemetry.tracing.lean_span import LeanTracing
from observability_integration.telemetry.tracing.otel_tracing import ForeignTracing
from observability_integration.testing import capture_telemetry

pytestmark = [pytest.mark.needs_otel, pytest.mark.once, pytest.mark.promise("W2")]

_TRACE, _SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
_OTHER = {"traceparent": "00-11111111111111111111111111111111-2222222222222222-01", "tracestate": "b=2"}
_REMOTE = {"traceparent": f"00-{_TRACE}-{_SPAN}-01", "tracestate": "a=1", "baggage": "tenant=t%201"}


class _Traces:
    """A provider whose spans stay here, and a tracing of ours on it."""

    def __init__(self, whose: str) -> None:
        self.exporter = InMemorySpanExporter()
        fan_out = SynchronousMultiSpanProcessor()
        fan_out.add_span_processor(SimpleSpanProcessor(self.exporter))
        self.provider = TracerProvider(active_span_processor=fan_out, shutdown_on_exit=False)
        scope = InstrumentationScope("scope", "1.0")
        ours = LeanTracing(self.provider, fan_out, scope)
        spans.install(ours if whose == "ours" else ForeignTracing(self.provider.get_tracer("scope")))

    def ended(self) -> dict[str, ReadableSpan]:
        """Spans by name."""
        return {span.name: span for span in self.exporter.get_finished_spans()}


@pytest.fixture(params=["ours", "the application's"])
def traces(request: pytest.FixtureRequest) -> Iterator[_Traces]:
    """Tracing is on."""
    yield _Traces(request.param)
    spans.install(None)


async def _step(value: str) -> str:
    return value


def _ids(span: Any) -> tuple[str, str]:
    return format_trace_id(span.context.trace_id), format_span_id(span.context.span_id)


async def test_a_span_goes_on_from_the_remote_one(traces: _Traces) -> None:
    """One trace across both processes: same trace id, the caller's span as parent, its sampling and its state."""
    with continue_from(_REMOTE):
        assert "x" == await (SequentialPrimitive([_step, _step])).execute("x")
    span = traces.ended()["sequence"]
    assert span.parent is not None
    assert (_TRACE, _SPAN) == (format_trace_id(span.parent.trace_id), format_span_id(span.parent.span_id))
    assert span.parent.is_remote
    assert span.context is not None
    assert (_TRACE, {"a": "1"}) == (format_trace_id(span.context.trace_id), dict(span.context.trace_state))
    assert span.context.trace_flags.sampled
    assert trace.get_current_span() is trace.INVALID_SPAN


async def test_what_goes_out_names_the_current_span(traces: _Traces) -> None:
    """The next process goes on from the operation that calls it, not from the one that called us."""
    sent: dict[str, str] = {}

    async def call(value: str) -> str:
        sent.update(outgoing_headers(WorkflowContext(baggage={"b": "2"})))
        return value

    with continue_from(_REMOTE):
        await SequentialPrimitive([call, _step]).execute("x")
    trace_id, span_id = _ids(traces.ended()["sequence"])
    assert {
        "traceparent": f"00-{trace_id}-{span_id}-01",
        "tracestate": "a=1",
        "baggage": "b=2,tenant=t%201",
    } == sent
    assert _TRACE == trace_id


async def test_a_trace_that_the_caller_does_not_record_is_not_recorded_here(traces: _Traces) -> None:
    """The decision is made once, at the root, and passed on."""
    with continue_from({"traceparent": f"00-{_TRACE}-{_SPAN}-00"}):
        await SequentialPrimitive([_step, _step]).execute("x")
        assert f"00-{_TRACE}-{_SPAN}-00" == outgoing_headers()["traceparent"]
    assert {} == traces.ended()


async def test_flags_that_mean_nothing_yet_are_not_taken_over(traces: _Traces) -> None:
    """A span of ours must not say what nobody has defined."""
    with continue_from({"traceparent": f"00-{_TRACE}-{_SPAN}-ff"}), fan_in("work"):
        flags = outgoing_headers()["traceparent"][-2:]
    assert flags in ("01", "03")


async def test_baggage_is_opentelemetrys_own(traces: _Traces) -> None:
    """Whatever else uses it in this process sees what came, and what it takes away stays away."""
    with continue_from(_REMOTE):
        assert {"tenant": "t 1"} == dict(baggage.get_all())
        token = context_api.attach(baggage.set_baggage("more", "x y", baggage.remove_baggage("tenant")))
        assert "more=x%20y" == outgoing_headers()["baggage"]
        context_api.detach(token)
    assert {} == dict(baggage.get_all())


async def test_the_servers_own_span_of_that_trace_stays_the_parent(traces: _Traces) -> None:
    """An instrumentation of the server has gone on from the remote span first: ours belong under its span."""
    server = traces.provider.get_tracer("server")
    with continue_from(_REMOTE), server.start_as_current_span("GET /"):
        with continue_from(_REMOTE), fan_in("work"):
            pass
        with continue_from(_OTHER), fan_in("other"):
            pass
    ended = traces.ended()
    assert ended["work"].parent == ended["GET /"].context
    assert 0x2222222222222222 == (ended["other"].parent or trace.INVALID_SPAN_CONTEXT).span_id


async def test_a_join_is_linked_to_every_source(traces: _Traces) -> None:
    """A span has one parent; those whose results it joins find it by its links."""
    sources = [_REMOTE, incoming(_OTHER), {"traceparent": "garbage"}, {}, None]
    with continue_from(_REMOTE), fan_in("outer"), fan_in("join research", *sources) as span:
        span.set_attribute("agents", 2)
    ended = traces.ended()
    join = ended["join research"]
    assert join.parent == ended["outer"].context
    assert {"fan_in.sources": 5, "agents": 2} == dict(join.attributes or {})
    assert [(int(_TRACE, 16), {"a": "1"}, True), (0x11111111111111111111111111111111, {"b": "2"}, True)] == [
        (link.context.trace_id, dict(link.context.trace_state), link.context.is_remote) for link in join.links
    ]
    assert "UNSET" == join.status.status_code.name
    assert trace.get_current_span() is trace.INVALID_SPAN


async def test_a_join_of_more_sources_than_a_span_may_have_links(traces: _Traces) -> None:
    """The limit of OpenTelemetry holds for links that a span begins with, too."""
    with fan_in("join", *[_REMOTE] * 130):
        pass
    join = traces.ended()["join"]
    assert (128, 2) == (len(join.links), join.dropped_links)


@pytest.mark.parametrize("error", [ValueError("secret"), None])
async def test_a_failed_join_ends_as_an_error(traces: _Traces, error: ValueError | None) -> None:
    """As every span of ours: the type of the error, not its message, and the error itself unchanged."""
    if error is not None:
        with pytest.raises(ValueError) as caught, fan_in("join"):
            raise error
        assert error is caught.value
    else:
        with fan_in("join"):
            pass
    join = traces.ended()["join"]
    assert ("UNSET" if error is None else "ERROR", None) == (join.status.status_code.name, join.status.description)


async def test_a_join_is_current_within_its_block_only(traces: _Traces, caplog: pytest.LogCaptureFixture) -> None:
    """What comes after it is none of its children; a block that another task closes changes nothing there."""
    with fan_in("join"):
        assert trace.get_current_span() is not trace.INVALID_SPAN
    assert trace.get_current_span() is trace.INVALID_SPAN

    async def chunks() -> AsyncIterator[int]:
        with fan_in("left"):
            yield 1

    async def begin() -> Any:
        generator = chunks()
        assert 1 == await anext(generator)
        return generator

    await (await asyncio.create_task(begin())).aclose()
    assert {"join", "left"} == set(traces.ended())
    assert "" == caplog.text


async def test_without_tracing_there_is_nothing_to_link() -> None:
    """A join costs nothing where nobody records."""
    assert () == links_from(_REMOTE)
    with fan_in("join", _REMOTE) as span:
        assert spans.NO_SPAN is span


async def test_a_span_that_raises_fails_no_call(metrics: Callable[..., Any]) -> None:
    """The current span may be anybody's; without its ids the rest still travels."""

    class Broken(trace.NonRecordingSpan):
        def get_span_context(self) -> Any:
            raise RuntimeError("broken")

    token = context_api.attach(trace.set_span_in_context(Broken(trace.INVALID_SPAN_CONTEXT)))
    with continue_from({**_REMOTE, "x-request-deadline-ms": "5000"}):
        sent = outgoing_headers()
    context_api.detach(token)
    assert {"X-Request-Deadline-Ms", "traceparent", "tracestate", "baggage"} == set(sent)
    assert _REMOTE["baggage"] == sent["baggage"]
    assert 1 == metrics("telemetry.faults", site="propagation.trace")
    assert 1 == metrics("telemetry.faults", site="propagation.outgoing")


async def test_captured_telemetry_shows_the_join(traces: _Traces) -> None:
    """A user's test of an agent sees the span by its name, while its links go where they went before."""
    with capture_telemetry() as captured, fan_in("join", _REMOTE):
        pass
    assert {"fan_in.sources": 1} == captured.span("join").attributes
    assert 1 == len(traces.ended()["join"].links)
