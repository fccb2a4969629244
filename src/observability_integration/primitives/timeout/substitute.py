"""The fallback of a timeout, which runs in what the call left of its limit and grace.

So the caller has control back after limit and grace together, whatever the work and its fallback do.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any, cast

from observability_integration.context import WorkflowContext
from observability_integration.errors import PrimitiveTimeoutError
from observability_integration.primitives.base import ChunkStream, WorkflowPrimitive

from .stream import TimeoutStream

if TYPE_CHECKING:
    from .primitive import TimeoutPrimitive

#: Our choice: time for an answer that is at hand, such as a fixed text, if the clean-up has used up the whole grace.
LEAST_SECONDS = 0.05


class Substitute:
    """Runs the fallback of one timed-out call.

    Args:
        step: the fallback.
        operation: of the timeout.
        left_seconds: what is left of limit and grace.
    """

    def __init__(self, step: WorkflowPrimitive[Any, Any], operation: str, left_seconds: float) -> None:
        from .primitive import TimeoutPrimitive

        self._seconds = max(LEAST_SECONDS, left_seconds)
        self._operation = f"{operation} fallback"
        self._bounded: TimeoutPrimitive[Any, Any] = TimeoutPrimitive(step, self._seconds, 0.0, self._operation)

    async def execute(self, input_data: Any, context: WorkflowContext | None, error: PrimitiveTimeoutError) -> Any:
        """Runs the fallback.

        Raises:
            PrimitiveTimeoutError: `error`, the timeout of the call, if the fallback does not end in time either.
        """
        try:
            return await self._bounded.execute(input_data, context)
        except PrimitiveTimeoutError as late:
            if late.operation != self._operation or late.deadline_source != "own":
                raise
            raise self.explain(error) from late

    def stream(self, input_data: Any, context: WorkflowContext | None) -> TimeoutStream:
        """Returns the stream of the fallback."""
        return cast("TimeoutStream", self._bounded.stream(input_data, context))

    def explain(self, error: PrimitiveTimeoutError) -> PrimitiveTimeoutError:
        """Adds to the timeout of the call that its fallback ran out of time, and which knob gives it more."""
        error.add_note(
            f"Its fallback did not answer in {self._seconds:.2f}s, the rest of timeout_seconds and "
            "grace_period_seconds together; raise grace_period_seconds to allow more"
        )
        return error


class SubstituteStream(ChunkStream):
    """Replaces a stream that times out before its first content.

    After content nothing replaces the stream, because two answers are never spliced.

    Args:
        first: the stream that may time out.
        step: the fallback.
        operation: of the timeout.
        whole_seconds: limit and grace together.
        input_data: of the call.
        context: of the call.
    """

    def __init__(
        self,
        first: TimeoutStream,
        step: WorkflowPrimitive[Any, Any],
        operation: str,
        whole_seconds: float,
        input_data: Any,
        context: WorkflowContext | None,
    ) -> None:
        self._current = first
        self._step = step
        self._operation = operation
        self._whole_seconds = whole_seconds
        self._input = input_data
        self._context = context
        self._chunks: AsyncIterator[Any] = first
        self._substitute: Substitute | None = None
        self._timeout: PrimitiveTimeoutError | None = None

    async def __aenter__(self) -> AsyncIterator[Any]:
        self._begin_reading()
        await self._current.__aenter__()
        return self

    async def __anext__(self) -> Any:
        self._check_open()
        while True:
            try:
                return await anext(self._chunks)
            except PrimitiveTimeoutError as error:
                if error is not self._current.ran_out_before_content:
                    raise
                if self._substitute is not None and self._timeout is not None:
                    raise self._substitute.explain(self._timeout) from error
                self._timeout = error
            left = self._whole_seconds - self._current.waited_seconds
            self._substitute = Substitute(self._step, self._operation, left)
            self._current = self._substitute.stream(self._input, self._context)
            self._chunks = await self._current.__aenter__()

    async def __aexit__(self, exc_type: Any, exc: BaseException | None, tb: Any) -> None:
        self._phase = "closed"
        await self._current.__aexit__(exc_type, exc, tb)
