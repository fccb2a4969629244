"""What refuses calls or lets them wait, with its telemetry, each as a careful engineer writes it.

It decides by the same `bare_engines` as the bare one does. Levels are read when they are asked for, which costs a call
nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from time import perf_counter
from typing import TYPE_CHECKING, Any

from opentelemetry.trace import Span, Tracer

from benchmarks import workload
from benchmarks.calls.bare.engines import Allowance, Circuit, RefusedError, Slots, counts_against
from benchmarks.calls.bare.resilience import last_target, learn_from_error, used
from benchmarks.measure import Call

from .spans import QUIET, ended

if TYPE_CHECKING:
    from .kit import Instruments

_STATES = {"closed": 0, "half_open": 1, "open": 2}


class Breaker:
    """A breaker with a span, its state, and counts of how calls ended."""

    def __init__(self, tracer: Tracer, instruments: Instruments, call: Call, target: str = workload.TARGET) -> None:
        self._tracer = tracer
        self._instruments = instruments
        self._call = call
        self._target = {"target": target}
        self._circuit = Circuit(self._turned)
        self._span_name = f"circuit_breaker {target}"
        self._outcomes = {
            outcome: {"target": target, "outcome": outcome} for outcome in ("success", "failure", "ignored", "refused")
        }
        instruments.levels["circuit_breaker.state"].append((lambda: _STATES[self._circuit.state], self._target))

    def _turned(self, state: str) -> None:
        self._instruments.breaker_transitions.add(1, {**self._target, "state": state})

    async def execute(self, request: Any) -> Any:
        """The answer, or a refusal."""
        circuit, count = self._circuit, self._instruments.breaker_calls.add
        with self._tracer.start_as_current_span(self._span_name, **QUIET) as span:
            try:
                ticket = circuit.enter(last_target.get())
            except RefusedError as error:
                count(1, self._outcomes["refused"])
                ended(span, error)
                raise
            if ticket < 0:
                span.set_attribute("circuit_breaker.probe", True)
            try:
                answer = await self._call(request)
            except BaseException as error:
                counted = isinstance(error, Exception) and counts_against(error)
                circuit.leave(ticket, True if counted else None)
                count(1, self._outcomes["failure" if counted else "ignored"])
                ended(span, error)
                raise
            circuit.leave(ticket, False)
            count(1, self._outcomes["success"])
            span.set_attribute("outcome", "success")
            return answer


class Concurrency:
    """A limit with a span, its levels, and the times of those who wait."""

    _OPERATION: Mapping[str, str] = {"operation": workload.OPERATION}
    _PRIORITY: Mapping[str, str] = {**_OPERATION, "priority": "high"}

    def __init__(self, tracer: Tracer, instruments: Instruments, call: Call) -> None:
        self._tracer = tracer
        self._instruments = instruments
        self._call = call
        slots = self._slots = Slots(workload.MOST_AT_ONCE)
        self._span_name = f"concurrency {workload.OPERATION}"
        instruments.levels["concurrency.limit"].append((lambda: slots.limit, self._OPERATION))
        instruments.levels["concurrency.in_flight"].append((lambda: slots.in_flight, self._OPERATION))
        instruments.levels["concurrency.queued"].append((lambda: slots.waiting, self._PRIORITY))

    async def execute(self, request: Any) -> Any:
        """The answer, when there is room."""
        slots = self._slots
        with self._tracer.start_as_current_span(self._span_name, **QUIET) as span:
            try:
                if not slots.take():
                    await self._wait(span)
                try:
                    answer = await self._call(request)
                finally:
                    slots.give_back()
            except BaseException as error:
                ended(span, error)
                raise
            span.set_attribute("outcome", "success")
            return answer

    async def _wait(self, span: Span) -> None:
        began = perf_counter()
        try:
            await self._slots.wait()
        except RefusedError:
            self._instruments.concurrency_refusals.add(1, {**self._PRIORITY, "reason": "queue_full"})
            raise
        waited = perf_counter() - began
        self._instruments.concurrency_wait.record(waited, self._PRIORITY)
        span.set_attributes({"concurrency.priority": "high", "concurrency.waited_seconds": waited})


class RateLimit:
    """A rate limit with a span, what is left, and counts of calls and tokens."""

    _OPERATION: Mapping[str, str] = {"operation": workload.OPERATION}
    _OUTCOMES: Mapping[str, Mapping[str, str]] = {
        outcome: {"operation": workload.OPERATION, "outcome": outcome} for outcome in ("admitted", "waited", "refused")
    }
    _ADMITTED: Mapping[str, Any] = {"rate_limit.wait_seconds": 0.0, "outcome": "success"}

    def __init__(self, tracer: Tracer, instruments: Instruments, call: Call) -> None:
        self._tracer = tracer
        self._instruments = instruments
        self._call = call
        allowance = self._allowance = Allowance(workload.REQUESTS_PER_MINUTE, workload.TOKENS_PER_MINUTE)
        self._span_name = f"rate_limit {workload.OPERATION}"
        left = instruments.levels["rate_limit.remaining"]
        left.append((lambda: allowance.requests, {**self._OPERATION, "limit": "requests"}))
        left.append((lambda: allowance.tokens, {**self._OPERATION, "limit": "tokens"}))

    async def execute(self, request: Any) -> Any:
        """The answer, when there is room."""
        allowance, instruments = self._allowance, self._instruments
        tokens = workload.tokens_of_request(request)
        with self._tracer.start_as_current_span(self._span_name, **QUIET) as span:
            on_span = self._ADMITTED
            try:
                if allowance.take(tokens):
                    instruments.rate_limit_calls.add(1, self._OUTCOMES["admitted"])
                else:
                    on_span = {**on_span, "rate_limit.wait_seconds": await self._wait(tokens)}
                answer = await self._call(request)
            except BaseException as error:
                if isinstance(error, Exception):
                    learn_from_error(allowance, error)
                ended(span, error)
                raise
            charged = used(allowance, answer, tokens)
            allowance.give_back(tokens - charged)
            instruments.rate_limit_tokens.add(charged, self._OPERATION)
            span.set_attributes(on_span)
            return answer

    async def _wait(self, tokens: float) -> float:
        began = perf_counter()
        try:
            await self._allowance.wait(tokens)
        except RefusedError:
            self._instruments.rate_limit_calls.add(1, self._OUTCOMES["refused"])
            raise
        waited = perf_counter() - began
        self._instruments.rate_limit_calls.add(1, self._OUTCOMES["waited"])
        self._instruments.rate_limit_wait.record(waited, self._OPERATION)
        return waited
