"""The guard around a shared ledger: a time budget for each access, and a breaker with a background probe.

A Redis that is refused, silent or broken costs one budget, once. From then on the process limits by itself, and a probe
in the background, on nobody's call, finds out when the ledger is back. One log line and one event for each change.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Sequence

from observability_integration import events
from observability_integration.tasks import cancel_until_done, own, spawn, wait_done
from observability_integration.telemetry.tracing import spans

from .shared import Answer, News, SharedLedger, Terms

logger = logging.getLogger("observability_integration")

_RETRY_SECONDS = 1.0
_RETRY_MAX_SECONDS = 30.0
_LATE = 1.2  # a timer that fires so many times too late shows that the loop could not run


class GuardedLedger:
    """A shared ledger that can neither hold up nor fail a call.

    Args:
        ledger: the ledger.
        name: of the limit, for logs and events.
        budget_seconds: how long an answer may take, > 0.
        on_error: told of each access that failed, with the type of the error.
    """

    def __init__(
        self, ledger: SharedLedger, name: str, budget_seconds: float, on_error: Callable[[str], None] | None = None
    ) -> None:
        self._ledger = ledger
        self._name = name
        self._budget = budget_seconds
        self._on_error = on_error
        self._open = False
        self._failures = 0
        self._retry_at = 0.0
        self._probe: asyncio.Task[None] | None = None

    @property
    def in_use(self) -> bool:
        """Whether the ledger is asked."""
        return not self._open

    def look(self) -> bool:
        """The same; if it is not, and it is time, somebody looks in the background whether it is back."""
        if self._open:
            self._probe_if_due()
        return not self._open

    async def take(self, line: str, terms: Terms, news: News, calls: Sequence[tuple[float, float]]) -> Answer | None:
        """See `SharedLedger.take`; None when the ledger is out of use, late, or fails."""
        if self._open:
            return None
        try:
            return await self._within(line, terms, news, calls)
        except Exception as error:  # noqa: BLE001 - any fault of the ledger ends its use, never the call
            if self._on_error is not None:
                self._on_error(spans.error_type(error))
            self._trip(error)
            return None

    async def aclose(self) -> None:
        """Ends the probe and the ledger's own connections."""
        probe = self._probe
        if probe is not None and probe.get_loop() is asyncio.get_running_loop() and not probe.done():
            probe.cancel()
            await wait_done(probe, None)
        await self._ledger.aclose()

    async def _within(self, line: str, terms: Terms, news: News, calls: Sequence[tuple[float, float]]) -> Answer:
        loop = asyncio.get_running_loop()
        began = loop.time()
        # A task of its own: a client that is slow to notice a cancellation must not hold us up either.
        task = own(loop.create_task(self._ledger.take(line, terms, news, calls), name="rate limit ledger"))
        try:
            ended = await wait_done(task, self._budget)
            if not ended and loop.time() - began > _LATE * self._budget:
                # The loop itself was held up: the answer may have come long ago, and only waits to be read.
                ended = await wait_done(task, self._budget)
        except asyncio.CancelledError:
            cancel_until_done(task)
            raise
        if not ended or task.cancelled():
            cancel_until_done(task)
            raise TimeoutError
        return task.result()

    def _trip(self, error: BaseException) -> None:
        if self._open:
            return
        self._open = True
        self._failures = 0
        self._schedule()
        kind = spans.error_type(error)
        logger.warning(
            "Rate limit '%s': shared limit out of use (%s); each process limits by itself until it is back",
            self._name,
            kind,
        )
        events.emit("rate_limit.backend.degraded", operation=self._name, error_type=kind)

    def _schedule(self) -> None:
        wait = min(_RETRY_MAX_SECONDS, _RETRY_SECONDS * 2.0 ** min(self._failures, 16))
        # Half to full: replicas that lost it together must not return to it together.
        self._retry_at = asyncio.get_running_loop().time() + wait * random.uniform(0.5, 1.0)  # noqa: S311

    def _probe_if_due(self) -> None:
        loop = asyncio.get_running_loop()
        if loop.time() < self._retry_at:
            return
        probe = self._probe
        if probe is not None and not probe.done() and probe.get_loop() is loop:
            return
        self._probe = spawn(self._try_again(), name="rate limit probe")

    async def _try_again(self) -> None:
        try:
            await self._within("probe", Terms(), News(), ())
        except Exception:  # noqa: BLE001 - it is not back, whatever it says
            self._failures += 1
            self._schedule()
            return
        self._open = False
        logger.warning("Rate limit '%s': shared limit back in use", self._name)
        events.emit("rate_limit.backend.recovered", operation=self._name)
