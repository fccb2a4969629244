"""`outgoing_headers`: what the next process has to know of this call."""

from __future__ import annotations

import math
from collections.abc import Mapping

from observability_integration.context import WorkflowContext, current_deadline, earliest
from observability_integration.telemetry.guard import note_fault
from observability_integration.telemetry.tracing.remote_parent import RemoteParent

from . import ambient, baggage
from .ambient import Ambient, current_ambient
from .carrier import BAGGAGE, DEADLINE_HEADER, TRACEPARENT, TRACESTATE, gather

_MOST_MILLISECONDS = 9_999_999_999  # ten digits, the most that `incoming` takes


def outgoing_headers(
    context: WorkflowContext | None = None, headers: Mapping[str, str] | None = None
) -> dict[str, str]:
    """The headers to send with a request to the next process, as a new dict.

    * ``X-Request-Deadline-Ms``: whole milliseconds until the nearest deadline, rounded down; 0 when it has passed.
    * ``traceparent`` and ``tracestate`` of the current span, or of the one that was continued where nothing is traced.
    * ``baggage``: that of `context`, of `headers` and in force here, in this order of precedence; what has no room in
      64 members and 8,192 bytes is left out as a whole, and counted.

    Each stands there only if there is something to say. Baggage is readable by whoever receives it: send these headers
    to your own services, not to a model provider.

    Args:
        context: the workflow, for its deadline and its baggage.
        headers: other headers to send; ours take the place of any of the same name.
    """
    written = _deadline(context)
    here = current_ambient.get()
    parent, values = here.parent, dict[str, object](here.baggage)
    try:
        if ambient.opentelemetry_in_use():
            from observability_integration.telemetry.tracing import trace_headers

            parent = trace_headers.current_parent() or parent
            values.update(trace_headers.current_baggage())
    except Exception as error:  # noqa: BLE001 - the current span may be anybody's
        note_fault("propagation.outgoing", error)
    written.update(_trace(parent))
    try:
        written.update(_baggage(context, headers, here, values))
    except Exception as error:  # noqa: BLE001 - the application may have put anything into its baggage
        note_fault("propagation.outgoing", error)
    replaced = {name.lower() for name in written}
    if TRACEPARENT in replaced:
        replaced.add(TRACESTATE)  # the one given belongs to another parent
    kept = {name: value for name, value in (headers or {}).items() if name.lower() not in replaced}
    return {**kept, **written}


def _deadline(context: WorkflowContext | None) -> dict[str, str]:
    deadline = earliest(current_deadline(), None if context is None else context.deadline)
    if deadline is None or deadline.when == math.inf:
        return {}
    return {DEADLINE_HEADER: str(int(min(deadline.remaining() * 1000, _MOST_MILLISECONDS)))}


def _trace(parent: RemoteParent | None) -> dict[str, str]:
    return {} if parent is None else parent.headers()


def _baggage(
    context: WorkflowContext | None, headers: Mapping[str, str] | None, here: Ambient, values: Mapping[str, object]
) -> dict[str, str]:
    given, sound = baggage.read(gather(headers)[BAGGAGE])
    own = {} if context is None else context.baggage
    members = {
        **baggage.members_of(own, here.known),
        **{key: member for key, member in given.items() if key not in own},
        **{
            key: member
            for key, member in baggage.members_of(values, here.known).items()
            if key not in own and key not in given
        },
    }
    text, whole = baggage.write(members.items())
    if not (sound and whole):
        note_fault("propagation.outgoing", ValueError())
    return {BAGGAGE: text} if text else {}
