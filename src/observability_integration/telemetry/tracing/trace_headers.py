"""Propagation of OpenTelemetry's context: remote parent, baggage, and links to other traces."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from opentelemetry import baggage as baggage_api
from opentelemetry import context as context_api
from opentelemetry import trace as trace_api
from opentelemetry.trace import Link, NonRecordingSpan, SpanContext, TraceFlags
from opentelemetry.trace.span import TraceState

from .remote_parent import RemoteParent


def attach(parent: RemoteParent | None, baggage: Mapping[str, str]) -> Any:
    """Makes a remote span the current one, adds to the baggage, and returns a token.

    A current span of the same trace stays current: an instrumentation of the server made it as a child of the remote
    span, and is the parent of all further spans.
    """
    context = context_api.get_current()
    if parent is not None and trace_api.get_current_span(context).get_span_context().trace_id != parent.trace_id:
        context = trace_api.set_span_in_context(NonRecordingSpan(_span_context(parent)), context)
    for key, value in baggage.items():
        context = baggage_api.set_baggage(key, value, context)
    return context_api.attach(context)


def detach(token: Any) -> None:
    """Undoes `attach`, in the same context."""
    context_api.detach(token)


def current_parent() -> RemoteParent | None:
    """The current span, as the remote parent for the next process; None if no span is current."""
    context = trace_api.get_current_span().get_span_context()
    if not context.is_valid:
        return None
    return RemoteParent(context.trace_id, context.span_id, context.trace_flags, tuple(context.trace_state.items()))


def current_baggage() -> Mapping[str, object]:
    """OpenTelemetry's current baggage."""
    return baggage_api.get_all()


def link_to(parent: RemoteParent) -> Link:
    """Creates a link to a span of another process."""
    return Link(_span_context(parent))


def _span_context(parent: RemoteParent) -> SpanContext:
    state = TraceState(parent.state)
    return SpanContext(parent.trace_id, parent.span_id, True, TraceFlags(parent.known_flags), state)
