"""`ParallelPrimitive`: runs several steps at once on the same input."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Generic

from observability_integration.checks import check_count
from observability_integration.context import WorkflowContext
from observability_integration.errors import ConfigurationError
from observability_integration.primitives.base import In, Out, WorkflowPrimitive, check_time_left
from observability_integration.primitives.lifting import lift
from observability_integration.tasks import keep_alive
from observability_integration.telemetry.tracing import spans


class ParallelPrimitive(WorkflowPrimitive[In, list[Out]], Generic[In, Out]):
    """Runs steps concurrently and returns their results in order; ``a | b`` makes one. Nested ones are flattened.

    The first failure cancels the other branches, waits for their end, and passes through unchanged.

    Args:
        branches: primitives or async callables, at least one.
        max_concurrency: branches that run at a time; None means all.

    Raises:
        ConfigurationError: no branches, or a `max_concurrency` below 1.
    """

    def __init__(self, branches: Sequence[Any], *, max_concurrency: int | None = None) -> None:
        check_count("max_concurrency", max_concurrency, optional=True)
        self.max_concurrency = max_concurrency
        self._branches: list[WorkflowPrimitive[Any, Any]] = []
        for branch in branches:
            lifted: WorkflowPrimitive[Any, Any] = lift(branch)
            nested = isinstance(branch, ParallelPrimitive) and branch.max_concurrency == max_concurrency
            self._branches += [inner for _, inner in lifted.steps()] if nested else [lifted]
        if not self._branches:
            raise ConfigurationError("a parallel step needs at least one branch")

    @property
    def name(self) -> str:
        """``parallel``."""
        return "parallel"

    def steps(self) -> Sequence[tuple[str, WorkflowPrimitive[Any, Any]]]:
        """The branches, numbered from 1."""
        return [(str(number), branch) for number, branch in enumerate(self._branches, 1)]

    async def execute(self, input_data: In, context: WorkflowContext | None = None) -> list[Out]:
        """Runs the branches. The first error cancels the others and passes through.

        Raises:
            PrimitiveTimeoutError: the deadline has passed.
        """
        check_time_left(self, context)
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
        pending = iter(enumerate(self._branches))

        # No TaskGroup: it would wrap the error in an ExceptionGroup.
        async def work() -> None:
            for index, branch in pending:
                results[index] = await branch.execute(input_data, context)

        concurrency = min(len(self._branches), self.max_concurrency or len(self._branches))
        workers = [asyncio.ensure_future(work()) for _ in range(concurrency)]
        first_failure = await _until_failure(workers)
        if first_failure is not None:
            first_failure.result()
        return results


async def _until_failure(tasks: Sequence[asyncio.Task[None]]) -> asyncio.Task[None] | None:
    """Waits for all tasks, or for the first that fails or is cancelled. Cancels the others, and returns that one."""
    running = len(tasks)
    outcome: asyncio.Future[asyncio.Task[None] | None] = asyncio.get_running_loop().create_future()

    def ended(task: asyncio.Task[None]) -> None:
        nonlocal running
        running -= 1
        failed = task.cancelled() or task.exception() is not None
        if not outcome.done() and (failed or running == 0):
            outcome.set_result(task if failed else None)

    for task in tasks:
        task.add_done_callback(ended)
    try:
        return await outcome
    finally:
        unfinished = [keep_alive(task) for task in tasks if task.cancel()]
        if unfinished:
            await asyncio.wait(unfinished)
