"""What primitives do to a call is the same with telemetry and without, also where it is switched on midway."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import pytest

from observability_integration import WorkflowContext
from observability_integration.primitives import (
    CircuitBreakerPrimitive,
    ConcurrencyLimitPrimitive,
    FallbackPrimitive,
    LambdaPrimitive,
    RetryPrimitive,
    SagaPrimitive,
    SagaStep,
)
from observability_integration.resilience.aimd import Aimd
from observability_integration.resilience.backoff import Backoff
from observability_integration.resilience.retry_budget import RetryBudget
from observability_integration.telemetry.metrics import instruments
from observability_integration.telemetry.tracing import spans
from observability_integration.testing import FakeClockLoop

LOOP_FACTORY = FakeClockLoop

pytestmark = pytest.mark.once

Switch = Callable[[], None]


class Scripted:
    """Raises what its script says, one at a time, and then answers; waits a second each time."""

    def __init__(self, *errors: BaseException | None, then: Switch = lambda: None) -> None:
        self.errors = list(errors)
        self.calls = 0
        self._then = then

    async def __call__(self, _: Any) -> str:
        self.calls += 1
        await asyncio.sleep(1.0)
        self._then()
        error = self.errors.pop(0) if self.errors else None
        if error is not None:
            raise error
        return "answer"


@pytest.fixture
def switch_on(tracing: Any) -> Iterator[Switch]:
    """Switches telemetry on; it is off until then."""
    profiles = instruments.switch.profiles

    def on() -> None:
        instruments.start(exemplars=False, profiles=frozenset())
        spans.install(tracing)

    switch_off()
    yield on
    switch_off()
    instruments.switch.profiles = profiles


def switch_off() -> None:
    spans.install(None)
    instruments.stop()


@pytest.fixture(params=["off", "on"])
def observed(request: pytest.FixtureRequest, switch_on: Switch) -> None:
    """Telemetry off, and on."""
    if request.param == "on":
        switch_on()


@pytest.mark.usefixtures("observed")
async def test_each_call_earns_its_share_of_a_retry() -> None:
    """Without the deposits, a budget that was used up would never allow a retry again."""
    budget = RetryBudget(0.5, min_per_second=0.0, burst=1.0, over_operations=10)
    work = Scripted(ConnectionError(), None, ConnectionError())
    retry = RetryPrimitive(work, 2, budget=budget, backoff=Backoff(base_seconds=0.1))
    await retry.execute("question")
    assert 0.0 == budget.balance
    with pytest.raises(ConnectionError):
        await retry.execute("question")
    for _ in range(3):
        await retry.execute("question")
    work.errors = [ConnectionError()]
    await retry.execute("question")


@pytest.mark.usefixtures("observed")
async def test_an_adaptive_limit_learns_from_successes() -> None:
    """A limit that only ever learned from overload would sink to its least and stay there."""
    limited = ConcurrencyLimitPrimitive(Scripted(), Aimd(2, clock=lambda: asyncio.get_running_loop().time()))
    await asyncio.gather(*(limited.execute(number) for number in range(2)))
    assert 3 == limited.limiter.limit


async def note(_: Any, context: WorkflowContext) -> str:
    context.state["note"] = "left"
    return "noted"


async def fail(_: Any) -> None:
    raise ConnectionError


@pytest.mark.usefixtures("observed")
@pytest.mark.parametrize("step", [note, LambdaPrimitive(note), note >> LambdaPrimitive(Scripted())])
async def test_the_steps_of_a_saga_share_a_context_though_none_was_given(step: Any) -> None:
    """What one leaves in it, the compensation finds: one that was made for each would be of no use."""
    found: list[str] = []

    async def undo(_: Any, context: WorkflowContext) -> None:
        found.append(context.state["note"])

    with pytest.raises(ConnectionError):
        await SagaPrimitive([SagaStep(step, undo), fail]).execute("question")
    assert ["left"] == found


@pytest.mark.usefixtures("observed")
async def test_a_saga_that_is_thrown_away_is_undone_in_its_callers_context() -> None:
    """A collection may throw it away in any task, and a compensation must not act for whoever runs there."""
    tenant: ContextVar[str] = ContextVar("tenant", default="nobody")
    found: list[str] = []

    async def undo(_: Any) -> None:
        found.append(tenant.get())

    token = tenant.set("caller")
    call: Any = SagaPrimitive([SagaStep(Scripted(), undo), Scripted()]).execute("question")
    for _ in range(2):
        call.send(None)
        await asyncio.sleep(1.0)
    tenant.reset(token)
    call.close()
    await asyncio.sleep(1.0)
    assert ["caller"] == found


async def test_telemetry_may_come_on_while_a_call_is_tried_again(switch_on: Switch, tracing: Any) -> None:
    """What began without a span goes on without one."""
    work = Scripted(ConnectionError(), then=switch_on)
    assert "answer" == await RetryPrimitive(work).execute("question")
    switch_off()
    assert "answer" == await FallbackPrimitive([Scripted(ConnectionError(), then=switch_on), work]).execute("question")
    assert (3, []) == (work.calls, tracing.spans)


@pytest.mark.parametrize("primitive", [CircuitBreakerPrimitive, lambda call: ConcurrencyLimitPrimitive(call, 1)])
async def test_telemetry_may_come_on_before_a_call_fails(switch_on: Switch, tracing: Any, primitive: Any) -> None:
    """The error is the same, and the next call is seen."""
    guarded = primitive(Scripted(ConnectionError(), then=switch_on))
    with pytest.raises(ConnectionError):
        await guarded.execute("question")
    assert "answer" == await guarded.execute("question")
    assert [1] == [span.ends for span in tracing.spans]


async def test_telemetry_may_come_on_before_a_saga_is_undone(switch_on: Switch, tracing: Any) -> None:
    """The compensation is seen, though the saga is not."""
    undo = Scripted()
    saga = SagaPrimitive([SagaStep(Scripted(), undo), Scripted(ConnectionError(), then=switch_on)])
    with pytest.raises(ConnectionError):
        await saga.execute("question")
    assert 1 == undo.calls
    assert ["compensate Scripted"] == tracing.tree()
