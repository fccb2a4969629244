"""A provider's answer in chunks: time to the first, time between them, tokens and reasons as they come in."""

from __future__ import annotations

import inspect
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

from observability_integration.costs.usage import (
    Usage,
    finish_reasons_of,
    id_of,
    is_provider_chunk,
    model_of,
    usage_of,
)
from observability_integration.errors import ConfigurationError, StreamInterruptedError
from observability_integration.resilience.faults import FaultKind, classify
from observability_integration.telemetry import instruments, semconv, spans
from observability_integration.telemetry.guard import note_fault
from observability_integration.telemetry.spans import OperationSpan

from .llm_content import chunk_text, streamed_content
from .streams import ObservedStream, Outcome, is_content

# Faults of the connection that come too late to harm an answer whose finish reason is there.
_LATE: frozenset[FaultKind] = frozenset({"connection", "malformed", "stream_cut"})
_MOST_MALFORMED = 16  # chunks; what sends more of them does not send an answer


class LLMStream(ObservedStream):
    """One streamed call. Made by `LLMCallPrimitive.stream`.

    Args:
        name: of the primitive, for errors.
        call: what the metrics are labelled with.
        begin: begins the span.
        start: makes the call; returns the chunks, or what awaits them.
    """

    def __init__(
        self, name: str, call: semconv.Call, begin: Callable[[], OperationSpan], start: Callable[[], Any]
    ) -> None:
        self._name = name
        self._call = call
        self._begin_span = begin
        self._start = start
        self._source: Any = None
        self._chunks: AsyncIterator[Any] | None = None
        self._started = 0.0
        self._last_chunk = 0.0
        self._count = 0
        self._usage = Usage()
        self._response_model: str | None = None
        self._response_id: str | None = None
        self._reasons: tuple[str, ...] = ()
        self._announces_end = False
        self._malformed: list[Exception] = []
        self._count_at_malformed = 0
        self._text: list[str] | None = [] if spans.tracing.captures_content else None

    def _begin(self) -> OperationSpan:
        return self._begin_span()

    async def _open(self) -> None:
        self._started = time.perf_counter()
        opened = self._start()
        if inspect.isawaitable(opened):
            opened = await opened
        if not hasattr(opened, "__aiter__"):
            raise ConfigurationError("stream() needs a call that returns an async iterator; pass stream_call=")
        self._source = opened
        self._chunks = aiter(opened)

    async def _next(self) -> Any:
        chunk = await self._readable()
        try:
            self._note(chunk)
        except Exception as error:  # noqa: BLE001 - reading an odd chunk must not fail the call
            note_fault("llm_call.chunk", error)
        return chunk

    async def _readable(self) -> Any:
        """The next chunk that can be read."""
        while True:
            try:
                return await anext(cast("AsyncIterator[Any]", self._chunks))
            except StopAsyncIteration:
                self._check_whole()
                raise
            except Exception as error:
                kind = classify(error).kind
                if self._reasons and kind in _LATE:
                    # The answer is complete; that the connection did not end as it should takes nothing from it.
                    raise StopAsyncIteration from error
                if kind != "malformed" or len(self._malformed) >= _MOST_MALFORMED:
                    raise
                self._malformed.append(error)
                self._count_at_malformed = self._count

    def _check_whole(self) -> None:
        """Raises unless the answer that has ended is whole."""
        whole = bool(self._reasons) or not self._announces_end
        if self._malformed and not self._reasons and self._count == self._count_at_malformed:
            whole = False  # nothing came after what could not be read: that was the end of it
        if self._malformed:
            outcome = "skipped" if whole else "fatal"
            instruments.STREAM_MALFORMED_CHUNKS.series(self._name, outcome).add(len(self._malformed))
            self._span.set_attribute("stream.malformed_chunks", len(self._malformed))
        if whole:
            return
        if self._malformed:
            raise self._malformed[-1]
        raise StreamInterruptedError(self._name, self._count, "no_finish_reason") from None

    def _note(self, chunk: Any) -> None:
        now = time.perf_counter()
        self._count += 1
        if is_content(chunk):
            if not self._last_chunk:
                self._span.set_attribute(semconv.TIME_TO_FIRST_CHUNK, now - self._started)
                semconv.record_first_chunk(self._call, now - self._started, self._span)
            else:
                semconv.record_chunk_gap(self._call, now - self._last_chunk, self._span)
            self._last_chunk = now
        if not isinstance(chunk, str):
            self._announces_end = self._announces_end or is_provider_chunk(chunk)
            self._reasons = finish_reasons_of(chunk) or self._reasons
            self._usage = self._usage.merged(usage_of(chunk))
            self._response_model = self._response_model or model_of(chunk)
            self._response_id = self._response_id or id_of(chunk)
        if self._text is not None:
            self._text.append(chunk_text(chunk))

    async def _close(self) -> None:
        try:
            await _close(self._chunks)
        finally:
            # Closing an iterator does not close what it reads from: an SDK's stream holds a connection.
            if self._source is not self._chunks:
                await _close(self._source)

    def _record(self, outcome: Outcome, error: BaseException | None) -> None:
        span = self._span
        if self._response_model is not None:
            span.set_attribute(semconv.RESPONSE_MODEL, self._response_model)
        if self._response_id is not None:
            span.set_attribute(semconv.RESPONSE_ID, self._response_id)
        if self._reasons:
            span.set_attribute(semconv.FINISH_REASONS, self._reasons)
        for key, count in semconv.token_attributes(self._usage).items():
            span.set_attribute(key, count)
        if self._text:
            span.set_attribute(semconv.OUTPUT_MESSAGES, streamed_content(self._text))
        error_type = self._error_type(outcome, error)
        if error_type is not None:
            span.set_attribute("error.type", error_type)
        seconds = time.perf_counter() - self._started
        semconv.record_call(self._call, self._response_model, seconds, error_type, self._usage, span)

    def _error_type(self, outcome: Outcome, error: BaseException | None) -> str | None:
        if error is not None:
            return spans.error_type(error)
        # A reader that leaves once the reason was given has the whole answer.
        return None if outcome == "success" or (outcome == "closed" and self._reasons) else outcome


async def _close(part: Any) -> None:
    close = getattr(part, "aclose", None) or getattr(part, "close", None)
    if close is not None:
        closing = close()
        if inspect.isawaitable(closing):
            await closing
