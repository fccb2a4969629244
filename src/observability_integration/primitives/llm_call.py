"""LLMCallPrimitive: one call to a provider, with its CLIENT span, tokens and durations by the gen_ai conventions."""

from __future__ import annotations

import inspect
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any, Generic, cast
from urllib.parse import urlsplit

from observability_integration.context import WorkflowContext
from observability_integration.costs.usage import (
    Usage,
    finish_reasons_of,
    id_of,
    is_provider_chunk,
    model_of,
    read,
    usage_of,
)
from observability_integration.errors import ConfigurationError, StreamInterruptedError
from observability_integration.telemetry import instruments, semconv, spans
from observability_integration.telemetry.guard import note_fault
from observability_integration.telemetry.spans import OperationSpan

from .base import ChunkStream, In, Out, WorkflowPrimitive
from .lifting import takes_context
from .streams import ObservedStream, Outcome, is_content


class LLMCallPrimitive(WorkflowPrimitive[In, Out], Generic[In, Out]):
    """Wraps the function that calls the provider; place it innermost, once per attempt.

    Works with the ``openai`` and ``anthropic`` SDKs, or with any async function. Model, tokens, finish reasons and ids are
    read from request and answer by shape. Prompts and answers go on the span only when
    ``OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT`` is ``SPAN_ONLY`` or ``SPAN_AND_EVENT``.

    Args:
        call: async function of ``(request)`` or ``(request, context)`` that returns the answer; for `stream`, an async
            generator function, or an async function that returns an async iterator of chunks.
        model: requested model; by default read from the request's ``model``.
        provider: value of ``gen_ai.provider.name``, e.g. ``openai``, ``anthropic``.
        operation: value of ``gen_ai.operation.name``: ``chat``, ``embeddings``, ...
        server_url: base URL of the provider, for ``server.address`` and ``server.port``; user info in it is left out.
        stream_call: what to call for `stream`, if not `call`.

    Raises:
        ConfigurationError: `call` does not take ``(request)`` or ``(request, context)``.
    """

    def __init__(
        self,
        call: Callable[..., Any],
        *,
        model: str | None = None,
        provider: str | None = None,
        operation: str = "chat",
        server_url: str | None = None,
        stream_call: Callable[..., Any] | None = None,
    ) -> None:
        self._call = call
        self._with_context = takes_context(call)
        self._stream_call = stream_call or call
        self._stream_with_context = takes_context(self._stream_call)
        self._model = model
        self._provider = provider
        self._operation = operation
        self._static: dict[str, Any] = {semconv.OPERATION: operation}
        if provider is not None:
            self._static[semconv.PROVIDER] = provider
        if server_url is not None:
            parts = urlsplit(server_url)
            if parts.hostname:
                self._static[semconv.SERVER_ADDRESS] = parts.hostname
                default = 443 if parts.scheme == "https" else 80
                self._static[semconv.SERVER_PORT] = parts.port or default

    @property
    def name(self) -> str:
        """Operation and, if fixed, model."""
        return f"{self._operation} {self._model}" if self._model else self._operation

    def _label(self) -> str:
        return f"llm call {self.name}" + (f" ({self._provider})" if self._provider else "")

    async def execute(self, input_data: In, context: WorkflowContext | None = None) -> Out:
        """Calls the provider once."""
        model = self._model_of(input_data)
        span = self._begin(input_data, model, streaming=False)
        if context is not None:
            spans.identify(span, context)
        token = spans.tracing.activate(span)
        started = time.perf_counter()
        try:
            answer = await self._invoke(self._call, self._with_context, input_data, context)
        except BaseException as error:
            self._end(span, model, started, None, Usage(), error)
            raise
        finally:
            spans.tracing.deactivate(token)
        self._answered(span, model, started, answer)
        return cast("Out", answer)

    def stream(self, input_data: In, context: WorkflowContext | None = None) -> ChunkStream:
        """Calls the provider once and hands out the chunks of its answer.

        A provider's stream (OpenAI or Anthropic chunks) that ends without a finish reason raises
        `StreamInterruptedError`: an answer cut short is never taken for a whole one.
        """
        return _LLMStream(self, input_data, context)

    def _invoke(
        self, call: Callable[..., Any], with_context: bool, request: Any, context: WorkflowContext | None
    ) -> Any:
        if with_context:
            return call(request, WorkflowContext() if context is None else context)
        return call(request)

    def _model_of(self, request: Any) -> str | None:
        if self._model is not None:
            return self._model
        model = read(request, "model") if not isinstance(request, str) else None
        return model if isinstance(model, str) else None

    def _begin(self, request: Any, model: str | None, *, streaming: bool) -> OperationSpan:
        if not spans.tracing.enabled:
            return spans.NO_SPAN
        attributes = dict(self._static)
        if model is not None:
            attributes[semconv.REQUEST_MODEL] = model
        if streaming:
            attributes[semconv.REQUEST_STREAM] = True
        if not isinstance(request, str):
            for parameter, key in semconv.REQUEST_PARAMETERS.items():
                value = read(request, parameter)
                if isinstance(value, int | float):
                    attributes[key] = value
        if spans.tracing.captures_content:
            attributes[semconv.INPUT_MESSAGES] = _as_json(read(request, "messages") or request)
        name = self._operation if model is None else f"{self._operation} {model}"
        return spans.tracing.begin(name, attributes, client=True)

    def _answered(self, span: OperationSpan, model: str | None, started: float, answer: Any) -> None:
        if not spans.tracing.enabled and not instruments.switch.on:
            return
        response_model, usage = None, Usage()
        try:
            response_model, usage = model_of(answer), usage_of(answer)
            if response_model is not None:
                span.set_attribute(semconv.RESPONSE_MODEL, response_model)
            if (response_id := id_of(answer)) is not None:
                span.set_attribute(semconv.RESPONSE_ID, response_id)
            if reasons := finish_reasons_of(answer):
                span.set_attribute(semconv.FINISH_REASONS, reasons)
            if spans.tracing.captures_content:
                span.set_attribute(semconv.OUTPUT_MESSAGES, _as_json(read(answer, "choices") or answer))
        except Exception as error:  # noqa: BLE001 - reading an odd answer must not fail the call
            note_fault("llm_call.answer", error)
        self._end(span, model, started, response_model, usage, None)

    def _end(
        self,
        span: OperationSpan,
        model: str | None,
        started: float,
        response_model: str | None,
        usage: Usage,
        error: BaseException | None,
    ) -> None:
        error_type = None if error is None else spans.error_type(error)
        call = (self._operation, self._provider, model)
        semconv.record_call(call, response_model, time.perf_counter() - started, error_type, usage, span)
        for key, count in semconv.token_attributes(usage).items():
            span.set_attribute(key, count)
        if isinstance(error, Exception):
            spans.tracing.mark_failed(span, error)
        elif error is not None:
            span.set_attribute("error.type", error_type)
        span.end()


class _LLMStream(ObservedStream):
    def __init__(self, owner: LLMCallPrimitive[Any, Any], request: Any, context: WorkflowContext | None) -> None:
        self._owner = owner
        self._request = request
        self._context = context
        self._model = owner._model_of(request)
        self._call = (owner._operation, owner._provider, self._model)
        self._chunks: AsyncIterator[Any] | None = None
        self._started = 0.0
        self._last_chunk = 0.0
        self._count = 0
        self._usage = Usage()
        self._response_model: str | None = None
        self._response_id: str | None = None
        self._reasons: tuple[str, ...] = ()
        self._announces_end = False

    def _begin(self) -> OperationSpan:
        span = self._owner._begin(self._request, self._model, streaming=True)
        if self._context is not None:
            spans.identify(span, self._context)
        return span

    async def _open(self) -> None:
        owner = self._owner
        self._started = time.perf_counter()
        opened = owner._invoke(owner._stream_call, owner._stream_with_context, self._request, self._context)
        if inspect.isawaitable(opened):
            opened = await cast("Awaitable[Any]", opened)
        if not hasattr(opened, "__aiter__"):
            raise ConfigurationError("stream() needs a call that returns an async iterator; pass stream_call=")
        self._chunks = aiter(opened)

    async def _next(self) -> Any:
        try:
            chunk = await anext(cast("AsyncIterator[Any]", self._chunks))
        except StopAsyncIteration:
            if self._announces_end and not self._reasons:
                raise StreamInterruptedError(self._owner.name, self._count, "no_finish_reason") from None
            raise
        try:
            self._note(chunk)
        except Exception as error:  # noqa: BLE001 - reading an odd chunk must not fail the call
            note_fault("llm_call.chunk", error)
        return chunk

    def _note(self, chunk: Any) -> None:
        now = time.perf_counter()
        self._count += 1
        if not isinstance(chunk, str):
            self._usage = self._usage.merged(usage_of(chunk))
            self._response_model = self._response_model or model_of(chunk)
            self._response_id = self._response_id or id_of(chunk)
            self._reasons = finish_reasons_of(chunk) or self._reasons
            self._announces_end = self._announces_end or is_provider_chunk(chunk)
        if not is_content(chunk):
            return
        if not self._last_chunk:
            self._span.set_attribute(semconv.TIME_TO_FIRST_CHUNK, now - self._started)
            semconv.record_first_chunk(self._call, now - self._started, self._span)
        else:
            semconv.record_chunk_gap(self._call, now - self._last_chunk, self._span)
        self._last_chunk = now

    async def _close(self) -> None:
        close = getattr(self._chunks, "aclose", None) or getattr(self._chunks, "close", None)
        if close is not None:
            closing = close()
            if inspect.isawaitable(closing):
                await closing

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
        error_type = None if outcome == "success" else outcome if error is None else spans.error_type(error)
        seconds = time.perf_counter() - self._started
        semconv.record_call(self._call, self._response_model, seconds, error_type, self._usage, span)


def _as_json(content: Any) -> str:
    def plain(value: Any) -> Any:
        dump = getattr(value, "model_dump", None)
        return dump(mode="json") if callable(dump) else str(value)

    if isinstance(content, Mapping):
        content = dict(cast("Mapping[str, Any]", content))
    return json.dumps(content, ensure_ascii=False, default=plain)
