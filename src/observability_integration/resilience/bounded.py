"""Waits for work in a child task and returns control to the caller in time, whatever the work does.

The moments, for a limit T and a grace G:

=====================  ===============================================================================================
work ends before T     its value or its own exception, unchanged
T                      the work is cancelled once
T .. T+G               the work ends: `Expired` says how (clean, failed, or with a late value)
T+G                    a second cancel and one turn of the loop; then the work is abandoned: kept alive, its end
                       reported (so is a thread that still works for cancelled work: nothing can stop a thread)
caller cancelled       the work is cancelled (if it was not), waited for to the end of G, and the cancellation goes on;
                       cancelled a second time: at once; the work has one more turn of the loop to end, as at T+G
=====================  ===============================================================================================
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from observability_integration.errors import Cleanup
from observability_integration.tasks import keep_alive, wait_done
from observability_integration.telemetry.catalogue.timeout import TIMEOUT_ABANDONED, TIMEOUT_ABANDONED_ACTIVE
from observability_integration.threads import left_in_thread

logger = logging.getLogger("observability_integration")

Abandoned = Callable[[asyncio.Future[Any]], None]
"""Called with a future that is done when the abandoned work ends."""


@dataclass(frozen=True, slots=True)
class Expired:
    """The end of work that was cancelled at its limit.

    Attributes:
        cleanup: ``clean``, ``failed``, ``late_result`` or ``abandoned``.
        cleanup_seconds: time from the first cancel to the end or the abandonment.
        error: what the clean-up raised, for ``failed``.
        value: what the work returned, for ``late_result``.
    """

    cleanup: Cleanup
    cleanup_seconds: float
    error: BaseException | None = None
    value: Any = None


class Ending(asyncio.Future[None]):
    """Done when work has ended or its time is up, whichever comes first; itself the callback of task and timer."""

    __slots__ = ()

    def __call__(self, _: object = None) -> None:
        """Makes it done, if it is not."""
        if not self.done():
            self.set_result(None)


async def run_bounded(
    task: asyncio.Task[Any],
    limit_seconds: float,
    grace_seconds: float | None,
    abandoned: Abandoned,
    *,
    cancelling: Callable[[], None] | None = None,
    more_seconds: Callable[[], float] | None = None,
) -> Expired | None:
    """Waits for `task` within its limits; None if it ended by itself, in which case its result is the task's.

    The callbacks run inside the loop and must not raise.

    Args:
        task: the work, in a task of its own.
        limit_seconds: T, from now.
        grace_seconds: G; None waits for the clean-up without end, 0 not at all.
        abandoned: called if the task, or a thread that works for it, is left running.
        cancelling: called just before the work is cancelled because the limit has passed.
        more_seconds: called at T; returns by how much the limit has moved meanwhile, 0 or less for not at all.
    """
    left = limit_seconds
    try:
        while left > 0:
            if await wait_done(task, left):
                return None
            left = 0.0 if more_seconds is None else more_seconds()
    except asyncio.CancelledError:
        task.cancel()
        await wait_cancelled(task, grace_seconds, abandoned)
        raise
    if cancelling is not None:
        cancelling()
    return await cancel_bounded(task, grace_seconds, abandoned)


async def cancel_bounded(task: asyncio.Task[Any], grace_seconds: float | None, abandoned: Abandoned) -> Expired:
    """Cancels `task`, waits for its end up to the grace, and says how it ended."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    task.cancel()
    try:
        await _end(task, grace_seconds)
    except asyncio.CancelledError:
        # A second cancel would break off the clean-up, which still has time.
        left = None if grace_seconds is None else max(0.0, began + grace_seconds - loop.time())
        await wait_cancelled(task, left, abandoned)
        raise
    waited = loop.time() - began
    if _is_abandoned(task, abandoned):
        return Expired("abandoned", waited)
    if task.cancelled():
        return Expired("clean", waited)
    error = task.exception()
    if error is not None:
        return Expired("failed", waited, error)
    return Expired("late_result", waited, value=task.result())


async def wait_cancelled(task: asyncio.Task[Any], grace_seconds: float | None, abandoned: Abandoned) -> None:
    """Waits, up to the grace, for the end of a `task` that was cancelled because its caller was.

    If the caller is cancelled again, this returns at once, normally: the caller re-raises its first cancellation.
    Only then may `abandoned` be called after the return.
    """
    try:
        await _end(task, grace_seconds)
    except asyncio.CancelledError:
        task.cancel()
        # The task needs a turn of the loop to end. A scope that cancels in every turn would never grant one.
        asyncio.get_running_loop().call_soon(_let_go, task, abandoned)
    else:
        _let_go(task, abandoned)


def _let_go(task: asyncio.Task[Any], abandoned: Abandoned) -> None:
    if not _is_abandoned(task, abandoned) and not task.cancelled():
        task.exception()  # marks it as retrieved; the caller raises its cancellation instead


async def _end(task: asyncio.Task[Any], grace_seconds: float | None) -> None:
    if grace_seconds is None or grace_seconds > 0:
        await wait_done(task, grace_seconds)
    if not task.done():
        task.cancel()
        await asyncio.sleep(0)


def _is_abandoned(task: asyncio.Task[Any], abandoned: Abandoned) -> bool:
    """Whether the task, or a thread that works for it, is left running; if so, calls `abandoned`."""
    left = left_in_thread(task) if task.done() else keep_alive(task)
    if left is None:
        return False
    abandoned(left)
    return True


def count_abandoned(operation: str, task: asyncio.Future[Any]) -> None:
    """Counts work of `operation` that ignored its cancellation and logs its end, at which `task` is done."""
    TIMEOUT_ABANDONED.series(operation).add()
    active = TIMEOUT_ABANDONED_ACTIVE.series(operation)
    active.add(1)
    loop = task.get_loop()
    left = loop.time()
    logger.warning("Operation '%s' did not end when it was cancelled, and was left running", operation)

    def ended(task: asyncio.Future[Any]) -> None:
        active.add(-1)
        error = None if task.cancelled() else task.exception()
        how = "cancelled" if task.cancelled() else "with a value" if error is None else type(error).__name__
        logger.info("Abandoned work of operation '%s' ended %.2fs later (%s)", operation, loop.time() - left, how)

    task.add_done_callback(ended)
