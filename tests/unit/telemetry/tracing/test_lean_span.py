"""Our own span is to samplers, processors, exporters and user code what the SDK's is: shown side by side with one."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("opentelemetry.sdk")

from opentelemetry import context as context_api
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, SynchronousMultiSpanProcessor, TracerProvider
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import (
    ALWAYS_OFF,
    ALWAYS_ON,
    DEFAULT_ON,
    Decision,
    ParentBased,
    Sampler,
    SamplingResult,
    TraceIdRatioBased,
)
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags, TraceState

from observability_integration.telemetry.tracing import lean_span
from observability_integration.telemetry.tracing.lean_span import LeanSpan, LeanTracing, check_sdk

pytestmark = [pytest.mark.needs_otel, pytest.mark.promise("X5")]

_NOW_NS = 1_700_000_000_000_000_000
_LINKED = SpanContext(7, 8, is_remote=True, trace_flags=TraceFlags(1))


class _SameIds(IdGenerator):
    """Both spans of a pair have the same ids, so that all that may differ is what they are compared for."""

    def generate_trace_id(self) -> int:
        return 0x0AF7651916CD43DD8448EB211C80319C

    def generate_span_id(self) -> int:
        return 0xB7AD6B7169203331


class _Kept(SpanProcessor):
    def __init__(self) -> None:
        self.ended: list[ReadableSpan] = []

    def on_end(self, span: ReadableSpan) -> None:
        self.ended.append(span)


class _Pair:
    """A tracer of the SDK and our tracing, on one provider."""

    def __init__(self, sampler: Sampler | None = None) -> None:
        self.kept = _Kept()
        self.fan_out = SynchronousMultiSpanProcessor()
        self.fan_out.add_span_processor(self.kept)
        self.provider = TracerProvider(
            sampler=sampler,
            resource=Resource({"service.name": "pair"}),
            active_span_processor=self.fan_out,
            id_generator=_SameIds(),
            shutdown_on_exit=False,
        )
        self.tracing = LeanTracing(self.provider, self.fan_out, InstrumentationScope("scope", "1.0"))

    def both(self, *, client: bool = False, links: Any = (), **attributes: Any) -> tuple[trace.Span, trace.Span]:
        """The SDK's span and ours, begun the same way."""
        tracer = self.provider.get_tracer("scope", "1.0")
        kind = SpanKind.CLIENT if client else SpanKind.INTERNAL
        theirs = tracer.start_span("work", kind=kind, attributes=dict(attributes), links=links)
        ours: Any = self.tracing.begin("work", dict(attributes), client=client, links=links)
        return theirs, ours


@pytest.fixture(autouse=True)
def one_moment_and_no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    """Time stands still, and no limit or sampler is set from outside."""
    for name in list(os.environ):
        if name.startswith("OTEL_"):
            monkeypatch.delenv(name)
    monkeypatch.setattr("opentelemetry.sdk.trace.time_ns", lambda: _NOW_NS)
    monkeypatch.setattr(lean_span, "time_ns", lambda: _NOW_NS)


def _json(span: ReadableSpan) -> str:
    try:
        return span.to_json()
    except TypeError as error:  # bytes have no form in JSON
        return str(error)


def _fields(span: ReadableSpan) -> dict[str, Any]:
    return {
        "json": _json(span),
        "wire": encode_spans([span]).SerializeToString(deterministic=True),
        "attributes": list((span.attributes or {}).items()),
        "dropped": (span.dropped_attributes, span.dropped_events, span.dropped_links),
        "times": (span.start_time, span.end_time),
        "context": (span.get_span_context(), span.context, span.parent),
        "scope": span.instrumentation_scope,
        "events": [(event.name, dict(event.attributes or {}), event.timestamp) for event in span.events],
        "links": [(link.context, dict(link.attributes or {})) for link in span.links],
    }


def _raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:
        return caught


_ERROR = _raised(ValueError("wrong"))


def _event_that_is_changed_afterwards(span: trace.Span) -> None:
    attributes: dict[str, Any] = {"n": 1, "list": [1, 2]}
    span.add_event("changed", attributes)
    attributes["n"] = 2


def _list_that_is_changed_afterwards(span: trace.Span) -> None:
    values = ["a", "b"]
    span.set_attribute("values", values)
    values.append("c")


def _as_context_manager(error: BaseException) -> Callable[[trace.Span], None]:
    # By hand, because raising the same error for a second span would lengthen its traceback.
    def use(span: trace.Span) -> None:
        assert span.__enter__() is span
        assert not span.__exit__(type(error), error, error.__traceback__)

    return use


def _everything_after_the_end(span: trace.Span) -> None:
    span.set_attribute("before", 1)
    span.end()
    span.set_attribute("after", 1)
    span.set_attributes({"after": 2})
    span.add_event("after")
    span.add_link(_LINKED)
    span.update_name("after")
    span.set_status(StatusCode.ERROR)
    span.record_exception(_ERROR)
    span.end(end_time=1)


_USES: dict[str, Callable[[Any], Any]] = {
    "nothing": lambda span: None,
    "attributes of every type": lambda span: span.set_attributes(
        {"s": "text", "i": 1, "f": 1.5, "b": True, "l": ["a", "b"], "t": (1, 2), "bytes": b"x", "none": None}
    ),
    "nested attributes": lambda span: span.set_attributes({"map": {"a": [1, {"b": "c"}]}, "mixed": [1, "a"]}),
    "objects as attributes": lambda span: span.set_attributes({"object": Decision.DROP, "other": {1, 2}}),
    "an empty key": lambda span: span.set_attribute("", "value"),
    "a key that is no text": lambda span: span.set_attribute(5, "value"),
    "the same key again": lambda span: [span.set_attribute(key, 1) for key in ("a", "b", "a")],
    "a list that is changed afterwards": _list_that_is_changed_afterwards,
    "an event": lambda span: span.add_event("happened"),
    "an event with attributes and a time": lambda span: span.add_event("happened", {"a": 1, "l": ["x"]}, 123),
    "an event that is changed afterwards": _event_that_is_changed_afterwards,
    "an exception": lambda span: span.record_exception(_ERROR),
    "an exception with attributes": lambda span: span.record_exception(_ERROR, {"a": 1}, 123, True),
    "an exception of a module": lambda span: span.record_exception(_raised(pytest.UsageError("x"))),
    "a link": lambda span: span.add_link(_LINKED, {"why": "because"}),
    "a link to nowhere": lambda span: span.add_link(SpanContext(0, 0, is_remote=False)),
    "a link to nowhere with attributes": lambda span: span.add_link(SpanContext(0, 0, is_remote=False), {"a": 1}),
    "another name": lambda span: span.update_name("renamed"),
    "status ok": lambda span: span.set_status(StatusCode.OK),
    "status with words": lambda span: span.set_status(StatusCode.ERROR, "words"),
    "status as an object": lambda span: span.set_status(Status(StatusCode.ERROR, "words")),
    "ok is final": lambda span: [span.set_status(code) for code in (StatusCode.OK, StatusCode.ERROR)],
    "unset changes nothing": lambda span: [
        span.set_status(status) for status in (StatusCode.ERROR, StatusCode.UNSET, Status(StatusCode.UNSET))
    ],
    "ok after error": lambda span: [span.set_status(code) for code in (StatusCode.ERROR, StatusCode.OK)],
    "an end in the past": lambda span: span.end(end_time=_NOW_NS - 5),
    "a block that fails": _as_context_manager(ValueError("inside")),
    "a block that is cancelled": _as_context_manager(KeyboardInterrupt()),
    "anything after the end": _everything_after_the_end,
    "many attributes": lambda span: span.set_attributes({f"k{n}": n for n in range(200)}),
    "many events": lambda span: [span.add_event(f"e{n}", {"a": n, "b": n, "c": n}) for n in range(200)],
    "many links": lambda span: [span.add_link(SpanContext(1, n + 1, is_remote=False)) for n in range(200)],
    "long values": lambda span: [
        span.set_attribute("long", "x" * 300),
        span.add_event("long", {"a": "x" * 300}),
        span.set_attribute("list", ["x" * 300, "y"]),
        span.add_link(_LINKED, {"a": "x" * 300}),
    ],
}

_LIMITS: dict[str, dict[str, str]] = {
    "by default": {},
    "tight": {
        "OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "3",
        "OTEL_SPAN_EVENT_COUNT_LIMIT": "2",
        "OTEL_SPAN_LINK_COUNT_LIMIT": "2",
        "OTEL_EVENT_ATTRIBUTE_COUNT_LIMIT": "1",
        "OTEL_LINK_ATTRIBUTE_COUNT_LIMIT": "1",
        "OTEL_ATTRIBUTE_VALUE_LENGTH_LIMIT": "10",
    },
    "none at all": {"OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "0", "OTEL_SPAN_ATTRIBUTE_VALUE_LENGTH_LIMIT": "2"},
    "unlimited": {"OTEL_SPAN_ATTRIBUTE_COUNT_LIMIT": "", "OTEL_SPAN_EVENT_COUNT_LIMIT": ""},
}


@pytest.mark.parametrize("use", _USES)
@pytest.mark.parametrize("limits", _LIMITS)
def test_a_span_reads_the_same_as_the_sdks(use: str, limits: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the wire and as JSON, whatever a caller does with it, under whatever limits."""
    for variable, value in _LIMITS[limits].items():
        monkeypatch.setenv(variable, value)
    pair = _Pair()
    theirs, ours = pair.both(client=True, first="value", second=2)
    assert theirs.is_recording() is ours.is_recording() is True
    for span in (theirs, ours):
        _USES[use](span)
        span.end()
        assert not span.is_recording()
    assert 2 == len(pair.kept.ended)
    their_fields, our_fields = map(_fields, pair.kept.ended)
    assert their_fields == our_fields


def test_links_given_at_the_beginning_are_kept() -> None:
    """Work that several callers wait for is linked to each of them."""
    pair = _Pair()
    for span in pair.both(links=[trace.Link(_LINKED)]):
        span.add_link(SpanContext(9, 9, is_remote=False))
        span.end()
    theirs, ours = pair.kept.ended
    assert [(7, 8), (9, 9)] == [(link.context.trace_id, link.context.span_id) for link in ours.links]
    assert _fields(theirs) == _fields(ours)


def test_a_link_to_one_of_our_spans() -> None:
    """What `begin` takes is made without knowing OpenTelemetry."""
    pair = _Pair()
    span: Any = pair.tracing.begin("one", {})
    assert span.get_span_context() == pair.tracing.link_to(span).context


class _Adding(Sampler):
    """Replaces the attributes, as samplers may."""

    def should_sample(self, *args: Any, **kwargs: Any) -> SamplingResult:
        return SamplingResult(Decision.RECORD_AND_SAMPLE, {"added": "by sampler"}, TraceState([("a", "1")]))

    def get_description(self) -> str:
        return "adds"


class _RecordOnly(Sampler):
    def should_sample(self, *args: Any, **kwargs: Any) -> SamplingResult:
        return SamplingResult(Decision.RECORD_ONLY)

    def get_description(self) -> str:
        return "records"


_STATE = TraceState([("vendor", "value")])
_SAMPLERS: dict[str, Sampler] = {
    "default": DEFAULT_ON,
    "always on": ALWAYS_ON,
    "always off": ALWAYS_OFF,
    "never by ratio": TraceIdRatioBased(0.0),
    "always by ratio": TraceIdRatioBased(1.0),
    "parent, else off": ParentBased(ALWAYS_OFF),
    "parent, else ratio": ParentBased(TraceIdRatioBased(0.5)),
    "remote parents never": ParentBased(ALWAYS_ON, remote_parent_sampled=ALWAYS_OFF),
    "adding": _Adding(),
    "record only": _RecordOnly(),
}
_PARENTS: dict[str, SpanContext | None] = {
    "root": None,
    "remote, sampled": SpanContext(5, 6, True, TraceFlags(1), _STATE),
    "remote, sampled, random": SpanContext(5, 6, True, TraceFlags(3), _STATE),
    "remote, not sampled": SpanContext(5, 6, True, TraceFlags(0), _STATE),
    "remote, not sampled, random": SpanContext(5, 6, True, TraceFlags(2)),
    "local, sampled": SpanContext(5, 6, False, TraceFlags(1)),
    "local, not sampled": SpanContext(5, 6, False, TraceFlags(0)),
    "invalid": SpanContext(0, 0, False),
}


@pytest.mark.parametrize("sampler", _SAMPLERS)
@pytest.mark.parametrize("parent", _PARENTS)
def test_sampling_decides_the_same_as_for_the_sdk(sampler: str, parent: str) -> None:
    """Which traces exist must not depend on which half of the process began them."""
    pair = _Pair(_SAMPLERS[sampler])
    above = _PARENTS[parent]
    token = None if above is None else context_api.attach(trace.set_span_in_context(NonRecordingSpan(above)))
    try:
        theirs, ours = pair.both(given="attribute")
    finally:
        if token is not None:
            context_api.detach(token)
    assert theirs.get_span_context() == ours.get_span_context()
    assert theirs.get_span_context().trace_state == ours.get_span_context().trace_state
    assert theirs.is_recording() is ours.is_recording()
    for span in (theirs, ours):
        span.end()
    assert (2 if theirs.is_recording() or pair.kept.ended else 0) == len(pair.kept.ended)
    if pair.kept.ended:
        first, second = pair.kept.ended
        assert _fields(first) == _fields(second)


def test_ids_are_random_where_the_generator_says_so() -> None:
    """The flag of W3C trace context level 2 tells others that they may sample by the trace id."""
    provider = TracerProvider(shutdown_on_exit=False)
    tracing = LeanTracing(provider, SynchronousMultiSpanProcessor(), InstrumentationScope("scope"))
    ours: Any = tracing.begin("work", {})
    theirs = provider.get_tracer("scope").start_span("work")
    assert theirs.get_span_context().trace_flags == ours.get_span_context().trace_flags
    assert theirs.get_span_context().trace_id != ours.get_span_context().trace_id


def test_processors_may_read_and_enrich_it() -> None:
    """Processors that copy baggage to spans, or filter by name, were written for the SDK's span."""

    class Enriching(SpanProcessor):
        def on_start(self, span: Any, parent_context: Any = None) -> None:
            span.set_attribute("enriched", f"{span.name} {span.kind.name} {dict(span.attributes)} {parent_context}")

    pair = _Pair()
    pair.provider.add_span_processor(Enriching())
    for span in pair.both(a=1):
        span.end()
    theirs, ours = pair.kept.ended
    assert "work INTERNAL {'a': 1} None" == (ours.attributes or {})["enriched"]
    assert _fields(theirs) == _fields(ours)


def test_user_code_finds_it_as_the_current_span() -> None:
    """`trace.get_current_span()` is how code further in enriches a span that it did not make."""
    pair = _Pair()
    span: Any = pair.tracing.begin("work", {})
    token = pair.tracing.activate(span)
    current = trace.get_current_span()
    assert current is span
    assert isinstance(current, trace.Span)
    assert isinstance(current, ReadableSpan)
    with trace.use_span(current, record_exception=True, end_on_exit=True), pytest.raises(ZeroDivisionError):
        raise ZeroDivisionError
    pair.tracing.deactivate(token)
    assert trace.get_current_span() is trace.INVALID_SPAN
    assert not span.is_recording()
    assert 'LeanSpan(name="work"' in repr(span)


def test_only_a_sampled_span_becomes_an_exemplar() -> None:
    """An exemplar that leads to a trace nobody stored is a dead end on a dashboard."""
    sampled: Any = _Pair().tracing.begin("work", {})
    recorded: Any = _Pair(_RecordOnly()).tracing.begin("work", {})
    assert isinstance(recorded, LeanSpan)
    assert sampled.get_span_context() == sampled.exemplar_context
    assert recorded.exemplar_context is None


def test_its_attributes_cannot_be_changed_from_outside() -> None:
    """A processor gets a view; the span is what says what it carries."""
    span: Any = _Pair().tracing.begin("work", {"a": 1})
    with pytest.raises(TypeError):
        span.attributes["b"] = 2
    assert {"a": 1} == dict(span.attributes)


@pytest.mark.parametrize("limits", _LIMITS)
def test_the_installed_sdk_reads_our_span(limits: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Limits that cut the checked span down must not be taken for an SDK that does not fit."""
    for variable, value in _LIMITS[limits].items():
        monkeypatch.setenv(variable, value)
    check_sdk(_Pair().tracing)


@pytest.mark.parametrize("name", ["name", "parent", "attributes", "events", "links", "end_time"])
def test_an_sdk_that_reads_another_field_is_noticed(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fields are private: a later version may rename one, and exporters would then fail on every span of ours."""
    tracing = _Pair().tracing
    monkeypatch.setattr(ReadableSpan, name, property(lambda span: span._renamed))
    with pytest.raises(AttributeError, match="_renamed"):
        check_sdk(tracing)
    monkeypatch.setattr(ReadableSpan, name, property(lambda _: ("other",)))
    with pytest.raises(RuntimeError, match=name):
        check_sdk(tracing)


def test_an_sdk_that_keeps_another_field_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """A method that does not exist today may read it."""
    tracing = _Pair().tracing
    initialise = ReadableSpan.__init__

    def with_another(span: Any, *args: Any, **kwargs: Any) -> None:
        initialise(span, *args, **kwargs)
        span._added = None

    monkeypatch.setattr(ReadableSpan, "__init__", with_another)
    with pytest.raises(RuntimeError, match="_added"):
        check_sdk(tracing)
