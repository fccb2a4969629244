"""`incoming` reads what another process sent along; `continue_from` puts it in force."""

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
    current_deadline,
    earliest,
    set_deadline,
)
from observability_integration.telemetry.guard import note_fault
from observability_integration.telemetry.tracing import remote_parent
from observability_integration.telemetry.tracing.remote_parent import RemoteParent

from . import ambient, baggage
from .ambient import Ambient, current_ambient
from .baggage import Member
from .carrier import BAGGAGE, DEADLINE, TRACEPARENT, TRACESTATE, Headers, gather
from .scope import Block

# More than that, 115 days, is no deadline but a fault. Digits only: `int` would take "1_000" and "１２" too.
_MILLISECONDS = re.compile(r"[0-9]{1,10}")


@dataclass(frozen=True, slots=True)
class Incoming:
    """What another process sent along with a request or a message.

    Attributes:
        deadline_seconds: the time that was left when it was read here, 0 or more; None where nobody set a deadline,
            neither the sender nor a limit here.
        deadline: the same as a moment on this process's clock.
        baggage: small strings, by key. Whoever sent them may have put anything there.
        parent: the span to go on from, or None.
        members: the baggage with the properties that it came with.
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

    What is malformed is left out and counted in ``telemetry.faults``, whoever sent it: a peer's mistake fails no call.

    Args:
        headers: those of the request or message: a mapping, or pairs as ASGI has them; text or bytes.
        max_seconds: the deadline is never further away than this, also where none was sent or it was malformed; > 0.

    Raises:
        ConfigurationError: `max_seconds` is not a finite number > 0.
    """
    check_positive("max_seconds", max_seconds, optional=True)
    return read(headers, max_seconds, max_seconds)


def read(headers: Headers, max_seconds: float | None, default_seconds: float | None) -> Incoming:
    """`incoming` with a deadline of its own for what brings none."""
    try:
        found = gather(headers)
    except Exception as error:  # noqa: BLE001 - whatever it is, it holds no headers
        note_fault("propagation.headers", error)
        found = gather(None)
    seconds, setter = _deadline_seconds(found[DEADLINE]), "request header"
    if seconds is None:
        seconds, setter = default_seconds, "server default"
    if seconds is not None and max_seconds is not None:
        seconds = min(seconds, max_seconds)
    parent, sound = remote_parent.read(found[TRACEPARENT], found[TRACESTATE])
    if not sound:
        note_fault("propagation.trace", ValueError())
    members, sound = baggage.read(found[BAGGAGE])
    if not sound:
        note_fault("propagation.baggage", ValueError())
    deadline = None if seconds is None else Deadline.after(seconds, setter)
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
    """Puts what came along in force for the block, and undoes it at its end, however it ends.

    Within it the deadline bounds every primitive (an earlier one that is in force already stays), spans begin under the
    remote one, and `outgoing_headers` passes all of it on. Blocks of one task may end in any order.

    Args:
        source: headers, or what `incoming` made of them, as with its ``max_seconds``.
    """
    arrived = source if isinstance(source, Incoming) else incoming(source)
    block = Block()
    try:
        told = _attach(arrived, block)
        block.put(current_ambient.get, current_ambient.set, lambda before: _with(before, arrived, told=told))
        block.put(current_deadline, set_deadline, lambda before: earliest(before, arrived.deadline))
        yield arrived
    finally:
        block.ends_here()


def _with(before: Ambient, arrived: Incoming, *, told: bool) -> Ambient:
    own = before.baggage if told else {**before.baggage, **arrived.baggage}
    return Ambient(arrived.parent or before.parent, own, {**before.known, **arrived.members})


def _attach(arrived: Incoming, block: Block) -> bool:
    """Whether OpenTelemetry was told of it."""
    if not ambient.opentelemetry_in_use():
        return False
    from observability_integration.telemetry.tracing import trace_headers

    try:
        token = trace_headers.attach(arrived.parent, arrived.baggage)
    except Exception as error:  # noqa: BLE001 - the current span may be anybody's
        note_fault("propagation.trace", error)
        return False
    block.undo_by(partial(trace_headers.detach, token))
    return True
