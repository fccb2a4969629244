"""`incoming` reads deadline, trace and baggage of another process; `continue_from` applies them to a block."""

from __future__ import annotations

import re
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

from observability_integration.checks import check_positive
from observability_integration.context import (
    Deadline,
    WorkflowContext,
    deadline_var,
    earliest,
)
from observability_integration.telemetry.guard import note_fault
from observability_integration.telemetry.tracing import remote_parent
from observability_integration.telemetry.tracing.remote_parent import RemoteParent

from . import ambient, baggage
from .ambient import Ambient, current_ambient
from .baggage import Member
from .carrier import BAGGAGE, DEADLINE, TRACEPARENT, TRACESTATE, Headers, select_headers
from .scope import ContextScope

# Ten digits are 115 days: a longer number is a fault. Digits only: `int` would accept "1_000" and "１２" too.
_MILLISECONDS = re.compile(r"[0-9]{1,10}")


@dataclass(frozen=True, slots=True)
class Incoming:
    """Deadline, trace and baggage that another process sent with a request or a message.

    Attributes:
        deadline_seconds: the time left when the headers were read, in seconds, >= 0; None where neither the sender nor
            a limit of this process set a deadline.
        deadline: the same deadline on this process's clock.
        baggage: small strings by key, with any content that the sender chose: do not trust them.
        parent: the remote parent of new spans, or None.
        members: the baggage with its properties.
    """

    deadline_seconds: float | None = None
    deadline: Deadline | None = None
    baggage: Mapping[str, str] = field(default_factory=dict[str, str], repr=False)
    parent: RemoteParent | None = None
    members: Mapping[str, Member] = field(default_factory=dict[str, Member], repr=False)

    def context(self) -> WorkflowContext:
        """A workflow context with the deadline and a copy of the baggage."""
        return WorkflowContext(baggage=dict(self.baggage), deadline=self.deadline)


def incoming(headers: Headers, *, max_seconds: float | None = None) -> Incoming:
    """Reads deadline, trace and baggage; the clock of the deadline runs from this call on.

    Malformed values are left out and counted in ``telemetry.faults``: a mistake of the sender fails no call.

    Args:
        headers: the headers of the request or message: a mapping, or pairs as in ASGI; text or bytes.
        max_seconds: the latest deadline, in seconds from now, > 0; applies also where the sender's deadline is missing
            or malformed.

    Raises:
        ConfigurationError: `max_seconds` is not a finite number > 0.
    """
    check_positive("max_seconds", max_seconds, optional=True)
    return read_headers(headers, max_seconds, max_seconds)


def read_headers(headers: Headers, max_seconds: float | None, default_seconds: float | None) -> Incoming:
    """Does what `incoming` does, with another deadline, `default_seconds`, where the sender sets none."""
    try:
        found = select_headers(headers)
    except Exception as error:  # noqa: BLE001 - an argument of any type may raise anything
        note_fault("propagation.headers", error)
        found = select_headers(None)
    seconds, source = _deadline_seconds(found[DEADLINE]), "request header"
    if seconds is None:
        seconds, source = default_seconds, "server default"
    if seconds is not None and max_seconds is not None:
        seconds = min(seconds, max_seconds)
    parent, valid = remote_parent.read(found[TRACEPARENT], found[TRACESTATE])
    if not valid:
        note_fault("propagation.trace", ValueError())
    members, complete = baggage.parse_header(found[BAGGAGE])
    if not complete:
        note_fault("propagation.baggage", ValueError())
    deadline = None if seconds is None else Deadline.after(seconds, source)
    values = {key: member.value for key, member in members.items()}
    return Incoming(seconds, deadline, values, parent, members)


def _deadline_seconds(values: list[str]) -> float | None:
    if not values:
        return None
    text = values[0].strip(" \t")
    if len(values) > 1 or not _MILLISECONDS.fullmatch(text):
        note_fault("propagation.deadline", ValueError())
        return None
    return int(text) / 1000


@contextmanager
def continue_from(source: Headers | Incoming) -> Generator[Incoming, None, None]:
    """Applies a received deadline, trace and baggage to the block, and removes them at its end.

    In the block the deadline bounds every primitive (an earlier current deadline stays), new spans are children of the
    remote span, and `outgoing_headers` passes all three on. Blocks of one task may end in any order.

    Args:
        source: headers, or the result of `incoming`, for example with its ``max_seconds``.
    """
    received = source if isinstance(source, Incoming) else incoming(source)
    scope = ContextScope()
    try:
        attached = _attach_to_opentelemetry(received, scope)
        scope.change(current_ambient, lambda before: _merge(before, received, attached=attached))
        scope.change(deadline_var, lambda before: earliest(before, received.deadline))
        yield received
    finally:
        scope.end()


def _merge(before: Ambient, received: Incoming, *, attached: bool) -> Ambient:
    own = before.baggage if attached else {**before.baggage, **received.baggage}
    return Ambient(received.parent or before.parent, own, {**before.members, **received.members})


def _attach_to_opentelemetry(received: Incoming, scope: ContextScope) -> bool:
    """Attaches trace and baggage to OpenTelemetry's context, if OpenTelemetry is in use; True on success."""
    if not ambient.opentelemetry_in_use():
        return False
    from observability_integration.telemetry.tracing import trace_headers

    try:
        token = trace_headers.attach(received.parent, received.baggage)
    except Exception as error:  # noqa: BLE001 - the current span may be of any class
        note_fault("propagation.trace", error)
        return False
    scope.undo_with(partial(trace_headers.detach, token))
    return True
