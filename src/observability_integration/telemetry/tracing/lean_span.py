"""A span for the primitives that costs a quarter of the SDK's.

The SDK's ``Span`` copies and checks every attribute, takes a lock for each change and is copied when it ends: about
14 µs. The attributes of this library are few and well-typed, so `LeanSpan` keeps a plain dict, and is itself the
``ReadableSpan`` that processors and exporters receive. It uses the provider's sampler, id generator, resource, limits
and span processors, and has the whole interface of a span for callers of ``trace.get_current_span()``. Only providers
that this library built use it; the application's provider makes spans of its own.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from time import time_ns
from typing import TYPE_CHECKING, Any, cast

from opentelemetry import trace as trace_api
from opentelemetry.attributes import BoundedAttributes
from opentelemetry.sdk.trace import Event, ReadableSpan, SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import DEFAULT_ON
from opentelemetry.sdk.util import BoundedList
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags
from opentelemetry.trace.span import TraceState

from observability_integration.telemetry.guard import note_fault

from .otel_tracing import OtelTracing
from .spans import OperationSpan, error_type

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope

_UNSET = Status(StatusCode.UNSET)
_NO_STATE = TraceState()
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_SAMPLED_RANDOM = TraceFlags(TraceFlags.SAMPLED | TraceFlags.RANDOM_TRACE_ID)
# Properties that the base class reads from private fields of the same names.
_READ = (
    "name",
    "context",
    "parent",
    "kind",
    "attributes",
    "status",
    "start_time",
    "end_time",
    "resource",
    "instrumentation_scope",
)
_READ_AS_TUPLE = ("events", "links")
_MAX_INITIAL_ATTRIBUTES = 32  # primitives begin spans with fewer, so a higher limit needs no check


def _bounded(links: Sequence[Link], limit: int | None) -> Sequence[Link]:
    if limit is None or len(links) <= limit:
        return links
    bounded = BoundedList[Link](limit)
    bounded.extend(links)
    return bounded


def _appended(items: Sequence[Any], item: object, limit: int | None) -> BoundedList[Any]:
    if isinstance(items, BoundedList):
        bounded = items
    else:  # the initial tuple
        bounded = BoundedList[Any](limit)
        bounded.extend(items)
    bounded.append(item)
    return bounded


class LeanSpan(trace_api.Span, ReadableSpan):
    """One operation of one primitive. Not thread-safe while it is open."""

    def __init__(
        self,
        name: str,
        context: SpanContext,
        parent: SpanContext | None,
        kind: SpanKind,
        attributes: dict[str, Any],
        links: Sequence[Link],
        origin: LeanTracing,
    ) -> None:
        # Sets the fields of the base class directly, instead of calling its constructor; see `check_sdk`.
        self._name = name
        self._context: SpanContext = context
        self._parent = parent
        self._kind = kind
        self._attributes: dict[str, Any] = attributes
        self._events: Sequence[Event] = ()
        self._links = _bounded(links, origin.limits.max_links) if links else links
        self._status = _UNSET
        self._resource = origin.resource
        self._instrumentation_scope = origin.scope
        self._instrumentation_info = None
        self._origin = origin
        self._dropped = 0
        self._end_time: int | None = None
        if origin.tight:
            self._attributes = {}
            self.set_attributes(attributes)
        self._start_time = time_ns()
        origin.processor.on_start(self, parent_context=None)  # type: ignore[arg-type]

    def __repr__(self) -> str:
        return f'LeanSpan(name="{self._name}", context={self._context})'

    @property
    def exemplar_context(self) -> SpanContext | None:
        """The context for exemplars of this span; None if it is not sampled, and so not exported."""
        return self._context if self._context.trace_flags.sampled else None

    def get_span_context(self) -> SpanContext:
        """The ids, flags and state of the span."""
        return self._context

    @property
    def dropped_attributes(self) -> int:
        """The number of attributes that were over the limit or had an invalid key."""
        return self._dropped

    def set_attribute(self, key: str, value: Any) -> None:
        """Sets one attribute, unless the span has ended. Beyond the limit the oldest is dropped."""
        if self._end_time is not None:
            return
        origin, attributes = self._origin, self._attributes
        if type(value) not in origin.plain or type(key) is not str or not key:
            # The value of another caller: cleaned as by the SDK.
            cleaned = BoundedAttributes(1, {key: value}, max_value_len=origin.limits.max_span_attribute_length)
            if key not in cleaned:
                self._dropped += 1
                return
            value = cleaned[key]
        if key in attributes:
            del attributes[key]  # the SDK moves it to the end
        elif len(attributes) >= origin.max_attributes:
            self._dropped += 1
            if not attributes:
                return
            del attributes[next(iter(attributes))]
        attributes[key] = value

    def set_attributes(self, attributes: Mapping[str, Any]) -> None:
        """Sets several attributes."""
        for key, value in attributes.items():
            self.set_attribute(key, value)

    def add_event(self, name: str, attributes: Any = None, timestamp: int | None = None) -> None:
        """Adds an event. Beyond the limit the oldest is dropped."""
        if self._end_time is not None:
            return
        limits = self._origin.limits
        kept = BoundedAttributes(limits.max_event_attributes, attributes, True, limits.max_attribute_length)
        self._events = _appended(self._events, Event(name, kept, timestamp), limits.max_events)

    def add_link(self, context: SpanContext, attributes: Any = None) -> None:
        """Adds a link to another span. Beyond the limit the oldest is dropped."""
        if self._end_time is not None or not (context.is_valid or attributes or context.trace_state):
            return
        limits = self._origin.limits
        kept = BoundedAttributes(limits.max_link_attributes, attributes, True, limits.max_attribute_length)
        self._links = _appended(self._links, Link(context, kept), limits.max_links)

    def update_name(self, name: str) -> None:
        """Renames the span while it is open."""
        if self._end_time is None:
            self._name = name

    def is_recording(self) -> bool:
        """Whether the span is still open."""
        return self._end_time is None

    def set_status(self, status: Status | StatusCode, description: str | None = None) -> None:
        """Sets the status. OK is final; UNSET is ignored."""
        code = status.status_code if isinstance(status, Status) else status
        if self._end_time is not None or self._status.status_code is StatusCode.OK or code is StatusCode.UNSET:
            return
        self._status = status if isinstance(status, Status) else Status(status, description)

    def record_exception(
        self,
        exception: BaseException,
        attributes: Any = None,
        timestamp: int | None = None,
        escaped: bool = False,
    ) -> None:
        """Adds an ``exception`` event with message and stack, as the API requires; only callers' code uses it."""
        details = {
            "exception.type": error_type(exception),
            "exception.message": str(exception),
            "exception.stacktrace": "".join(traceback.format_exception(exception)),
            "exception.escaped": str(escaped),
        }
        self.add_event("exception", {**details, **(attributes or {})}, timestamp)

    def end(self, end_time: int | None = None) -> None:
        """Ends the span and passes it to the processors; only the first call counts."""
        if self._end_time is None:
            self._end_time = time_ns() if end_time is None else end_time
            self._origin.processor.on_end(self)

    def __exit__(self, exc_type: Any, exc: BaseException | None, tb: Any) -> None:
        if exc is not None and self.is_recording():
            self.record_exception(exc, escaped=True)
            self.set_status(StatusCode.ERROR, f"{type(exc).__name__}: {exc}")
        self.end()


class LeanTracing(OtelTracing):
    """Begins lean spans for a provider that this library built.

    Attributes:
        processor: receives the spans when they begin and end.
        scope: the instrumentation scope of the spans.
        limits: limits of the number and length of attributes, events and links.
        max_attributes: limit of attributes; `sys.maxsize` without one.
        plain: types of attribute values that need no cleaning.
        tight: whether the attributes that a span begins with may exceed the limits.
    """

    def __init__(self, provider: TracerProvider, processor: SpanProcessor, scope: InstrumentationScope) -> None:
        super().__init__()
        self.processor = processor
        self.scope = scope
        self.limits = limits = SpanLimits()
        limit = limits.max_span_attributes
        self.max_attributes = sys.maxsize if limit is None else limit
        unlimited = limits.max_span_attribute_length is None
        self.plain: frozenset[type] = frozenset({str, int, float, bool} if unlimited else {int, float, bool})
        self.tight = not unlimited or self.max_attributes < _MAX_INITIAL_ATTRIBUTES
        self._provider = provider
        self._sampler = provider.sampler
        self._always = provider.sampler is DEFAULT_ON
        self._trace_id: Callable[[], int] = provider.id_generator.generate_trace_id
        self._span_id: Callable[[], int] = provider.id_generator.generate_span_id
        self._root_flags = _SAMPLED_RANDOM if provider.id_generator.is_trace_id_random() else _SAMPLED

    @property
    def resource(self) -> Resource:
        """The provider's resource, which changes after a fork."""
        return self._provider.resource

    def begin(self, name: str, attributes: dict[str, Any], *, client: bool = False, links: Any = ()) -> OperationSpan:
        """Begins a lean child of the current span, or a span that records nothing if the sampler drops it."""
        kind = SpanKind.CLIENT if client else SpanKind.INTERNAL
        parent = trace_api.get_current_span().get_span_context()
        if self._always and (not parent.is_valid or parent.trace_flags.sampled):
            if parent.is_valid:
                context = SpanContext(parent.trace_id, self._span_id(), False, parent.trace_flags, parent.trace_state)
                return LeanSpan(name, context, parent, kind, attributes, links, self)
            context = SpanContext(self._trace_id(), self._span_id(), False, self._root_flags, _NO_STATE)
            return LeanSpan(name, context, None, kind, attributes, links, self)
        try:
            return self._begin_sampled(name, attributes, kind, links, parent)
        except Exception as error:  # noqa: BLE001 - a user's sampler, inside the user's call
            note_fault("tracing.begin", error)
            return NonRecordingSpan(parent)

    def _begin_sampled(
        self, name: str, attributes: dict[str, Any], kind: SpanKind, links: Sequence[Link], parent: SpanContext
    ) -> OperationSpan:
        trace_id = parent.trace_id if parent.is_valid else self._trace_id()
        result = self._sampler.should_sample(None, trace_id, name, kind, attributes, links)
        flags = TraceFlags.SAMPLED if result.decision.is_sampled() else TraceFlags.DEFAULT  # type: ignore[no-untyped-call]
        random = parent.trace_flags if parent.is_valid else self._root_flags
        flags |= random & TraceFlags.RANDOM_TRACE_ID
        context = SpanContext(trace_id, self._span_id(), False, TraceFlags(flags), result.trace_state)
        if not result.decision.is_recording():  # type: ignore[no-untyped-call]
            return NonRecordingSpan(context)
        kept: dict[str, Any] = dict(cast("Any", result).attributes)
        return LeanSpan(name, context, parent if parent.is_valid else None, kind, kept, links, self)


def check_sdk(tracing: LeanTracing) -> None:
    """Checks that the installed SDK reads a `LeanSpan` as this module expects; the fields are private to the SDK.

    Args:
        tracing: begins the span that is checked; its processor sees the span too.

    Raises:
        RuntimeError: `ReadableSpan` has a field that `LeanSpan` does not set, or a property that reads another field.
        AttributeError: `ReadableSpan` reads a field that `LeanSpan` does not set.
    """
    context = SpanContext(1, 1, False)
    span = LeanSpan("check", context, context, SpanKind.CLIENT, {"key": 1}, [Link(context)], tracing)
    span.add_event("event")
    span.set_status(StatusCode.ERROR)
    span.end()
    fields = vars(span)
    unset = vars(ReadableSpan("check", resource=tracing.resource)).keys() - fields.keys()
    if unset:
        raise RuntimeError(f"ReadableSpan has the unknown fields {sorted(unset)}")
    misread = [name for name in _READ if getattr(span, name) != fields[f"_{name}"]]
    misread += [name for name in _READ_AS_TUPLE if getattr(span, name) != tuple(fields[f"_{name}"])]
    if misread:
        raise RuntimeError(f"ReadableSpan reads {misread} from unknown fields")
    span.to_json()
