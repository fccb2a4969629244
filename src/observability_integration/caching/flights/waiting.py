"""Which call of this process waits for which other, so that no call waits for itself.

A call that asks a cache for the key that it is making, directly, through another cache or in a circle, would wait for
ever. So each call under way is a node, its waits for others are edges, and a wait that would close a circle is refused:
the asking call then makes its own. A circle may also lead through other processes, whose edges are not known here. They
wait for leases only, so it leads through a call that holds one (see `holds_up_a_leader`).

The node of the innermost call is in a context variable, which tasks and threads inherit. Code outside of all calls
cannot close a circle, and pays for one look at that variable.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar

import msgspec


class CallNode(msgspec.Struct, eq=False):
    """One call under way. It refers to nothing of the call, because a context may hold it for long.

    Attributes:
        waits_for: the calls that code inside of this one waits for; one as often as it is waited for.
        waited_by: the calls that wait for this one, likewise.
        leads: whether it holds a lease, so that other processes may wait for it.
    """

    waits_for: list[CallNode] = []
    waited_by: list[CallNode] = []
    leads: bool = False


_inside: ContextVar[CallNode | None] = ContextVar("observability_integration_cached_call", default=None)


enter: Callable[[CallNode], object] = _inside.set
"""Marks the rest of the current task as code inside of the call."""

current: Callable[[], CallNode | None] = _inside.get
"""Returns the innermost call in which the current code runs, or None."""


def waits_for_itself(target: CallNode | None, waiting: CallNode | None) -> bool:
    """Whether `waiting` would wait for itself if it waited for `target`."""
    if waiting is None or target is None:
        return False
    pending, seen = [target], set[CallNode]()
    while pending:
        node = pending.pop()
        if node is waiting:
            return True
        if node not in seen:
            seen.add(node)
            pending += node.waits_for
    return False


def holds_up_a_leader(node: CallNode) -> bool:
    """Whether a call that holds a lease waits for `node`, itself or through other calls of this process."""
    pending, seen = list(node.waited_by), set[CallNode]()
    while pending:
        waiting = pending.pop()
        if waiting.leads:
            return True
        if waiting not in seen:
            seen.add(waiting)
            pending += waiting.waited_by
    return False


def begin_wait(target: CallNode, waiting: CallNode | None = None) -> CallNode | None:
    """Notes that `waiting`, by default the current call, waits for `target`; returns the former, for `end_wait`."""
    waiting = waiting or _inside.get()
    if waiting is not None:
        waiting.waits_for.append(target)
        target.waited_by.append(waiting)
    return waiting


def end_wait(waiting: CallNode | None, target: CallNode) -> None:
    """Undoes `begin_wait`."""
    if waiting is not None:
        waiting.waits_for.remove(target)
        target.waited_by.remove(waiting)
