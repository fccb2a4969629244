"""`outgoing_headers` writes the deadline, trace and baggage of a call for the next process."""

from __future__ import annotations

import math
from collections.abc import Mapping

from observability_integration.context import WorkflowContext, bounded_by, mapping_of
from observability_integration.telemetry.guard import note_fault
from observability_integration.telemetry.tracing.remote_parent import RemoteParent

from . import ambient, baggage
from .ambient import Ambient, current_ambient
from .carrier import BAGGAGE, DEADLINE_HEADER, TRACEPARENT, TRACESTATE, select_headers

_MAX_MILLISECONDS = 9_999_999_999  # ten digits, the most that `incoming` accepts


def outgoing_headers(
    context: WorkflowContext | None = None, headers: Mapping[str, str] | None = None
) -> dict[str, str]:
    """Returns the headers to send with a request to the next process, as a new dict.

    * ``X-Request-Deadline-Ms``: whole milliseconds until the nearest deadline, rounded down; 0 when it has passed.
    * ``traceparent`` and ``tracestate``: the current span, or the received parent where this process traces nothing.
    * ``baggage``: members of `context`, of `headers` and of the current task, in this order of precedence. Members
      beyond 64, or beyond 8,192 bytes, are left out whole and counted in ``telemetry.faults``.

    A header without a value is left out. Every receiver can read the baggage: send these headers to your own services,
    not to a model provider.

    Args:
        context: the workflow; its deadline and its baggage are sent.
        headers: other headers to send; a header named above replaces one of the same name.
    """
    written = _deadline(context)
    received = current_ambient.get()
    parent, values = received.parent, dict[str, object](received.baggage)
    try:
        if ambient.opentelemetry_in_use():
            from observability_integration.telemetry.tracing import trace_headers

            parent = trace_headers.current_parent() or parent
            values.update(trace_headers.current_baggage())
    except Exception as error:  # noqa: BLE001 - the current span may be of any class
        note_fault("propagation.outgoing", error)
    written.update(_trace(parent))
    try:
        written.update(_baggage(context, headers, received, values))
    except Exception as error:  # noqa: BLE001 - the application's baggage may hold any object
        note_fault("propagation.outgoing", error)
    replaced = {name.lower() for name in written}
    if TRACEPARENT in replaced:
        replaced.add(TRACESTATE)  # a tracestate in `headers` belongs to another parent
    kept = {name: value for name, value in (headers or {}).items() if name.lower() not in replaced}
    return {**kept, **written}


def _deadline(context: WorkflowContext | None) -> dict[str, str]:
    deadline = bounded_by(context)
    if deadline is None or deadline.when == math.inf:
        return {}
    return {DEADLINE_HEADER: str(int(min(deadline.remaining() * 1000, _MAX_MILLISECONDS)))}


def _trace(parent: RemoteParent | None) -> dict[str, str]:
    return {} if parent is None else parent.headers()


def _baggage(
    context: WorkflowContext | None, headers: Mapping[str, str] | None, received: Ambient, values: Mapping[str, object]
) -> dict[str, str]:
    given, valid = baggage.parse_header(select_headers(headers)[BAGGAGE])
    own = mapping_of(context, "baggage")
    members = {
        **baggage.members_from_values(own, received.members),
        **{key: member for key, member in given.items() if key not in own},
        **{
            key: member
            for key, member in baggage.members_from_values(values, received.members).items()
            if key not in own and key not in given
        },
    }
    text, complete = baggage.format_header(members.items())
    if not (valid and complete):
        note_fault("propagation.outgoing", ValueError())
    return {BAGGAGE: text} if text else {}
