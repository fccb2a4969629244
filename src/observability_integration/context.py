"""The identity of a workflow run (`WorkflowContext`) and the time that a call has left (`Deadline`)."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from contextvars import ContextVar, Token
from copy import copy
from dataclasses import dataclass, field
from random import getrandbits
from typing import Any, TypeVar, cast

from observability_integration.checks import check_finite
from observability_integration.errors import ConfigurationError

T = TypeVar("T")


def _now() -> float:
    try:
        return asyncio.get_running_loop().time()
    except RuntimeError:
        return time.monotonic()


@dataclass(frozen=True, slots=True, eq=False)
class Deadline:
    """A moment after which the caller no longer waits for the result.

    Compared by identity: two primitives may end at the same moment and still own different deadlines.

    Attributes:
        when: absolute time on the event loop's clock, in seconds. Meaningless in another process. The clock stops while
            the machine is suspended.
        operation: name of the operation that set it, for error messages.
    """

    when: float
    operation: str = "caller"

    @classmethod
    def after(cls, seconds: float, operation: str = "caller") -> Deadline:
        """A deadline `seconds` from now (finite; zero or negative: already passed).

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
    """The deadline of the current task, or None."""
    return deadline_var.get()


def set_deadline(deadline: Deadline | None) -> Token[Deadline | None]:
    """Sets the deadline of the current task and of the tasks it starts; undo with `reset_deadline`."""
    return deadline_var.set(deadline)


def reset_variable(variable: ContextVar[T], token: Token[T]) -> None:
    """Resets a variable; does nothing in another context, such as that in which a dropped coroutine is closed."""
    try:  # noqa: SIM105 - at half the cost of `suppress`
        variable.reset(token)
    except ValueError:
        pass


def reset_deadline(token: Token[Deadline | None]) -> None:
    """Undoes `set_deadline`; does nothing in another context."""
    reset_variable(deadline_var, token)


def earliest(first: Deadline | None, second: Deadline | None) -> Deadline | None:
    """The earlier of two deadlines; None is later than any."""
    if first is None or (second is not None and second.when < first.when):
        return second
    return first


def remaining() -> float | None:
    """Seconds left until the deadline of the current task, or None without a deadline."""
    deadline = deadline_var.get()
    return None if deadline is None else deadline.remaining()


def _new_id() -> str:
    return f"{getrandbits(128):032x}"


_LAZY_FIELDS: dict[str, Callable[[], Any]] = {
    "correlation_id": _new_id,
    "metadata": dict,
    "state": dict,
    "baggage": dict,
    "tags": dict,
    "checkpoints": list,
}


@dataclass(slots=True, init=False, eq=False)
class WorkflowContext:
    """Identity and scratch space of one workflow run, passed from primitive to primitive.

    A field is built at its first read, so an unused context costs next to nothing. Ids become span attributes, never
    metric labels.

    Attributes:
        workflow_id: your name for the workflow, or None.
        session_id: your id of the session, or None.
        correlation_id: joins all work for one request; generated when not given.
        metadata: facts about the request. A child gets a copy.
        state: scratch space for steps. A child gets a copy.
        baggage: small strings sent to other services. A child gets a copy.
        tags: small strings for grouping. A child gets a copy.
        deadline: a deadline that applies in addition to the current task's, or None.
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
        if deadline is not None and not isinstance(cast("object", deadline), Deadline):
            raise ConfigurationError(
                f"deadline must be a Deadline or None, got a {type(deadline).__name__}: write Deadline.after(seconds)"
            )
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
        # Called only for a slot that is still empty.
        build = _LAZY_FIELDS.get(name)
        if build is None:
            raise AttributeError(f"'WorkflowContext' object has no attribute {name!r}")
        value = build()
        setattr(self, name, value)
        return value

    def child(self, step_name: str) -> WorkflowContext:
        """A context for one step: the same ids, start and deadline; copies of metadata, state, baggage and tags."""
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
        """Records that the run reached `name` now."""
        self.checkpoints.append((name, self.elapsed_ms()))

    def elapsed_ms(self) -> float:
        """Milliseconds since the workflow started."""
        return (time.perf_counter() - self._started) * 1000.0

    def remaining(self) -> float | None:
        """Seconds until the earlier deadline, the current task's or this context's own; None without a deadline."""
        deadline = earliest(deadline_var.get(), self.deadline)
        return None if deadline is None else deadline.remaining()

    def to_otel_context(self) -> dict[str, str | float]:
        """The span attributes that identify this run."""
        attributes: dict[str, str | float] = {
            "workflow.correlation_id": self.correlation_id,
            "workflow.elapsed_ms": self.elapsed_ms(),
        }
        if self.workflow_id is not None:
            attributes["workflow.id"] = self.workflow_id
        if self.session_id is not None:
            attributes["session.id"] = self.session_id
        return attributes


# A caller may pass any object as the context: its application's own, one of an older interface, or a mock. The library
# reads such an object through the functions below only. What cannot be read, or is of another type, counts as absent.


def deadline_of(context: object) -> Deadline | None:
    """The deadline of a context of any type, or None."""
    if context is None:
        return None
    # An exact type: a mock with a `spec` passes `isinstance`, and a subclass may raise.
    deadline: Any = context.deadline if type(context) is WorkflowContext else _field(context, "deadline")
    return deadline if deadline is None or issubclass(type(deadline), Deadline) else None


def bounded_by(context: object) -> Deadline | None:
    """The earlier deadline of two: the current task's, and that of a context of any type."""
    deadline = deadline_var.get()
    return deadline if context is None else earliest(deadline, deadline_of(context))


def ids_of(context: object) -> dict[str, str | float]:
    """The span attributes that identify the run of a context of any type; empty if the caller gave no id."""
    found: dict[str, Any] | None = None
    if issubclass(type(context), WorkflowContext):
        own = cast("WorkflowContext", context)
        with suppress(Exception):  # a subclass may override it, and raise
            found = own.to_otel_context() if own.workflow_id is not None or own.session_id is not None else {}
            found = dict(found)
    if found is None:
        found = {key: _field(context, name) for key, name in _ID_FIELDS.items()}
    return {key: value for key, value in found.items() if _is_plain(value)}


def mapping_of(context: object, name: str) -> Mapping[Any, Any]:
    """The field `name` of a context of any type if it is a mapping, such as ``tags``; else an empty one."""
    value = _field(context, name)
    return cast("Mapping[Any, Any]", value) if issubclass(type(value), Mapping) else {}


def child_of(context: object, step_name: str) -> Any:
    """The context for one step: `WorkflowContext.child`, or the same object if it is of another type."""
    child: Any = None
    if issubclass(type(context), WorkflowContext):
        with suppress(Exception):  # as above
            child = cast("WorkflowContext", context).child(step_name)
    return child if issubclass(type(child), WorkflowContext) else context


def with_deadline(context: Any, deadline: Deadline) -> Any:
    """A context of any type, bound by `deadline` in place of its own.

    Returns a shallow copy if `context` has a deadline of its own, else the same object, and so also if that cannot be
    copied or changed.
    """
    if deadline_of(context) is None:
        return context
    try:
        changed = copy(context)
        changed.deadline = deadline
    except Exception:  # noqa: BLE001 - a foreign class may refuse either
        return context
    return changed


_ID_FIELDS = {
    "workflow.id": "workflow_id",
    "session.id": "session_id",
    "workflow.correlation_id": "correlation_id",
}


def _field(context: object, name: str) -> Any:
    try:
        return getattr(context, name, None)
    except Exception:  # noqa: BLE001 - a property of a foreign class may raise anything
        return None


def _is_plain(value: object) -> bool:
    return type(value) in (str, int, float)
