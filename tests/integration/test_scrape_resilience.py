"""After known calls through the primitives that repeat, replace, refuse and limit, a scrape says exactly that."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest

from observability_integration import initialize_observability, observability_status, shutdown_observability
from observability_integration.errors import ObservabilityError
from observability_integration.primitives.circuit_breaker import CircuitBreakerPrimitive
from observability_integration.primitives.circuit_breaker.breaker import BreakerPolicy
from observability_integration.primitives.concurrency import ConcurrencyLimitPrimitive
from observability_integration.primitives.fallback import FallbackPrimitive
from observability_integration.primitives.hedge import HedgePrimitive
from observability_integration.primitives.rate_limit import RateLimitPrimitive
from observability_integration.primitives.retry import RetryPrimitive
from observability_integration.primitives.saga import SagaPrimitive, SagaStep
from observability_integration.resilience.backoff import Backoff
from tests.scrapes import Scrape, scrape

pytestmark = [pytest.mark.needs_otel, pytest.mark.once, pytest.mark.promise("M1")]

AT_ONCE = Backoff(base_seconds=0.0001, max_seconds=0.0001)


@pytest.fixture(autouse=True)
def switched_off_afterwards() -> Iterator[None]:
    """Nothing stays on."""
    yield
    shutdown_observability(0.0)


class Script:
    """What a call does is said by its input: ``ok``, ``fails``, or seconds that it takes."""

    def __init__(self) -> None:
        self.left_to_fail = 0

    async def __call__(self, question: Any) -> str:
        if isinstance(question, float):
            await asyncio.sleep(question)
        if question == "fails" or self.left_to_fail > 0:
            self.left_to_fail -= 1
            raise ConnectionResetError
        if question == "filtered":
            raise PermissionError
        return "answer"


async def asked(primitive: Any, *questions: Any) -> None:
    for question in questions:
        with suppress(OSError, ObservabilityError, LookupError):
            await primitive.execute(question)


async def repeat_and_replace() -> list[Any]:
    script = Script()
    retry: Any = RetryPrimitive(script, backoff=AT_ONCE, operation_name="ask")
    await asked(retry, "ok", "ok", "fails")
    script.left_to_fail = 1
    await asked(retry, "ok")
    fallback: Any = FallbackPrimitive(
        {"first": Script(), "second": Script()}, policy={"unknown": "raise"}, operation_name="ask"
    )
    await asked(fallback, "ok", "fails", "filtered")
    return [retry, fallback]


async def refuse_and_limit() -> list[Any]:
    policy = BreakerPolicy(consecutive_failures=2)
    breaker: Any = CircuitBreakerPrimitive(Script(), policy, target="first")
    await asked(breaker, "ok", "fails", "fails", "ok", "ok")
    limit: Any = ConcurrencyLimitPrimitive(Script(), 1, max_queued=1, operation_name="ask")
    await asyncio.gather(*(asked(limit, 0.01) for _ in range(3)))
    rate: Any = RateLimitPrimitive(
        Script(), requests_per_minute=2, max_wait_seconds=0.0, operation_name="ask", learn=False
    )
    await asked(rate, "ok", "ok", "ok")
    return [breaker, limit, rate]


async def hedge_and_undo() -> list[Any]:
    slow, quick = Script(), Script()

    async def second(_: Any) -> str:
        return await quick("ok")

    hedge: Any = HedgePrimitive(slow, second, delay_seconds=0.01, cost_per_call=0.5, operation_name="ask")
    await asked(hedge, "ok", "ok", 0.5)
    saga: Any = SagaPrimitive(
        [SagaStep(Script(), Script(), name="book"), SagaStep(Script(), name="pay")], operation_name="trip"
    )
    await asked(saga, "ok")
    broken: Any = SagaPrimitive(
        [SagaStep(Script(), Script(), name="book"), SagaStep(_fail, name="pay")], operation_name="trip"
    )
    await asked(broken, "ok")
    return [hedge, saga, broken]


async def _fail(_: Any) -> str:
    raise LookupError


_EXPECTED: list[tuple[str, dict[str, str], float]] = [
    ("retry_operations_total", {"operation": "ask", "outcome": "successful_without_retry"}, 2),
    ("retry_operations_total", {"operation": "ask", "outcome": "successful_with_retry"}, 1),
    ("retry_operations_total", {"operation": "ask", "outcome": "failed_with_retry"}, 1),
    ("retry_operations_total", {"operation": "ask", "outcome": "failed_without_retry"}, 0),
    ("retry_attempts_total", {"operation": "ask"}, 7),
    ("retry_retries_total", {"operation": "ask", "fault": "connection"}, 3),
    ("retry_gave_up_total", {"operation": "ask", "reason": "attempts"}, 1),
    ("retry_wait_seconds_count", {"operation": "ask"}, 3),
    ("fallback_served_total", {"operation": "ask", "target": "first"}, 1),
    ("fallback_served_total", {"operation": "ask", "target": "second"}, 0),
    ("fallback_failovers_total", {"operation": "ask", "target": "first", "fault": "connection"}, 1),
    ("fallback_failed_total", {"operation": "ask", "reason": "exhausted"}, 1),
    ("fallback_failed_total", {"operation": "ask", "reason": "fault"}, 1),
    ("circuit_breaker_state", {"target": "first"}, 2),
    ("circuit_breaker_calls_total", {"target": "first", "outcome": "success"}, 1),
    ("circuit_breaker_calls_total", {"target": "first", "outcome": "failure"}, 2),
    ("circuit_breaker_calls_total", {"target": "first", "outcome": "refused"}, 2),
    ("circuit_breaker_transitions_total", {"target": "first", "state": "open", "reason": "consecutive_failures"}, 1),
    ("concurrency_limit", {"operation": "ask"}, 1),
    ("concurrency_in_flight", {"operation": "ask"}, 0),
    ("concurrency_queued", {"operation": "ask", "priority": "high"}, 0),
    ("concurrency_queue_wait_seconds_count", {"operation": "ask", "priority": "high"}, 1),
    ("concurrency_refusals_total", {"operation": "ask", "priority": "high", "reason": "queue_full"}, 1),
    ("rate_limit_calls_total", {"operation": "ask", "outcome": "admitted"}, 2),
    ("rate_limit_calls_total", {"operation": "ask", "outcome": "refused"}, 1),
    ("hedge_operations_total", {"operation": "ask", "outcome": "unhedged"}, 2),
    ("hedge_operations_total", {"operation": "ask", "outcome": "hedge_won"}, 1),
    ("hedge_launched_total", {"operation": "ask"}, 1),
    ("hedge_cost_usd_total", {"operation": "ask", "role": "winner"}, 0.5),
    ("hedge_cost_usd_total", {"operation": "ask", "role": "loser"}, 0.5),
    ("saga_operations_total", {"operation": "trip", "outcome": "completed"}, 1),
    ("saga_operations_total", {"operation": "trip", "outcome": "compensated"}, 1),
    ("saga_compensations_total", {"operation": "trip", "step": "book", "outcome": "success"}, 1),
]


def _scrape() -> Scrape:
    return scrape(observability_status().prometheus_url)


async def test_the_scraped_port_shows_exactly_what_was_repeated_replaced_refused_and_undone() -> None:
    """An operator who asks why a provider was left alone must not have to guess."""
    initialize_observability(prometheus_port=0)
    kept = [await repeat_and_replace(), await refuse_and_limit(), await hedge_and_undo()]
    found = _scrape()
    actual = [(name, labels, found.value(name, **labels)) for name, labels, _ in _EXPECTED]
    assert _EXPECTED == actual
    del kept
