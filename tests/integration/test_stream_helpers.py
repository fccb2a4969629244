"""The SDKs' stream helpers, real clients over real sockets: their events wrap and repeat the provider's chunks."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest

from observability_integration.errors import StreamInterruptedError
from observability_integration.primitives import (
    CachePrimitive,
    Completion,
    LLMCallPrimitive,
    LLMTarget,
    ToolCall,
    pipeline,
)
from observability_integration.primitives.chunks import chunk_text, is_content
from observability_integration.telemetry.catalogue import Profile
from observability_integration.telemetry.metrics import instruments
from observability_integration.telemetry.metrics.snapshot import snapshot

anthropic = pytest.importorskip("anthropic")
openai = pytest.importorskip("openai")
pydantic = pytest.importorskip("pydantic")

pytestmark = [pytest.mark.once, pytest.mark.promise("L1", "L2")]


class Sum(pydantic.BaseModel):  # type: ignore[misc, name-defined]
    value: int


def chat(delta: dict[str, Any] | None, reason: str | None = None, index: int = 0, **fields: Any) -> dict[str, Any]:
    choices = [] if delta is None else [{"index": index, "delta": delta, "finish_reason": reason}]
    return {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": choices, **fields}


USAGE = chat(None, usage={"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5})
USED = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
CHAT = [
    chat({"role": "assistant", "content": ""}),
    chat({"content": '{"value"'}),
    chat({"content": ": 4}"}),
    chat({}, "stop"),
    USAGE,
]
ADD = {"name": "add", "strict": True, "parameters": {"type": "object", "properties": {}, "additionalProperties": False}}


def tool_part(arguments: str, **function: str) -> dict[str, Any]:
    call = {"index": 0, "function": {"arguments": arguments, **function}}
    return {"tool_calls": [call | ({"id": "t1", "type": "function"} if function else {})]}


TOOLS = [chat(tool_part("", name="add")), chat(tool_part("{")), chat(tool_part("}")), chat({}, "tool_calls"), USAGE]
REFUSED = [chat({"refusal": "I can"}), chat({"refusal": "not."}), chat({}, "stop"), USAGE]
CUT = [chat({"content": "Hel"}), chat({}, "length"), USAGE]

TOOL = {"type": "tool_use", "id": "t1", "name": "add", "input": {}}
MESSAGE = {"id": "c1", "type": "message", "role": "assistant", "model": "m", "content": [], "stop_reason": None}
ANTHROPIC = [
    {"type": "message_start", "message": {**MESSAGE, "usage": {"input_tokens": 3, "output_tokens": 1}}},
    {"type": "content_block_start", "index": 0, "content_block": {"type": "thinking", "thinking": "", "signature": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "hm"}},
    {"type": "content_block_stop", "index": 0},
    {"type": "content_block_start", "index": 1, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": "Hel"}},
    {"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": "lo"}},
    {"type": "content_block_stop", "index": 1},
    {"type": "content_block_start", "index": 2, "content_block": TOOL},
    {"type": "content_block_delta", "index": 2, "delta": {"type": "input_json_delta", "partial_json": "{"}},
    {"type": "content_block_delta", "index": 2, "delta": {"type": "input_json_delta", "partial_json": "}"}},
    {"type": "content_block_stop", "index": 2},
    {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 2}},
    {"type": "message_stop"},
]


def response(status: str, *output: dict[str, Any], **fields: Any) -> dict[str, Any]:
    fields |= {"parallel_tool_calls": True, "tool_choice": "auto", "tools": [], "created_at": 1, "model": "m"}
    body = {"id": "c1", "object": "response", "status": status, "output": list(output), **fields}
    kind = "response.created" if status == "in_progress" else f"response.{status}"
    return {"type": kind, "sequence_number": 0, "response": body}


ITEM = {"id": "i1", "type": "message", "role": "assistant", "status": "completed"}
PLACE = {"sequence_number": 1, "item_id": "i1", "output_index": 0, "content_index": 0}
SAID = {"type": "output_text", "text": "Hello", "annotations": []}
TOKENS = {"input_tokens": 3, "output_tokens": 2, "total_tokens": 5}
DETAILS = {"input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0}}
RESPONSES = [
    response("in_progress"),
    {"type": "response.output_item.added", "sequence_number": 1, "output_index": 0, "item": {**ITEM, "content": []}},
    {"type": "response.content_part.added", **PLACE, "part": {**SAID, "text": ""}},
    {"type": "response.output_text.delta", **PLACE, "delta": "Hel", "logprobs": []},
    {"type": "response.output_text.delta", **PLACE, "delta": "lo", "logprobs": []},
    response("completed", {**ITEM, "content": [SAID]}, usage={**TOKENS, **DETAILS}),
]

Call = Callable[[Any], Awaitable[Any]]


class Provider:
    """Servers of one stream each, and the SDKs' clients of them."""

    def __init__(self) -> None:
        self._opened: list[Any] = []

    async def _serve(self, events: list[dict[str, Any]], *, done: bool) -> str:
        lines = [f"event: {each['type']}\n" if "type" in each else "" for each in events]
        body = "".join(f"{line}data: {json.dumps(each)}\n\n" for line, each in zip(lines, events, strict=True))
        head = "HTTP/1.1 200 OK\r\nconnection: close\r\ncontent-type: text/event-stream\r\n\r\n"

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            request = await reader.readuntil(b"\r\n\r\n")
            (length,) = [line for line in request.lower().split(b"\r\n") if line.startswith(b"content-length")]
            await reader.readexactly(int(length.split(b":")[1]))
            writer.write((head + body + ("data: [DONE]\n\n" if done else "")).encode())
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(handle, "127.0.0.1", 0)
        self._opened.append(server)
        return f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"

    async def openai(self, events: list[Any], *, done: bool = True) -> Any:
        url = await self._serve(events, done=done)
        client = openai.AsyncOpenAI(api_key="none", base_url=f"{url}/v1", max_retries=0)
        self._opened.append(client)
        return client

    async def chat(self, events: list[Any], *, done: bool = True, **fields: Any) -> Call:
        client = await self.openai(events, done=done)
        messages = [{"role": "user", "content": "q"}]

        async def call(_: Any) -> Any:
            return client.chat.completions.stream(model="m", messages=messages, **fields)

        return call

    async def responses(self, events: list[Any]) -> Call:
        client = await self.openai(events, done=False)

        async def call(question: Any) -> Any:
            return client.responses.stream(model="m", input=question)

        return call

    async def anthropic(self, events: list[Any]) -> Call:
        client = anthropic.AsyncAnthropic(api_key="none", base_url=await self._serve(events, done=False), max_retries=0)
        self._opened.append(client)
        messages = [{"role": "user", "content": "q"}]

        async def call(_: Any) -> Any:
            return client.messages.stream(model="m", max_tokens=9, messages=messages)

        return call

    async def close(self) -> None:
        for opened in self._opened:
            closing = opened.close()
            if closing is not None:
                await closing
        # The clients read the machine's name and platform in a thread of the loop's pool.
        await asyncio.get_running_loop().shutdown_default_executor()


@pytest.fixture
async def provider() -> AsyncIterator[Provider]:
    provider = Provider()
    yield provider
    await provider.close()


@pytest.fixture
def measured() -> Iterator[Callable[[], int]]:
    """Counts the gaps between chunks that are measured."""
    instruments.start(exemplars=False, profiles=frozenset({Profile.V1_41}))

    def gaps() -> int:
        found = [shown for spec, shown in snapshot() if spec.name.endswith("operation.time_per_output_chunk")]
        return sum(sum(point.counts or ()) for shown in found for point in shown)

    yield gaps
    instruments.stop()


def target(call: Call) -> LLMTarget:
    return LLMTarget(call=call, streaming=True, max_attempts=1)


@pytest.mark.parametrize(
    ("events", "fields", "expected", "gaps"),
    [
        (CHAT, {"response_format": Sum}, Completion('{"value": 4}', "m", "stop", USED, id="c1"), 1),
        (CHAT, {}, Completion('{"value": 4}', "m", "stop", USED, id="c1"), 1),
        (
            TOOLS,
            {"tools": [{"type": "function", "function": ADD}]},
            Completion("", "m", "tool_calls", USED, (ToolCall("t1", "add", "{}"),), id="c1"),
            2,
        ),
        (REFUSED, {}, Completion("", "m", "stop", USED, (), "I cannot.", "c1"), 1),
        (CUT, {}, Completion("Hel", "m", "length", USED, id="c1"), 0),
    ],
    ids=["parsed", "text", "tools", "refusal", "length"],
)
async def test_the_chat_helper_of_openai(
    events: list[Any],
    fields: Any,
    expected: Completion,
    gaps: int,
    provider: Provider,
    measured: Callable[[], int],
) -> None:
    """The same answer and the same measurements as of the plain stream: what an event repeats counts once."""
    helper = await provider.chat(events, **fields)
    assert expected == await pipeline([target(helper)]).execute("q")
    assert gaps == measured()
    client = await provider.openai(events)

    async def plain(_: Any) -> Any:
        return await client.chat.completions.create(model="m", messages=[], stream=True)

    assert expected == await pipeline([target(plain)]).execute("q")
    assert 2 * gaps == measured()


async def test_the_helper_of_anthropic(provider: Provider, measured: Callable[[], int]) -> None:
    """Its events for text, thoughts and input repeat the deltas; the last one holds the whole message."""
    answer = await pipeline([target(await provider.anthropic(ANTHROPIC))]).execute("q")
    assert Completion("Hello", "m", "tool_use", USED, (ToolCall("t1", "add", "{}"),), id="c1") == answer
    assert 4 == measured()


async def test_the_responses_helper_of_openai(provider: Provider, measured: Callable[[], int]) -> None:
    """Its events are the provider's own, with what came so far in each."""
    answer = await pipeline([target(await provider.responses(RESPONSES))]).execute("q")
    assert Completion("Hello", "m", "completed", USED, id="c1") == answer
    assert 1 == measured()


WAYS: dict[str, tuple[list[Any], list[int]]] = {
    "chat": (CHAT, [1, 2, 3]),
    "anthropic": (ANTHROPIC, [1, 3, 6, 7, 10, 12]),
    "responses": (RESPONSES, [1, 4, 5]),
}


async def read(primitive: Any) -> list[Any]:
    async with primitive.stream("q") as chunks:
        return [chunk async for chunk in chunks]


@pytest.mark.parametrize(("way", "sent"), [(way, sent) for way, (_, cuts) in WAYS.items() for sent in cuts])
async def test_a_cut_stream_is_no_answer(way: str, sent: int, provider: Provider) -> None:
    """The helpers end it like a whole one; neither does the caller get it, nor the next caller from a cache."""
    events, _ = WAYS[way]
    call = await getattr(provider, way)(events[:sent], **({"done": False} if way == "chat" else {}))
    cache: Any = CachePrimitive(LLMCallPrimitive[Any, Any](call, streaming=True), lambda question: question)
    for ask in (cache.execute, cache.execute, lambda _: read(cache), lambda _: read(cache)):
        with pytest.raises(StreamInterruptedError) as caught:
            await ask("q")
        assert "no_finish_reason" == caught.value.reason
    assert 0 == cache.get_stats()["hits"]
    whole = await getattr(provider, way)(events)
    answer = await pipeline([target(call), LLMTarget(call=whole, streaming=True, name="whole")]).execute("q")
    assert answer.text in ("Hello", '{"value": 4}')


@pytest.mark.parametrize("way", WAYS)
async def test_a_stream_that_is_cut_before_its_content_is_replaced(way: str, provider: Provider) -> None:
    """The helper's event for the empty text of a role frame is no content: the reader sees nothing of it."""
    events, _ = WAYS[way]
    call = await getattr(provider, way)(events[:1], **({"done": False} if way == "chat" else {}))
    whole = await getattr(provider, way)(events)
    chunks = await read(pipeline([target(call), LLMTarget(call=whole, streaming=True, name="whole")]))
    assert "".join(map(chunk_text, chunks)) in ("Hello", '{"value": 4}')


@pytest.mark.parametrize("way", WAYS)
async def test_a_reader_gets_the_helpers_events(way: str, provider: Provider) -> None:
    """Unchanged; their text is there once, and what restarts the clocks is content."""
    call = await getattr(provider, way)(WAYS[way][0])
    events = await read(LLMCallPrimitive[Any, Any](call))
    assert "".join(map(chunk_text, events)) in ("Hello", '{"value": 4}')
    assert len(events) > len([event for event in events if is_content(event)]) > 1


@pytest.mark.promise("C12")
@pytest.mark.parametrize(("reason", "hits"), [("stop", 1), ("length", 0), ("content_filter", 0)])
@pytest.mark.parametrize("reads", ["execute", "stream"])
async def test_what_the_helper_says_of_the_end_decides_whether_it_is_kept(
    reason: str, hits: int, reads: str, provider: Provider
) -> None:
    """As for the plain stream."""
    call = await provider.chat([chat({"content": "Hel"}), chat({}, reason), USAGE])
    cache: Any = pipeline([target(call)], cache=lambda inner: CachePrimitive(inner, lambda question: question))
    for _ in range(2):
        if reads == "execute":
            assert "Hel" == (await cache.execute("q")).text
        else:
            assert "Hel" == "".join(map(chunk_text, await read(cache)))
    assert hits == cache.get_stats()["hits"]


async def test_a_second_choice_that_is_cut(provider: Provider) -> None:
    """Each choice has its own end, also inside the helper's events."""
    two = [chat({"content": "a"}), chat({"content": "b"}, index=1), chat({}, "stop")]
    with pytest.raises(StreamInterruptedError):
        await pipeline([target(await provider.chat(two, n=2))]).execute("q")
    whole = await pipeline([target(await provider.chat([*two, chat({}, "stop", 1)], n=2))]).execute("q")
    assert ("a", "stop") == (whole.text, whole.finish_reason)


@pytest.mark.parametrize("kind", ["chat", "responses", "anthropic"])
async def test_a_stream_without_any_event_was_cut(kind: str, provider: Provider) -> None:
    """The status was 200 and the connection closed before the first event: no answer, not an empty one."""
    call = await (provider.chat([], done=False) if kind == "chat" else getattr(provider, kind)([]))
    with pytest.raises(StreamInterruptedError):
        await pipeline([target(call)]).execute("q")
