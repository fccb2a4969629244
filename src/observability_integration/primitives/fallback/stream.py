"""A stream that fails over: silently before its first content, with a `StreamRestart` or an error afterwards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from observability_integration.context import WorkflowContext
from observability_integration.primitives.base import ChunkStream
from observability_integration.primitives.first_content import FirstContent, broken_off
from observability_integration.primitives.streams import ObservedStream, Outcome, StreamRestart
from observability_integration.resilience.faults.caller import mark_begun
from observability_integration.resilience.last_resort import last_resort
from observability_integration.telemetry.tracing import spans
from observability_integration.telemetry.tracing.spans import OperationSpan

from .search import Failover, Search, Target


class FallbackStream(ObservedStream):
    """One streamed call of a `FallbackPrimitive`.

    Args:
        failover: selects the next target.
        open_target: opens the stream of a target.
        context: of the call.
    """

    def __init__(
        self, failover: Failover, open_target: Callable[[Target], ChunkStream], context: WorkflowContext | None
    ) -> None:
        super().__init__(failover.record.operation, context)
        self._failover = failover
        self._records = failover.record
        self._search = Search(failover.targets)
        self._open_target = open_target
        self._attempt: FirstContent | None = None

    def _begin(self) -> OperationSpan:
        return spans.begin(self._records.span_name, self._context)

    async def _open(self) -> None:
        """Opens nothing: the first target's stream begins with the first chunk that is requested."""

    async def _next(self) -> Any:
        while True:
            if self._attempt is None:
                self._attempt = FirstContent(self._open_target(self._search.target))
            attempt = self._attempt
            previous = last_resort.set(self._search.is_last_resort(last_resort.get()))
            try:
                return await attempt.next()
            except StopAsyncIteration:
                raise
            except Exception as caught:  # noqa: BLE001 - raised again unless another target is asked
                error = caught
            finally:
                last_resort.reset(previous)
            restart = await self._fail_over(attempt, error)
            if restart is not None:
                return restart

    async def _fail_over(self, attempt: FirstContent, error: Exception) -> StreamRestart | None:
        """Moves to the next target, or raises the error for the reader."""
        if attempt.begun:
            mark_begun(error)
        fault = self._failover.fault_of(error)
        if attempt.shown and not (self._failover.restart_streams and fault.turns_to_next):
            self._records.failed(self._span, "fault")
            broken = broken_off(self._records.operation, attempt.chunks, fault, error)
            if broken is error:
                raise error
            raise broken from error
        self._failover.advance(self._span, self._search, error, self._context)
        self._attempt = None
        await attempt.give_up(error)
        if not attempt.shown:
            return None
        self._records.restarted(self._span)
        return StreamRestart(self._search.target.name, fault.kind, attempt.chunks)

    async def _close(self) -> None:
        if self._attempt is not None:
            await self._attempt.close()

    def _record(self, outcome: Outcome, error: BaseException | None) -> None:
        search = self._search
        if outcome == "cancelled":
            self._records.cancelled(self._span)
        elif outcome == "success" or (error is None and self._attempt is not None and self._attempt.shown):
            self._records.served(self._span, search.index, search.fault)
