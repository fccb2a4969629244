"""Operation spans where the provider is the application's own: its spans, with its faults kept away from the call."""

from __future__ import annotations

import os
from contextvars import Token
from typing import Any, cast

from opentelemetry import context as context_api
from opentelemetry import trace as trace_api
from opentelemetry.trace import Link, NonRecordingSpan, SpanKind, StatusCode

from observability_integration.telemetry.guard import note_fault

from .spans import NO_SPAN, OperationSpan, Tracing, error_type

# "true" is what instrumentations older than the three-valued variable took.
_CAPTURE = ("SPAN_ONLY", "SPAN_AND_EVENT", "TRUE")


class OtelTracing(Tracing):
    """What lean and foreign spans have in common: OpenTelemetry's context and status."""

    enabled = True

    def __init__(self) -> None:
        mode = os.environ.get("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "").strip().upper()
        self.captures_content = mode in _CAPTURE

    def activate(self, span: OperationSpan) -> Any:
        """Makes `span` current and returns a token for `deactivate`."""
        if span is NO_SPAN:  # begun while tracing was off
            return None
        return context_api.attach(trace_api.set_span_in_context(cast("trace_api.Span", span)))

    def deactivate(self, token: Any) -> None:
        """Undoes `activate`."""
        if isinstance(token, Token):
            # `detach` does the same, and logs an error with its stack where that fails: in another context, which is
            # where a coroutine ends that died with its loop. There is nothing to undo there.
            try:  # noqa: SIM105 - `suppress` would cost as much as the whole
                token.var.reset(token)  # pyright: ignore[reportUnknownMemberType] - whatever the variable holds
            except ValueError:
                pass
        elif token is not None:  # of an application whose OpenTelemetry keeps its contexts elsewhere
            context_api.detach(token)

    def mark_failed(self, span: OperationSpan, error: BaseException) -> None:
        """Status ERROR and ``error.type``. No message: a provider's error may quote the prompt."""
        if span is not NO_SPAN:
            span.set_attribute("error.type", error_type(error))
            cast("trace_api.Span", span).set_status(StatusCode.ERROR)

    def link_to(self, span: OperationSpan) -> Any:
        """A link to `span`; None where there is no span."""
        return None if span is NO_SPAN else Link(cast("trace_api.Span", span).get_span_context())

    def link(self, span: OperationSpan, other: OperationSpan) -> None:
        """Links `span`, which is open, to another one."""
        if span is not NO_SPAN and other is not NO_SPAN:
            cast("trace_api.Span", span).add_link(cast("trace_api.Span", other).get_span_context())


class ForeignSpan:
    """A span of the application's provider, whose processors may raise when it ends."""

    __slots__ = ("add_link", "get_span_context", "inner", "set_attribute", "set_status")

    def __init__(self, inner: trace_api.Span) -> None:
        self.inner = inner
        self.set_attribute = inner.set_attribute
        self.set_status = inner.set_status
        self.add_link = inner.add_link
        self.get_span_context = inner.get_span_context

    def add_event(self, name: str, attributes: Any = None, /) -> None:
        """Adds an event that happened now."""
        self.inner.add_event(name, attributes)

    def end(self) -> None:
        """Ends the span; only the first call counts."""
        if not self.inner.is_recording():
            return
        try:
            self.inner.end()
        except Exception as error:  # noqa: BLE001 - a processor of the application, on the path of its call
            note_fault("tracing.processor", error)


class ForeignTracing(OtelTracing):
    """Begins spans of the application's own provider."""

    def __init__(self, tracer: trace_api.Tracer) -> None:
        super().__init__()
        self._tracer = tracer

    def begin(self, name: str, attributes: dict[str, Any], *, client: bool = False, links: Any = ()) -> OperationSpan:
        """Begins a span of the application's provider under the current one."""
        kind = SpanKind.CLIENT if client else SpanKind.INTERNAL
        try:
            return ForeignSpan(self._tracer.start_span(name, kind=kind, attributes=attributes, links=links))
        except Exception as error:  # noqa: BLE001 - a sampler or processor of the application, on the path of its call
            note_fault("tracing.begin", error)
            return ForeignSpan(NonRecordingSpan(trace_api.get_current_span().get_span_context()))

    def activate(self, span: OperationSpan) -> Any:
        """Makes the application's own span current and returns a token for `deactivate`."""
        return super().activate(cast("OperationSpan", span.inner) if isinstance(span, ForeignSpan) else span)
