"""The guard around the shared store: a time budget for each access, and a breaker with a background probe.

A store that is refused, silent, paused or broken costs one budget, once. From then on the breaker is open and nobody
waits: the cache works from memory, and a probe in the background (not on anyone's call) finds out when the store is
back. One log line and one event for each change.
"""

from __future__ import annotations

import asyncio
import logging
import random
from typing import Any

from observability_integration import events
from observability_integration.caching.policy import CachePolicy
from observability_integration.caching.stores.redis import SharedStore
from observability_integration.context import current_deadline
from observability_integration.tasks import own, spawn, wait_done
from observability_integration.telemetry import spans
from observability_integration.telemetry.instruments import CACHE_BACKEND_ERRORS, CACHE_BACKEND_UP

logger = logging.getLogger("observability_integration")


class GuardedStore:
    """A shared store that can never hold up or fail a call.

    Args:
        store: the store.
        operation: name for metrics and logs.
        policy: budget and retry times.
    """

    def __init__(self, store: SharedStore, operation: str, policy: CachePolicy) -> None:
        self._store = store
        self._operation = operation
        self._policy = policy
        self._open = False
        self._failures = 0
        self._retry_at = 0.0
        self._probe: asyncio.Task[None] | None = None
        self._up = CACHE_BACKEND_UP.declare(self, operation)
        self._up.set(1)

    @property
    def usable(self) -> bool:
        """Whether the store is in use, as opposed to waited for."""
        return not self._open

    async def get(self, key: str) -> bytes | str | None:
        """The entry; None when it is missing, late, or the store is out of use."""
        return await self._access(lambda: self._store.get(key))

    async def set(self, key: str, value: bytes, ttl_milliseconds: int) -> None:
        """Keeps an entry, if the store is in use."""
        await self._access(lambda: self._store.set(key, value, ttl_milliseconds))

    async def delete(self, *keys: str) -> None:
        """Forgets entries, if the store is in use."""
        await self._access(lambda: self._store.delete(*keys))

    async def clear(self, prefix: str) -> bool:
        """Forgets everything under `prefix`, however long that takes; False when the store is out of use."""
        if self._open:
            return False
        try:
            await self._store.clear(prefix)
        except Exception as error:  # noqa: BLE001 - any fault of the store ends its use, never the call
            self._trip(error)
            return False
        return True

    async def aclose(self) -> None:
        """Ends the probe and the store's own connections."""
        if self._probe is not None:
            self._probe.cancel()
        await self._store.aclose()

    async def _access(self, start: Any) -> Any:
        if self._open:
            self._probe_if_due()
            return None
        budget = self._policy.backend_budget_seconds
        deadline = current_deadline()
        if deadline is not None:
            budget = min(budget, deadline.remaining())
        # A task of its own: a client that is slow to notice a cancellation must not hold us up either.
        task = own(asyncio.get_running_loop().create_task(_run(start), name="cache store"))
        try:
            done = await wait_done(task, budget)
        except asyncio.CancelledError:
            task.cancel()
            raise
        if not done:
            task.cancel()
            if budget < self._policy.backend_budget_seconds:
                return None  # the caller's deadline was short; that says nothing about the store
            self._trip(TimeoutError())
            return None
        if task.cancelled():
            return None
        error = task.exception()
        if error is not None:
            self._trip(error)
            return None
        return task.result()

    def _trip(self, error: BaseException) -> None:
        kind = spans.error_type(error)
        CACHE_BACKEND_ERRORS.series(self._operation, kind).add()
        if self._open:
            return
        self._open = True
        self._failures = 0
        self._schedule()
        self._up.set(0)
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
        task = own(asyncio.get_running_loop().create_task(self._store.ping(), name="cache store ping"))
        done = await wait_done(task, self._policy.backend_budget_seconds)
        if not done or task.cancelled() or task.exception() is not None:
            task.cancel()
            self._failures += 1
            self._schedule()
            return
        self._open = False
        self._up.set(1)
        logger.warning("Cache '%s': shared store back in use", self._operation)
        events.emit("cache.backend.recovered", operation=self._operation)


async def _run(start: Any) -> Any:
    return await start()
