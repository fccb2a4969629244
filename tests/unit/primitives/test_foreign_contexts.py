"""A context of any type breaks no call, with telemetry off or on, whether the call succeeds or fails."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import nullcontext
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest.mock import AsyncMock, MagicMock

import pytest

from observability_integration import WorkflowContext
from observability_integration.context import Deadline
from observability_integration.errors import AllTargetsFailedError, ConfigurationError, PrimitiveTimeoutError
from observability_integration.primitives import (
    CachePolicy,
    CachePrimitive,
    ConcurrencyLimitPrimitive,
    HedgePrimitive,
    RateLimitPrimitive,
    RetryPrimitive,
    RouterPrimitive,
    SagaPrimitive,
    SagaStep,
    WorkflowPrimitive,
)
from observability_integration.propagation import outgoing_headers
from observability_integration.testing import FakeClockLoop, capture_telemetry
from tests.every_primitive import AROUND_CALLS, AROUND_STREAMS, Make

LOOP_FACTORY = FakeClockLoop

pytestmark = pytest.mark.once


class Older:
    """The context of an older interface."""

    def __init__(self) -> None:
        self.workflow_id = "w"
        self.session_id = "s"


class Slotted:
    """An object without any of the fields, to which none can be added."""

    __slots__ = ()


class Raising:
    """Each field raises when it is read."""

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(f"{name} is gone")


class RaisingSubclass(WorkflowContext):
    """A context of this library whose fields the application has replaced."""

    @property
    def deadline(self) -> Any:  # type: ignore[override]
        """Raises."""
        raise RuntimeError("no request is active")

    @deadline.setter
    def deadline(self, value: Any) -> None:
        """Keeps nothing."""

    def to_otel_context(self) -> dict[str, str | float]:
        """Raises."""
        raise RuntimeError("no request is active")


@dataclass(frozen=True)
class Odd:
    """The fields are there, and of other types."""

    workflow_id: Any = 7
    session_id: Any = b"s"
    correlation_id: Any = ("c",)
    deadline: Any = 3.0
    tags: Any = ("priority",)
    baggage: Any = "b=1"
    metadata: Any = None


CONTEXTS: dict[str, Callable[[], Any]] = {
    "older": Older,
    "mock": MagicMock,
    "async mock": AsyncMock,
    "mock of the class": lambda: MagicMock(spec=WorkflowContext),
    "mock of an instance": lambda: MagicMock(spec=WorkflowContext()),
    "slotted": Slotted,
    "raising": Raising,
    "raising subclass": RaisingSubclass,
    "odd": Odd,
    "namespace": lambda: SimpleNamespace(deadline="soon", tags=None, workflow_id=None),
    "mapping": lambda: {"workflow_id": "w", "deadline": 1.0},
    "text": lambda: "request 7",
    "number": lambda: 0,
    "class": lambda: WorkflowContext,
}


class OwnError(Exception):
    """The call's own."""


async def good(request: Any) -> str:
    return "answer"


async def bad(request: Any) -> str:
    raise OwnError


async def good_stream(request: Any) -> AsyncIterator[str]:
    yield "answer"


async def bad_stream(request: Any) -> AsyncIterator[str]:
    raise OwnError
    yield ""


async def execute(primitive: WorkflowPrimitive[Any, Any], context: Any) -> Any:
    return await primitive.execute("q", context)


async def read(primitive: WorkflowPrimitive[Any, Any], context: Any) -> Any:
    async with primitive.stream("q", context) as chunks:
        return [chunk async for chunk in chunks]


# Where a primitive reads the context beyond what all do.
MORE: dict[str, Make] = {
    "cache with a function of the context": lambda call: CachePrimitive(
        call, lambda request, context: str(request), scope=lambda request, context: "s"
    ),
    "concurrency limit that makes calls wait": lambda call: ConcurrencyLimitPrimitive(call, 1),
    "hedge": lambda call: HedgePrimitive(call, delay_seconds=0.0),
    "rate limit that makes calls wait": lambda call: RateLimitPrimitive(
        call, requests_per_minute=60, burst_seconds=0, max_wait_seconds=100.0
    ),
    "retry": lambda call: RetryPrimitive(call, 3),
    "router that reads the context": lambda call: RouterPrimitive(
        {"only": call}, lambda request, context: context.metadata["route"], default="only"
    ),
}
CALLS, STREAMS = {**AROUND_CALLS, **MORE}, {**AROUND_STREAMS, **MORE}
WORK = {
    "call that succeeds": (CALLS, good),
    "call that fails": (CALLS, bad),
    "stream that succeeds": (STREAMS, good_stream),
    "stream that fails": (STREAMS, bad_stream),
}


@pytest.mark.parametrize("kind", CONTEXTS)
@pytest.mark.parametrize("outcome", WORK)
@pytest.mark.parametrize("telemetry", [False, True], ids=["telemetry off", "telemetry on"])
async def test_no_context_breaks_a_call(telemetry: bool, outcome: str, kind: str) -> None:
    """Whatever an application passes along as its context, it gets the answer or the error of its own call."""
    makes, work = WORK[outcome]
    wrong = []
    with capture_telemetry() if telemetry else nullcontext() as captured:
        for name, make in makes.items():
            for way in (execute, read):
                primitive = make(work)
                both = [asyncio.ensure_future(way(primitive, CONTEXTS[kind]())) for _ in range(2)]
                for outcome_of in await asyncio.gather(*both, return_exceptions=True):
                    failed = isinstance(outcome_of, OwnError | AllTargetsFailedError)
                    right = failed if work in (bad, bad_stream) else "answer" in str(outcome_of)
                    if not right:
                        wrong.append((name, way.__name__, repr(outcome_of)))
    assert [] == wrong
    if captured is not None:
        values = [value for span in captured.spans for value in span.attributes.values()]
        assert values
        assert {type(value) for value in values} <= {str, int, float, bool, tuple}


async def test_what_can_be_read_is_read() -> None:
    """The ids of an older context still name its spans, its priority still counts, and its deadline still holds."""
    with capture_telemetry() as captured:
        await RetryPrimitive(good).execute("q", Older())  # type: ignore[arg-type]
    attributes = captured.span("retry good").attributes
    assert ("w", "s") == (attributes["workflow.id"], attributes["session.id"])
    assert "b=1" in outgoing_headers(context=SimpleNamespace(baggage={"b": "1"}))["baggage"]  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", CONTEXTS)
def test_headers_for_any_context(kind: str) -> None:
    """The headers of an outgoing call hold what the context has, which is nothing here."""
    assert {} == outgoing_headers(context=CONTEXTS[kind]())


@pytest.mark.parametrize("kind", CONTEXTS)
async def test_a_refresh_in_the_background(kind: str) -> None:
    """It runs detached from its caller, with the context that the caller gave."""
    calls = []

    async def call(request: Any, context: Any) -> int:
        calls.append(context)
        return len(calls)

    policy = CachePolicy(stale_while_revalidate_seconds=100.0, ttl_jitter=0.0)
    cache = CachePrimitive(call, str, ttl_seconds=0.01, policy=policy)
    context = CONTEXTS[kind]()
    assert 1 == await cache.execute("q", context)
    time.sleep(0.02)  # the time of entries is the machine's, not the loop's
    assert 1 == await cache.execute("q", context)
    await asyncio.sleep(1.0)
    assert [context, context] == calls
    assert 2 == await cache.execute("q", context)


@pytest.mark.parametrize("kind", CONTEXTS)
async def test_a_compensation_gets_the_context(kind: str) -> None:
    """What a step has kept in the application's own context is there when the step is undone."""
    seen = []

    async def undo(result: Any, context: Any) -> None:
        seen.append(context)

    context = CONTEXTS[kind]()
    with pytest.raises(OwnError):
        await SagaPrimitive([SagaStep(good, undo), bad]).execute("q", context)
    assert seen == [context]


@pytest.mark.parametrize("value", [3.0, 0, "soon", object()])
def test_a_deadline_of_another_type_is_refused(value: Any) -> None:
    """In a context of this library it is a mistake, which would otherwise mean no deadline at all."""
    with pytest.raises(ConfigurationError, match=r"Deadline\.after"):
        WorkflowContext(deadline=value)
    assert WorkflowContext(deadline=Deadline.after(1.0)).deadline is not None


@pytest.mark.parametrize(("field", "attribute"), [("workflow_id", "workflow.id"), ("session_id", "session.id")])
async def test_one_id_names_the_run(field: str, attribute: str) -> None:
    """A run that has one of the ids is identified by it."""
    with capture_telemetry() as captured:
        await RetryPrimitive(good).execute("q", WorkflowContext(**{field: "7"}))  # type: ignore[arg-type]
    assert "7" == captured.span("retry good").attributes[attribute]


class Extended(WorkflowContext):
    """A context of this library with more to tell."""

    def to_otel_context(self) -> dict[str, str | float]:
        """Adds the tenant."""
        return {**super().to_otel_context(), "tenant": "t", "secret": [1]}  # type: ignore[dict-item]


class Settable:
    """An application's own, with a deadline of this library."""

    def __init__(self, deadline: Deadline) -> None:
        self.deadline = deadline
        self.state: dict[str, Any] = {}


@pytest.mark.parametrize(
    "make", [lambda end: WorkflowContext(deadline=end), lambda end: Extended(deadline=end), Settable]
)
async def test_what_is_done_is_undone_after_the_deadline(make: Callable[[Deadline], Any]) -> None:
    """The deadline that ended the run does not refuse its compensations, whatever class of context holds it."""
    undone: list[str] = []
    deadline = Deadline.after(1.0)
    context = make(deadline)

    async def charge(request: Any) -> str:
        await asyncio.sleep(2.0)
        return "charged"

    async def undo(result: Any, inner: Any) -> None:
        inner.state["undone"] = result
        undone.append(result)

    saga = SagaPrimitive([SagaStep(charge, RetryPrimitive(undo)), SagaStep(charge)])
    with pytest.raises(PrimitiveTimeoutError, match="deadline"):
        await saga.execute("q", context)
    assert ["charged"] == undone
    assert {"undone": "charged"} == context.state
    assert context.deadline is deadline, "the caller's own object keeps its deadline"


async def test_a_deadline_that_cannot_be_replaced_breaks_nothing() -> None:
    """A compensation without primitives inside runs all the same."""

    @dataclass(frozen=True)
    class Fixed:
        deadline: Deadline

    undone: list[str] = []

    async def undo(result: Any) -> None:
        undone.append(result)

    async def work(request: Any) -> str:
        await asyncio.sleep(2.0)
        return "done"

    with pytest.raises(PrimitiveTimeoutError):
        await SagaPrimitive([SagaStep(work, undo), work]).execute("q", Fixed(Deadline.after(1.0)))  # type: ignore[arg-type]
    assert ["done"] == undone


async def test_attributes_that_a_subclass_adds() -> None:
    """A subclass says by `to_otel_context` what identifies its run."""
    with capture_telemetry() as captured:
        await RetryPrimitive(good).execute("q", Extended("w"))
    attributes = captured.span("retry good").attributes
    assert ("w", "t") == (attributes["workflow.id"], attributes["tenant"])
    assert "secret" not in attributes
