"""Keeps the most recent traces in memory, for a demo, a status page or a debugger."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from opentelemetry import trace as trace_api
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.trace import format_span_id, format_trace_id


@dataclass(frozen=True, slots=True)
class RememberedSpan:
    """One finished span.

    Attributes:
        trace_id: 32 hex digits.
        span_id: 16 hex digits.
        parent_id: 16 hex digits, or None for the root.
        name: name of the span.
        kind: ``internal``, ``client``, ...
        status: ``unset``, ``ok`` or ``error``.
        start_ns: Unix time in ns.
        duration_ms: duration in milliseconds.
        attributes: attributes of the span.
    """

    trace_id: str
    span_id: str
    parent_id: str | None
    name: str
    kind: str
    status: str
    start_ns: int
    duration_ms: float
    attributes: Mapping[str, Any] = field(repr=False)


class TraceMemory(SpanProcessor):
    """Keeps the spans of the most recent traces.

    Args:
        max_traces: beyond it the oldest trace is dropped.
        max_spans_per_trace: further spans of a trace are dropped.
    """

    def __init__(self, max_traces: int = 200, max_spans_per_trace: int = 200) -> None:
        self._max_traces = max_traces
        self._max_spans = max_spans_per_trace
        self._lock = threading.Lock()
        self._traces: OrderedDict[int, list[ReadableSpan]] = OrderedDict()

    def on_end(self, span: ReadableSpan) -> None:
        """Keeps a finished span, if it is sampled."""
        context = span.get_span_context()
        if context is None or not context.trace_flags.sampled:
            return
        with self._lock:
            trace = self._traces.setdefault(context.trace_id, [])
            if len(trace) < self._max_spans:
                trace.append(span)
            while len(self._traces) > self._max_traces:
                self._traces.popitem(last=False)

    def traces(self) -> list[list[RememberedSpan]]:
        """The traces, oldest first; the spans of each are in the order of their start times."""
        with self._lock:
            traces = [list(trace) for trace in self._traces.values()]
        return [sorted(map(_remembered, trace), key=lambda span: span.start_ns) for trace in traces]


def _remembered(span: ReadableSpan) -> RememberedSpan:
    context = span.get_span_context()
    assert context is not None  # noqa: S101 - on_end keeps only spans with one
    start, end = span.start_time or 0, span.end_time or 0
    return RememberedSpan(
        format_trace_id(context.trace_id),
        format_span_id(context.span_id),
        None if span.parent is None else format_span_id(span.parent.span_id),
        span.name,
        span.kind.name.lower(),
        span.status.status_code.name.lower(),
        start,
        (end - start) / 1e6,
        dict(span.attributes or {}),
    )


def remember_traces(max_traces: int = 200) -> TraceMemory | None:
    """Starts to keep the traces of the global provider, until the next shutdown; None if it takes no processors."""
    add = getattr(trace_api.get_tracer_provider(), "add_span_processor", None)
    if add is None:
        return None
    memory = TraceMemory(max_traces)
    add(memory)
    return memory
