"""A stream that fails over: unseen until its first content is handed out, and in the open afterwards."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from observability_integration.context import WorkflowContext
from observability_integration.primitives.base import ChunkStream
from observability_integration.primitives.first_content import FirstContent, broken_off
from observability_integration.primitives.streams import ObservedStream, Outcome, StreamRestart
from observability_integration.resilience.last_resort import last_resort
from observability_integration.telemetry.tracing import spans
from observability_integration.telemetry.tracing.spans import OperationSpan

from .search import Failover, Search, Target


class FallbackStream(ObservedStream):
    """One streamed call of a `FallbackPrimitive`.

    Args:
        failover: decides which target is asked next.
        open_at: begins the stream of a target.
        context: of the call.
    """

    def __init__(
        self, failover: Failover, open_at: Callable[[Target], ChunkStream], context: WorkflowContext | None
    ) -> None:
        self._failover = failover
        self._records = failover.record
        self._search = Search(failover.targets)
        self._open_at = open_at
        self._context = context
        self._attempt: FirstContent | None = None

    def _begin(self) -> OperationSpan:
        return spans.begin(self._records.span_name, self._context)

    async def _open(self) -> None:
        """The first chunk that is asked for opens the first target's stream."""

    async def _next(self) -> Any:
        while True:
            if self._attempt is None:
                self._attempt = FirstContent(self._open_at(self._search.target))
            attempt = self._attempt
            resort = last_resort.set(self._search.is_last_resort(last_resort.get()))
            try:
                return await attempt.next()
            except StopAsyncIteration:
                raise
            except Exception as caught:  # noqa: BLE001 - raised again unless another target is asked
                error = caught
            finally:
                last_resort.reset(resort)
            restart = await self._fail_over(attempt, error)
            if restart is not None:
                return restart

    async def _fail_over(self, attempt: FirstContent, error: Exception) -> StreamRestart | None:
        """Moves to the next target, or raises what the reader is told."""
        fault = self._failover.fault_of(error)
        if attempt.shown and not (self._failover.restart_streams and fault.turns_to_next):
            self._records.failed(self._span, "fault")
            told = broken_off(self._records.operation, attempt.chunks, fault, error)
            if told is error:
                raise error
            raise told from error
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
