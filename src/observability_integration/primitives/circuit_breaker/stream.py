"""How a circuit breaker streams: it asks for leave when the stream is opened, and tells the breaker how it ended."""

from __future__ import annotations

from asyncio import CancelledError
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, cast

from observability_integration.context import WorkflowContext
from observability_integration.primitives.base import ChunkStream, WorkflowPrimitive
from observability_integration.primitives.chunks import is_content
from observability_integration.primitives.streams import ObservedStream, Outcome
from observability_integration.telemetry.tracing.spans import OperationSpan

from .breaker import Permit

if TYPE_CHECKING:
    from .primitive import CircuitBreakerPrimitive


class BreakerStream(ObservedStream):
    """A stream that the breaker let through. Made by `CircuitBreakerPrimitive.stream`.

    A reader who leaves after some content was served: a success. Before any: it says nothing about the target.
    """

    def __init__(
        self,
        owner: CircuitBreakerPrimitive[Any, Any],
        step: WorkflowPrimitive[Any, Any],
        input_data: Any,
        context: WorkflowContext | None,
    ) -> None:
        self._owner = owner
        self._step = step
        self._input = input_data
        self._context = context
        self._permit: Permit | None = None
        self._inner: ChunkStream | None = None
        self._chunks: AsyncIterator[Any] | None = None
        self._served = False
        self._began = 0.0
        self._cancelled = False

    def _begin(self) -> OperationSpan:
        return self._owner.begin(self._context)

    async def _open(self) -> None:
        self._permit = self._owner.enter(self._span)
        self._began = self._owner.began(self._context)
        inner = self._step.stream(self._input, self._context)
        self._chunks = await inner.__aenter__()
        self._inner = inner

    async def _next(self) -> Any:
        try:
            chunk = await anext(cast("AsyncIterator[Any]", self._chunks))
        except CancelledError:
            self._cancelled = True
            raise
        if not self._served:
            self._served = is_content(chunk)
        return chunk

    async def _close(self) -> None:
        if self._inner is not None:
            await self._inner.__aexit__(None, None, None)

    def _record(self, outcome: Outcome, error: BaseException | None) -> None:
        if self._permit is not None:  # else it was refused, which was counted
            left = outcome in ("closed", "abandoned") and self._served
            ended_by = CancelledError() if self._cancelled else error
            served = outcome == "success" or left
            self._owner.leave(self._span, self._permit, ended_by, self._began, served=served)
