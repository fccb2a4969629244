"""Equivalents of the resilience primitives in plain asyncio: the reference where OpenTelemetry is absent.

Same guarantees: which faults are retried, after which backoff and within which budget; a probe of the last target
through an open circuit; FIFO queues; tokens settled by the usage in the answer; the loser of a hedge cancelled, and
abandoned if it ignores that; steps compensated in reverse, in bounded time, also for a caller that was cancelled or
closed. Left out: what `kit` and `engines` leave out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from contextvars import ContextVar, copy_context
from typing import Any

from benchmarks import workload
from benchmarks.measure import Call

from .engines import (
    Budget,
    Circuit,
    ConcurrencyLimit,
    HedgeDelay,
    RateBuckets,
    RefusedError,
    backoff_seconds,
    is_retryable,
    is_target_failure,
    may_fail_over,
    retry_after,
    status_of,
)

Compensation = Callable[[Any], Awaitable[Any]]

_COMPENSATION_SECONDS = 30.0
_GRACE_SECONDS = 5.0
_TOO_MANY = 429

last_target: ContextVar[bool] = ContextVar("last_target", default=False)
_background_tasks: set[asyncio.Future[Any]] = set()


class Retry:
    """Retries the same target."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._budget = Budget()

    async def execute(self, request: Any) -> Any:
        """Returns the answer, or raises the last attempt's error."""
        self._budget.deposit()
        attempt = 1
        while True:
            try:
                return await self._call(request)
            except Exception as error:
                if not is_retryable(error) or attempt == workload.MAX_ATTEMPTS or not self._budget.withdraw():
                    raise
                pause = backoff_seconds(attempt, error)
            await asyncio.sleep(pause)
            attempt += 1


class AllFailedError(Exception):
    """Every target failed."""


class Fallback:
    """Fails over to the next target."""

    def __init__(self, targets: Mapping[str, Call]) -> None:
        self._targets = targets

    async def execute(self, request: Any) -> Any:
        """Returns the first answer."""
        failures: list[Exception] = []
        for call in self._targets.values():
            # Set for each target: an outer fallback may have set True.
            token = last_target.set(len(failures) == len(self._targets) - 1 > 0)
            try:
                return await call(request)
            except Exception as error:
                if not may_fail_over(error):
                    raise
                failures.append(error)
            finally:
                last_target.reset(token)
        if len(failures) == 1:
            raise failures[0]
        raise AllFailedError(failures) from failures[-1]


class Breaker:
    """Refuses calls while the circuit is open."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._circuit = Circuit()

    async def execute(self, request: Any) -> Any:
        """Returns the answer, or raises RefusedError."""
        circuit = self._circuit
        permit = circuit.enter(last_target.get())
        failed = None
        try:
            answer = await self._call(request)
            failed = False
            return answer
        except Exception as error:
            failed = True if is_target_failure(error) else None
            raise
        finally:
            circuit.leave(permit, failed)


class Concurrency:
    """Limits concurrent calls."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._limit = ConcurrencyLimit(workload.MAX_CONCURRENCY)

    async def execute(self, request: Any) -> Any:
        """Waits for a permit and returns the answer."""
        limit = self._limit
        if not limit.take():
            await limit.wait()
        try:
            return await self._call(request)
        finally:
            limit.give_back()


class RateLimit:
    """Limits requests and tokens per minute."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._buckets = RateBuckets(workload.REQUESTS_PER_MINUTE, workload.TOKENS_PER_MINUTE)

    async def execute(self, request: Any) -> Any:
        """Waits for a permit and returns the answer."""
        buckets = self._buckets
        tokens = workload.tokens_of_request(request)
        if not buckets.take(tokens):
            await buckets.wait(tokens)
        try:
            answer = await self._call(request)
        except Exception as error:
            pause_after_429(buckets, error)
            raise
        buckets.give_back(tokens - used_tokens(buckets, answer, tokens))
        return answer


def pause_after_429(buckets: RateBuckets, error: Exception) -> None:
    """Pauses the buckets for the Retry-After of a 429."""
    if status_of(error) == _TOO_MANY:
        buckets.pause(retry_after(error))


def used_tokens(buckets: RateBuckets, answer: Any, expected: float) -> float:
    """Returns the tokens in the answer's usage, and lowers the buckets to the limits in its headers."""
    headers = answer.get("headers")
    if headers is not None:
        requests = float(headers.get("x-ratelimit-remaining-requests", buckets.requests))
        buckets.lower(requests, float(headers.get("x-ratelimit-remaining-tokens", buckets.tokens)))
    usage = answer.get("usage")
    return expected if usage is None else float(usage["prompt_tokens"] + usage["completion_tokens"])


async def cancel_and_wait(task: asyncio.Future[Any], seconds: float) -> None:
    """Cancels a task and waits for it; abandons it after `seconds`."""
    task.cancel()
    await asyncio.wait({task}, timeout=seconds)
    if not task.done():
        _background_tasks.add(task)
        task.add_done_callback(_background_tasks.discard)


class Hedge:
    """Makes a second call when the first is slow."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._budget = Budget()
        self._delay = HedgeDelay(workload.HEDGE_QUANTILE, workload.HEDGE_MIN_SECONDS, workload.HEDGE_WARMUP_CALLS)

    async def execute(self, request: Any) -> Any:
        """Returns the answer that comes first."""
        self._budget.deposit()
        loop = asyncio.get_running_loop()
        began = loop.time()
        delay = self._delay.seconds()
        task = loop.create_task(self._call(request))
        try:
            done, _ = await asyncio.wait({task}, timeout=delay)
            if done or not self._budget.withdraw():
                return await task
            return await first_of_two(task, loop.create_task(self._call(request)))
        except asyncio.CancelledError:
            await cancel_and_wait(task, _GRACE_SECONDS)
            raise
        finally:
            seconds = loop.time() - began
            answered = task.done() and not task.cancelled() and task.exception() is None
            if answered or (delay is not None and seconds >= delay):
                self._delay.record_latency(seconds)


async def first_of_two(first: asyncio.Task[Any], second: asyncio.Task[Any]) -> Any:
    """Returns the first answer, or raises the first call's error; cancels the other call."""
    pending: set[asyncio.Task[Any]] = {first, second}
    try:
        while pending:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                if not task.cancelled() and task.exception() is None:
                    return task.result()
                if task is first and not may_fail_over(task.exception() or RefusedError()):
                    return task.result()
        return first.result()
    finally:
        for task in pending:
            cancelling = asyncio.ensure_future(cancel_and_wait(task, _GRACE_SECONDS))
            _background_tasks.add(cancelling)
            cancelling.add_done_callback(_background_tasks.discard)


class CompensationFailedError(Exception):
    """A step failed, and so did a compensation."""


class Saga:
    """Compensates the completed steps when a step fails."""

    def __init__(self, steps: Sequence[tuple[Call, Compensation]]) -> None:
        self._steps = steps

    async def execute(self, request: Any) -> Any:
        """Returns the answer of the last step."""
        loop, variables = asyncio.get_running_loop(), copy_context()
        done: list[tuple[Compensation, Any]] = []
        value = request
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
            if failures and isinstance(error, Exception):
                raise CompensationFailedError(failures) from error
            raise
        return value


async def compensate(done: Sequence[tuple[Compensation, Any]]) -> list[BaseException]:
    """Compensates steps in reverse, shielded from the caller's cancellation; returns the errors."""
    return await asyncio.shield(start_compensation(done))


def start_compensation(done: Sequence[tuple[Compensation, Any]]) -> asyncio.Task[list[BaseException]]:
    """Starts the task that compensates."""
    task = asyncio.ensure_future(_compensate_all(done))
    _background_tasks.add(task)
    task.add_done_callback(_background_tasks.discard)
    return task


async def _compensate_all(done: Sequence[tuple[Compensation, Any]]) -> list[BaseException]:
    failures: list[BaseException] = []
    for undo, value in reversed(done):
        task = asyncio.ensure_future(undo(value))
        await asyncio.wait({task}, timeout=_COMPENSATION_SECONDS)
        if not task.done():
            await cancel_and_wait(task, 1.0)
            failures.append(TimeoutError())
        elif task.cancelled():
            failures.append(asyncio.CancelledError())
        elif (error := task.exception()) is not None:
            failures.append(error)
    return failures
