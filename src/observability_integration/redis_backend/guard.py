"""Keeps a backend that is slow, silent or broken from holding up or failing a call."""

from __future__ import annotations

import asyncio
import inspect
import logging
import math
import random
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, TypeVar, cast

from observability_integration import events
from observability_integration.tasks import cancel_until_done, keep_alive, set_done, spawn, wait_done
from observability_integration.telemetry.tracing import spans

T = TypeVar("T")
logger = logging.getLogger("observability_integration")

_LATE = 1.2  # a timer that fires so many times too late shows that the loop could not run


class Notice(NamedTuple):
    """What is logged and emitted once when a backend goes out of use, and once when it is back.

    Attributes:
        subject: name of the cache, limit or target.
        lost: log line; takes the subject and the type of the error.
        back: log line; takes the subject.
        event: begins the names of both events: ``<event>.degraded`` and ``<event>.recovered``.
        label: the attribute of both events that holds the subject.
    """

    subject: str
    lost: str
    back: str
    event: str
    label: str = "operation"


class Guard:
    """Gives each access to a backend a time budget, and uses the backend only while it answers.

    =======================================  ===========================================================================
    an access fails or exceeds its budget    the backend is out of use at once: further accesses return None unasked
    the event loop was blocked meanwhile     the access gets its budget once more: the answer may only wait to be read
    the pause after a fault is over          the next access starts a probe in the background, and returns None
    the probe fails                          the pause doubles, up to the longest
    the probe succeeds                       the backend is in use again
    it fails again soon after that           the pause goes on growing, or the state would flap
    =======================================  ===========================================================================

    Pauses are half to full of what is stated, so that processes that lost a backend together do not return to it
    together. Each change of state makes one log line and one event.

    Args:
        notice: what is logged and emitted.
        budget_seconds: how long an access may take, > 0.
        retry_seconds: the first pause, > 0.
        retry_max_seconds: the longest pause.
        steady_seconds: how long a backend must stay in use before the next fault begins with the first pause again.
        task_name: name of the tasks that this starts.
        probe: finds out whether the backend is back, and raises if it is not; without it, only `recover` ends a fault.
        on_error: called with each error of an access.
        on_change: called with whether the backend is in use, when that changes.
        excuses: called with an error and with whether another access was answered meanwhile; whether the error says
            nothing about the backend, which then stays in use.
    """

    def __init__(
        self,
        notice: Notice,
        *,
        budget_seconds: float,
        retry_seconds: float,
        retry_max_seconds: float,
        steady_seconds: float = 0.0,
        task_name: str,
        probe: Callable[[], Awaitable[object]] | None = None,
        on_error: Callable[[BaseException], object] = lambda _: None,
        on_change: Callable[[bool], object] = lambda _: None,
        excuses: Callable[[Exception, bool], bool] = lambda _, __: False,
    ) -> None:
        self.in_use = True
        self._notice = notice
        self._budget = budget_seconds
        self._retry_seconds = retry_seconds
        self._retry_max_seconds = retry_max_seconds
        self._steady_seconds = steady_seconds
        self._task_name = task_name
        self._find_out = probe
        self._on_error = on_error
        self._on_change = on_change
        self._excuses = excuses
        self._answers = 0
        self._failures = 0
        self._retry_at = 0.0
        self._back_since = -math.inf
        self._probe: asyncio.Task[None] | None = None

    def check(self) -> bool:
        """Tells whether the backend is in use; starts the probe if it is not and the pause is over."""
        if not self.in_use:
            self._probe_if_due()
        return self.in_use

    async def ask(self, start: Callable[[], Awaitable[T]], budget_seconds: float | None = None) -> T | None:
        """Returns what `start` brings; None when the backend is out of use, late, or fails.

        Args:
            start: begins the access; a plain future may be left at any moment, anything else is awaited in a task.
            budget_seconds: instead of the usual budget.
        """
        if not self.in_use:
            self._probe_if_due()
            return None
        answers = self._answers
        try:
            result = await self.within(start(), budget_seconds)
        except Exception as error:  # noqa: BLE001 - any fault of the backend ends its use, never the call
            self._on_error(error)
            if not self._excuses(error, self._answers != answers):
                self.lose(error)
            return None
        self._answers += 1
        return result

    def within(self, work: Awaitable[T], budget_seconds: float | None = None) -> Awaitable[T]:
        """Awaits an access within the budget, also while the backend is out of use; see `in_time` for what it raises.

        Args:
            work: the access.
            budget_seconds: instead of the usual budget.
        """
        return in_time(work, self._budget if budget_seconds is None else budget_seconds, name=self._task_name)

    def lose(self, error: BaseException) -> None:
        """Takes the backend out of use; while it is, nothing changes."""
        if not self.in_use:
            return
        now = asyncio.get_running_loop().time()
        self.in_use = False
        steady = now - self._back_since >= self._steady_seconds
        self._failures = 0 if steady else self._failures + 1
        self._pause(now)
        self._on_change(False)
        notice, kind = self._notice, spans.error_type(error)
        logger.warning(notice.lost, notice.subject, kind)
        events.emit(f"{notice.event}.degraded", **{notice.label: notice.subject, "error_type": kind})

    def extend(self) -> None:
        """Begins the next, longer pause after a failed attempt to use the backend again."""
        if not self.in_use:
            self._failures += 1
            self._pause(asyncio.get_running_loop().time())

    def recover(self) -> None:
        """Puts the backend into use again, if it is not."""
        if self.in_use:
            return
        self.in_use = True
        self._back_since = asyncio.get_running_loop().time()
        self._on_change(True)
        notice = self._notice
        logger.warning(notice.back, notice.subject)
        events.emit(f"{notice.event}.recovered", **{notice.label: notice.subject})

    def pause_left(self) -> float:
        """Returns the seconds until the next attempt is due."""
        return max(0.0, self._retry_at - asyncio.get_running_loop().time())

    async def aclose(self) -> None:
        """Ends the probe, if it runs in the running loop."""
        probe = self._probe
        if probe is not None and not probe.done() and probe.get_loop() is asyncio.get_running_loop():
            probe.cancel()
            await wait_done(probe, None)

    def _pause(self, now: float) -> None:
        self._retry_at = now + backoff_seconds(self._failures, self._retry_seconds, self._retry_max_seconds)

    def _probe_if_due(self) -> None:
        loop = asyncio.get_running_loop()
        if self._find_out is None or loop.time() < self._retry_at:
            return
        if self._probe is not None and not self._probe.done() and self._probe.get_loop() is loop:
            return
        self._probe = spawn(self._run_probe(self._find_out), name=f"{self._task_name} probe")

    async def _run_probe(self, find_out: Callable[[], Awaitable[object]]) -> None:
        try:
            await find_out()
        except Exception:  # noqa: BLE001 - the backend is not back, unless the probe of another loop found it
            self.extend()
        else:
            self.recover()


def backoff_seconds(failures: int, first_seconds: float, max_seconds: float) -> float:
    """Returns how long to wait after so many failed retries: doubled for each, and half to full of that at random.

    Args:
        failures: retries that have failed, >= 0.
        first_seconds: before the first retry.
        max_seconds: at the most.
    """
    # Processes that lost a server together must not return to it together.
    return min(max_seconds, first_seconds * 2.0 ** min(failures, 16)) * random.uniform(0.5, 1.0)  # noqa: S311


def in_time(work: Awaitable[T], budget_seconds: float, *, name: str) -> Awaitable[T]:
    """Awaits `work`, for the budget at the most, and for one more if the event loop was blocked meanwhile.

    Args:
        work: a plain future may be left at any moment; anything else is awaited in a task, which is cancelled, again
            and again if need be, when the budget is over or the caller is cancelled.
        budget_seconds: > 0.
        name: of the task.

    Raises:
        TimeoutError: the budget is over, or the work has cancelled itself.
    """
    if type(work) is asyncio.Future:
        return _future_in_time(cast("asyncio.Future[T]", work), budget_seconds)
    return _task_in_time(work, budget_seconds, name)


async def _task_in_time(work: Awaitable[T], budget_seconds: float, name: str) -> T:
    # A task of its own: a client that is slow to notice a cancellation must not hold up the caller either.
    loop = asyncio.get_running_loop()
    began = loop.time()
    ending: asyncio.Future[None] = loop.create_future()
    task = keep_alive(loop.create_task(_run(work, ending), name=name))
    try:
        ended = await wait_done(task, budget_seconds, ending)
        if not ended and loop.time() - began > _LATE * budget_seconds:
            # The loop itself was blocked: the answer may have come long ago, and only waits to be read.
            ended = await wait_done(task, budget_seconds)
    except asyncio.CancelledError:
        cancel_until_done(task)
        _close_unstarted(work)
        raise
    if not ended or task.cancelled():
        cancel_until_done(task)
        _close_unstarted(work)
        raise TimeoutError
    return task.result()


def _close_unstarted(work: Awaitable[object]) -> None:
    # Its task was cancelled before the first step and will not await it, of which Python would warn.
    if inspect.iscoroutine(work) and inspect.getcoroutinestate(work) == inspect.CORO_CREATED:
        work.close()


async def _run(work: Awaitable[T], ending: asyncio.Future[None]) -> T:
    try:
        return await work
    finally:
        # From in here: a callback on the task would cost every access one more turn of the loop.
        set_done(ending)


async def _future_in_time(future: asyncio.Future[T], budget_seconds: float) -> T:
    # A plain future is free as soon as it is cancelled: no need of a task.
    loop = future.get_loop()
    due = loop.time() + budget_seconds
    timer = loop.call_at(due, _expire, future, due, budget_seconds)
    try:
        return await future
    finally:
        timer.cancel()


def _expire(future: asyncio.Future[Any], due: float, budget_seconds: float) -> None:
    if future.done():
        return
    loop = future.get_loop()
    if loop.time() - due > (_LATE - 1) * budget_seconds:
        # The loop itself was blocked: the answer may have come long ago, and only waits to be read.
        loop.call_later(budget_seconds, _expire, future, math.inf, budget_seconds)
    else:
        future.set_exception(TimeoutError())
