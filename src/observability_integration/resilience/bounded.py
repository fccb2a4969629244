"""Runs work in a child task and gives control back in time, whatever the work does.

The moments, for a limit T and a grace G (`run_bounded` implements exactly this table):

=====================  ===============================================================================================
work ends before T     its value or its own exception, unchanged
T                      the work is cancelled once
T .. T+G               the work ends: `Expired` says how (clean, failed, or with a late value)
T+G                    a second cancel and one turn of the loop; then the work is abandoned: kept alive, reported later
                       (so is a thread that still works for cancelled work: nothing can stop it)
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
from observability_integration.tasks import left_in_thread, own, wait_done
from observability_integration.telemetry.catalogue.timeout import TIMEOUT_ABANDONED, TIMEOUT_ABANDONED_ACTIVE

logger = logging.getLogger("observability_integration")


@dataclass(frozen=True, slots=True)
class Expired:
    """How work ended that did not end in time.

    Attributes:
        cleanup: ``clean``, ``failed``, ``late_result`` or ``abandoned``.
        cleanup_seconds: time between the first cancel and the end (or the abandonment).
        error: what the clean-up raised, for ``failed``.
        value: what came late, for ``late_result``.
    """

    cleanup: Cleanup
    cleanup_seconds: float
    error: BaseException | None = None
    value: Any = None


@dataclass(frozen=True, slots=True)
class Watch:
    """Callbacks for what the caller wants to know; each runs inside the loop and must not raise.

    Attributes:
        cancelling: the work is being cancelled because the limit passed.
        abandoned: something is left behind, still running; the future is done when it ends.
    """

    cancelling: Callable[[], None]
    abandoned: Callable[[asyncio.Future[Any]], None]


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
    *,
    ending: asyncio.Future[None] | None = None,
    watch: Watch,
    more_seconds: Callable[[], float] | None = None,
) -> Expired | None:
    """Waits for `task` within its limits; None when it ended by itself, in which case its result is the task's.

    Args:
        task: the work, in a task of its own.
        limit_seconds: T, from now.
        grace_seconds: G; None waits for the clean-up for ever, 0 not at all.
        ending: completed by the last step of the task (see `wait_done`).
        watch: told about rare turns.
        more_seconds: asked when T is over how much longer it is by now, because the work has got on; 0 for no longer.
    """
    try:
        left = limit_seconds
        while left > 0:
            if await wait_done(task, left):
                return None
            left = 0.0 if more_seconds is None else more_seconds()
    except asyncio.CancelledError:
        task.cancel()
        await leave_bounded(task, grace_seconds, watch)
        raise
    watch.cancelling()
    return await cancel_bounded(task, grace_seconds, watch)


async def cancel_bounded(task: asyncio.Task[Any], grace_seconds: float | None, watch: Watch) -> Expired:
    """Cancels `task`, waits for its end as the grace allows, and says how it ended."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    task.cancel()
    try:
        await _end(task, grace_seconds)
    except asyncio.CancelledError:
        # The work is cleaning up already: another cancel would break that off, and there is time left for it.
        left = None if grace_seconds is None else max(0.0, began + grace_seconds - loop.time())
        await leave_bounded(task, left, watch)
        raise
    waited = loop.time() - began
    if _abandoned(task, watch):
        return Expired("abandoned", waited)
    if task.cancelled():
        return Expired("clean", waited)
    error = task.exception()
    if error is not None:
        return Expired("failed", waited, error)
    return Expired("late_result", waited, value=task.result())


async def leave_bounded(task: asyncio.Task[Any], grace_seconds: float | None, watch: Watch) -> None:
    """For a caller that was cancelled itself: waits for the end of a `task` that was cancelled, as the grace allows.

    Returns normally also when the caller is cancelled again, which ends the wait at once: the caller goes on with the
    cancellation it already has. Only then may the watch be told after the return.
    """
    try:
        await _end(task, grace_seconds)
    except asyncio.CancelledError:
        task.cancel()
        # It needs a turn of the loop to end. Whoever cancels a scope cancels in every turn, so it would never have one.
        asyncio.get_running_loop().call_soon(_let_go, task, watch)
    else:
        _let_go(task, watch)


def _let_go(task: asyncio.Task[Any], watch: Watch) -> None:
    if not _abandoned(task, watch) and not task.cancelled():
        task.exception()  # marks it as retrieved; the cancellation is what the caller hears of


async def _end(task: asyncio.Task[Any], grace_seconds: float | None) -> None:
    if grace_seconds is None or grace_seconds > 0:
        await wait_done(task, grace_seconds)
    if not task.done():
        task.cancel()
        await asyncio.sleep(0)


def _abandoned(task: asyncio.Task[Any], watch: Watch) -> bool:
    """Whether the task, or a thread that worked for it, is left running; if so, tells the watch."""
    left = left_in_thread(task) if task.done() else own(task)
    if left is None:
        return False
    watch.abandoned(left)
    return True


def count_abandoned(operation: str, task: asyncio.Future[Any]) -> None:
    """Counts work of `operation` that ignored its cancellation, and logs its end; `task` is done when it ends."""
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
