"""The guard around the shared store: a time budget for each access, and a breaker with a background probe.

A store that is refused, silent, paused or broken costs one budget, once. From then on the breaker is open and nobody
waits: the cache works from memory, and a probe in the background (not on anyone's call) finds out when the store is
back. One log line and one event for each change.

What is to be deleted is written down first and crossed out when the store has done it (see `due`): an entry invalidated
while the store was away is not served when it comes back.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, cast

from observability_integration import events
from observability_integration.caching.policy import CachePolicy
from observability_integration.caching.stores.plain import PlainStore
from observability_integration.caching.stores.shared import Place, Reading, SharedStore, StoreBusy
from observability_integration.context import remaining
from observability_integration.tasks import cancel_until_done, own, spawn, wait_done
from observability_integration.telemetry.catalogue.cache import CACHE_BACKEND_ERRORS, CACHE_BACKEND_UP
from observability_integration.telemetry.tracing import spans

from .recovery import Due
from .semaphore import Slots

T = TypeVar("T")
logger = logging.getLogger("observability_integration")

_SLOTS = 16  # accesses at once; each needs a connection, and opening hundreds takes longer than the budget
_PATIENCE = 10  # budgets that an access waits for a slot: the store is answering, or the breaker would be open
_WALK_SECONDS = 600.0  # for a store that has to walk through its entries to clear them
_LATE = 1.2  # a timer that fires so many times too late shows that the loop could not run


class GuardedStore:
    """A shared store that can never hold up or fail a call.

    Args:
        store: the store.
        operation: name for metrics and logs.
        prefix: how the keys of the operation begin.
        policy: budget and retry times.
    """

    def __init__(self, store: SharedStore, operation: str, prefix: str, policy: CachePolicy) -> None:
        self._store = store
        self._operation = operation
        self._prefix = prefix
        self._policy = policy
        self._slots = Slots(1)  # the first access goes alone: many connections opened at once are all late together
        self._longest_seconds = (_PATIENCE + 2) * policy.backend_budget_seconds
        self._open = False
        self._answers = 0
        self._failures = 0
        self._retry_at = 0.0
        self._back_since = -math.inf
        self._probe: asyncio.Task[None] | None = None
        self._due = Due(prefix)
        self._payment: asyncio.Task[None] | None = None
        self._up = CACHE_BACKEND_UP.declare(self, operation)
        self._up.set(1)

    @property
    def in_use(self) -> bool:
        """Whether the store is asked at all."""
        return not self._open

    def forgets(self, name: str) -> bool:
        """Whether the entry was invalidated, and the store may not know it yet."""
        return self._due.forgets(name)

    async def read(self, place: Place) -> Reading | None:
        """The entry; None when the store is out of use or late, or the entry is about to be forgotten."""
        if not self._open and self.forgets(place.name):
            return None
        return await self.ask(lambda: self._store.read(place))

    def put_late(self, place: Place, data: bytes, ttl_ms: int, note: str) -> None:
        """Writes an entry for which no lease is held: soon if the store is in use, else when it is. Nobody waits."""
        self._due.put(place.name, data, ttl_ms, note)
        if not self._open and (self._payment is None or self._payment.done()):
            self._pay_soon()

    async def delete(self, name: str, note: str) -> None:
        """Forgets an entry: in the store within the budget, else when it is back in use, and here at once."""
        self._due.delete(name, note)
        await asyncio.shield(self._pay_soon())

    async def mark(self, tag: str | None, life_ms: int, note: str) -> None:
        """Voids what has the tag (None: everything), in the store within the budget or when it is back in use."""
        self._due.mark(tag, life_ms, note)
        await asyncio.shield(self._pay_soon())

    async def aclose(self) -> None:
        """Ends the probe and the store's own connections, after what is being written or deleted."""
        loop, probe, payment = asyncio.get_running_loop(), self._probe, self._payment
        if probe is not None and probe.get_loop() is loop:
            probe.cancel()
        if payment is not None and payment.get_loop() is loop:
            await wait_done(payment, None)
        await self._store.aclose()

    async def ask(self, start: Callable[[], Awaitable[T]]) -> T | None:
        """What `start` brings, which must not be None; None when the store is out of use, late, or fails."""
        if self._open:
            self._probe_if_due()
            return None
        left = remaining()
        if left is None or left > 2 * self._longest_seconds:
            return await self._queue(start)
        # The caller leaves while there is time for the call itself; the store is judged by its own budget all the same.
        asked = spawn(self._queue(start), name="cache store access")
        return asked.result() if await wait_done(asked, left / 2) else None

    async def _queue(self, start: Callable[[], Awaitable[T]]) -> T | None:
        budget = self._policy.backend_budget_seconds
        if not await self._slots.take(_PATIENCE * budget):
            self._count(StoreBusy())
            return None
        try:
            # Those who were first may have found out that the store is gone.
            return None if self._open else await self._ask(start, budget)
        finally:
            self._slots.give_back()

    async def _ask(self, start: Callable[[], Awaitable[T]], budget_seconds: float) -> T | None:
        answers = self._answers
        try:
            result = await self._within(start, budget_seconds)
        except StoreBusy as error:
            self._count(error)
        except Exception as error:  # noqa: BLE001 - any fault of the store ends its use, never the call
            self._count(error)
            # Late, but others were answered meanwhile: then the delay is on this side.
            if not isinstance(error, TimeoutError) or self._answers == answers:
                self._trip(error)
        else:
            if self._answers == 0:
                self._slots.widen(_SLOTS)
            self._answers += 1
            if self._due and (self._payment is None or self._payment.done()):
                self._pay_soon()
            return result
        return None

    async def _within(self, start: Callable[[], Awaitable[T]], budget_seconds: float) -> T:
        loop = asyncio.get_running_loop()
        started = loop.time()
        work = start()
        if type(work) is asyncio.Future:
            return await _in_time(cast("asyncio.Future[T]", work), budget_seconds)
        # A task of its own: a client that is slow to notice a cancellation must not hold us up either.
        over: asyncio.Future[None] = loop.create_future()
        task = own(loop.create_task(_run(work, over), name="cache store"))
        timer = loop.call_later(budget_seconds, _release, over)
        try:
            await over
            if not task.done() and loop.time() - started > _LATE * budget_seconds:
                # The loop itself was held up: the answer may have come long ago, and only waits to be read.
                await wait_done(task, budget_seconds)
        except asyncio.CancelledError:
            cancel_until_done(task)
            raise
        finally:
            timer.cancel()
        if not task.done() or task.cancelled():
            cancel_until_done(task)
            raise TimeoutError
        return task.result()

    def _pay_soon(self) -> asyncio.Task[None]:
        # The caller's deadline may be short and the caller may be cancelled, but a deletion must be made.
        self._payment = spawn(self._settle(), name="cache store deletion")
        return self._payment

    async def _settle(self) -> None:
        if self._open:
            self._probe_if_due()
        else:
            await self._ask(self._pay, self._paying_seconds())

    def _paying_seconds(self) -> float:
        # A store of the user's own may have to walk through its entries to clear them, which is no sign of a fault.
        walks = self._due.clears and isinstance(self._store, PlainStore)
        return _WALK_SECONDS if walks else self._policy.backend_budget_seconds

    async def _pay(self) -> None:
        await self._due.pay(self._store)

    def _count(self, error: BaseException) -> None:
        CACHE_BACKEND_ERRORS.series(self._operation, spans.error_type(error)).add()

    def _trip(self, error: BaseException) -> None:
        if self._open:
            return
        self._open = True
        # A store that fails again soon after it came back is given ever more time, or its state would flap.
        steady = asyncio.get_running_loop().time() - self._back_since > self._policy.backend_retry_max_seconds
        self._failures = 0 if steady else self._failures + 1
        self._schedule()
        self._up.set(0)
        kind = spans.error_type(error)
        logger.warning(
            "Cache '%s': shared store out of use (%s); working from memory until it is back", self._operation, kind
        )
        events.emit("cache.backend.degraded", operation=self._operation, error_type=kind)

    def _schedule(self) -> None:
        policy = self._policy
        wait = min(policy.backend_retry_max_seconds, policy.backend_retry_seconds * 2 ** min(self._failures, 16))
        # Half to full: replicas that lost the store together must not return to it together.
        self._retry_at = asyncio.get_running_loop().time() + wait * random.uniform(0.5, 1.0)  # noqa: S311

    def _probe_if_due(self) -> None:
        loop = asyncio.get_running_loop()
        if loop.time() < self._retry_at:
            return
        if self._probe is not None and not self._probe.done() and self._probe.get_loop() is loop:
            return
        self._probe = spawn(self._try_again(), name="cache store probe")

    async def _try_again(self) -> None:
        budget = self._policy.backend_budget_seconds
        try:
            # A store that takes nothing (read-only, out of memory) is not back, nor is one that only takes.
            await self._within(lambda: self._store.probe(self._prefix), budget)
            while self._due:
                await self._within(self._pay, self._paying_seconds())
        except Exception:  # noqa: BLE001 - it is not back, whatever it says
            self._failures += 1
            self._schedule()
            return
        self._open = False
        self._back_since = asyncio.get_running_loop().time()
        self._up.set(1)
        logger.warning("Cache '%s': shared store back in use", self._operation)
        events.emit("cache.backend.recovered", operation=self._operation)


async def _in_time(future: asyncio.Future[T], budget_seconds: float) -> T:
    # Whoever waits for a plain future is free as soon as it is cancelled: no need of a task.
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
        # The loop itself was held up: the answer may have come long ago, and only waits to be read.
        loop.call_later(budget_seconds, _expire, future, math.inf, budget_seconds)
    else:
        future.set_exception(TimeoutError())


async def _run(work: Awaitable[T], over: asyncio.Future[None]) -> T:
    try:
        return await work
    finally:
        # From in here: a callback on the task would cost every access one more turn of the loop.
        _release(over)


def _release(over: asyncio.Future[None]) -> None:
    if not over.done():
        over.set_result(None)
