"""Retries that a client makes by itself are attempts too: the number of attempts and the budget pay for them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from observability_integration.errors import ConfigurationError, StreamInterruptedError
from observability_integration.primitives.retry import RetryPrimitive
from observability_integration.resilience.backoff import Backoff
from observability_integration.resilience.retry_budget import RetryBudget
from observability_integration.testing import FakeClockLoop, set_testing
from tests.unit.primitives.retry.test_retry import EXACT, ServerSays

LOOP_FACTORY = FakeClockLoop
pytestmark = [pytest.mark.once, pytest.mark.promise("Y1")]

FORMS = pytest.mark.parametrize("streams", [False, True], ids=["execute", "stream"])


class Client:
    """Makes the same number of retries by itself each time, and fails; the provider sees all of its requests."""

    def __init__(self, retries: int, *, status: int = 503, serves: int | None = None, wraps: bool = False) -> None:
        self.retries = retries
        self.status = status
        self.serves = serves
        self.wraps = wraps
        self.calls = 0
        self.requests = 0

    async def __call__(self, _: Any) -> str:
        self.calls += 1
        self.requests += 1
        await asyncio.sleep(0)
        if self.calls == self.serves:
            return "fine"
        self.requests += self.retries
        try:
            raise ServerSays(self.status, retries=self.retries)
        except ServerSays as error:
            if self.wraps:
                raise ConnectionError("ours") from error
            raise


def budgeted(tokens: float = 50.0) -> RetryBudget:
    budget = RetryBudget(clock=lambda: 0.0)
    budget.charge(int(budget.burst - tokens))
    return budget


async def ask(primitive: Any, streams: bool) -> Any:
    """The answer, or the type of the error."""
    try:
        if not streams:
            return await primitive.execute("q")
        async with primitive.stream("q") as chunks:
            return "".join([chunk async for chunk in chunks])
    except Exception as error:
        return type(error)


def retry(client: Any, attempts: int = 3, **knobs: Any) -> RetryPrimitive[Any, Any]:
    return RetryPrimitive(client, attempts, **{"backoff": EXACT, "operation_name": "ask", **knobs})


@FORMS
@pytest.mark.parametrize("wraps", [False, True], ids=["its error", "wrapped"])
@pytest.mark.parametrize(
    ("retries", "attempts", "calls"),
    [(0, 3, 3), (1, 3, 2), (2, 3, 1), (2, 4, 2), (2, 1, 1), (5, 3, 1), (1, 10, 5), (100, 3, 1), (-3, 3, 3)],
)
async def test_the_provider_gets_as_many_as_are_allowed(
    retries: int, attempts: int, calls: int, wraps: bool, streams: bool, metrics: Any
) -> None:
    """No attempt is begun once the client has used them up; what is counted are the attempts of this primitive."""
    client = Client(retries, wraps=wraps)
    await ask(retry(client, attempts), streams)
    assert calls == client.calls
    assert calls == metrics("retry.attempts", operation="ask")
    assert 1 == metrics("retry.gave_up", operation="ask", reason="attempts")
    outcome = "failed_without_retry" if calls == 1 else "failed_with_retry"
    assert 1 == metrics("retry.operations", operation="ask", outcome=outcome)
    assert client.requests < attempts + 1 + max(retries, 0)


@FORMS
async def test_the_span_tells_of_them(streams: bool, tracing: Any) -> None:
    """A trace with one attempt and three requests would be a riddle."""
    await ask(retry(Client(2), 4), streams)
    span = tracing.named("retry ask")
    assert (2, 4) == (span.attributes["retry.attempts"], span.attributes["retry.sdk_retries"])
    await ask(retry(Client(1, serves=2), 9, operation_name="other"), streams)
    assert 1 == tracing.named("retry other").attributes["retry.sdk_retries"], "of the attempts that failed"
    await ask(retry(Client(0), operation_name="none"), streams)
    assert "retry.sdk_retries" not in tracing.named("retry none").attributes


@FORMS
@pytest.mark.parametrize(
    ("tokens", "retries", "left"), [(50.0, 2, 48.0), (1.0, 2, 0.0), (0.0, 2, 0.0), (50.0, 100, 0.0), (50.0, 0, 50.0)]
)
async def test_the_budget_pays_for_them(tokens: float, retries: int, left: float, streams: bool) -> None:
    """As far as it can: an SDK asks for no token, so the next who does may find none."""
    budget = budgeted(tokens)
    primitive = retry(Client(retries), 1, budget=budget)
    await ask(primitive, streams)
    assert left == pytest.approx(budget.balance, abs=budget.earned)


@FORMS
async def test_a_budget_that_an_sdk_has_used_up_allows_no_retry(streams: bool, metrics: Any) -> None:
    """The reason is told as it is, and the event too."""
    client = Client(3)
    await ask(retry(client, 20, budget=budgeted(4.0)), streams)
    assert 2 == client.calls
    assert 1 == metrics("retry.gave_up", operation="ask", reason="budget")


@FORMS
async def test_a_fault_that_is_not_retried_here_is_charged_all_the_same(streams: bool) -> None:
    """Some clients retry what this library does not; the provider has got those requests."""
    budget = budgeted()
    await ask(retry(Client(2, status=400), budget=budget), streams)
    assert 48.0 == pytest.approx(budget.balance, abs=budget.earned)


async def test_a_stream_that_broke_off_is_charged_too() -> None:
    """Its request was one of several, although the answer had begun."""

    async def stream(_: Any) -> AsyncIterator[str]:
        yield "a"
        raise ServerSays(503, retries=2)

    budget = budgeted()
    assert StreamInterruptedError is await ask(retry(stream, budget=budget), True)
    assert 48.0 == pytest.approx(budget.balance, abs=budget.earned)


@FORMS
@pytest.mark.parametrize(
    ("mode", "calls"),
    [({"attempts": 3}, 1), ({"attempts": 4}, 2), ({"attempts": None}, 3), ({"attempts": 9, "cap": True}, 3)],
)
async def test_the_testing_mode_counts_them_as_well(mode: dict[str, Any], calls: int, streams: bool) -> None:
    """A test sees as many attempts as production would make."""
    client = Client(2)
    with set_testing(**mode):
        await ask(retry(client, 9), streams)
    assert calls == client.calls


@FORMS
async def test_those_of_an_earlier_call_are_not_charged_again(streams: bool) -> None:
    """A second choice that is asked while the error of the first is handled has made no retries yet."""
    client, budget = Client(0), budgeted()
    try:
        raise ServerSays(503, retries=2)
    except ServerSays:
        await ask(retry(client, 3, budget=budget), streams)
    assert 3 == client.calls
    assert 48.0 == pytest.approx(budget.balance, abs=budget.earned), "two retries of this primitive"


@FORMS
async def test_an_error_that_is_handled_and_raised_again_is_charged(streams: bool) -> None:
    """A call may raise the very object that is being handled."""
    error, calls = ServerSays(503, retries=2), 0

    async def again(_: Any) -> str:
        nonlocal calls
        calls += 1
        raise error

    try:
        raise error
    except ServerSays:
        await ask(retry(again, 3), streams)
    assert 1 == calls


@FORMS
async def test_the_waits_grow_with_them(streams: bool) -> None:
    """A target that has failed three times is not asked again as soon as after the first time."""
    client = Client(1)
    await ask(retry(client, 5, backoff=Backoff(base_seconds=1.0, max_seconds=60.0, jitter="none")), streams)
    assert (3, 2.0 + 8.0) == (client.calls, asyncio.get_running_loop().time())


@pytest.mark.parametrize("wrong", [-1, 1.5, True, "2", None])
def test_a_charge_is_a_number_of_retries(wrong: Any) -> None:
    """Else a wrong sign would fill the budget."""
    budget = budgeted(10.0)
    with pytest.raises(ConfigurationError, match=r"^retries"):
        budget.charge(wrong)
    assert 10.0 == budget.balance
