"""The real client of OpenAI over a real socket: what its calls and streams look like, and how they fail."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest

from observability_integration import initialize_observability, observability_status, shutdown_observability
from observability_integration.demo.provider import LocalProvider
from observability_integration.errors import StreamInterruptedError
from observability_integration.primitives import LLMCallPrimitive, TimeoutPrimitive
from tests.scrapes import Scrape, scrape

openai = pytest.importorskip("openai")

pytestmark = [pytest.mark.needs_otel, pytest.mark.promise("L3")]

SECRET = "What is the capital of Secretland?"


def request(model: str) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": SECRET}], "temperature": 0.0}


@pytest.fixture
async def provider() -> AsyncIterator[LocalProvider]:
    async with LocalProvider(time_scale=0.0) as provider:
        yield provider


@pytest.fixture
async def client(provider: LocalProvider) -> AsyncIterator[Any]:
    client = openai.AsyncOpenAI(base_url=provider.base_url, api_key="sk-secret", max_retries=0)
    yield client
    await client.close()
    # The client reads the machine's name and platform in a thread of the loop's pool.
    await asyncio.get_running_loop().shutdown_default_executor()


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], list[Any]]]:
    """Telemetry that remembers its spans; nothing stays on."""
    monkeypatch.delenv("OTEL_INSTRUMENTATION_GENAI_CAPTURE_MESSAGE_CONTENT", raising=False)
    assert initialize_observability("shop", prometheus_port=0)
    from observability_integration.telemetry.tracing.trace_memory import remember_traces

    memory = remember_traces()
    assert memory is not None
    yield lambda: [span for trace in memory.traces() for span in trace]
    shutdown_observability(0.0)


@pytest.fixture
def primitive(client: Any, provider: LocalProvider) -> LLMCallPrimitive[Any, Any]:
    """As the documentation shows it."""

    async def call(request: dict[str, Any]) -> Any:
        return await client.chat.completions.create(**request)

    async def stream_call(request: dict[str, Any]) -> Any:
        options = {"stream": True, "stream_options": {"include_usage": True}}
        return await client.chat.completions.create(**request, **options)

    return LLMCallPrimitive(call, provider="openai", server_url=provider.base_url, stream_call=stream_call)


def port_of(provider: LocalProvider) -> int:
    return int(provider.base_url.rsplit(":", 1)[1].removesuffix("/v1"))


def shown() -> Scrape:
    return scrape(observability_status().prometheus_url)


def labels(model: str, **more: str) -> dict[str, str]:
    return {
        "gen_ai_operation_name": "chat",
        "gen_ai_provider_name": "openai",
        "gen_ai_request_model": model,
        **more,
    }


def durations(**wanted: str) -> float | None:
    return shown().value("gen_ai_client_operation_duration_seconds_count", **wanted)


@pytest.mark.promise("L1", "X1", "X2", "X4")
async def test_a_call(primitive: Any, provider: LocalProvider, spans: Callable[[], list[Any]]) -> None:
    """One CLIENT span with model, id, reason, tokens and server; the same tokens in a scrape; not a word of text."""
    answer = await primitive.execute(request("local-small"))

    (span,) = spans()
    assert ("chat local-small", "client", "unset", None) == (span.name, span.kind, span.status, span.parent_id)
    assert {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "openai",
        "gen_ai.request.model": "local-small",
        "gen_ai.request.temperature": 0.0,
        "gen_ai.response.model": answer.model,
        "gen_ai.response.id": answer.id,
        "gen_ai.response.finish_reasons": ("stop",),
        "gen_ai.usage.input_tokens": answer.usage.prompt_tokens,
        "gen_ai.usage.output_tokens": answer.usage.completion_tokens,
        "server.address": "127.0.0.1",
        "server.port": port_of(provider),
    } == {key: value for key, value in span.attributes.items() if "cache_read" not in key and "reasoning" not in key}
    assert answer.usage.prompt_tokens > 0
    assert answer.usage.completion_tokens > 0

    who = labels("local-small", gen_ai_response_model=answer.model)
    found = shown()
    assert 1 == found.value("gen_ai_client_operation_duration_seconds_count", **who)
    for kind, tokens in (("input", answer.usage.prompt_tokens), ("output", answer.usage.completion_tokens)):
        assert tokens == found.value("gen_ai_client_token_usage_sum", **who, gen_ai_token_type=kind)
    for text in (SECRET, "Secretland", answer.choices[0].message.content, "sk-secret"):
        assert text not in found.text
        assert text not in str(span.attributes)
    assert {("local-small", 200): 1} == provider.requests


@pytest.mark.promise("L1", "M10", "X2")
async def test_a_stream(primitive: Any, provider: LocalProvider, spans: Callable[[], list[Any]]) -> None:
    """The same from chunks: the usage stands in the last one, after the finish reason; and the first is timed."""
    async with primitive.stream(request("local-small")) as stream:
        chunks = [chunk async for chunk in stream]
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    usage = chunks[-1].usage
    assert text

    (span,) = spans()
    attributes = span.attributes
    assert ("chat local-small", "client", "unset") == (span.name, span.kind, span.status)
    assert attributes["gen_ai.request.stream"] is True
    assert ("stop",) == attributes["gen_ai.response.finish_reasons"]
    assert chunks[0].id == attributes["gen_ai.response.id"]
    assert chunks[0].model == attributes["gen_ai.response.model"]
    assert (usage.prompt_tokens, usage.completion_tokens) == (
        attributes["gen_ai.usage.input_tokens"],
        attributes["gen_ai.usage.output_tokens"],
    )
    assert ("127.0.0.1", port_of(provider)) == (attributes["server.address"], attributes["server.port"])
    assert 0 < attributes["gen_ai.response.time_to_first_chunk"] <= span.duration_ms / 1000
    assert "success" == attributes["outcome"]
    assert text not in str(attributes)

    found = shown()
    contents = [chunk for chunk in chunks if chunk.choices and chunk.choices[0].delta.content]
    who = labels("local-small")
    assert 1 == found.value("gen_ai_client_operation_time_to_first_chunk_seconds_count", **who)
    assert len(contents) - 1 == found.value("gen_ai_client_operation_time_per_output_chunk_seconds_count", **who)
    answered = labels("local-small", gen_ai_response_model=chunks[0].model)
    assert usage.completion_tokens == found.value(
        "gen_ai_client_token_usage_sum", **answered, gen_ai_token_type="output"
    )
    assert {("local-small", 200): 1} == provider.requests


@pytest.mark.parametrize(
    ("model", "error"), [("local-error", openai.InternalServerError), ("local-ratelimited", openai.RateLimitError)]
)
@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.promise("B3", "X2")
async def test_a_refused_call(
    model: str, error: type[Exception], streamed: bool, primitive: Any, spans: Callable[[], list[Any]]
) -> None:
    """The client's own exception reaches the caller, who reads its headers; span and metric name its class."""

    async def call() -> None:
        if streamed:
            async with primitive.stream(request(model)):
                pytest.fail("it opened")
        await primitive.execute(request(model))

    with pytest.raises(error) as caught:
        await call()
    assert model != "local-ratelimited" or "retry-after" in caught.value.response.headers  # type: ignore[attr-defined]

    (span,) = spans()
    kind = f"{error.__module__}.{error.__qualname__}"
    assert ("client", "error", kind) == (span.kind, span.status, span.attributes["error.type"])
    assert 1 == durations(**labels(model, error_type=kind))


@pytest.mark.promise("B3", "X2")
async def test_a_stream_that_is_cut(primitive: Any, spans: Callable[[], list[Any]]) -> None:
    """The connection breaks half-way: what had come was delivered, then the client's error, unchanged."""
    received: list[Any] = []

    async def read() -> None:
        async with primitive.stream(request("local-cut")) as stream:
            async for chunk in stream:
                received.append(chunk)

    with pytest.raises(Exception) as caught:  # which one lies between the client and its transport
        await read()
    assert received
    assert not isinstance(caught.value, StreamInterruptedError)
    (span,) = spans()
    kind = f"{type(caught.value).__module__}.{type(caught.value).__qualname__}"
    assert ("error", kind) == (span.status, span.attributes["error.type"])
    assert received[0].id == span.attributes["gen_ai.response.id"]
    assert 1 == durations(**labels("local-cut", gen_ai_response_model=received[0].model, error_type=kind))


@pytest.mark.promise("L2", "X2")
async def test_a_stream_that_ends_half_way_in_good_order(primitive: Any, spans: Callable[[], list[Any]]) -> None:
    """The client sees a normal end and would hand out half an answer; the missing finish reason tells."""
    received: list[Any] = []

    async def read() -> None:
        async with primitive.stream(request("local-silent-cut")) as stream:
            async for chunk in stream:
                received.append(chunk)

    with pytest.raises(StreamInterruptedError) as caught:
        await read()
    assert ("no_finish_reason", len(received)) == (caught.value.reason, caught.value.chunks)
    (span,) = spans()
    assert "error" == span.status
    assert "observability_integration.errors.StreamInterruptedError" == span.attributes["error.type"]
    assert "gen_ai.response.finish_reasons" not in span.attributes


@pytest.mark.promise("L1")
async def test_an_answer_cut_by_its_length_says_so(primitive: Any, spans: Callable[[], list[Any]]) -> None:
    """Half an answer with the reason ``length`` is no error, and is not taken for a whole one either."""
    await primitive.execute(request("local-truncated"))
    (span,) = spans()
    assert ("unset", ("length",)) == (span.status, span.attributes["gen_ai.response.finish_reasons"])


@pytest.mark.promise("T1", "X1", "X2")
async def test_a_provider_that_hangs_is_left_in_time(
    primitive: Any, provider: LocalProvider, spans: Callable[[], list[Any]]
) -> None:
    """The timeout around the call frees the caller, the request is taken back, and both spans say what happened."""
    bounded = TimeoutPrimitive[Any, Any](primitive, 0.2, operation_name="hang over http")
    with pytest.raises(TimeoutError):
        await bounded.execute(request("local-hang"))
    await provider.wait_for_in_flight(0)

    outer, inner = spans()
    assert ("timeout hang over http", "chat local-hang") == (outer.name, inner.name)
    assert outer.span_id == inner.parent_id
    assert ("error", "timeout") == (outer.status, outer.attributes["outcome"])
    assert "cancelled" == inner.attributes["error.type"]


async def test_a_reader_who_leaves_frees_the_connection(
    primitive: Any, provider: LocalProvider, spans: Callable[[], list[Any]]
) -> None:
    """Leaving the block closes the response; a stream left open would hold a connection of the pool for good."""
    async with primitive.stream(request("local-stall")) as stream:
        await anext(stream)
    await asyncio.wait_for(provider.wait_for_in_flight(0), 10)
    (span,) = spans()
    assert "closed" == span.attributes["outcome"]
