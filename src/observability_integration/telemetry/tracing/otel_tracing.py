"""Spans of the application's provider; exceptions of its processors and samplers do not reach the user's call."""

from __future__ import annotations

import os
from contextvars import Token
from typing import Any, cast

from opentelemetry import context as context_api
from opentelemetry import trace as trace_api
from opentelemetry.trace import Link, NonRecordingSpan, SpanKind, StatusCode

from observability_integration.telemetry.guard import note_fault

from .spans import NO_SPAN, OperationSpan, Tracing, error_type

# Older instrumentations, before the variable had three values, take "true".
_CAPTURE = ("SPAN_ONLY", "SPAN_AND_EVENT", "TRUE")


class OtelTracing(Tracing):
    """The common part of lean and foreign spans: OpenTelemetry's context and status."""

    enabled = True

    def __init__(self) -> None:
        mode = os.environ.get("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", "").strip().upper()
        self.captures_content = mode in _CAPTURE

    def activate(self, span: OperationSpan) -> Any:
        """Makes `span` current and returns a token for `deactivate`."""
        if span is NO_SPAN:  # it began while tracing was off
            return None
        return context_api.attach(trace_api.set_span_in_context(cast("trace_api.Span", span)))

    def deactivate(self, token: Any) -> None:
        """Undoes `activate`."""
        if isinstance(token, Token):
            # `detach` does the same, but logs an error with its stack if that fails. It fails in another context, which
            # is where a coroutine ends whose loop was closed; there is nothing to undo there.
            try:  # noqa: SIM105 - `suppress` would double the cost
                token.var.reset(token)  # pyright: ignore[reportUnknownMemberType] - the token's type is open
            except ValueError:
                pass
        elif token is not None:  # OpenTelemetry has another implementation of contexts
            context_api.detach(token)

    def mark_failed(self, span: OperationSpan, error: BaseException) -> None:
        """Sets the status ERROR and ``error.type``, without the message, which may quote the prompt."""
        if span is not NO_SPAN:
            span.set_attribute("error.type", error_type(error))
            cast("trace_api.Span", span).set_status(StatusCode.ERROR)

    def link_to(self, span: OperationSpan) -> Any:
        """Creates a link to `span`; None if that began while tracing was off."""
        return None if span is NO_SPAN else Link(cast("trace_api.Span", span).get_span_context())

    def link(self, span: OperationSpan, other: OperationSpan) -> None:
        """Adds a link to `other` to `span`, which is open."""
        if span is not NO_SPAN and other is not NO_SPAN:
            cast("trace_api.Span", span).add_link(cast("trace_api.Span", other).get_span_context())


class ForeignSpan:
    """Wraps a span of the application's provider, whose processors may raise when it ends."""

    __slots__ = ("add_link", "get_span_context", "inner", "set_attribute", "set_status")

    def __init__(self, inner: trace_api.Span) -> None:
        self.inner = inner
        self.set_attribute = inner.set_attribute
        self.set_status = inner.set_status
        self.add_link = inner.add_link
        self.get_span_context = inner.get_span_context

    def add_event(self, name: str, attributes: Any = None, /) -> None:
        """Adds an event with the current time."""
        self.inner.add_event(name, attributes)

    def end(self) -> None:
        """Ends the span; only the first call counts."""
        if not self.inner.is_recording():
            return
        try:
            self.inner.end()
        except Exception as error:  # noqa: BLE001 - the application's processor, inside the user's call
            note_fault("tracing.processor", error)


class ForeignTracing(OtelTracing):
    """Begins spans with the tracer of the application's provider."""

    def __init__(self, tracer: trace_api.Tracer) -> None:
        super().__init__()
        self._tracer = tracer

    def begin(self, name: str, attributes: dict[str, Any], *, client: bool = False, links: Any = ()) -> OperationSpan:
        """Begins a span of the application's provider as a child of the current one."""
        kind = SpanKind.CLIENT if client else SpanKind.INTERNAL
        try:
            return ForeignSpan(self._tracer.start_span(name, kind=kind, attributes=attributes, links=links))
        except Exception as error:  # noqa: BLE001 - the application's sampler or processor, inside the user's call
            note_fault("tracing.begin", error)
            return ForeignSpan(NonRecordingSpan(trace_api.get_current_span().get_span_context()))

    def activate(self, span: OperationSpan) -> Any:
        """Makes the application's own span current and returns a token for `deactivate`."""
        return super().activate(cast("OperationSpan", span.inner) if isinstance(span, ForeignSpan) else span)
