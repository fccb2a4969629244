"""ParallelPrimitive: the same input to several steps at once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Generic, cast

from observability_integration.context import WorkflowContext
from observability_integration.errors import ConfigurationError
from observability_integration.telemetry import spans

from .base import In, Out, WorkflowPrimitive
from .lifting import lift


class ParallelPrimitive(WorkflowPrimitive[In, list[Out]], Generic[In, Out]):
    """Runs steps concurrently and returns their results in order; ``a | b`` makes one. Nested ones are flattened.

    The first failure cancels the others, waits for them to end, and passes through unchanged.

    Args:
        branches: primitives or async callables, at least one.
        max_concurrency: how many run at a time; None for all.

    Raises:
        ConfigurationError: no branches, or a `max_concurrency` below 1.
    """

    def __init__(self, branches: Sequence[Any], *, max_concurrency: int | None = None) -> None:
        self._branches: list[WorkflowPrimitive[Any, Any]] = []
        for branch in branches:
            lifted = lift(branch)
            if isinstance(lifted, ParallelPrimitive) and lifted._max_concurrency == max_concurrency:
                self._branches += cast("ParallelPrimitive[Any, Any]", lifted)._branches
            else:
                self._branches.append(lifted)
        if not self._branches:
            raise ConfigurationError("a parallel step needs at least one branch")
        if max_concurrency is not None and (isinstance(max_concurrency, bool) or max_concurrency < 1):
            raise ConfigurationError(f"max_concurrency must be >= 1 or None, got {max_concurrency!r}")
        self._max_concurrency = max_concurrency

    @property
    def name(self) -> str:
        """``parallel``."""
        return "parallel"

    def steps(self) -> Sequence[tuple[str, WorkflowPrimitive[Any, Any]]]:
        """The branches, numbered from 1."""
        return [(str(number), branch) for number, branch in enumerate(self._branches, 1)]

    async def execute(self, input_data: In, context: WorkflowContext | None = None) -> list[Out]:
        """Runs the branches; the first error cancels the others and passes through."""
        context = WorkflowContext() if context is None else context
        span = spans.tracing.begin("parallel", {"parallel.branches": len(self._branches)})
        token = spans.tracing.activate(span)
        try:
            return await self._run(input_data, context)
        except Exception as error:
            spans.tracing.mark_failed(span, error)
            raise
        finally:
            spans.tracing.deactivate(token)
            span.end()

    async def _run(self, input_data: In, context: WorkflowContext) -> list[Out]:
        results: list[Any] = [None] * len(self._branches)
        waiting = iter(enumerate(self._branches))

        # As many workers as may run at a time; a TaskGroup would wrap the error in an ExceptionGroup.
        async def work() -> None:
            for index, branch in waiting:
                results[index] = await branch.execute(input_data, context)

        width = min(len(self._branches), self._max_concurrency or len(self._branches))
        workers = [asyncio.ensure_future(work()) for _ in range(width)]
        try:
            done, _ = await asyncio.wait(workers, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            await _cancel_all(workers)
        for worker in workers:
            if worker in done and not worker.cancelled():
                worker.result()
        for worker in workers:
            worker.result()
        return results


async def _cancel_all(tasks: list[asyncio.Future[None]]) -> None:
    left = [task for task in tasks if not task.done()]
    for task in left:
        task.cancel()
    if left:
        await asyncio.wait(left)
    for task in tasks:
        if not task.cancelled():
            task.exception()  # marks it as retrieved
