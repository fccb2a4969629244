"""A span that costs a quarter of the SDK's, for the primitives' own use.

The SDK's ``Span`` copies and checks every attribute, takes a lock for each change and is copied once more when it
ends: about 14 µs. Ours are written by this library, few and well-typed, so `LeanSpan` keeps a plain dict and is itself
the ``ReadableSpan`` that processors and exporters receive. It goes through the provider's sampler, id generator,
resource and span processors like any other, and a caller who picks it up with ``trace.get_current_span()`` finds the
whole interface. Used only where this library built the provider; an application's own provider makes its own spans.
"""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable, Mapping, Sequence
from time import time_ns
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from opentelemetry import context as context_api
from opentelemetry import trace as trace_api
from opentelemetry.sdk.trace import Event, ReadableSpan, SpanLimits, SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.sampling import DEFAULT_ON
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode, TraceFlags
from opentelemetry.trace.span import TraceState

from .spans import OperationSpan, Tracing, error_type

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope

_UNSET = Status(StatusCode.UNSET)
_NO_STATE = TraceState()
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_SAMPLED_RANDOM = TraceFlags(TraceFlags.SAMPLED | TraceFlags.RANDOM_TRACE_ID)


class LeanSpan(trace_api.Span, ReadableSpan):
    """One operation of one primitive. Not meant to be shared between threads while it is open."""

    def __init__(
        self,
        name: str,
        context: SpanContext,
        parent: SpanContext | None,
        kind: SpanKind,
        attributes: dict[str, Any],
        links: Sequence[Link],
        origin: LeanTracing,
        parent_context: context_api.Context | None = None,
    ) -> None:
        # The base class's constructor is not called: these are the fields it would set, under the names it reads.
        self._name = name
        self._context = context
        self._parent = parent
        self._kind = kind
        self._attributes = attributes
        self._events: list[Event] = []
        self._links = links
        self._status = _UNSET
        self._resource = origin.resource
        self._instrumentation_scope = origin.scope
        self._instrumentation_info = None
        self._origin = origin
        self._dropped = 0
        self._end_time: int | None = None
        self._start_time = time_ns()
        origin.processor.on_start(self, parent_context=parent_context)  # type: ignore[arg-type]

    @property
    def exemplar_context(self) -> SpanContext:
        """What an exemplar recorded under this span points to."""
        return self._context

    def get_span_context(self) -> SpanContext:
        """The span's identity."""
        return self._context

    @property
    def attributes(self) -> Mapping[str, Any]:
        """A read-only view of the attributes."""
        return MappingProxyType(self._attributes)

    @property
    def dropped_attributes(self) -> int:
        """How many attributes a caller set beyond the limit."""
        return self._dropped

    def set_attribute(self, key: str, value: Any) -> None:
        """Sets one attribute; ignored once the span has ended or holds as many as the limits allow."""
        if self._end_time is not None:
            return
        limits = self._origin.limits
        if (
            limits.max_span_attributes is not None
            and len(self._attributes) >= limits.max_span_attributes
            and key not in self._attributes
        ):
            self._dropped += 1
            return
        longest = limits.max_span_attribute_length
        if longest is not None and isinstance(value, str):
            value = value[:longest]
        self._attributes[key] = value

    def set_attributes(self, attributes: Mapping[str, Any]) -> None:
        """Sets several attributes."""
        for key, value in attributes.items():
            self.set_attribute(key, value)

    def add_event(self, name: str, attributes: Any = None, timestamp: int | None = None) -> None:
        """Adds an event; the oldest goes when there are more than the limits allow."""
        if self._end_time is not None:
            return
        most = self._origin.limits.max_events
        if most is not None and len(self._events) >= most:
            del self._events[0]
        self._events.append(Event(name, attributes, timestamp))

    def add_link(self, context: SpanContext, attributes: Any = None) -> None:
        """Adds a link to another span."""
        if self._end_time is None:
            self._links = (*self._links, Link(context, attributes))

    def update_name(self, name: str) -> None:
        """Renames the span while it is open."""
        if self._end_time is None:
            self._name = name

    def is_recording(self) -> bool:
        """Whether the span is still open."""
        return self._end_time is None

    def set_status(self, status: Status | StatusCode, description: str | None = None) -> None:
        """Sets the status; OK is final, and UNSET changes nothing."""
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
        """Adds an ``exception`` event with message and stack, as the API has it. Only a caller's own code does this."""
        stack = "".join(traceback.format_exception(type(exception), exception, exception.__traceback__))
        details = {
            "exception.type": error_type(exception),
            "exception.message": str(exception),
            "exception.stacktrace": stack,
            "exception.escaped": str(escaped),
        }
        self.add_event("exception", {**details, **(attributes or {})}, timestamp)

    def end(self, end_time: int | None = None) -> None:
        """Ends the span and hands it to the processors; only the first call counts."""
        if self._end_time is None:
            self._end_time = time_ns() if end_time is None else end_time
            self._origin.processor.on_end(self)

    def __enter__(self) -> LeanSpan:
        return self

    def __exit__(self, exc_type: Any, exc: BaseException | None, tb: Any) -> None:
        if isinstance(exc, Exception):
            self.record_exception(exc)
            self.set_status(StatusCode.ERROR)
        self.end()


class OtelTracing(Tracing):
    """What lean and foreign spans have in common: OpenTelemetry's context and status."""

    enabled = True

    def __init__(self) -> None:
        mode = os.environ.get("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "").strip().upper()
        self.captures_content = mode in ("SPAN_ONLY", "SPAN_AND_EVENT", "TRUE")

    def activate(self, span: OperationSpan) -> Any:
        """Makes `span` current and returns a token for `deactivate`."""
        return context_api.attach(trace_api.set_span_in_context(span))  # type: ignore[arg-type]

    def deactivate(self, token: Any) -> None:
        """Undoes `activate`."""
        context_api.detach(token)

    def mark_failed(self, span: OperationSpan, error: BaseException) -> None:
        """Status ERROR and ``error.type``. No message: a provider's error may quote the prompt."""
        span.set_attribute("error.type", error_type(error))
        span.set_status(StatusCode.ERROR)  # type: ignore[attr-defined]

    def link_to(self, span: OperationSpan) -> Any:
        """A link to `span`."""
        return Link(span.get_span_context())  # type: ignore[attr-defined]


class LeanTracing(OtelTracing):
    """Begins lean spans for a provider that this library built."""

    def __init__(self, provider: TracerProvider, processor: SpanProcessor, scope: InstrumentationScope) -> None:
        super().__init__()
        self.processor = processor
        self.scope = scope
        self.limits = SpanLimits()
        self._provider = provider
        self._sampler = provider.sampler
        self._always = provider.sampler is DEFAULT_ON
        self._trace_id: Callable[[], int] = provider.id_generator.generate_trace_id
        self._span_id: Callable[[], int] = provider.id_generator.generate_span_id
        self._root_flags = _SAMPLED_RANDOM if provider.id_generator.is_trace_id_random() else _SAMPLED

    @property
    def resource(self) -> Resource:
        """The provider's resource (it changes after a fork)."""
        return self._provider.resource

    def begin(self, name: str, attributes: dict[str, Any], *, client: bool = False, links: Any = ()) -> OperationSpan:
        """Begins a lean span under the current one, or one that records nothing where the sampler says so."""
        kind = SpanKind.CLIENT if client else SpanKind.INTERNAL
        parent = trace_api.get_current_span().get_span_context()
        if self._always and (not parent.is_valid or parent.trace_flags.sampled):
            if parent.is_valid:
                context = SpanContext(parent.trace_id, self._span_id(), False, parent.trace_flags, parent.trace_state)
                return LeanSpan(name, context, parent, kind, attributes, links, self)
            context = SpanContext(self._trace_id(), self._span_id(), False, self._root_flags, _NO_STATE)
            return LeanSpan(name, context, None, kind, attributes, links, self)
        return self._begin_sampled(name, attributes, kind, links, parent)

    def _begin_sampled(
        self, name: str, attributes: dict[str, Any], kind: SpanKind, links: Sequence[Link], parent: SpanContext
    ) -> OperationSpan:
        trace_id = parent.trace_id if parent.is_valid else self._trace_id()
        result = self._sampler.should_sample(None, trace_id, name, kind, attributes, links)
        flags = TraceFlags.SAMPLED if result.decision.is_sampled() else TraceFlags.DEFAULT
        random = parent.trace_flags if parent.is_valid else self._root_flags
        flags |= random & TraceFlags.RANDOM_TRACE_ID
        context = SpanContext(trace_id, self._span_id(), False, TraceFlags(flags), result.trace_state)
        if not result.decision.is_recording():
            return NonRecordingSpan(context)
        if result.attributes:
            attributes = {**attributes, **result.attributes}
        return LeanSpan(name, context, parent if parent.is_valid else None, kind, attributes, links, self)


class ForeignTracing(OtelTracing):
    """Begins spans of the application's own provider."""

    def __init__(self, tracer: trace_api.Tracer) -> None:
        super().__init__()
        self._tracer = tracer

    def begin(self, name: str, attributes: dict[str, Any], *, client: bool = False, links: Any = ()) -> OperationSpan:
        """Begins a span of the application's provider under the current one."""
        kind = SpanKind.CLIENT if client else SpanKind.INTERNAL
        return self._tracer.start_span(name, kind=kind, attributes=attributes, links=links)
