"""How a concurrency limit streams: the permit is held from the opening to the end."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, cast

from observability_integration.context import WorkflowContext
from observability_integration.primitives.base import ChunkStream, WorkflowPrimitive
from observability_integration.primitives.streams import ObservedStream, Outcome
from observability_integration.telemetry.tracing.spans import OperationSpan

from .permits import Permit
from .record import ConcurrencyRecord

if TYPE_CHECKING:
    from .primitive import ConcurrencyLimitPrimitive


class ConcurrencyStream(ObservedStream):
    """The limited step's stream, while it has a permit. Made by `ConcurrencyLimitPrimitive.stream`."""

    def __init__(
        self,
        primitive: ConcurrencyLimitPrimitive[Any, Any],
        record: ConcurrencyRecord,
        step: WorkflowPrimitive[Any, Any],
        input_data: Any,
        context: WorkflowContext | None,
    ) -> None:
        self._primitive = primitive
        self._in_flight = record.in_flight
        self._step = step
        self._input = input_data
        self._context = context
        self._permit: Permit | None = None
        self._inner: ChunkStream | None = None
        self._chunks: AsyncIterator[Any] | None = None

    def _begin(self) -> OperationSpan:
        return self._primitive.begin(self._context)

    async def _open(self) -> None:
        primitive = self._primitive
        self._permit = primitive.limiter.try_acquire() or await primitive.wait(self._span, self._input, self._context)
        self._in_flight.add(1)
        inner = self._step.stream(self._input, self._context)
        self._chunks = await inner.__aenter__()
        self._inner = inner

    async def _next(self) -> Any:
        return await anext(cast("AsyncIterator[Any]", self._chunks))

    async def _close(self) -> None:
        if self._inner is not None:
            await self._inner.__aexit__(None, None, None)

    def _record(self, outcome: Outcome, error: BaseException | None) -> None:
        permit = self._permit
        if permit is None:
            return
        self._in_flight.add(-1)
        if outcome == "success":
            permit.release("success")
        else:
            permit.release(self._primitive.outcome_of(error) if isinstance(error, Exception) else "neutral")
