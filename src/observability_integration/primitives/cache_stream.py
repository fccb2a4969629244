"""How a cache streams: straight through, under a span of its own."""

from __future__ import annotations

from typing import Any

from observability_integration.context import WorkflowContext
from observability_integration.telemetry import spans
from observability_integration.telemetry.spans import OperationSpan

from .base import ChunkStream, WorkflowPrimitive
from .streams import ObservedStream, Outcome


class PassedThrough(ObservedStream):
    """The wrapped primitive's stream, unchanged and not kept."""

    def __init__(
        self, span_name: str, step: WorkflowPrimitive[Any, Any], input_data: Any, context: WorkflowContext | None
    ) -> None:
        self._span_name = span_name
        self._context = context
        self._inner: ChunkStream = step.stream(input_data, context)
        self._chunks: Any = None

    def _begin(self) -> OperationSpan:
        span = spans.tracing.begin(self._span_name, {"cache.bypass": "stream"})
        if self._context is not None:
            spans.identify(span, self._context)
        return span

    async def _open(self) -> None:
        self._chunks = await self._inner.__aenter__()

    async def _next(self) -> Any:
        return await anext(self._chunks)

    async def _close(self) -> None:
        if self._chunks is not None:
            await self._inner.__aexit__(None, None, None)

    def _record(self, outcome: Outcome, error: BaseException | None) -> None:
        """Nothing: a bypass is counted when it begins."""
