"""How a cache streams: straight through, under a span of its own; streams are not kept."""

from __future__ import annotations

from typing import Any

from observability_integration.context import WorkflowContext
from observability_integration.telemetry import spans
from observability_integration.telemetry.instruments import CACHE_BYPASSES
from observability_integration.telemetry.spans import OperationSpan

from .base import ChunkStream, WorkflowPrimitive
from .streams import PassingStream


def passed_through(
    operation: str, step: WorkflowPrimitive[Any, Any], input_data: Any, context: WorkflowContext | None
) -> ChunkStream:
    """The step's stream, unchanged; counted as a bypass when it is opened."""

    def begin() -> OperationSpan:
        CACHE_BYPASSES.series(operation, "stream").add()
        span = spans.tracing.begin(f"cache {operation}", {"cache.bypass": "stream"})
        if context is not None:
            spans.identify(span, context)
        return span

    async def find(_: OperationSpan) -> ChunkStream:
        return step.stream(input_data, context)

    return PassingStream(begin, find)
