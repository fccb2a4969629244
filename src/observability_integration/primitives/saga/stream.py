"""Streams a saga: reads the last step, and completes the saga at the end of that stream."""

from __future__ import annotations

from asyncio import CancelledError
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, cast

from observability_integration.context import WorkflowContext
from observability_integration.primitives.base import ChunkStream, check_time_left
from observability_integration.primitives.streams import ObservedStream, Outcome
from observability_integration.telemetry.tracing.spans import OperationSpan

from .run import BoundStep, SagaRun


class SagaStream(ObservedStream):
    """Runs the other steps, then streams the last one. Made by `SagaPrimitive.stream`."""

    def __init__(
        self,
        name: str,
        begin: Callable[[], OperationSpan],
        start_run: Callable[[OperationSpan], SagaRun],
        steps: Sequence[BoundStep],
        input_data: Any,
        context: WorkflowContext,
    ) -> None:
        super().__init__(name, context)
        self._begin_span = begin
        self._start_run = start_run
        self._steps = steps
        self._input = input_data
        self._run: SagaRun | None = None
        self._inner: ChunkStream | None = None
        self._chunks: AsyncIterator[Any] | None = None
        self._outlasts_cancellation = True

    def _begin(self) -> OperationSpan:
        return self._begin_span()

    async def _open(self) -> None:
        self._run = run = self._start_run(self._span)
        *before, last = self._steps
        try:
            value = self._input
            for step in before:
                check_time_left(step.name, self._context)
                run.step = step
                value = await step.call(value, self._context)
                run.complete_step(step, value)
            check_time_left(last.name, self._context)
            run.step = last
            inner = last.step.stream(value, self._context)
            self._chunks = await inner.__aenter__()
            self._inner = inner
        except GeneratorExit:
            raise
        except BaseException as error:
            await run.fail(error)
            raise

    async def _next(self) -> Any:
        run = cast("SagaRun", self._run)
        try:
            return await anext(cast("AsyncIterator[Any]", self._chunks))
        except StopAsyncIteration:
            run.complete()
            raise
        except GeneratorExit:
            raise
        except BaseException as error:
            await run.fail(error)
            raise

    async def __aexit__(self, exc_type: Any, exc: BaseException | None, tb: Any) -> None:
        self._outlasts_cancellation = not isinstance(exc, CancelledError)
        await super().__aexit__(exc_type, exc, tb)

    async def _close(self) -> None:
        try:
            if self._inner is not None:
                await self._inner.__aexit__(None, None, None)
        except GeneratorExit:
            raise
        except BaseException as error:
            await self._compensate(outlasts_cancellation=not isinstance(error, CancelledError))
            raise
        await self._compensate(outlasts_cancellation=self._outlasts_cancellation)

    async def _compensate(self, *, outlasts_cancellation: bool) -> None:
        if self._run is not None and not self._run.ended:
            await self._run.compensate(outlasts_cancellation=outlasts_cancellation)

    def _record(self, outcome: Outcome, error: BaseException | None) -> None:
        if self._run is not None and not self._run.ended:
            self._run.abandon()
