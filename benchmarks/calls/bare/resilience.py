"""What repeats, replaces, refuses and limits calls, in plain asyncio: what ours is held to without OpenTelemetry.

Kept is what happens to a call: which faults are asked again and which are not, after how long and within which budget;
the last target being asked through an open circuit; first come first served; tokens settled by what the answer says;
the loser of two calls being cancelled, and left behind if it ignores that; steps undone in reverse, in bounded time,
also for a caller that was cancelled or thrown away. Left out is what `bare` and `bare_engines` leave out.
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
    retry_after,
    status_of,
)

Undo = Callable[[Any], Awaitable[Any]]

_COMPENSATION_SECONDS = 30.0
_GRACE_SECONDS = 5.0
_TOO_MANY = 429

last_target: ContextVar[bool] = ContextVar("last_target", default=False)
_left: set[asyncio.Future[Any]] = set()


class Retry:
    """Asks the same target again."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._budget = Budget()

    async def execute(self, request: Any) -> Any:
        """The answer, or the last attempt's error."""
        self._budget.deposit()
        attempt = 1
        while True:
            try:
                return await self._call(request)
            except Exception as error:
                if not may_pass(error) or attempt == workload.MAX_ATTEMPTS or not self._budget.withdraw():
                    raise
                pause = pause_before(attempt, error)
            await asyncio.sleep(pause)
            attempt += 1


class AllFailedError(Exception):
    """Every target was asked in vain."""


class Fallback:
    """Asks the next target."""

    def __init__(self, targets: Mapping[str, Call]) -> None:
        self._targets = targets

    async def execute(self, request: Any) -> Any:
        """The first answer that there is."""
        failures: list[Exception] = []
        for call in self._targets.values():
            # Set for each: another fallback around this one may have said True.
            token = last_target.set(len(failures) == len(self._targets) - 1 > 0)
            try:
                return await call(request)
            except Exception as error:
                if not another_may_serve(error):
                    raise
                failures.append(error)
            finally:
                last_target.reset(token)
        if len(failures) == 1:
            raise failures[0]
        raise AllFailedError(failures) from failures[-1]


class Breaker:
    """Refuses at once what would fail."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._circuit = Circuit()

    async def execute(self, request: Any) -> Any:
        """The answer, or a refusal."""
        circuit = self._circuit
        ticket = circuit.enter(last_target.get())
        failed = None
        try:
            answer = await self._call(request)
            failed = False
            return answer
        except Exception as error:
            failed = True if counts_against(error) else None
            raise
        finally:
            circuit.leave(ticket, failed)


class Concurrency:
    """Lets so many calls run at once."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._slots = Slots(workload.MOST_AT_ONCE)

    async def execute(self, request: Any) -> Any:
        """The answer, when there is room."""
        slots = self._slots
        if not slots.take():
            await slots.wait()
        try:
            return await self._call(request)
        finally:
            slots.give_back()


class RateLimit:
    """Keeps within requests and tokens a minute."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._allowance = Allowance(workload.REQUESTS_PER_MINUTE, workload.TOKENS_PER_MINUTE)

    async def execute(self, request: Any) -> Any:
        """The answer, when there is room."""
        allowance = self._allowance
        tokens = workload.tokens_of_request(request)
        if not allowance.take(tokens):
            await allowance.wait(tokens)
        try:
            answer = await self._call(request)
        except Exception as error:
            learn_from_error(allowance, error)
            raise
        allowance.give_back(tokens - used(allowance, answer, tokens))
        return answer


def learn_from_error(allowance: Allowance, error: Exception) -> None:
    """A provider that refuses says when to come back."""
    if status_of(error) == _TOO_MANY:
        allowance.close_for(retry_after(error))


def used(allowance: Allowance, answer: Any, expected: float) -> float:
    """The tokens that an answer says were used; what its headers say is left is taken in."""
    headers = answer.get("headers")
    if headers is not None:
        requests = float(headers.get("x-ratelimit-remaining-requests", allowance.requests))
        allowance.lower(requests, float(headers.get("x-ratelimit-remaining-tokens", allowance.tokens)))
    usage = answer.get("usage")
    return expected if usage is None else float(usage["prompt_tokens"] + usage["completion_tokens"])


async def cancelled_within(task: asyncio.Future[Any], seconds: float) -> None:
    """Cancels a task and waits for it, but not for ever."""
    task.cancel()
    await asyncio.wait({task}, timeout=seconds)
    if not task.done():
        _left.add(task)
        task.add_done_callback(_left.discard)


class Hedge:
    """Makes a second call when the first is slow."""

    def __init__(self, call: Call) -> None:
        self._call = call
        self._budget = Budget()
        self._slow = Slow(workload.HEDGE_QUANTILE, workload.HEDGE_LEAST_SECONDS, workload.HEDGE_WARMUP_CALLS)

    async def execute(self, request: Any) -> Any:
        """The answer that comes first."""
        self._budget.deposit()
        loop = asyncio.get_running_loop()
        began = loop.time()
        delay = self._slow.seconds()
        task = loop.create_task(self._call(request))
        try:
            done, _ = await asyncio.wait({task}, timeout=delay)
            if done or not self._budget.withdraw():
                return await task
            return await first_of_two(task, loop.create_task(self._call(request)))
        except asyncio.CancelledError:
            await cancelled_within(task, _GRACE_SECONDS)
            raise
        finally:
            seconds = loop.time() - began
            answered = task.done() and not task.cancelled() and task.exception() is None
            if answered or (delay is not None and seconds >= delay):
                self._slow.took(seconds)


async def first_of_two(first: asyncio.Task[Any], second: asyncio.Task[Any]) -> Any:
    """The answer of whichever is first, or the first one's error; the other one is cancelled."""
    pending: set[asyncio.Task[Any]] = {first, second}
    try:
        while pending:
            done, pending = await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                if not task.cancelled() and task.exception() is None:
                    return task.result()
                if task is first and not another_may_serve(task.exception() or RefusedError()):
                    return task.result()
        return first.result()
    finally:
        for task in pending:
            leaving = asyncio.ensure_future(cancelled_within(task, _GRACE_SECONDS))
            _left.add(leaving)
            leaving.add_done_callback(_left.discard)


class NotUndoneError(Exception):
    """A step failed, and not all that was done before could be undone."""


class Saga:
    """Undoes what was done when a step fails."""

    def __init__(self, steps: Sequence[tuple[Call, Undo]]) -> None:
        self._steps = steps

    async def execute(self, request: Any) -> Any:
        """What the last step returned."""
        loop, variables = asyncio.get_running_loop(), copy_context()
        done: list[tuple[Undo, Any]] = []
        value = request
        try:
            for call, undo in self._steps:
                value = await call(value)
                done.append((undo, value))
        except GeneratorExit:  # thrown away, in whatever thread
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(undoing, done, context=variables)
            raise
        except (Exception, asyncio.CancelledError) as error:
            failures = await undone(done)
            if failures and isinstance(error, Exception):
                raise NotUndoneError(failures) from error
            raise
        return value


async def undone(done: Sequence[tuple[Undo, Any]]) -> list[BaseException]:
    """Undoes steps in reverse, in a task that no cancellation of the caller reaches; returns what went wrong."""
    return await asyncio.shield(undoing(done))


def undoing(done: Sequence[tuple[Undo, Any]]) -> asyncio.Task[list[BaseException]]:
    """That task."""
    task = asyncio.ensure_future(_undo_all(done))
    _left.add(task)
    task.add_done_callback(_left.discard)
    return task


async def _undo_all(done: Sequence[tuple[Undo, Any]]) -> list[BaseException]:
    failures: list[BaseException] = []
    for undo, value in reversed(done):
        task = asyncio.ensure_future(undo(value))
        await asyncio.wait({task}, timeout=_COMPENSATION_SECONDS)
        if not task.done():
            await cancelled_within(task, 1.0)
            failures.append(TimeoutError())
        elif task.cancelled():
            failures.append(asyncio.CancelledError())
        elif (error := task.exception()) is not None:
            failures.append(error)
    return failures
