"""`fan_in` begins one span for work on the results of several other processes."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from observability_integration.telemetry.tracing import spans
from observability_integration.telemetry.tracing.spans import OperationSpan

from . import ambient
from .carrier import Headers
from .extract import Incoming, incoming
from .scope import ContextScope


def links_from(*sources: Headers | Incoming) -> tuple[Any, ...]:
    """Returns links to the spans that the headers name, for a new span; empty where tracing is off.

    Args:
        sources: headers, or results of `incoming`; a source without a trace is skipped.
    """
    if not (spans.tracing.enabled and ambient.opentelemetry_in_use()):
        return ()
    from observability_integration.telemetry.tracing import trace_headers

    received = (source if isinstance(source, Incoming) else incoming(source) for source in sources)
    return tuple(trace_headers.link_to(each.parent) for each in received if each.parent is not None)


@contextmanager
def fan_in(name: str, *sources: Headers | Incoming) -> Generator[OperationSpan, None, None]:
    """Begins a child of the current span that is linked to every source, and ends it with the block.

    A span has one parent, but an agent that works on the results of several others belongs to the traces of all.

    Args:
        name: name of the span, such as ``join research``.
        sources: headers of the joined messages, or results of `incoming`; a source without a trace is skipped.
    """
    span = spans.tracing.begin(name, {"fan_in.sources": len(sources)}, links=links_from(*sources))
    scope = ContextScope()
    token = spans.tracing.activate(span)
    try:
        yield span
    except Exception as error:
        spans.tracing.mark_failed(span, error)
        raise
    finally:
        if scope.end():
            spans.tracing.deactivate(token)
        span.end()
