"""What travels with a call: its identity (`WorkflowContext`) and the time it has left (`Deadline`)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from contextvars import ContextVar, Token
from dataclasses import dataclass, field
from random import getrandbits
from typing import Any

from observability_integration.checks import check_finite


def _now() -> float:
    try:
        return asyncio.get_running_loop().time()
    except RuntimeError:
        return time.monotonic()


@dataclass(frozen=True, slots=True, eq=False)
class Deadline:
    """A moment after which nobody waits for the result any more.

    Compared by identity: two primitives that happen to end at the same moment still own different deadlines.

    Attributes:
        when: absolute time on the event loop's clock, in seconds. Meaningless in another process; stands still, as that
            clock does, while the machine is suspended.
        operation: name of what set it, for error messages.
    """

    when: float
    operation: str = "caller"

    @classmethod
    def after(cls, seconds: float, operation: str = "caller") -> Deadline:
        """A deadline `seconds` from now (finite; zero or negative means already passed).

        Raises:
            ConfigurationError: if `seconds` is not a finite number.
        """
        check_finite("deadline seconds", seconds)
        return cls(_now() + seconds, operation)

    def remaining(self) -> float:
        """Seconds left, never below 0."""
        return max(0.0, self.when - _now())


deadline_var: ContextVar[Deadline | None] = ContextVar("observability_integration_deadline", default=None)
"""Holds the current deadline. Use `set_deadline` and `reset_deadline`."""


def current_deadline() -> Deadline | None:
    """The deadline in force here, or None when nobody set one."""
    return deadline_var.get()


def set_deadline(deadline: Deadline | None) -> Token[Deadline | None]:
    """Puts a deadline in force for this task and the tasks it starts; undo with `reset_deadline`."""
    return deadline_var.set(deadline)


def reset_deadline(token: Token[Deadline | None]) -> None:
    """Undoes `set_deadline`; in another context, such as that of a coroutine thrown away, there is nothing to undo."""
    try:  # noqa: SIM105 - at half the cost of `suppress`
        deadline_var.reset(token)
    except ValueError:
        pass


def earliest(first: Deadline | None, second: Deadline | None) -> Deadline | None:
    """The one of two deadlines that comes first."""
    if first is None or (second is not None and second.when < first.when):
        return second
    return first


def remaining() -> float | None:
    """Seconds left until the deadline in force, or None when there is none."""
    deadline = deadline_var.get()
    return None if deadline is None else deadline.remaining()


def _new_id() -> str:
    return f"{getrandbits(128):032x}"


_LAZY: dict[str, Callable[[], Any]] = {
    "correlation_id": _new_id,
    "metadata": dict,
    "state": dict,
    "baggage": dict,
    "tags": dict,
    "checkpoints": list,
}


@dataclass(slots=True, init=False, eq=False)
class WorkflowContext:
    """Identity and scratch space of one workflow run, handed from primitive to primitive.

    Fields that nobody reads are never built, so passing a context costs next to nothing. Ids never become metric
    labels; they are put on spans.

    Attributes:
        workflow_id: your name for the workflow, or None.
        session_id: your id of the session, or None.
        correlation_id: joins everything done for one request; generated when not given.
        metadata: facts about the request. A child gets a copy.
        state: scratch space that steps share. A child gets a copy.
        baggage: small strings meant to travel to other services.
        tags: small strings meant for grouping.
        deadline: a deadline to obey in addition to the one in force, or None.
        checkpoints: pairs of (name, milliseconds since the start), in order.
    """

    workflow_id: str | None
    session_id: str | None
    deadline: Deadline | None
    correlation_id: str = field(repr=False)
    metadata: dict[str, Any] = field(repr=False)
    state: dict[str, Any] = field(repr=False)
    baggage: dict[str, str] = field(repr=False)
    tags: dict[str, str] = field(repr=False)
    checkpoints: list[tuple[str, float]] = field(repr=False)
    _started: float = field(repr=False)

    def __init__(
        self,
        workflow_id: str | None = None,
        session_id: str | None = None,
        correlation_id: str | None = None,
        metadata: dict[str, Any] | None = None,
        state: dict[str, Any] | None = None,
        baggage: dict[str, str] | None = None,
        tags: dict[str, str] | None = None,
        deadline: Deadline | None = None,
    ) -> None:
        self.workflow_id = workflow_id
        self.session_id = session_id
        self.deadline = deadline
        self._started = time.perf_counter()
        if correlation_id is not None:
            self.correlation_id = correlation_id
        if metadata is not None:
            self.metadata = metadata
        if state is not None:
            self.state = state
        if baggage is not None:
            self.baggage = baggage
        if tags is not None:
            self.tags = tags

    def __getattr__(self, name: str) -> Any:
        # Reached only for a slot that is still empty.
        make = _LAZY.get(name)
        if make is None:
            raise AttributeError(f"'WorkflowContext' object has no attribute {name!r}")
        value = make()
        setattr(self, name, value)
        return value

    def child(self, step_name: str) -> WorkflowContext:
        """A context for one step: same ids, clock and deadline; copies of metadata, state, baggage and tags."""
        context = WorkflowContext(
            self.workflow_id,
            self.session_id,
            self.correlation_id,
            dict(self.metadata),
            dict(self.state),
            dict(self.baggage),
            {**self.tags, "step": step_name},
            self.deadline,
        )
        context._started = self._started
        return context

    def checkpoint(self, name: str) -> None:
        """Notes that `name` was reached now."""
        self.checkpoints.append((name, self.elapsed_ms()))

    def elapsed_ms(self) -> float:
        """Milliseconds since the workflow started."""
        return (time.perf_counter() - self._started) * 1000.0

    def remaining(self) -> float | None:
        """Seconds left until the nearest deadline (the one in force here or this context's own), None without one."""
        deadline = earliest(deadline_var.get(), self.deadline)
        return None if deadline is None else deadline.remaining()

    def to_otel_context(self) -> dict[str, str | float]:
        """Span attributes that identify this run."""
        attributes: dict[str, str | float] = {
            "workflow.correlation_id": self.correlation_id,
            "workflow.elapsed_ms": self.elapsed_ms(),
        }
        if self.workflow_id is not None:
            attributes["workflow.id"] = self.workflow_id
        if self.session_id is not None:
            attributes["session.id"] = self.session_id
        return attributes
