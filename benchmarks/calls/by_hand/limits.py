"""Circuit breaker, concurrency limit and rate limit with telemetry written by hand.

They use the engines of the bare equivalents. Gauges are read at collection, so they cost a call nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from time import perf_counter
from typing import TYPE_CHECKING, Any

from opentelemetry.trace import Span, Tracer

from benchmarks import workload
from benchmarks.calls.bare.engines import Circuit, ConcurrencyLimit, RateBuckets, RefusedError, is_target_failure
from benchmarks.calls.bare.resilience import last_target, pause_after_429, used_tokens
from benchmarks.measure import Call

from .spans import QUIET, ended

if TYPE_CHECKING:
    from .instruments import Instruments

_STATES = {"closed": 0, "half_open": 1, "open": 2}


class Breaker:
    """A circuit breaker with a span, a state gauge, and counts of outcomes."""

    def __init__(self, tracer: Tracer, instruments: Instruments, call: Call, target: str = workload.TARGET) -> None:
        self._tracer = tracer
        self._instruments = instruments
        self._call = call
        self._target = {"target": target}
        self._circuit = Circuit(self._on_transition)
        self._span_name = f"circuit_breaker {target}"
        self._outcomes = {
            outcome: {"target": target, "outcome": outcome} for outcome in ("success", "failure", "ignored", "refused")
        }
        instruments.gauges["circuit_breaker.state"].append((lambda: _STATES[self._circuit.state], self._target))

    def _on_transition(self, state: str) -> None:
        self._instruments.breaker_transitions.add(1, {**self._target, "state": state})

    async def execute(self, request: Any) -> Any:
        """Returns the answer, or raises RefusedError."""
        circuit, count = self._circuit, self._instruments.breaker_calls.add
        with self._tracer.start_as_current_span(self._span_name, **QUIET) as span:
            try:
                permit = circuit.enter(last_target.get())
            except RefusedError as error:
                count(1, self._outcomes["refused"])
                ended(span, error)
                raise
            if permit < 0:
                span.set_attribute("circuit_breaker.probe", True)
            try:
                answer = await self._call(request)
            except BaseException as error:
                counted = isinstance(error, Exception) and is_target_failure(error)
                circuit.leave(permit, True if counted else None)
                count(1, self._outcomes["failure" if counted else "ignored"])
                ended(span, error)
                raise
            circuit.leave(permit, False)
            count(1, self._outcomes["success"])
            span.set_attribute("outcome", "success")
            return answer


class Concurrency:
    """A concurrency limit with a span, gauges, and the times of waits."""

    _OPERATION: Mapping[str, str] = {"operation": workload.OPERATION}
    _PRIORITY: Mapping[str, str] = {**_OPERATION, "priority": "high"}

    def __init__(self, tracer: Tracer, instruments: Instruments, call: Call) -> None:
        self._tracer = tracer
        self._instruments = instruments
        self._call = call
        limit = self._limit = ConcurrencyLimit(workload.MAX_CONCURRENCY)
        self._span_name = f"concurrency {workload.OPERATION}"
        instruments.gauges["concurrency.limit"].append((lambda: limit.limit, self._OPERATION))
        instruments.gauges["concurrency.in_flight"].append((lambda: limit.in_flight, self._OPERATION))
        instruments.gauges["concurrency.queued"].append((lambda: limit.waiting, self._PRIORITY))

    async def execute(self, request: Any) -> Any:
        """Waits for a permit and returns the answer."""
        limit = self._limit
        with self._tracer.start_as_current_span(self._span_name, **QUIET) as span:
            try:
                if not limit.take():
                    await self._wait(span)
                try:
                    answer = await self._call(request)
                finally:
                    limit.give_back()
            except BaseException as error:
                ended(span, error)
                raise
            span.set_attribute("outcome", "success")
            return answer

    async def _wait(self, span: Span) -> None:
        began = perf_counter()
        try:
            await self._limit.wait()
        except RefusedError:
            self._instruments.concurrency_refusals.add(1, {**self._PRIORITY, "reason": "queue_full"})
            raise
        waited = perf_counter() - began
        self._instruments.concurrency_wait.record(waited, self._PRIORITY)
        span.set_attributes({"concurrency.priority": "high", "concurrency.waited_seconds": waited})


class RateLimit:
    """A rate limit with a span, gauges of what remains, and counts of calls and tokens."""

    _OPERATION: Mapping[str, str] = {"operation": workload.OPERATION}
    _OUTCOMES: Mapping[str, Mapping[str, str]] = {
        outcome: {"operation": workload.OPERATION, "outcome": outcome} for outcome in ("admitted", "waited", "refused")
    }
    _ADMITTED: Mapping[str, Any] = {"rate_limit.wait_seconds": 0.0, "outcome": "success"}

    def __init__(self, tracer: Tracer, instruments: Instruments, call: Call) -> None:
        self._tracer = tracer
        self._instruments = instruments
        self._call = call
        buckets = self._buckets = RateBuckets(workload.REQUESTS_PER_MINUTE, workload.TOKENS_PER_MINUTE)
        self._span_name = f"rate_limit {workload.OPERATION}"
        left = instruments.gauges["rate_limit.remaining"]
        left.append((lambda: buckets.requests, {**self._OPERATION, "limit": "requests"}))
        left.append((lambda: buckets.tokens, {**self._OPERATION, "limit": "tokens"}))

    async def execute(self, request: Any) -> Any:
        """Waits for a permit and returns the answer."""
        buckets, instruments = self._buckets, self._instruments
        tokens = workload.tokens_of_request(request)
        with self._tracer.start_as_current_span(self._span_name, **QUIET) as span:
            on_span = self._ADMITTED
            try:
                if buckets.take(tokens):
                    instruments.rate_limit_calls.add(1, self._OUTCOMES["admitted"])
                else:
                    on_span = {**on_span, "rate_limit.wait_seconds": await self._wait(tokens)}
                answer = await self._call(request)
            except BaseException as error:
                if isinstance(error, Exception):
                    pause_after_429(buckets, error)
                ended(span, error)
                raise
            charged = used_tokens(buckets, answer, tokens)
            buckets.give_back(tokens - charged)
            instruments.rate_limit_tokens.add(charged, self._OPERATION)
            span.set_attributes(on_span)
            return answer

    async def _wait(self, tokens: float) -> float:
        began = perf_counter()
        try:
            await self._buckets.wait(tokens)
        except RefusedError:
            self._instruments.rate_limit_calls.add(1, self._OUTCOMES["refused"])
            raise
        waited = perf_counter() - began
        self._instruments.rate_limit_calls.add(1, self._OUTCOMES["waited"])
        self._instruments.rate_limit_wait.record(waited, self._OPERATION)
        return waited
