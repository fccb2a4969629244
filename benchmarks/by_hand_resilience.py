"""What repeats, replaces, refuses and limits calls, with its telemetry, each as a careful engineer writes it.

It decides by the same `bare_engines` as the bare one does. Levels are read when they are asked for, which costs a call
nothing.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from time import perf_counter
from typing import TYPE_CHECKING, Any

from opentelemetry.trace import Span, StatusCode, Tracer

from . import workload
from .bare_engines import (
    Allowance,
    Budget,
    Circuit,
    RefusedError,
    Slots,
    Slow,
    another_may_serve,
    counts_against,
    may_pass,
    pause_before,
)
from .bare_resilience import (
    AllFailedError,
    NotUndoneError,
    Undo,
    cancelled_within,
    first_of_two,
    last_target,
    learn_from_error,
    undone,
    used,
)
from .measure import Call

if TYPE_CHECKING:
    from .by_hand import Instruments

# The SDK would put the error's message, which may quote the prompt, on the span.
QUIET: Any = {"record_exception": False, "set_status_on_exception": False}
_STATES = {"closed": 0, "half_open": 1, "open": 2}
_GRACE_SECONDS = 5.0
_SUCCESS: Mapping[str, Any] = {"outcome": "success"}


def failed(span: Span, error: BaseException) -> None:
    """The span of a call that raised."""
    span.set_attribute("error.type", type(error).__qualname__)
    span.set_status(StatusCode.ERROR)


def _ended(span: Span, error: BaseException) -> None:
    if isinstance(error, asyncio.CancelledError):
        span.set_attribute("outcome", "cancelled")
        return
    span.set_attribute("outcome", "error")
    failed(span, error)


class Retry:
    """A retry with a span, and counts of calls, attempts and faults."""

    def __init__(
        self, tracer: Tracer, instruments: Instruments, call: Call, operation: str = workload.OPERATION
    ) -> None:
        self._tracer = tracer
        self._instruments = instruments
        self._call = call
        self._budget = Budget()
        self._span_name = f"retry {operation}"
        self._operation = {"operation": operation}
        self._at_once = {"operation": operation, "outcome": "successful_without_retry"}
        self._on_span = {"retry.attempts": 1, "outcome": "success"}

    async def execute(self, request: Any) -> Any:
        """The answer, or the last attempt's error."""
        instruments = self._instruments
        self._budget.deposit()
        attempt = 1
        with self._tracer.start_as_current_span(self._span_name, **QUIET) as span:
            while True:
                try:
                    answer = await self._call(request)
                except Exception as error:
                    why = self._gives_up(error, attempt)
                    if why is not None:
                        instruments.retry_gave_up.add(1, {**self._operation, "reason": why})
                        self._count(span, attempt, "failed")
                        _ended(span, error)
                        raise
                    pause = pause_before(attempt, error)
                    fault = type(error).__qualname__
                    instruments.retry_retries.add(1, {**self._operation, "fault": fault})
                    instruments.retry_wait.record(pause, self._operation)
                    span.add_event("retry", {"retry.fault": fault, "retry.wait_seconds": pause})
                except asyncio.CancelledError as error:
                    _ended(span, error)
                    raise
                else:
                    if attempt == 1:
                        instruments.retry_attempts.add(1, self._operation)
                        instruments.retry_operations.add(1, self._at_once)
                        span.set_attributes(self._on_span)
                    else:
                        self._count(span, attempt, "successful")
                        span.set_attributes(_SUCCESS)
                    return answer
                await asyncio.sleep(pause)
                attempt += 1

    def _gives_up(self, error: Exception, attempt: int) -> str | None:
        if not may_pass(error):
            return "not_retryable"
        if attempt == workload.MAX_ATTEMPTS:
            return "attempts"
        return None if self._budget.withdraw() else "budget"

    def _count(self, span: Span, attempts: int, how: str) -> None:
        outcome = f"{how}_with{'out' if attempts == 1 else ''}_retry"
        self._instruments.retry_attempts.add(attempts, self._operation)
        self._instruments.retry_operations.add(1, {**self._operation, "outcome": outcome})
        span.set_attribute("retry.attempts", attempts)


class Fallback:
    """A fallback with a span, and counts by who answered and who did not."""

    def __init__(
        self,
        tracer: Tracer,
        instruments: Instruments,
        targets: Mapping[str, Call],
        operation: str = workload.OPERATION,
    ) -> None:
        self._tracer = tracer
        self._instruments = instruments
        self._targets = targets
        self._span_name = f"fallback {operation}"
        self._operation = {"operation": operation}
        self._by_target = {name: {"operation": operation, "target": name} for name in targets}
        self._on_span = {name: {"fallback.target": name, "outcome": "success"} for name in targets}

    async def execute(self, request: Any) -> Any:
        """The first answer that there is."""
        instruments = self._instruments
        failures: list[Exception] = []
        with self._tracer.start_as_current_span(self._span_name, **QUIET) as span:
            for name, call in self._targets.items():
                # Set for each: another fallback around this one may have said True.
                token = last_target.set(len(failures) == len(self._targets) - 1 > 0)
                try:
                    answer = await call(request)
                except Exception as error:
                    if not another_may_serve(error):
                        instruments.fallback_failed.add(1, {**self._operation, "reason": "fault"})
                        _ended(span, error)
                        raise
                    failures.append(error)
                    fault = {"target": name, "fault": type(error).__qualname__}
                    instruments.fallback_failovers.add(1, {**self._operation, **fault})
                    span.add_event("fallback.failover", fault)
                except asyncio.CancelledError as error:
                    _ended(span, error)
                    raise
                else:
                    instruments.fallback_served.add(1, self._by_target[name])
                    span.set_attributes(self._on_span[name])
                    return answer
                finally:
                    last_target.reset(token)
            instruments.fallback_failed.add(1, {**self._operation, "reason": "exhausted"})
            error = failures[0] if len(failures) == 1 else AllFailedError(failures)
            _ended(span, error)
            raise error from failures[-1]


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
                _ended(span, error)
                raise
            if ticket < 0:
                span.set_attribute("circuit_breaker.probe", True)
            try:
                answer = await self._call(request)
            except BaseException as error:
                counted = isinstance(error, Exception) and counts_against(error)
                circuit.leave(ticket, True if counted else None)
                count(1, self._outcomes["failure" if counted else "ignored"])
                _ended(span, error)
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
                _ended(span, error)
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
                _ended(span, error)
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


class Hedge:
    """A hedge with a span, and counts of second calls made and not made."""

    _OPERATION: Mapping[str, str] = {"operation": workload.OPERATION}
    _UNHEDGED: Mapping[str, str] = {**_OPERATION, "outcome": "unhedged"}
    _HEDGED: Mapping[str, str] = {**_OPERATION, "outcome": "hedged"}
    _WARMUP: Mapping[str, str] = {**_OPERATION, "reason": "warmup"}
    _BUDGET: Mapping[str, str] = {**_OPERATION, "reason": "budget"}

    def __init__(self, tracer: Tracer, instruments: Instruments, call: Call) -> None:
        self._tracer = tracer
        self._instruments = instruments
        self._call = call
        self._budget = Budget()
        self._slow = Slow(workload.HEDGE_QUANTILE, workload.HEDGE_LEAST_SECONDS, workload.HEDGE_WARMUP_CALLS)
        self._span_name = f"hedge {workload.OPERATION}"

    async def execute(self, request: Any) -> Any:
        """The answer that comes first."""
        self._budget.deposit()
        instruments = self._instruments
        loop = asyncio.get_running_loop()
        with self._tracer.start_as_current_span(self._span_name, **QUIET) as span:
            began = loop.time()
            delay = self._slow.seconds()
            task = loop.create_task(self._call(request))
            if delay is None:
                instruments.hedge_suppressed.add(1, self._WARMUP)
            outcome = self._UNHEDGED
            try:
                done, _ = await asyncio.wait({task}, timeout=delay)
                if done or not self._may_hedge(span, loop.time() - began):
                    answer = await task
                else:
                    outcome = self._HEDGED
                    answer = await first_of_two(task, loop.create_task(self._call(request)))
            except BaseException as error:
                if isinstance(error, asyncio.CancelledError):
                    await cancelled_within(task, _GRACE_SECONDS)
                _ended(span, error)
                raise
            finally:
                seconds = loop.time() - began
                answered = task.done() and not task.cancelled() and task.exception() is None
                if answered or (delay is not None and seconds >= delay):
                    self._slow.took(seconds)
            instruments.hedge_operations.add(1, outcome)
            span.set_attribute("outcome", "success")
            return answer

    def _may_hedge(self, span: Span, waited: float) -> bool:
        if not self._budget.withdraw():
            self._instruments.hedge_suppressed.add(1, self._BUDGET)
            return False
        self._instruments.hedge_launched.add(1, self._OPERATION)
        self._instruments.hedge_delay.record(waited, self._OPERATION)
        span.add_event("hedge.launched", {"hedge.delay_seconds": waited})
        return True


class Saga:
    """A saga with a span, and counts of how it and its compensations ended."""

    _OUTCOMES: Mapping[str, Mapping[str, str]] = {
        outcome: {"operation": workload.OPERATION, "outcome": outcome}
        for outcome in ("completed", "compensated", "compensation_failed")
    }
    _COMPLETED: Mapping[str, str] = {"saga.outcome": "completed", "outcome": "success"}

    def __init__(self, tracer: Tracer, instruments: Instruments, steps: Sequence[tuple[Call, Undo]]) -> None:
        self._tracer = tracer
        self._instruments = instruments
        self._steps = steps
        self._span_name = f"saga {workload.OPERATION}"
        self._on_span = {"saga.steps": len(steps)}

    async def execute(self, request: Any) -> Any:
        """What the last step returned."""
        done: list[tuple[Undo, Any]] = []
        value = request
        with self._tracer.start_as_current_span(self._span_name, attributes=self._on_span, **QUIET) as span:
            try:
                for call, undo in self._steps:
                    value = await call(value)
                    done.append((undo, value))
            except (Exception, asyncio.CancelledError) as error:
                failures = await undone(done)
                outcome = "compensation_failed" if failures else "compensated"
                self._instruments.saga_operations.add(1, self._OUTCOMES[outcome])
                span.set_attribute("saga.outcome", outcome)
                _ended(span, error)
                if failures and isinstance(error, Exception):
                    raise NotUndoneError(failures) from error
                raise
            self._instruments.saga_operations.add(1, self._OUTCOMES["completed"])
            span.set_attributes(self._COMPLETED)
            return value
