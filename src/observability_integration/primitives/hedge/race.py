"""Two calls for one answer: when the second is made, which of them wins, and what becomes of the other.

Each runs in a task of its own from its beginning to its end, so its context variables and cancel scopes are its own,
and one that ignores its cancellation can be left behind.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from observability_integration.context import WorkflowContext, current_deadline, earliest
from observability_integration.primitives.base import ChunkStream, WorkflowPrimitive
from observability_integration.primitives.first_content import FirstContent
from observability_integration.primitives.lifting import Call, call_of
from observability_integration.resilience.bounded import cancel_bounded, wait_cancelled
from observability_integration.resilience.faults import Classifier, classify
from observability_integration.resilience.retry_budget import RetryBudget, leave_scope, open_scope
from observability_integration.tasks import announce, spawn, wait_done
from observability_integration.telemetry.tracing.spans import OperationSpan

from .delay import HedgeDelay
from .record import HedgeRecord, Role


class Attempt:
    """One of the two calls.

    Attributes:
        role: which one.
        task: all of its work.
        answer: done when its answer begins, when it has ended without any content, or when it has failed.
    """

    __slots__ = ("_beginning", "answer", "role", "task")

    def __init__(
        self, role: Role, task: asyncio.Task[Any], answer: asyncio.Future[Any], beginning: Beginning | None = None
    ) -> None:
        self.role: Role = role
        self.task = task
        self.answer = answer
        self._beginning = beginning

    @property
    def has_answered(self) -> bool:
        """Whether its answer has begun; a stream that has ended without any content is none."""
        return self._has_not_failed and (self._beginning is None or self._beginning.has_content)

    @property
    def is_empty(self) -> bool:
        """Whether its stream has ended without any content."""
        return self._has_not_failed and not self.has_answered

    @property
    def _has_not_failed(self) -> bool:
        answer = self.answer
        return answer.done() and not answer.cancelled() and answer.exception() is None

    def stopping(self) -> None:
        """It is being cancelled."""


A = TypeVar("A", bound=Attempt)


class Side:
    """Whom one of the two calls goes to.

    Args:
        role: which one.
        step: what is called.
        gather: what makes the result of the chunks, for a step that collects.
    """

    __slots__ = ("_call", "_gather", "role", "step")

    def __init__(
        self, role: Role, step: WorkflowPrimitive[Any, Any], gather: Callable[[list[Any]], Any] | None = None
    ) -> None:
        self.role: Role = role
        self.step = step
        self._call = call_of(step)
        self._gather = gather or step.join_chunks

    def ask(self, input_data: Any, context: WorkflowContext | None) -> Attempt:
        """Begins a call for the whole result; of a step that collects, the answer begins with its first content."""
        loop = asyncio.get_running_loop()
        if not self.step.execute_reads_stream:
            task = loop.create_task(_call(self._call, input_data, context), name=f"hedge: {self.role}")
            return Attempt(self.role, task, task)
        answer: asyncio.Future[None] = loop.create_future()
        beginning = Beginning(lambda: self.step.stream(input_data, context))
        task = loop.create_task(self._collect(beginning, answer), name=f"hedge: {self.role}")

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
                answer.exception()  # marks it as retrieved: nobody looks at it once the caller was cancelled

        task.add_done_callback(ended)
        return Attempt(self.role, task, answer, beginning)

    async def _collect(self, beginning: Beginning, answer: asyncio.Future[None]) -> Any:
        gathered: list[Any] = []
        async with beginning as chunks:
            async for chunk in chunks:
                gathered.append(chunk)
                announce(answer)
        return self._gather(gathered)


class Beginning(ChunkStream):
    """A stream whose first chunk is there when its answer begins: what carries no content is held back until then.

    Args:
        open_stream: opens the stream; called when this one is opened.
    """

    def __init__(self, open_stream: Callable[[], ChunkStream]) -> None:
        self._open = open_stream
        self._content: FirstContent | None = None

    @property
    def has_content(self) -> bool:
        """Whether any was seen."""
        return self._content is not None and self._content.shown

    async def __aenter__(self) -> AsyncIterator[Any]:
        self._content = FirstContent(self._open())
        return self

    def __aiter__(self) -> AsyncIterator[Any]:
        return self

    async def __anext__(self) -> Any:
        return await cast("FirstContent", self._content).next()

    async def __aexit__(self, exc_type: Any, exc: BaseException | None, tb: Any) -> None:
        content = cast("FirstContent", self._content)
        if isinstance(exc, Exception):
            await content.give_up(exc)
        else:
            await content.close()


# Called inside of the task, so that whatever the call does at first is done in the task's own context.
async def _call(call: Call, input_data: Any, context: WorkflowContext | None) -> Any:
    return await call(input_data, context)


@dataclass(frozen=True, slots=True)
class Rules:
    """What holds for all races of a primitive.

    Attributes:
        record: what they are counted in.
        budget: bounds the second calls; None is no bound.
        grace_seconds: how long a call that was cancelled may take to end.
        classifier: asked first what kind of fault an error is.
    """

    record: HedgeRecord
    budget: RetryBudget | None
    grace_seconds: float
    classifier: Classifier | None


class HedgeRace:
    """One operation.

    Args:
        rules: of the primitive.
        delays: says when a call is slow, and is told how long this one took.
        span: of the operation; to be current while `decide` runs.
        context: of the caller, for its deadline.
    """

    __slots__ = (
        "_attempts",
        "_context",
        "_delays",
        "_leaving",
        "_payment",
        "_rules",
        "_span",
        "_thrown_away",
        "winner",
    )

    def __init__(self, rules: Rules, delays: HedgeDelay, span: OperationSpan, context: WorkflowContext | None) -> None:
        self._rules = rules
        self._delays = delays
        self._span = span
        self._context = context
        self._attempts: list[Attempt] = []
        self._leaving: dict[Attempt, asyncio.Task[None]] = {}
        self._payment = open_scope(rules.budget)
        self._thrown_away = False
        self.winner: Role | None = None

    async def decide(self, primary: Callable[[], A], hedge: Callable[[], A]) -> A:
        """Makes one call, or both, and returns the one whose answer begins first; the other is being cancelled.

        Where none answers, returns the first call, whose error is then the operation's; or the one that has at least
        come to an end without an error.

        Args:
            primary: begins the first call.
            hedge: begins the second one.
        """
        loop = asyncio.get_running_loop()
        began = loop.time()
        delay = self._delays.seconds()
        first = self._make(primary)
        try:
            if delay is None:
                self._rules.record.suppressed(self._span, "warmup")
            if not await wait_done(first.answer, delay):
                if delay is not None and self._may_hedge(loop.time() - began):
                    return await self._first_of_two(first, self._make(hedge))
                await wait_done(first.answer, None)
        except GeneratorExit:
            self.throw_away()
            raise
        else:
            return first
        finally:
            # A finaliser runs wherever it likes, also where the lock of the delays is held.
            if not self._thrown_away:
                self._measure(first, loop.time() - began, delay)

    def _measure(self, first: Attempt, seconds: float, delay_seconds: float | None) -> None:
        if first.has_answered:
            self._delays.answered(seconds)
        else:
            self._delays.unanswered(seconds, delay_seconds)

    def _make(self, begin: Callable[[], A]) -> A:
        # Each call copies the context variables as its task is made, so what is paid is known in there.
        with self._payment or nullcontext():
            attempt = begin()
        self._attempts.append(attempt)
        return attempt

    def _may_hedge(self, waited_seconds: float) -> bool:
        rules = self._rules
        deadline = current_deadline()
        if self._context is not None:
            deadline = earliest(deadline, self._context.deadline)
        # What is likelier than not to come too late is not worth its price.
        if deadline is not None and deadline.remaining() <= self._delays.typical_seconds():
            rules.record.suppressed(self._span, "deadline")
            return False
        if rules.budget is not None and not rules.budget.withdraw():
            rules.record.suppressed(self._span, "budget")
            return False
        rules.record.launched(self._span, waited_seconds)
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
                        self._dismiss(other)
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
        self._rules.record.won(self._span, attempt.role)
        self._dismiss(other)

    def _is_final(self, primary: Attempt) -> bool:
        """Whether the first call's failure is one that no other target is to be asked about."""
        if primary.is_empty:
            return False
        error = None if primary.answer.cancelled() else primary.answer.exception()
        if not isinstance(error, Exception):
            return True
        fault = classify(error, self._rules.classifier)
        return not (fault.turns_to_next or fault.turns_to_larger_window)

    def _note_failure(self, attempt: Attempt) -> None:
        error = asyncio.CancelledError() if attempt.answer.cancelled() else attempt.answer.exception()
        self._rules.record.lost(self._span, attempt.role, error)

    def _dismiss(self, attempt: Attempt) -> None:
        """Cancels a call, and sees to it in the background that it ends, or is left behind and counted."""
        if attempt in self._leaving:
            return
        attempt.stopping()
        task = attempt.task
        # What has just failed is not paid for; to look at its error marks it as retrieved.
        failed = task.done() and (task.cancelled() or task.exception() is not None)
        if not failed and len(self._attempts) > 1 and attempt.role != self.winner:
            self._rules.record.stopped(attempt.role)
        if task.cancel():
            leaving = wait_cancelled(task, self._rules.grace_seconds, self._rules.record.abandoned)
            self._leaving[attempt] = spawn(leaving, name="hedge: leaving")

    async def result(self, attempt: Attempt) -> Any:
        """What a call comes to, which has begun to answer or has failed."""
        await wait_done(attempt.task, None)
        return attempt.task.result()

    async def close(self, attempt: Attempt) -> None:
        """Ends a call whose answer is wanted no longer, and waits for its end, up to the grace.

        Raises:
            Exception: what its clean-up raised.
        """
        attempt.stopping()
        if attempt.task.done() or attempt in self._leaving or self._thrown_away:
            return
        closed = await cancel_bounded(attempt.task, self._rules.grace_seconds, self._rules.record.abandoned)
        if closed.error is not None:
            raise closed.error

    async def leave(self) -> None:
        """Cancels what still runs, and waits for its end, up to the grace; cancelled itself, it waits no longer."""
        for attempt in self._attempts:
            self._dismiss(attempt)
        for leaving in self._leaving.values():
            await wait_done(leaving, None)

    def throw_away(self) -> None:
        """Cancels what still runs, and waits for nothing: for a finaliser, in whatever thread it runs."""
        self._thrown_away = True
        for attempt in self._attempts:
            loop = attempt.task.get_loop()
            if not attempt.task.done() and not loop.is_closed():
                attempt.stopping()
                with suppress(RuntimeError):  # closed in between
                    loop.call_soon_threadsafe(self._dismiss, attempt)

    def end(self) -> None:
        """The operation has its outcome: what it has paid into a budget covers nothing any more."""
        leave_scope(self._payment)
