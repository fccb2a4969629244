"""Retry, fallback, hedge and saga with telemetry written by hand.

They use the engines of the bare equivalents.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from contextvars import copy_context
from typing import TYPE_CHECKING, Any

from opentelemetry.trace import Span, Tracer

from benchmarks import workload
from benchmarks.calls.bare.engines import Budget, HedgeDelay, backoff_seconds, is_retryable, may_fail_over
from benchmarks.calls.bare.resilience import (
    AllFailedError,
    Compensation,
    CompensationFailedError,
    cancel_and_wait,
    compensate,
    first_of_two,
    last_target,
    start_compensation,
)
from benchmarks.measure import Call

from .spans import QUIET, ended

if TYPE_CHECKING:
    from .instruments import Instruments

_GRACE_SECONDS = 5.0
_SUCCESS: Mapping[str, Any] = {"outcome": "success"}


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
        self._on_span: dict[str, Any] = {"retry.attempts": 1, "outcome": "success"}

    async def execute(self, request: Any) -> Any:
        """Returns the answer, or raises the last attempt's error."""
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
                        ended(span, error)
                        raise
                    pause = backoff_seconds(attempt, error)
                    fault = type(error).__qualname__
                    instruments.retry_retries.add(1, {**self._operation, "fault": fault})
                    instruments.retry_wait.record(pause, self._operation)
                    span.add_event("retry", {"retry.fault": fault, "retry.wait_seconds": pause})
                except asyncio.CancelledError as error:
                    ended(span, error)
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
        if not is_retryable(error):
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
    """A fallback with a span, and counts of answers and failovers by target."""

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
        """Returns the first answer."""
        instruments = self._instruments
        failures: list[Exception] = []
        with self._tracer.start_as_current_span(self._span_name, **QUIET) as span:
            for name, call in self._targets.items():
                # Set for each target: an outer fallback may have set True.
                token = last_target.set(len(failures) == len(self._targets) - 1 > 0)
                try:
                    answer = await call(request)
                except Exception as error:
                    if not may_fail_over(error):
                        instruments.fallback_failed.add(1, {**self._operation, "reason": "fault"})
                        ended(span, error)
                        raise
                    failures.append(error)
                    fault = {"target": name, "fault": type(error).__qualname__}
                    instruments.fallback_failovers.add(1, {**self._operation, **fault})
                    span.add_event("fallback.failover", fault)
                except asyncio.CancelledError as error:
                    ended(span, error)
                    raise
                else:
                    instruments.fallback_served.add(1, self._by_target[name])
                    span.set_attributes(self._on_span[name])
                    return answer
                finally:
                    last_target.reset(token)
            instruments.fallback_failed.add(1, {**self._operation, "reason": "exhausted"})
            if len(failures) == 1:
                ended(span, failures[0])
                raise failures[0]
            all_failed = AllFailedError(failures)
            ended(span, all_failed)
            raise all_failed from failures[-1]


class Hedge:
    """A hedge with a span, and counts of launched and suppressed hedges."""

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
        self._delay = HedgeDelay(workload.HEDGE_QUANTILE, workload.HEDGE_MIN_SECONDS, workload.HEDGE_WARMUP_CALLS)
        self._span_name = f"hedge {workload.OPERATION}"

    async def execute(self, request: Any) -> Any:
        """Returns the answer that comes first."""
        self._budget.deposit()
        instruments = self._instruments
        loop = asyncio.get_running_loop()
        with self._tracer.start_as_current_span(self._span_name, **QUIET) as span:
            began = loop.time()
            delay = self._delay.seconds()
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
                    await cancel_and_wait(task, _GRACE_SECONDS)
                ended(span, error)
                raise
            finally:
                seconds = loop.time() - began
                answered = task.done() and not task.cancelled() and task.exception() is None
                if answered or (delay is not None and seconds >= delay):
                    self._delay.record_latency(seconds)
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
    """A saga with a span, and counts of outcomes."""

    _OUTCOMES: Mapping[str, Mapping[str, str]] = {
        outcome: {"operation": workload.OPERATION, "outcome": outcome}
        for outcome in ("completed", "compensated", "compensation_failed")
    }
    _COMPLETED: Mapping[str, str] = {"saga.outcome": "completed", "outcome": "success"}

    def __init__(self, tracer: Tracer, instruments: Instruments, steps: Sequence[tuple[Call, Compensation]]) -> None:
        self._tracer = tracer
        self._instruments = instruments
        self._steps = steps
        self._span_name = f"saga {workload.OPERATION}"
        self._on_span = {"saga.steps": len(steps)}

    async def execute(self, request: Any) -> Any:
        """Returns the answer of the last step."""
        loop, variables = asyncio.get_running_loop(), copy_context()
        done: list[tuple[Compensation, Any]] = []
        value = request
        with self._tracer.start_as_current_span(self._span_name, attributes=self._on_span, **QUIET) as span:
            try:
                for call, undo in self._steps:
                    value = await call(value)
                    done.append((undo, value))
            except GeneratorExit:  # the coroutine was closed, possibly in another thread
                with suppress(RuntimeError):
                    loop.call_soon_threadsafe(start_compensation, done, context=variables)
                raise
            except (Exception, asyncio.CancelledError) as error:
                failures = await compensate(done)
                outcome = "compensation_failed" if failures else "compensated"
                self._instruments.saga_operations.add(1, self._OUTCOMES[outcome])
                span.set_attribute("saga.outcome", outcome)
                ended(span, error)
                if failures and isinstance(error, Exception):
                    raise CompensationFailedError(failures) from error
                raise
            self._instruments.saga_operations.add(1, self._OUTCOMES["completed"])
            span.set_attributes(self._COMPLETED)
            return value
