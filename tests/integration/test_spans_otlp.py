"""The tree of spans of one call, as a receiver of OTLP gets it: parents, kinds, attributes, status, and no prompt."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest

from observability_integration import WorkflowContext, initialize_observability, shutdown_observability
from observability_integration.primitives import (
    CachePrimitive,
    LLMCallPrimitive,
    PrimitiveTimeoutError,
    RouterPrimitive,
    TimeoutPrimitive,
    WorkflowPrimitive,
)
from tests.otlp_receiver import OtlpReceiver, ReceivedSpan

pytestmark = [pytest.mark.needs_otel, pytest.mark.promise("X1", "X2")]

_PROMPT = "my account number is 4711"
_ANSWER = "your balance is 42"
_CHAIN = ["router tree", "cache ask", "timeout ask", "chat gpt-small"]
_REQUEST: dict[str, Any] = {
    "model": "gpt-small",
    "messages": [{"role": "user", "content": _PROMPT}],
    "temperature": 0.2,
    "max_tokens": 99,
}


@pytest.fixture
def receiver(monkeypatch: pytest.MonkeyPatch) -> Iterator[OtlpReceiver]:
    """Everything is sent here; the environment decides nothing."""
    monkeypatch.delenv("OTEL_RESOURCE_ATTRIBUTES", raising=False)
    with OtlpReceiver() as receiver:
        yield receiver
        shutdown_observability(0.0)


def _switch_on(receiver: OtlpReceiver, **arguments: Any) -> None:
    assert initialize_observability(
        "tree", "7.8", enable_prometheus=False, otlp_endpoint=receiver.endpoint, environment="test", **arguments
    )


def _delivered(receiver: OtlpReceiver) -> dict[str, ReceivedSpan]:
    shutdown_observability()
    spans = receiver.spans()
    assert len(spans) == len({span.name for span in spans}), [span.name for span in spans]
    return {span.name: span for span in spans}


def _chain(receiver: OtlpReceiver) -> list[ReceivedSpan]:
    """The four spans, outermost first, once it is sure that they are all there is and hang together."""
    spans = _delivered(receiver)
    assert set(_CHAIN) == set(spans)
    found = [spans[name] for name in _CHAIN]
    assert ["", *(span.span_id for span in found[:-1])] == [span.parent_id for span in found]
    assert 1 == len({span.trace_id for span in found})
    for outer, inner in pairwise(found):
        assert outer.start_ns <= inner.start_ns <= inner.end_ns <= outer.end_ns
    return found


def _answer(**parts: Any) -> dict[str, Any]:
    choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": _ANSWER}}
    usage = {"prompt_tokens": 12, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 4}}
    return {"id": "chatcmpl-1", "model": "gpt-small-2025", "choices": [choice], "usage": usage, **parts}


def _flow(call: Callable[..., Any], *, timeout_seconds: float = 5.0) -> RouterPrimitive[Any, Any]:
    attempt = LLMCallPrimitive[Any, Any](call, provider="openai", server_url="https://user:pw@api.example.com/v1")
    bounded = TimeoutPrimitive(attempt, timeout_seconds, 0.5, operation_name="ask")
    cached = CachePrimitive(bounded, lambda request: request["messages"], operation_name="ask")
    return RouterPrimitive({"fast": cached}, lambda request, context: "fast", name="tree")


async def test_an_sdk_that_is_not_supported_makes_the_spans_itself(
    receiver: OtlpReceiver, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Our span sets private fields of the SDK's: where a later version keeps them otherwise, no trace may be lost."""
    from opentelemetry.sdk.trace import ReadableSpan

    initialise = ReadableSpan.__init__

    def with_another_field(span: Any, *args: Any, **kwargs: Any) -> None:
        initialise(span, *args, **kwargs)
        span._span_name = span._name

    monkeypatch.setattr(ReadableSpan, "__init__", with_another_field)
    monkeypatch.setattr(ReadableSpan, "name", property(lambda span: span._span_name))

    async def call(request: Any) -> Any:
        return _answer()

    _switch_on(receiver)
    await _flow(call).execute(_REQUEST)
    assert ["internal", "internal", "internal", "client"] == [span.kind for span in _chain(receiver)]
    (warning,) = [record.getMessage() for record in caplog.records if "SDK is not supported" in record.getMessage()]
    assert "_span_name" in warning


async def test_success(receiver: OtlpReceiver) -> None:
    """Nested as the primitives are, named and attributed as the conventions have it."""

    async def call(request: Any) -> Any:
        return _answer()

    _switch_on(receiver)
    context = WorkflowContext(workflow_id="checkout", session_id="s1", correlation_id="c1")
    await _flow(call).execute(_REQUEST, context)
    router, cache, timeout, chat = _chain(receiver)

    assert ["internal", "internal", "internal", "client"] == [s.kind for s in (router, cache, timeout, chat)]
    assert {"unset"} == {s.status for s in (router, cache, timeout, chat)}
    assert {"observability_integration"} == {s.scope for s in (router, cache, timeout, chat)}
    resource = {"service.name": "tree", "service.version": "7.8", "deployment.environment.name": "test"}
    assert resource.items() <= router.resource.items()
    ids = {"workflow.id": "checkout", "session.id": "s1", "workflow.correlation_id": "c1"}
    for span in (router, cache, timeout, chat):
        assert ids.items() <= span.attributes.items()
    assert {"router.route": "fast", "router.reason": "routing_function"}.items() <= router.attributes.items()
    assert cache.attributes["cache.hit"] is False
    assert {"outcome": "success", "timeout.limit_seconds": 5.0}.items() <= timeout.attributes.items()
    assert {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "gpt-small",
        "gen_ai.request.temperature": 0.2,
        "gen_ai.request.max_tokens": 99,
        "gen_ai.response.model": "gpt-small-2025",
        "gen_ai.response.id": "chatcmpl-1",
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.usage.input_tokens": 12,
        "gen_ai.usage.output_tokens": 5,
        "gen_ai.usage.cache_read.input_tokens": 4,
        "server.address": "api.example.com",
        "server.port": 443,
    } == {key: value for key, value in chat.attributes.items() if key not in ids and key != "workflow.elapsed_ms"}


async def test_a_hit_goes_no_further(receiver: OtlpReceiver) -> None:
    """What the trace of a hit does not show did not happen, and did not cost."""

    async def call(request: Any) -> Any:
        return _answer()

    flow = _flow(call)
    await flow.execute(_REQUEST)
    _switch_on(receiver)
    await flow.execute(_REQUEST)
    spans = _delivered(receiver)
    assert {"router tree", "cache ask"} == set(spans)
    on_span = {"cache.hit": True, "cache.tier": "memory", "cache.freshness": "fresh"}
    assert on_span == spans["cache ask"].attributes


async def test_error(receiver: OtlpReceiver) -> None:
    """Every span it passed through says what failed, none says with which words: those may quote the prompt."""

    async def call(request: Any) -> Any:
        raise ConnectionResetError(f"while sending {_PROMPT!r}")

    _switch_on(receiver)
    with pytest.raises(ConnectionResetError):
        await _flow(call).execute(_REQUEST)
    spans = _chain(receiver)
    assert {"error"} == {span.status for span in spans}
    assert {""} == {span.status_message for span in spans}
    assert {"ConnectionResetError"} == {span.attributes["error.type"] for span in spans}
    assert [] == [event for span in spans for event in span.events]
    assert "error" == spans[2].attributes["outcome"]


async def test_timeout(receiver: OtlpReceiver) -> None:
    """Ours ran out: that is an error of the timeout and of what is outside it; the attempt inside was cancelled."""

    async def call(request: Any) -> Any:
        await asyncio.Event().wait()

    _switch_on(receiver)
    with pytest.raises(PrimitiveTimeoutError):
        await _flow(call, timeout_seconds=0.03).execute(_REQUEST)
    router, cache, timeout, chat = _chain(receiver)
    assert ["error", "error", "error", "unset"] == [s.status for s in (router, cache, timeout, chat)]
    assert {"outcome": "timeout", "timeout.kind": "total", "timeout.cleanup": "clean"}.items() <= (
        timeout.attributes.items()
    )
    assert "observability_integration.errors.PrimitiveTimeoutError" == timeout.attributes["error.type"]
    assert ["timeout.cancel_sent"] == [name for name, _ in timeout.events]
    assert "cancelled" == chat.attributes["error.type"]


async def test_cancellation(receiver: OtlpReceiver) -> None:
    """A caller who left is no error of anybody, and the trace is complete all the same."""
    started = asyncio.Event()

    async def call(request: Any) -> Any:
        started.set()
        await asyncio.Event().wait()

    _switch_on(receiver)
    attempt = LLMCallPrimitive[Any, Any](call)
    bounded = TimeoutPrimitive(attempt, 5.0, operation_name="ask")
    flow: RouterPrimitive[Any, Any] = RouterPrimitive({"fast": bounded}, lambda request, context: "fast", name="tree")
    task = asyncio.create_task(flow.execute(_REQUEST))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    spans = _delivered(receiver)
    assert {"router tree", "timeout ask", "chat gpt-small"} == set(spans)
    assert {"unset"} == {span.status for span in spans.values()}
    assert "cancelled" == spans["timeout ask"].attributes["outcome"]
    assert "cancelled" == spans["chat gpt-small"].attributes["error.type"]


def _chunks(*, finish: bool = True) -> list[dict[str, Any]]:
    def chunk(delta: dict[str, Any], reason: str | None = None) -> dict[str, Any]:
        return {"id": "c1", "model": "gpt-small-2025", "choices": [{"delta": delta, "finish_reason": reason}]}

    words = [chunk({"role": "assistant"}), *(chunk({"content": word}) for word in _ANSWER.split())]
    usage = {"choices": [], "usage": {"prompt_tokens": 12, "completion_tokens": 4}}
    return [*words, *([chunk({}, "stop"), usage] if finish else [])]


async def _stream(request: Any) -> AsyncIterator[Any]:
    for chunk in _chunks():
        yield chunk


async def _read(step: WorkflowPrimitive[Any, Any]) -> None:
    async with step.stream(_REQUEST) as chunks:
        async for _ in chunks:
            pass


async def _cut_stream(request: Any) -> AsyncIterator[Any]:
    for chunk in _chunks(finish=False):
        yield chunk


@pytest.mark.promise("X3")
async def test_stream_to_its_end(receiver: OtlpReceiver, caplog: pytest.LogCaptureFixture) -> None:
    """Between two chunks the reader's own span is current; each of ours ends once, after the last chunk."""
    from opentelemetry import trace

    _switch_on(receiver)
    seen: set[int] = set()
    async with _flow(_stream).stream(_REQUEST) as chunks:
        async for _ in chunks:
            seen.add(trace.get_current_span().get_span_context().span_id)
    assert {0} == seen
    router, cache, timeout, chat = _chain(receiver)
    assert {"success"} == {s.attributes["outcome"] for s in (router, cache, timeout, chat)}
    assert {"unset"} == {s.status for s in (router, cache, timeout, chat)}
    assert chat.attributes["gen_ai.request.stream"] is True
    assert ("stop",) == chat.attributes["gen_ai.response.finish_reasons"]
    assert (12, 4) == (chat.attributes["gen_ai.usage.input_tokens"], chat.attributes["gen_ai.usage.output_tokens"])
    first = chat.attributes["gen_ai.response.time_to_first_chunk"]
    assert 0 < first < (chat.end_ns - chat.start_ns) / 1e9 + 1
    assert "detach" not in caplog.text


@pytest.mark.promise("X3")
async def test_stream_that_the_reader_leaves(receiver: OtlpReceiver, caplog: pytest.LogCaptureFixture) -> None:
    """A reader who has enough is neither a success nor an error; the spans end when the block is left.

    Inside of the cache the call is nobody's: it is cancelled, because no reader is left.
    """
    _switch_on(receiver)
    async with _flow(_stream).stream(_REQUEST) as chunks:
        async for chunk in chunks:
            if chunk["choices"][0]["delta"].get("content"):
                break
    spans = _chain(receiver)
    assert ["closed", "closed", "cancelled", "closed"] == [span.attributes["outcome"] for span in spans]
    assert {"unset"} == {span.status for span in spans}
    assert "closed" == spans[3].attributes["error.type"]
    assert "detach" not in caplog.text


@pytest.mark.promise("X3")
async def test_stream_that_nobody_closes(receiver: OtlpReceiver, caplog: pytest.LogCaptureFixture) -> None:
    """A reader that forgets the stream must not leave a trace without its spans for ever."""
    _switch_on(receiver)

    async def forgetful() -> None:
        chunks = await _flow(_stream).stream(_REQUEST).__aenter__()
        await anext(chunks)

    await forgetful()
    gc.collect()
    for _ in range(10):  # the pump of the timeout is cancelled through the loop
        await asyncio.sleep(0)
    gc.collect()
    spans = _delivered(receiver)
    assert set(_CHAIN) == set(spans)
    outcomes = [spans[name].attributes["outcome"] for name in _CHAIN]
    assert ["abandoned", "abandoned", "cancelled"] == outcomes[:3]
    assert outcomes[3] in ("abandoned", "cancelled", "closed")  # the pump, not the reader, holds the innermost stream
    assert "detach" not in caplog.text


@pytest.mark.promise("X3")
async def test_stream_that_is_cut(receiver: OtlpReceiver) -> None:
    """An answer without a finish reason looks complete to the eye; the trace must say that it is not."""
    from observability_integration.errors import StreamInterruptedError

    _switch_on(receiver)
    with pytest.raises(StreamInterruptedError):
        await _read(_flow(_cut_stream))
    spans = _chain(receiver)
    assert {"error"} == {span.status for span in spans}
    assert {"observability_integration.errors.StreamInterruptedError"} == {
        span.attributes["error.type"] for span in spans
    }


@pytest.mark.parametrize("streaming", [False, True])
@pytest.mark.promise("X4")
async def test_no_prompt_and_no_answer_in_what_is_sent(
    streaming: bool, receiver: OtlpReceiver, caplog: pytest.LogCaptureFixture
) -> None:
    """Not in a span, an event, a label or a log line, of a success or of an error; nor the password of a URL."""
    caplog.set_level(logging.DEBUG, "observability_integration")

    async def call(request: Any) -> Any:
        return _answer()

    async def failing(request: Any) -> Any:
        raise ValueError(f"cannot answer {_PROMPT!r} with {_ANSWER!r}")

    _switch_on(receiver, otlp_metrics=True)
    if streaming:
        await _read(_flow(_stream))
    else:
        await _flow(call).execute(_REQUEST)
        with pytest.raises(ValueError, match="cannot answer"):
            await _flow(failing).execute(_REQUEST)
    shutdown_observability()
    assert {"/v1/traces", "/v1/metrics"} == set(receiver.paths)
    for secret in ("4711", "balance", "user:pw"):
        assert secret.encode() not in receiver.bodies
        assert secret not in caplog.text


@pytest.mark.parametrize("mode", ["SPAN_ONLY", "span_and_event"])
@pytest.mark.promise("X4")
async def test_prompt_and_answer_where_they_are_asked_for(
    mode: str, receiver: OtlpReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever debugs a prompt says so by the variable that every gen_ai instrumentation knows."""
    monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", mode)

    async def call(request: Any) -> Any:
        return _answer()

    _switch_on(receiver)
    await _flow(call).execute(_REQUEST)
    await _read(LLMCallPrimitive[Any, Any](_stream, model="streamed"))
    shutdown_observability()
    chats = [span for span in receiver.spans() if span.kind == "client"]
    assert 2 == len(chats)
    for span in chats:
        assert _PROMPT in span.attributes["gen_ai.input.messages"]
    assert _ANSWER in chats[0].attributes["gen_ai.output.messages"]
    assert _ANSWER.replace(" ", "") in chats[1].attributes["gen_ai.output.messages"]


@pytest.mark.parametrize("mode", ["NO_CONTENT", "EVENT_ONLY", "", "anything"])
@pytest.mark.promise("X4")
async def test_other_modes_put_nothing_on_spans(
    mode: str, receiver: OtlpReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A value that does not name spans must not be read as one that does."""
    monkeypatch.setenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", mode)

    async def call(request: Any) -> Any:
        return _answer()

    _switch_on(receiver)
    await _flow(call).execute(_REQUEST)
    shutdown_observability()
    assert b"4711" not in receiver.bodies


async def test_a_model_name_that_cannot_be_sent_spares_the_others(receiver: OtlpReceiver) -> None:
    """A name comes from whoever sends the request; half a surrogate pair in it would take the whole batch along."""

    async def call(request: Any) -> Any:
        return _answer()

    _switch_on(receiver)
    attempt = LLMCallPrimitive[Any, Any](call)
    await attempt.execute({"model": "bad\ud800name", "messages": []})
    await attempt.execute({"model": "good", "messages": []})
    assert {"chat bad?name", "chat good"} == set(_delivered(receiver))


async def test_code_inside_the_call_finds_our_span(receiver: OtlpReceiver) -> None:
    """Users enrich the current span and nest their own; both must hang where they belong."""
    from opentelemetry import trace

    async def call(request: Any) -> Any:
        trace.get_current_span().set_attribute("tenant", "north")
        with trace.get_tracer("mine").start_as_current_span("own work"):
            return _answer()

    _switch_on(receiver)
    with trace.get_tracer("mine").start_as_current_span("request"):
        await _flow(call).execute(_REQUEST)
    spans = _delivered(receiver)
    assert "north" == spans["chat gpt-small"].attributes["tenant"]
    assert spans["chat gpt-small"].span_id == spans["own work"].parent_id
    assert spans["request"].span_id == spans["router tree"].parent_id
