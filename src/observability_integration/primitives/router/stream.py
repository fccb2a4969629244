"""How a router streams: it decides when the stream is opened, and counts when it has ended."""

from __future__ import annotations

import time
from asyncio import CancelledError
from collections.abc import Awaitable, Callable
from typing import Any

from observability_integration.context import WorkflowContext
from observability_integration.primitives.base import ChunkStream
from observability_integration.primitives.streams import ObservedStream, Outcome
from observability_integration.telemetry.tracing.spans import OperationSpan

from .record import RouteRecord


class RouterStream(ObservedStream):
    """The chosen route's stream, under the span of the router. Made by `RouterPrimitive.stream`."""

    def __init__(
        self,
        begin: Callable[[], OperationSpan],
        choose: Callable[[OperationSpan], Awaitable[RouteRecord]],
        input_data: Any,
        context: WorkflowContext,
    ) -> None:
        self._begin_span = begin
        self._choose = choose
        self._input = input_data
        self._context = context
        self._route: RouteRecord | None = None
        self._inner: ChunkStream | None = None
        self._chunks: Any = None
        self._started = 0.0

    def _begin(self) -> OperationSpan:
        return self._begin_span()

    async def _open(self) -> None:
        self._route = await self._choose(self._span)
        self._started = time.perf_counter()
        self._inner = self._route.step.stream(self._input, self._context)  # type: ignore[union-attr]
        self._chunks = await self._inner.__aenter__()

    async def _next(self) -> Any:
        return await anext(self._chunks)

    async def _close(self) -> None:
        if self._chunks is not None and self._inner is not None:
            await self._inner.__aexit__(None, None, None)

    def _record(self, outcome: Outcome, error: BaseException | None) -> None:
        if self._route is not None:
            self._route.ended(self._span, self._started, None if outcome == "success" else error or CancelledError())
