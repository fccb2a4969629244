"""Streams a provider's answer; records time to first chunk, time between chunks, tokens and finish reasons."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

from observability_integration.errors import ProviderStreamError, StreamInterruptedError
from observability_integration.primitives.chunks import chunk_text, is_content
from observability_integration.primitives.streams import ObservedStream, Outcome
from observability_integration.resilience.faults import FaultKind, classify
from observability_integration.telemetry import semconv
from observability_integration.telemetry.catalogue.resilience import STREAM_MALFORMED_CHUNKS
from observability_integration.telemetry.guard import note_fault
from observability_integration.telemetry.tracing import spans
from observability_integration.telemetry.tracing.spans import OperationSpan

from .chunk_error import error_in
from .content import answer_content, sendable, streamed_content
from .facts import AnswerFacts
from .source import AnswerSource
from .tail import TailTimeout

# Faults that do not harm an answer whose finish reason has arrived and is final.
_HARMLESS_AT_END: frozenset[FaultKind] = frozenset({"connection", "malformed", "stream_cut", "timeout"})
# What code raises that meets data of another form than it expects. Subclasses are errors that an application designed.
_MISREADINGS = frozenset({AttributeError, IndexError, KeyError, TypeError, ValueError})
_MAX_MALFORMED = 16  # chunks; a source that sends more of them does not send an answer


class LLMStream(ObservedStream):
    """One streamed call. Made by `LLMCallPrimitive.stream`.

    Args:
        name: name of the primitive, for errors.
        call: labels of the metrics.
        begin: begins the span.
        start: makes the call; returns a source of chunks (see `AnswerSource`).
        announces_end: whether an answer without a finish reason was cut; None goes by the shape of the chunks. If
            False, a finish reason is no end either.
        choices: how many choices the request asks for; None if that is unknown.
        context: of the call.
    """

    def __init__(
        self,
        name: str,
        call: semconv.Call,
        begin: Callable[[], OperationSpan],
        start: Callable[[], Any],
        announces_end: bool | None,
        choices: int | None = None,
        context: object = None,
    ) -> None:
        super().__init__(name, context)
        self._call = call
        self._begin_span = begin
        self._source = AnswerSource(start)
        self._announces_end = announces_end
        self._chunks: AsyncIterator[Any] | None = None
        self._started = 0.0
        self._waited = 0.0  # seconds for the provider, since the last content; the reader's own time does not count
        self._content_seen = False
        self._count = 0
        self._facts = AnswerFacts(choices, reasons_end=announces_end is not False)
        self._ended = False
        self._tail: TailTimeout | None = None
        self._malformed: list[Exception] = []
        self._count_at_malformed = 0
        self._text: list[str] | None = [] if spans.tracing.captures_content else None

    def _begin(self) -> OperationSpan:
        return self._begin_span()

    async def _open(self) -> None:
        self._started = time.perf_counter()
        self._chunks = await self._source.open()
        self._waited = time.perf_counter() - self._started

    async def _next(self) -> Any:
        chunks = cast("AsyncIterator[Any]", self._chunks)
        while True:
            began = time.perf_counter()
            try:
                chunk = await (self._next_after_end(chunks) if self._facts.final else anext(chunks))
            except StopAsyncIteration:
                self._check_complete()
                raise
            except Exception as error:  # noqa: BLE001 - raised again unless it is harmless
                self._skip_or_raise(error)
                self._waited += time.perf_counter() - began
                continue
            self._waited += time.perf_counter() - began
            reported = None
            try:
                reported = self._note(chunk)
            except Exception as error:  # noqa: BLE001 - reading an odd chunk must not fail the call
                note_fault("llm_call.chunk", error)
            if reported is not None:
                raise reported
            return chunk

    async def _next_after_end(self, chunks: AsyncIterator[Any]) -> Any:
        if self._tail is None:
            self._tail = TailTimeout()
        return await self._tail.next(chunks)

    def _skip_or_raise(self, error: Exception) -> None:
        """Skips a malformed chunk and raises other errors; a harmless one after a final reason ends the stream."""
        kind = classify(error).kind
        if self._facts.final and kind in _HARMLESS_AT_END:
            raise StopAsyncIteration from error
        if kind != "malformed" or len(self._malformed) >= _MAX_MALFORMED:
            if self._count and type(error) in _MISREADINGS:
                # After the first chunk it is the provider's reply that could not be read, not the caller's request.
                raise StreamInterruptedError(self._name, self._count, "cut") from error
            raise error
        self._malformed.append(error)
        self._count_at_malformed = self._count

    def _check_complete(self) -> None:
        """Raises unless the answer is complete at the end of the stream."""
        self._ended = True
        facts = self._facts
        if facts.final:
            return
        if self._malformed and self._count == self._count_at_malformed:
            raise self._malformed[-1]  # the last chunk was the malformed one
        if facts.complete:
            return
        needs_reason = self._announces_end
        if needs_reason is None:
            needs_reason = facts.is_provider_stream and not self._source.single_chunk
            needs_reason = needs_reason or not (self._count or self._source.may_be_empty)
        if not needs_reason:
            return
        if self._malformed:
            raise self._malformed[-1]
        raise StreamInterruptedError(self._name, self._count, "no_finish_reason") from None

    def _note(self, chunk: Any) -> ProviderStreamError | None:
        self._count += 1
        if chunk.__class__ is not str:
            may_be_error = self._facts.note(chunk)
            if may_be_error is None:
                return None
            error = error_in(self._name, chunk) if may_be_error and not self._source.single_chunk else None
            if error is not None:
                return error
        if is_content(chunk):
            self._note_content()
        if self._text is not None:
            if self._source.single_chunk:
                self._span.set_attribute(semconv.OUTPUT_MESSAGES, answer_content(chunk))
            else:
                self._text.append(chunk_text(chunk))
        return None

    def _note_content(self) -> None:
        waited, self._waited = self._waited, 0.0
        if self._tail is not None:
            self._tail.restart()
        if self._content_seen:
            semconv.record_chunk_gap(self._call, waited, self._span)
            return
        self._content_seen = True
        self._span.set_attribute(semconv.TIME_TO_FIRST_CHUNK, waited)
        semconv.record_first_chunk(self._call, waited, self._span)

    async def _close(self) -> None:
        try:
            await self._source.close()
        except Exception as error:
            if not (self._facts.final or (self._facts.complete and self._ended)):
                raise
            note_fault("llm_call.close", error)

    def _record(self, outcome: Outcome, error: BaseException | None) -> None:
        span, facts = self._span, self._facts
        model = None if facts.model is None else sendable(facts.model)
        if model is not None:
            span.set_attribute(semconv.RESPONSE_MODEL, model)
        if facts.id is not None:
            span.set_attribute(semconv.RESPONSE_ID, sendable(facts.id))
        if reasons := facts.reasons:
            span.set_attribute(semconv.FINISH_REASONS, tuple(map(sendable, reasons)))
        for key, count in semconv.token_attributes(facts.usage).items():
            span.set_attribute(key, count)
        if self._text:
            span.set_attribute(semconv.OUTPUT_MESSAGES, streamed_content(self._text))
        if self._malformed:
            effect = "fatal" if error is not None else "skipped"
            STREAM_MALFORMED_CHUNKS.series(self._name, effect).add(len(self._malformed))
            span.set_attribute("stream.malformed_chunks", len(self._malformed))
        error_type = self._error_type(outcome, error)
        if error_type is not None:
            span.set_attribute("error.type", error_type)
        seconds = time.perf_counter() - self._started
        semconv.record_call(self._call, model, seconds, error_type, facts.usage, span)

    def _error_type(self, outcome: Outcome, error: BaseException | None) -> str | None:
        if error is not None:
            return spans.error_type(error)
        # A reader that leaves after a final reason has the whole answer.
        return None if outcome == "success" or (outcome == "closed" and self._facts.final) else outcome
