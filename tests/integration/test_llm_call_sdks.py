"""The real clients of Anthropic and OpenAI over what providers send: their helpers, and errors inside a stream."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from observability_integration.errors import ProviderStreamError
from observability_integration.primitives import LLMCallPrimitive, ToolCall, completion_of
from observability_integration.resilience.faults import classify

anthropic = pytest.importorskip("anthropic")
openai = pytest.importorskip("openai")
httpx = pytest.importorskip("httpx2")

pytestmark = [pytest.mark.once, pytest.mark.promise("L1")]

MESSAGE = {"id": "m1", "type": "message", "role": "assistant", "model": "claude", "content": [], "stop_reason": None}
TOOL = {"type": "tool_use", "id": "t1", "name": "weather", "input": {}}
ANTHROPIC = [
    {"type": "message_start", "message": {**MESSAGE, "usage": {"input_tokens": 3, "output_tokens": 1}}},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Look"}},
    {"type": "content_block_stop", "index": 0},
    {"type": "content_block_start", "index": 1, "content_block": TOOL},
    {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": '{"city":'}},
    {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": '"Rome"}'}},
    {"type": "content_block_stop", "index": 1},
    {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 9}},
    {"type": "message_stop"},
]
RESPONSE = {"id": "r", "object": "response", "model": "m", "status": "in_progress", "output": [], "created_at": 1}
BEGUN = {"type": "response.created", "sequence_number": 0, "response": RESPONSE}
DELTA = {"type": "response.output_text.delta", "delta": "half", "item_id": "i", "output_index": 0, "content_index": 0}
SERVER_ERROR = {"code": "server_error", "message": "the secret prompt"}


def http(events: list[Any]) -> Any:
    """An HTTP client that answers with these events."""
    lines = [f"event: {event['type']}\ndata: {json.dumps(event)}\n\n" for event in events]
    headers = {"content-type": "text/event-stream"}
    answer = httpx.Response(200, headers=headers, content="".join(lines).encode())
    return httpx.AsyncClient(transport=httpx.MockTransport(lambda _: answer))


def by_create(client: Any, fields: Any) -> Callable[[Any], Any]:
    async def call(_: Any) -> Any:
        return await client.messages.create(stream=True, **fields)

    return call


def by_generator(client: Any, fields: Any) -> Callable[[Any], Any]:
    async def call(_: Any) -> AsyncIterator[Any]:
        async with client.messages.stream(**fields) as stream:
            async for event in stream:
                yield event

    return call


def by_manager(client: Any, fields: Any) -> Callable[[Any], Any]:
    return lambda _: client.messages.stream(**fields)


@pytest.mark.parametrize("way", [by_create, by_generator, by_manager])
async def test_anthropics_streams(way: Any) -> None:
    """Raw, by the helper, or by the helper's context manager: one answer, and its tool's arguments whole."""
    client = anthropic.AsyncAnthropic(api_key="sk-x", http_client=http(ANTHROPIC), max_retries=0)
    fields = {"model": "claude", "max_tokens": 9, "messages": [{"role": "user", "content": "q"}]}
    call = LLMCallPrimitive[Any, Any](way(client, fields), streaming=True, collect=completion_of)
    answer = await call.execute("q")
    await client.close()
    await asyncio.get_running_loop().shutdown_default_executor()
    assert ("Look", "tool_use", "m1") == (answer.text, answer.finish_reason, answer.id)
    assert (ToolCall("t1", "weather", '{"city":"Rome"}'),) == answer.tool_calls
    assert {"prompt_tokens": 3, "completion_tokens": 9, "total_tokens": 12} == answer.usage


@pytest.mark.parametrize(
    ("last", "code", "kind"),
    [
        (
            {"type": "response.failed", "response": {**RESPONSE, "status": "failed", "error": SERVER_ERROR}},
            "server_error",
            "transient",
        ),
        (
            {"type": "error", "code": "context_length_exceeded", "message": "x", "param": None},
            "context_length_exceeded",
            "context_length",
        ),
    ],
)
async def test_a_response_that_fails(last: dict[str, Any], code: str, kind: str) -> None:
    """The SDK hands these events out like any other."""
    client = openai.AsyncOpenAI(api_key="sk-x", http_client=http([BEGUN, DELTA, last]), max_retries=0)

    async def call(question: str) -> Any:
        return await client.responses.create(model="m", input=question, stream=True)

    with pytest.raises(ProviderStreamError) as caught:
        await LLMCallPrimitive[str, Any](call, streaming=True).execute("q")
    await client.close()
    await asyncio.get_running_loop().shutdown_default_executor()
    assert (code, kind) == (caught.value.code, classify(caught.value).kind)
    assert "secret" not in str(caught.value)
