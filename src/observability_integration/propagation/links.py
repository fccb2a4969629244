"""`fan_in`: one span for what joins the results of several other processes."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

from observability_integration.telemetry.tracing import spans
from observability_integration.telemetry.tracing.spans import OperationSpan

from . import ambient
from .carrier import Headers
from .extract import Incoming, incoming
from .scope import Block


def links_from(*sources: Headers | Incoming) -> tuple[Any, ...]:
    """Links to the spans that the headers name, for where a span is begun; nothing where nothing is traced.

    Args:
        sources: headers, or what `incoming` made of them; those that name no span are skipped.
    """
    if not (spans.tracing.enabled and ambient.opentelemetry_in_use()):
        return ()
    from observability_integration.telemetry.tracing import trace_headers

    arrived = (source if isinstance(source, Incoming) else incoming(source) for source in sources)
    return tuple(trace_headers.link_to(each.parent) for each in arrived if each.parent is not None)


@contextmanager
def fan_in(name: str, *sources: Headers | Incoming) -> Generator[OperationSpan, None, None]:
    """Begins a span under the current one that is linked to every source, and ends it with the block.

    A span has one parent; an agent that works on the results of several others belongs to the traces of all of them.

    Args:
        name: name of the span, such as ``join research``.
        sources: headers of the messages that are joined, or what `incoming` made of them; those that name no span are
            skipped.
    """
    span = spans.tracing.begin(name, {"fan_in.sources": len(sources)}, links=links_from(*sources))
    block = Block()
    token = spans.tracing.activate(span)
    try:
        yield span
    except Exception as error:
        spans.tracing.mark_failed(span, error)
        raise
    finally:
        if block.ends_here():
            spans.tracing.deactivate(token)
        span.end()
