"""Work that ignored its cancellation: counted, logged, and seen out."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

from observability_integration.telemetry.metrics.instruments import TIMEOUT_ABANDONED, TIMEOUT_ABANDONED_ACTIVE

logger = logging.getLogger("observability_integration")


def left_behind(operation: str, task: asyncio.Future[Any]) -> None:
    """Counts work of `operation` that did not end when it was cancelled; `task` is done when it does end."""
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
