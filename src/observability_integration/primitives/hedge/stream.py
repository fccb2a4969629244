"""Hedges a stream: two may start, the reader gets one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from observability_integration.context import WorkflowContext
from observability_integration.primitives.base import ChunkStream
from observability_integration.primitives.pump import END, Rendezvous, run_pump
from observability_integration.primitives.streams import ObservedStream, Outcome
from observability_integration.tasks import keep_alive, wait_done
from observability_integration.telemetry.tracing import spans
from observability_integration.telemetry.tracing.spans import OperationSpan

from .race import Attempt, BufferedStream, HedgeRace
from .record import HedgeRecord, Role


class _StreamedAttempt(Attempt):
    """A call that delivers one chunk for each request of the reader."""

    __slots__ = ("rendezvous",)

    def __init__(self, role: Role, open_stream: Callable[[], ChunkStream]) -> None:
        loop = asyncio.get_running_loop()
        self.rendezvous = Rendezvous(loop)
        answer = self.rendezvous.ask()
        stream = BufferedStream(open_stream)
        task = keep_alive(loop.create_task(run_pump(stream, self.rendezvous), name=f"hedge: {role}"))
        super().__init__(role, task, answer, stream)

    def on_cancel(self) -> None:
        """Ends the requests of the reader."""
        self.rendezvous.leave()


class HedgeStream(ObservedStream):
    """One streamed call of a `HedgePrimitive`.

    Args:
        record: the record of the primitive.
        context: of the call.
        race: makes the race, given the span.
        open_stream: opens a stream of the first call, and one of the hedge.
    """

    def __init__(
        self,
        record: HedgeRecord,
        context: WorkflowContext | None,
        race: Callable[[OperationSpan], HedgeRace],
        open_stream: tuple[Callable[[], ChunkStream], Callable[[], ChunkStream]],
    ) -> None:
        super().__init__(record.operation, context)
        self._hedge_record = record
        self._make_race = race
        self._open_stream = open_stream
        self._race: HedgeRace | None = None
        self._winner: _StreamedAttempt | None = None

    def _begin(self) -> OperationSpan:
        return spans.begin(self._hedge_record.span_name, self._context)

    async def _open(self) -> None:
        """Opens nothing: the race starts with the first request for a chunk, so that a slow reader starts no hedge."""

    async def _next(self) -> Any:
        if self._race is None:
            self._race = self._make_race(self._span)
        race = self._race
        try:
            if self._winner is None:
                primary, hedge = self._open_stream
                self._winner = await race.decide(
                    lambda: _StreamedAttempt("primary", primary), lambda: _StreamedAttempt("hedge", hedge)
                )
                delivered = self._winner.answer
            else:
                delivered = self._winner.rendezvous.ask()
                await wait_done(delivered, None)
        except asyncio.CancelledError:
            await race.cancel()
            raise
        except GeneratorExit:
            race.cancel_now()
            raise
        chunk = delivered.result()
        if chunk is END:
            raise StopAsyncIteration
        return chunk

    async def _close(self) -> None:
        if self._race is not None and self._winner is not None:
            await self._race.close(self._winner)

    def _record(self, outcome: Outcome, error: BaseException | None) -> None:
        if self._race is not None:
            self._race.end()
        if error is not None:
            self._hedge_record.failed(self._span)
        elif self._race is None or self._winner is None or outcome == "cancelled":
            self._hedge_record.cancelled(self._span)
        else:
            self._hedge_record.succeeded(self._span, self._race.winner)

    def __del__(self) -> None:
        super().__del__()
        if self._race is not None:
            self._race.cancel_now()
