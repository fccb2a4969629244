"""The shared store under a guard: a time budget for each access, a queue, and what to do when the store is back.

A store that is refused, silent, paused or broken costs one budget, once. From then on the cache works from memory, and
a probe in the background finds out when the store is back.

A deletion is recorded before it is made and crossed off when the store has confirmed it (see `recovery`): an entry that
was invalidated while the store was away is not served when it comes back.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import weakref
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from observability_integration.caching.policy import CachePolicy
from observability_integration.caching.stores.plain import PlainStore
from observability_integration.caching.stores.shared import Place, Reading, SharedStore, StoreBusy, Write
from observability_integration.context import remaining
from observability_integration.redis_backend import Guard, Notice
from observability_integration.tasks import spawn, wait_done
from observability_integration.telemetry.catalogue.cache import CACHE_BACKEND_ERRORS, CACHE_BACKEND_UP
from observability_integration.telemetry.tracing import spans

from .recovery import PendingWrites
from .semaphore import ConcurrencyGate

T = TypeVar("T")
logger = logging.getLogger("observability_integration")

_MAX_AT_ONCE = 16  # accesses; each needs a connection, and opening hundreds takes longer than the budget
_PATIENCE = 10  # budgets that an access waits in the queue: the store is answering, or it would be out of use
_LAST_SECONDS = 1.0  # at the close, for all that is still to be invalidated
_WALK_SECONDS = 600.0  # for a store that has to walk through its entries to clear them


class GuardedStore:
    """A shared store that can never hold up or fail a call.

    Args:
        store: the store.
        operation: name for metrics and logs.
        prefix: how the keys of the operation begin.
        policy: budget and retry times.
        origin: the cache; see `Channel.origin`.
    """

    def __init__(self, store: SharedStore, operation: str, prefix: str, policy: CachePolicy, origin: str = "") -> None:
        self._store = store
        self._operation = operation
        self._prefix = prefix
        self._budget = policy.backend_budget_seconds
        self._longest_seconds = (_PATIENCE + 2) * self._budget
        up = CACHE_BACKEND_UP.declare(self, operation)
        up.set(1)
        self._guard = Guard(
            Notice(
                operation,
                lost="Cache '%s': shared store out of use (%s); working from memory until it is back",
                back="Cache '%s': shared store back in use",
                event="cache.backend",
            ),
            budget_seconds=self._budget,
            retry_seconds=policy.backend_retry_seconds,
            retry_max_seconds=policy.backend_retry_max_seconds,
            steady_seconds=policy.backend_retry_max_seconds,  # a store that flaps is given ever more time
            task_name="cache store",
            probe=self._probe,
            on_error=self._count,
            on_change=lambda in_use: up.set(int(in_use)),
            excuses=_says_nothing_about_the_store,
        )
        self._gate = ConcurrencyGate(1)  # the first access goes alone: many connections opened at once are all late
        self._answered = False
        self._pending = PendingWrites(prefix, origin)
        self._flushing: asyncio.Task[None] | None = None
        weakref.finalize(self, _report, operation, self._pending, os.getpid())

    @property
    def in_use(self) -> bool:
        """Whether the store is asked at all."""
        return self._guard.in_use

    def check(self) -> bool:
        """Tells whether the store is asked at all; if not, finds out whether it is back when that is due."""
        return self._guard.check()

    def forgets(self, name: str) -> bool:
        """Tells whether the entry was invalidated, and the store may not know it yet."""
        return self._pending.forgets(name)

    def writes(self, name: str) -> bool:
        """Tells whether the entry has yet to be written."""
        return self._pending.writes(name)

    def read(self, place: Place, *, in_any_case: bool = False) -> Coroutine[Any, Any, Reading | None]:
        """Returns the entry; None when the store is out of use or late, or the entry is about to be deleted.

        Args:
            place: of the entry.
            in_any_case: see `ask`.
        """
        if self._guard.in_use and self._pending.forgets(place.name):
            return _nothing()
        return self.ask(lambda: self._store.read(place), in_any_case=in_any_case)

    def put_late(self, place: Place, write: Write, note: str) -> None:
        """Writes an entry without a lease: soon if the store is in use, else when it is. No caller waits for it."""
        self._pending.put(place.name, write, note)
        if self._guard.in_use and (self._flushing is None or self._flushing.done()):
            self._flush_soon()

    async def delete(self, name: str, note: str) -> None:
        """Deletes an entry: for this cache at once, in the store within the budget, or when it is back in use."""
        self._pending.delete(name, note)
        await asyncio.shield(self._flush_soon())

    async def void(self, tag: str | None, note: str) -> None:
        """Voids all entries with the tag (None: all): in the store within the budget, or when it is back in use."""
        self._pending.void(tag, note)
        await asyncio.shield(self._flush_soon())

    async def aclose(self) -> None:
        """Ends the probe and the store's own connections, once pending writes and deletions have been attempted.

        Invalidations that the store has not confirmed are tried once more, for a second at most. One line in the log
        says how many are lost.
        """
        await self._guard.aclose()
        flushing = self._flushing
        if flushing is not None and flushing.get_loop() is asyncio.get_running_loop():
            await wait_done(flushing, None)
        if self._pending.invalidations:
            await self._invalidate_at_last()
            _report(self._operation, self._pending, os.getpid())
        await self._store.aclose()

    async def _invalidate_at_last(self) -> None:
        clock = asyncio.get_running_loop().time
        until = clock() + _LAST_SECONDS
        with contextlib.suppress(Exception):  # out of use or not, and whatever is wrong with it
            while self._pending.invalidations and (left := until - clock()) > 0:
                await self._guard.within(self._flush(), min(left, self._flush_seconds()))

    def ask(self, start: Callable[[], Awaitable[T]], *, in_any_case: bool = False) -> Coroutine[Any, Any, T | None]:
        """Returns what `start` brings, which must not be None; None when the store is out of use, late, or fails.

        Args:
            start: begins the access.
            in_any_case: whether the answer is waited for whatever the caller's deadline: two budgets, in the queue too.
        """
        if in_any_case:
            return self._leave_early(start, 2 * self._budget)
        left = remaining()
        if left is None or left > 2 * self._longest_seconds:
            return self._queue(start)
        return self._leave_early(start, left / 2)

    async def _leave_early(self, start: Callable[[], Awaitable[T]], wait_seconds: float) -> T | None:
        # The caller leaves while there is time for the call itself; the store is judged by its own budget all the same.
        if not self._guard.check():
            return None
        access = spawn(self._queue(start), name="cache store access")
        return access.result() if await wait_done(access, wait_seconds) else None

    async def _queue(self, start: Callable[[], Awaitable[T]]) -> T | None:
        if not self._guard.check():
            return None
        gate = self._gate
        if not gate.try_enter() and not await gate.enter(_PATIENCE * self._budget):
            self._count(StoreBusy())
            return None
        try:
            result = await self._guard.ask(start)
        finally:
            gate.leave()
        if result is not None:
            self._on_answer()
        return result

    def _on_answer(self) -> None:
        if not self._answered:
            self._answered = True
            self._gate.widen(_MAX_AT_ONCE)
        if self._pending and (self._flushing is None or self._flushing.done()):
            self._flush_soon()

    def _flush_soon(self) -> asyncio.Task[None]:
        # The caller's deadline may be short and the caller may be cancelled, but a deletion must be made.
        self._flushing = spawn(self._ask_to_flush(), name="cache store deletion")
        return self._flushing

    async def _ask_to_flush(self) -> None:
        if await self._guard.ask(self._flush, self._flush_seconds()):
            self._on_answer()

    async def _flush(self) -> bool:
        await self._pending.flush(self._store)
        return True

    def _flush_seconds(self) -> float:
        # A store of the user's own may have to walk through its entries to clear them, which is no sign of a fault.
        walks = self._pending.clears and isinstance(self._store, PlainStore)
        return _WALK_SECONDS if walks else self._budget

    async def _probe(self) -> None:
        # A store that takes no writes (read-only, out of memory) is not back, nor is one that only takes writes.
        await self._guard.within(self._store.probe(self._prefix))
        while self._pending:
            await self._guard.within(self._flush(), self._flush_seconds())

    def _count(self, error: BaseException) -> None:
        CACHE_BACKEND_ERRORS.series(self._operation, spans.error_type(error)).add()


def _report(operation: str, pending: PendingWrites, pid: int) -> None:
    # Also called when the cache is dropped, and at the end of the interpreter. A forked child has a copy, not the duty.
    lost = pending.unreported()
    if lost and pid == os.getpid():
        logger.warning(
            "Cache '%s': invalidations that the shared store has not confirmed: %d; other processes may go on serving "
            "what they void until it expires: invalidate again when the store is back, or clear the operation",
            operation,
            lost,
        )


async def _nothing() -> None:
    return None


def _says_nothing_about_the_store(error: Exception, answered_meanwhile: bool) -> bool:
    # Late, but other accesses were answered meanwhile: then the delay is on this side.
    return isinstance(error, StoreBusy) or (answered_meanwhile and isinstance(error, TimeoutError))
