"""What travels with a call: its identity, and the time it has left."""

from __future__ import annotations

import asyncio
import contextvars
import copy
import pickle
from typing import Any

import pytest

from observability_integration import WorkflowContext
from observability_integration.context import (
    Deadline,
    current_deadline,
    earliest,
    remaining,
    reset_deadline,
    set_deadline,
)
from observability_integration.errors import (
    ConfigurationError,
)
from observability_integration.testing import FakeClockLoop

LOOP_FACTORY = FakeClockLoop


def test_context_builds_only_what_is_read() -> None:
    """A context that nobody looks into costs next to nothing; each field appears when it is first read, and stays."""
    context = WorkflowContext()
    for name, kind in {"metadata": dict, "state": dict, "baggage": dict, "tags": dict, "checkpoints": list}.items():
        value = getattr(context, name)
        assert kind is type(value)
        assert value is getattr(context, name)
    assert 32 == len(context.correlation_id)
    assert context.correlation_id == context.correlation_id
    assert context.correlation_id != WorkflowContext().correlation_id
    with pytest.raises(AttributeError, match="'WorkflowContext' object has no attribute 'no_such'"):
        _ = context.no_such
    with pytest.raises(AttributeError):
        context.no_such = 1


def test_context_keeps_what_it_is_given() -> None:
    """Every argument is the field of its name, as the same object."""
    given: dict[str, Any] = {
        "workflow_id": "w-1",
        "session_id": "s-1",
        "correlation_id": "c-1",
        "metadata": {"a": 1},
        "state": {"b": 2},
        "baggage": {"c": "3"},
        "tags": {"d": "4"},
        "deadline": Deadline(5.0),
    }
    context = WorkflowContext(**given)
    for name, value in given.items():
        assert value is getattr(context, name)
    assert (
        "WorkflowContext(workflow_id='w-1', session_id='s-1', deadline=Deadline(when=5.0, operation='caller'))"
        == repr(context)
    )


def test_child_of_a_context() -> None:
    """A step's context has the same ids and clock, and copies of the rest: no step gets into another's way."""
    parent = WorkflowContext("w-1", "s-1", metadata={"a": 1}, tags={"team": "x"}, deadline=Deadline(5.0))
    parent.checkpoint("begun")
    child = parent.child("retrieve")
    assert ("w-1", "s-1", parent.correlation_id, parent.deadline) == (
        child.workflow_id,
        child.session_id,
        child.correlation_id,
        child.deadline,
    )
    assert {"team": "x", "step": "retrieve"} == child.tags
    child.metadata["b"] = 2
    child.state["c"] = 3
    assert ({"a": 1}, {}, {"team": "x"}) == (parent.metadata, parent.state, parent.tags)
    assert [] == child.checkpoints
    assert child.elapsed_ms() >= parent.checkpoints[0][1]


def test_checkpoints() -> None:
    """Checkpoints are noted in order, with the milliseconds since the start."""
    context = WorkflowContext()
    for name in "ab":
        context.checkpoint(name)
    (first, early), (second, late) = context.checkpoints
    assert ("a", "b") == (first, second)
    assert 0.0 <= early <= late <= context.elapsed_ms() < 10_000.0


def test_span_attributes_of_a_context() -> None:
    """The ids that the caller gave, and the one that joins everything; never what is inside."""
    context = WorkflowContext("w-1", "s-1", "c-1", metadata={"prompt": "secret"})
    attributes = context.to_otel_context()
    assert attributes.pop("workflow.elapsed_ms") >= 0  # type: ignore[operator]
    assert {"workflow.correlation_id": "c-1", "workflow.id": "w-1", "session.id": "s-1"} == attributes
    assert {"workflow.correlation_id", "workflow.elapsed_ms"} == set(WorkflowContext().to_otel_context())


@pytest.mark.parametrize("make", [copy.copy, copy.deepcopy, lambda context: pickle.loads(pickle.dumps(context))])
def test_context_can_be_copied(make: Any) -> None:
    """Users put contexts into queues and copies; what was never read must survive that too."""
    context = WorkflowContext("w-1", metadata={"a": 1})
    twin = make(context)
    assert ("w-1", {"a": 1}, context.correlation_id) == (twin.workflow_id, twin.metadata, twin.correlation_id)


# ---- Deadline


@pytest.mark.promise("T7")
async def test_deadline_on_the_loops_clock() -> None:
    """A deadline is a moment on the clock of the loop; what remains of it never falls below 0."""
    await asyncio.sleep(3.0)
    deadline = Deadline.after(5.0, "ask")
    assert (8.0, "ask", 5.0) == (deadline.when, deadline.operation, deadline.remaining())
    await asyncio.sleep(4.0)
    assert 1.0 == deadline.remaining()
    await asyncio.sleep(4.0)
    assert 0.0 == deadline.remaining()
    assert 0.0 == Deadline.after(-1).remaining()


def test_deadline_without_a_loop() -> None:
    """Made before the loop runs, a deadline is on the clock that the loop will have."""
    deadline = Deadline.after(60.0)
    assert 59.0 < deadline.remaining() <= 60.0

    async def left() -> float:
        return deadline.remaining()

    assert 59.0 < asyncio.run(left()) <= 60.0


@pytest.mark.parametrize("seconds", [float("nan"), float("inf"), True, None])
def test_bad_deadline(seconds: Any) -> None:
    """A deadline that means nothing is refused when it is made."""
    with pytest.raises(ConfigurationError, match="deadline seconds must be a finite number"):
        Deadline.after(seconds)


def test_deadlines_are_told_apart() -> None:
    """Two deadlines at the same moment are still two, or one primitive would take another's timeout for its own."""
    assert Deadline(1.0) != Deadline(1.0)


async def test_deadline_in_force() -> None:
    """A deadline binds the task that sets it and those started from there, until it is taken back."""
    assert (current_deadline(), remaining(), WorkflowContext().remaining()) == (None, None, None)
    deadline = Deadline.after(5.0)
    token = set_deadline(deadline)

    async def inside() -> Deadline | None:
        return current_deadline()

    assert deadline is await asyncio.ensure_future(inside())
    assert (5.0, 5.0) == (remaining(), WorkflowContext().remaining())
    assert 2.0 == WorkflowContext(deadline=Deadline.after(2.0)).remaining()
    reset_deadline(token)
    assert current_deadline() is None


def test_earliest() -> None:
    """Of two deadlines the nearer one, of two equal ones the first, of one and none the one."""
    near, far, equal = Deadline(1.0), Deadline(2.0), Deadline(1.0)
    assert near is earliest(near, far)
    assert near is earliest(far, near)
    assert near is earliest(near, equal)
    assert near is earliest(near, None)
    assert near is earliest(None, near)
    assert earliest(None, None) is None


async def test_a_deadline_is_undone_where_it_was_set_and_nowhere_else() -> None:
    """A coroutine that is thrown away is closed in another context, where there is nothing to undo."""
    token = set_deadline(Deadline.after(1.0))
    contextvars.Context().run(reset_deadline, token)
    assert current_deadline() is not None
    reset_deadline(token)
    assert current_deadline() is None
