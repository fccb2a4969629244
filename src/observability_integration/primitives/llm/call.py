"""`LLMCallPrimitive`: one call of a provider, with CLIENT span, tokens and durations by the gen_ai conventions."""

from __future__ import annotations

import inspect
import time
from asyncio import CancelledError
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Generic, cast
from urllib.parse import urlsplit

from observability_integration.checks import check_count
from observability_integration.context import WorkflowContext, deadline_var
from observability_integration.costs.usage import Usage, finish_reasons_of, id_of, model_of, read, usage_of
from observability_integration.errors import ConfigurationError
from observability_integration.primitives.base import ChunkStream, In, Out, WorkflowPrimitive, check_time_left
from observability_integration.primitives.lifting import takes_context
from observability_integration.primitives.streams import collect
from observability_integration.telemetry import semconv
from observability_integration.telemetry.guard import note_fault
from observability_integration.telemetry.metrics import instruments
from observability_integration.telemetry.tracing import spans
from observability_integration.telemetry.tracing.spans import OperationSpan

from .choices import requested_choices
from .content import answer_content, request_content, sendable
from .stream import LLMStream


class LLMCallPrimitive(WorkflowPrimitive[In, Out], Generic[In, Out]):
    """Wraps the function that calls the provider; place it innermost, once per attempt.

    Works with the ``openai`` and ``anthropic`` SDKs, or with any async function. Reads model, tokens, finish reasons
    and ids from request and answer by shape. Prompts and answers go on the span only if
    ``OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT`` is ``SPAN_ONLY`` or ``SPAN_AND_EVENT``.

    Args:
        call: async function of ``(request)`` or ``(request, context)`` that returns the answer. For `stream`: an async
            generator function, or an async function that returns an async iterator of chunks or a context manager
            around one.
        model: requested model; by default read from the request's ``model``.
        provider: value of ``gen_ai.provider.name``, e.g. ``openai``, ``anthropic``.
        operation: value of ``gen_ai.operation.name``: ``chat``, ``embeddings``, ...
        server_url: base URL of the provider, for ``server.address`` and ``server.port``; its user info is dropped.
        stream_call: called for `stream`; by default `call`.
        streaming: whether `execute` streams too and joins the chunks, so that the primitives around it can time them;
            by default for an async generator function only.
        collect: joins the list of chunks into the result of `execute`; by default text is joined and other chunks are
            listed. `completion_of` makes a `Completion` of the chunks of a provider.
        announces_end: whether the provider's streams end with a finish reason, so that one without it was cut, even one
            without any chunk; by default that goes by the shape of the chunks. False if `call` makes several calls of
            the provider, as an agent does: more may follow after each finish reason, however late.
        choices: how many choices the provider is asked for, >= 1, if the request's own ``n`` does not say so; by
            default as many as there are in the stream.

    Raises:
        ConfigurationError: `call` does not take ``(request)`` or ``(request, context)``, `server_url` is no URL, or
            `choices` is out of range.
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
        streaming: bool | None = None,
        collect: Callable[[list[Any]], Any] | None = None,
        announces_end: bool | None = None,
        choices: int | None = None,
    ) -> None:
        check_count("choices", choices, 1, optional=True)
        self._choices = choices
        self._call = call
        self._with_context = takes_context(call)
        self._streams = inspect.isasyncgenfunction(call) if streaming is None else streaming
        self._collect = collect
        self._announces_end = announces_end
        self._stream_call = stream_call or call
        self._stream_with_context = takes_context(self._stream_call)
        self._model = None if model is None else sendable(model)
        self._provider = provider
        self._operation = operation
        self._static_attributes: dict[str, Any] = {semconv.OPERATION: operation}
        if provider is not None:
            self._static_attributes[semconv.PROVIDER] = provider
        if server_url is not None:
            self._static_attributes |= _server_attributes(server_url)

    @property
    def name(self) -> str:
        """The operation and, if fixed, the model."""
        return f"{self._operation} {self._model}" if self._model else self._operation

    @property
    def execute_reads_stream(self) -> bool:
        """Whether `execute` streams."""
        return self._streams

    def join_chunks(self, chunks: list[Any]) -> Any:
        """Joins the chunks with `collect`."""
        return super().join_chunks(chunks) if self._collect is None else self._collect(chunks)

    def _label(self) -> str:
        return f"llm call {self.name}" + (f" ({self._provider})" if self._provider else "")

    async def execute(self, input_data: In, context: WorkflowContext | None = None) -> Out:
        """Calls the provider once. Joins the chunks if `streaming`.

        Raises:
            PrimitiveTimeoutError: the deadline has passed.
            ConfigurationError: `call` is not async.
        """
        if deadline_var.get() is not None or context is not None:
            check_time_left(self, context)
        if self._streams:
            return cast("Out", self.join_chunks(await collect(self.stream(input_data, context))))
        if not spans.tracing.enabled and not instruments.switch.on:
            return cast(
                "Out", await _checked_awaitable(self._invoke(self._call, self._with_context, input_data, context))
            )
        model = self._request_model(input_data)
        span = self._begin(input_data, model, context, streaming=False)
        token = spans.tracing.activate(span)
        started = time.perf_counter()
        try:
            answer = await _checked_awaitable(self._invoke(self._call, self._with_context, input_data, context))
        except BaseException as error:
            self._end(span, model, started, None, Usage(), error)
            raise
        finally:
            spans.tracing.deactivate(token)
        self._record_answer(span, model, started, answer)
        return cast("Out", answer)

    def stream(self, input_data: In, context: WorkflowContext | None = None) -> ChunkStream:
        """Calls the provider once and streams the chunks of its answer; a whole answer is the only chunk.

        A provider's stream (OpenAI, Anthropic or LangChain chunks, events of the SDKs' stream helpers) that ends
        without a finish reason raises `StreamInterruptedError`: a cut answer never passes for a complete one. An error
        that the provider reports inside its stream raises `ProviderStreamError`. A programming error such as a
        `KeyError` that the source raises after the first chunk becomes a `StreamInterruptedError`. After a final
        finish reason (see `AnswerFacts`) the stream waits for further chunks for 2 s at most, and ignores faults of the
        connection.
        """
        model = self._request_model(input_data)

        def begin() -> OperationSpan:
            return self._begin(input_data, model, context, streaming=True)

        def start() -> Any:
            return self._invoke(self._stream_call, self._stream_with_context, input_data, context)

        call = (self._operation, self._provider, model)
        choices = self._requested_choices(input_data)
        return LLMStream(self.name, call, begin, start, self._announces_end, choices, context)

    def _invoke(
        self, call: Callable[..., Any], with_context: bool, request: Any, context: WorkflowContext | None
    ) -> Any:
        if with_context:
            return call(request, WorkflowContext() if context is None else context)
        return call(request)

    def _request_model(self, request: Any) -> str | None:
        if self._model is not None or isinstance(request, str):
            return self._model
        try:
            model = read(request, "model")
        except Exception as error:  # noqa: BLE001 - reading an odd request must not fail the call
            note_fault("llm_call.request", error)
            return None
        return sendable(model) if isinstance(model, str) and model else None

    def _requested_choices(self, request: Any) -> int | None:
        try:
            return requested_choices(request) or self._choices
        except Exception as error:  # noqa: BLE001 - reading an odd request must not fail the call
            note_fault("llm_call.request", error)
            return self._choices

    def _begin(
        self, request: Any, model: str | None, context: WorkflowContext | None, *, streaming: bool
    ) -> OperationSpan:
        if not spans.tracing.enabled:
            return spans.NO_SPAN
        attributes = dict(self._static_attributes)
        if model is not None:
            attributes[semconv.REQUEST_MODEL] = model
        if streaming:
            attributes[semconv.REQUEST_STREAM] = True
        try:
            if not isinstance(request, str):
                for parameter, key in semconv.REQUEST_PARAMETERS.items():
                    value = read(request, parameter)
                    if isinstance(value, int | float):
                        attributes[key] = value
            if spans.tracing.captures_content:
                attributes[semconv.INPUT_MESSAGES] = request_content(request)
        except Exception as error:  # noqa: BLE001 - reading an odd request must not fail the call
            note_fault("llm_call.request", error)
        name = self._operation if model is None else f"{self._operation} {model}"
        span = spans.tracing.begin(name, attributes, client=True)
        if context is not None:
            spans.identify(span, context)
        return span

    def _record_answer(self, span: OperationSpan, model: str | None, started: float, answer: Any) -> None:
        response_model, usage = None, Usage()
        try:
            usage, reported_model = usage_of(answer), model_of(answer)
            if reported_model is not None:
                response_model = sendable(reported_model)
                span.set_attribute(semconv.RESPONSE_MODEL, response_model)
            if (response_id := id_of(answer)) is not None:
                span.set_attribute(semconv.RESPONSE_ID, sendable(response_id))
            if reasons := finish_reasons_of(answer):
                span.set_attribute(semconv.FINISH_REASONS, tuple(map(sendable, reasons)))
            if spans.tracing.captures_content:
                span.set_attribute(semconv.OUTPUT_MESSAGES, answer_content(answer))
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
        error_type = None
        if error is not None:
            error_type = "cancelled" if isinstance(error, CancelledError) else spans.error_type(error)
        call = (self._operation, self._provider, model)
        semconv.record_call(call, response_model, time.perf_counter() - started, error_type, usage, span)
        for key, count in semconv.token_attributes(usage).items():
            span.set_attribute(key, count)
        if isinstance(error, Exception):
            spans.tracing.mark_failed(span, error)
        elif error is not None:
            span.set_attribute("error.type", error_type)
        span.end()


def _checked_awaitable(pending: Any) -> Any:
    if not hasattr(pending, "__await__"):
        raise ConfigurationError("call must be async: what it returned cannot be awaited")
    return pending


def _server_attributes(url: str) -> dict[str, str | int]:
    scheme, host, port = "", None, None
    with suppress(ValueError):  # a port that is no number, a bracket that is not closed
        parts = urlsplit(url)
        scheme, host, port = parts.scheme, parts.hostname, parts.port
    if not host:
        raise ConfigurationError("server_url must be a URL such as https://api.example.com/v1")
    return {semconv.SERVER_ADDRESS: host, semconv.SERVER_PORT: port or (443 if scheme == "https" else 80)}
