"""Runs a primary call and, if it is slow, a hedge. The first to produce content wins; the other is cancelled.

Each call runs in its own task from start to end. So it has its own context variables and cancel scopes, and a call that
ignores its cancellation can be abandoned.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from observability_integration.context import WorkflowContext, bounded_by
from observability_integration.primitives.base import ChunkStream, WorkflowPrimitive
from observability_integration.primitives.first_content import FirstContent
from observability_integration.primitives.lifting import Call, call_of
from observability_integration.resilience.bounded import cancel_bounded, wait_cancelled
from observability_integration.resilience.faults import Classifier, classify
from observability_integration.resilience.faults.caller import mark_begun
from observability_integration.resilience.question import open_question
from observability_integration.resilience.retry_budget import RetryBudget, leave_scope, open_scope
from observability_integration.tasks import set_done, spawn, wait_done
from observability_integration.telemetry.tracing.spans import OperationSpan

from .delay import HedgeDelay
from .record import HedgeRecord, Role


class Attempt:
    """One of the two calls.

    Attributes:
        role: primary or hedge.
        task: runs the call.
        answer: done when the answer begins, or when the call fails or ends without content.
    """

    __slots__ = ("_stream", "answer", "role", "task")

    def __init__(
        self, role: Role, task: asyncio.Task[Any], answer: asyncio.Future[Any], stream: BufferedStream | None = None
    ) -> None:
        self.role: Role = role
        self.task = task
        self.answer = answer
        self._stream = stream

    @property
    def has_answered(self) -> bool:
        """Whether the answer has begun; a stream that ended without content is no answer."""
        return self._is_done_without_error and (self._stream is None or self._stream.has_content)

    @property
    def is_empty(self) -> bool:
        """Whether the stream ended without content."""
        return self._is_done_without_error and not self.has_answered

    @property
    def _is_done_without_error(self) -> bool:
        answer = self.answer
        return answer.done() and not answer.cancelled() and answer.exception() is None

    def on_cancel(self) -> None:
        """Called before the task is cancelled."""


A = TypeVar("A", bound=Attempt)


class HedgeTarget:
    """The target of one of the two calls.

    Args:
        role: primary or hedge.
        step: the primitive to call.
        join_chunks: joins the chunks if `step.execute_reads_stream`; by default `step.join_chunks`.
    """

    __slots__ = ("_call", "_join_chunks", "role", "step")

    def __init__(
        self, role: Role, step: WorkflowPrimitive[Any, Any], join_chunks: Callable[[list[Any]], Any] | None = None
    ) -> None:
        self.role: Role = role
        self.step = step
        self._call = call_of(step)
        self._join_chunks = join_chunks or step.join_chunks

    def start(self, input_data: Any, context: WorkflowContext | None) -> Attempt:
        """Starts a call for the whole result. The answer begins with the first content if the step streams."""
        loop = asyncio.get_running_loop()
        if not self.step.execute_reads_stream:
            task = loop.create_task(_call(self._call, input_data, context), name=f"hedge: {self.role}")
            return Attempt(self.role, task, task)
        answer: asyncio.Future[None] = loop.create_future()
        stream = BufferedStream(lambda: self.step.stream(input_data, context))
        task = loop.create_task(self._read(stream, answer), name=f"hedge: {self.role}")

        def ended(task: asyncio.Task[Any]) -> None:
            if answer.done():
                return
            error = None if task.cancelled() else task.exception()
            if task.cancelled():
                answer.cancel()
            elif error is None:
                answer.set_result(None)
            else:
                answer.set_exception(error)
                answer.exception()  # marks it as retrieved, should the caller be cancelled

        task.add_done_callback(ended)
        return Attempt(self.role, task, answer, stream)

    async def _read(self, stream: BufferedStream, answer: asyncio.Future[None]) -> Any:
        received: list[Any] = []
        async with stream as chunks:
            async for chunk in chunks:
                received.append(chunk)
                set_done(answer)
        return self._join_chunks(received)


class BufferedStream(ChunkStream):
    """A stream that holds back its chunks until one has content, so that its first chunk marks the start of the answer.

    Args:
        open_stream: opens the source; called when this stream is opened.
    """

    def __init__(self, open_stream: Callable[[], ChunkStream]) -> None:
        self._open = open_stream
        self._content: FirstContent | None = None

    @property
    def has_content(self) -> bool:
        """Whether a chunk had content."""
        return self._content is not None and self._content.shown

    async def __aenter__(self) -> AsyncIterator[Any]:
        self._content = FirstContent(self._open())
        return self

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        content = cast("FirstContent", self._content)
        try:
            return await content.next()
        except StopAsyncIteration:
            raise
        except Exception as error:
            if content.begun:
                mark_begun(error)
            raise

    async def __aexit__(self, exc_type: Any, exc: BaseException | None, tb: Any) -> None:
        content = cast("FirstContent", self._content)
        if isinstance(exc, Exception):
            await content.give_up(exc)
        else:
            await content.close()


# Called inside the task: the synchronous part of the call, too, must run in the task's own context.
async def _call(call: Call, input_data: Any, context: WorkflowContext | None) -> Any:
    return await call(input_data, context)


@dataclass(frozen=True, slots=True)
class RaceSettings:
    """Settings of all races of a primitive.

    Attributes:
        record: counts the outcomes.
        budget: bounds the hedges; None means no bound.
        grace_seconds: time for a cancelled call to end.
        classifier: classifies an error before the built-in rules.
    """

    record: HedgeRecord
    budget: RetryBudget | None
    grace_seconds: float
    classifier: Classifier | None


class HedgeRace:
    """The calls of one operation.

    Args:
        settings: settings of the primitive.
        delay: when a call is slow; learns the time of this one.
        span: span of the operation; current while `decide` runs.
        context: context of the caller, for its deadline.

    Attributes:
        winner: the call that won; None if no hedge was made or none has won.
    """

    __slots__ = (
        "_attempts",
        "_budget_scope",
        "_cancellations",
        "_context",
        "_delay",
        "_finalised",
        "_question",
        "_settings",
        "_span",
        "winner",
    )

    def __init__(
        self, settings: RaceSettings, delay: HedgeDelay, span: OperationSpan, context: WorkflowContext | None
    ) -> None:
        self._settings = settings
        self._delay = delay
        self._span = span
        self._context = context
        self._attempts: list[Attempt] = []
        self._cancellations: dict[Attempt, asyncio.Task[None]] = {}
        self._budget_scope = open_scope(settings.budget)
        self._question = open_question()
        self._finalised = False
        self.winner: Role | None = None

    async def decide(self, primary: Callable[[], A], hedge: Callable[[], A]) -> A:
        """Makes one call or both, cancels the loser, and returns the call whose answer begins first.

        If neither answers, returns a call that ended without an error, else the first call, whose error is then the
        operation's.

        Args:
            primary: starts the first call.
            hedge: starts the hedge.
        """
        loop = asyncio.get_running_loop()
        began = loop.time()
        delay = self._delay.seconds()
        first = self._start(primary)
        try:
            if delay is None:
                self._settings.record.suppressed(self._span, "warmup")
            if not await wait_done(first.answer, delay):
                if delay is not None and self._may_hedge(loop.time() - began):
                    return await self._first_of_two(first, self._start(hedge))
                await wait_done(first.answer, None)
        except GeneratorExit:
            self.cancel_now()
            raise
        else:
            return first
        finally:
            # A finaliser may run while its thread holds the lock of the delay.
            if not self._finalised:
                self._measure(first, loop.time() - began, delay)

    def _measure(self, first: Attempt, seconds: float, delay_seconds: float | None) -> None:
        if first.has_answered:
            self._delay.answered(seconds)
        else:
            self._delay.unanswered(seconds, delay_seconds)

    def _start(self, start: Callable[[], A]) -> A:
        # A task copies the context variables when it is made, so the call sees the budget's scope and the question.
        with self._question or nullcontext():
            if self._budget_scope is None:
                attempt = start()
            else:
                with self._budget_scope:
                    attempt = start()
        self._attempts.append(attempt)
        return attempt

    def _may_hedge(self, waited_seconds: float) -> bool:
        settings = self._settings
        deadline = bounded_by(self._context)
        # A hedge that is more likely than not to miss the deadline is not worth its price.
        if deadline is not None and deadline.remaining() <= self._delay.median_seconds():
            settings.record.suppressed(self._span, "deadline")
            return False
        if settings.budget is not None and not settings.budget.withdraw():
            settings.record.suppressed(self._span, "budget")
            return False
        settings.record.launched(self._span, waited_seconds)
        return True

    async def _first_of_two(self, primary: A, hedge: A) -> A:
        failed: set[Attempt] = set()
        while True:
            for attempt, other in ((primary, hedge), (hedge, primary)):
                if attempt.has_answered:
                    self._win(attempt, other)
                    return attempt
                if attempt.answer.done() and attempt not in failed:
                    failed.add(attempt)
                    if attempt is primary and self._is_final(attempt):
                        self._cancel(other)
                        return primary
                    self._note_failure(attempt)
            if len(failed) == 2:
                for attempt, other in ((primary, hedge), (hedge, primary)):
                    if attempt.is_empty:
                        self._win(attempt, other)
                        return attempt
                return primary
            pending = {attempt.answer for attempt in (primary, hedge) if attempt not in failed}
            await asyncio.wait(pending, return_when=asyncio.FIRST_COMPLETED)

    def _win(self, attempt: Attempt, other: Attempt) -> None:
        self.winner = attempt.role
        self._settings.record.won(self._span, attempt.role)
        self._cancel(other)

    def _is_final(self, primary: Attempt) -> bool:
        """Whether the first call failed with a fault that no other target can serve."""
        if primary.is_empty:
            return False
        error = None if primary.answer.cancelled() else primary.answer.exception()
        if not isinstance(error, Exception):
            return True
        fault = classify(error, self._settings.classifier)
        return not (fault.turns_to_next or fault.turns_to_larger_window)

    def _note_failure(self, attempt: Attempt) -> None:
        error = asyncio.CancelledError() if attempt.answer.cancelled() else attempt.answer.exception()
        self._settings.record.lost(self._span, attempt.role, error)

    def _cancel(self, attempt: Attempt) -> None:
        """Cancels a call. Waits for it in the background up to the grace, then counts it as abandoned."""
        if attempt in self._cancellations:
            return
        attempt.on_cancel()
        task = attempt.task
        # A failed call has no cost. Reading its error marks it as retrieved.
        failed = task.done() and (task.cancelled() or task.exception() is not None)
        if not failed and len(self._attempts) > 1 and attempt.role != self.winner:
            self._settings.record.stopped(attempt.role)
        if task.cancel():
            cancellation = wait_cancelled(task, self._settings.grace_seconds, self._settings.record.abandoned)
            self._cancellations[attempt] = spawn(cancellation, name="hedge: leaving")

    async def result(self, attempt: Attempt) -> Any:
        """Waits for the end of a call and returns its result, or raises its error."""
        await wait_done(attempt.task, None)
        return attempt.task.result()

    async def close(self, attempt: Attempt) -> None:
        """Cancels a call and waits for its end, up to the grace.

        Raises:
            Exception: an error of the call's clean-up.
        """
        attempt.on_cancel()
        if attempt.task.done() or attempt in self._cancellations or self._finalised:
            return
        closed = await cancel_bounded(attempt.task, self._settings.grace_seconds, self._settings.record.abandoned)
        if closed.error is not None:
            raise closed.error

    async def cancel(self) -> None:
        """Cancels the running calls and waits for their end, up to the grace or to a cancellation of the waiter."""
        for attempt in self._attempts:
            self._cancel(attempt)
        for cancellation in self._cancellations.values():
            await wait_done(cancellation, None)

    def cancel_now(self) -> None:
        """Cancels the running calls without a wait, for a finaliser in any thread."""
        self._finalised = True
        for attempt in self._attempts:
            loop = attempt.task.get_loop()
            if not attempt.task.done() and not loop.is_closed():
                attempt.on_cancel()
                with suppress(RuntimeError):  # closed in between
                    loop.call_soon_threadsafe(self._cancel, attempt)

    def end(self) -> None:
        """Ends the operation: its deposit in the budget covers no further calls, and its question is answered."""
        leave_scope(self._budget_scope)
        if self._question is not None:
            self._question.end()
