"""What a stream says in sum decides whether it is kept: a cut one must be known, and a whole one judged as it is."""

from __future__ import annotations

from types import MappingProxyType, SimpleNamespace
from typing import Any

import pytest

from observability_integration.costs.usage import Usage, usage_of
from observability_integration.primitives.cache.admission import Admission
from observability_integration.primitives.cache.stream_ending import StreamEnding
from observability_integration.primitives.streams import StreamRestart


def ending(*chunks: Any) -> StreamEnding:
    noted = StreamEnding()
    for chunk in chunks:
        noted.note(chunk)
    return noted


def answer(*chunks: Any) -> Any:
    return ending(*chunks).answer(lambda: list(chunks))


def chat(content: str | None = None, reason: str | None = None, index: int = 0, **delta: Any) -> dict[str, Any]:
    return {"choices": [{"index": index, "delta": {"content": content, **delta}, "finish_reason": reason}]}


USAGE = {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 2}}
CALL = [{"index": 0, "function": {"name": "f", "arguments": ""}}]


def objects(value: Any) -> Any:
    """The same as an SDK has it."""
    if isinstance(value, dict):
        return SimpleNamespace(**{key: objects(item) for key, item in value.items()})
    return [objects(item) for item in value] if isinstance(value, list) else value


def anthropic(*blocks: dict[str, Any], reason: str | None = "end_turn") -> list[dict[str, Any]]:
    stream: list[dict[str, Any]] = [{"type": "message_start", "message": {"usage": {"input_tokens": 3}}}]
    for index, block in enumerate(blocks):
        stream.append({"type": "content_block_start", "index": index, "content_block": {**block, "text": ""}})
        if "text" in block:
            stream.append({"type": "content_block_delta", "index": index, "delta": {"text": block["text"]}})
        stream.append({"type": "content_block_stop", "index": index})
    if reason is not None:
        stream += [{"type": "message_delta", "delta": {"stop_reason": reason}, "usage": {"output_tokens": 2}}]
    return [*stream, {"type": "message_stop"}]


def response(status: str, *output: dict[str, Any], **details: Any) -> dict[str, Any]:
    body = {"object": "response", "status": status, "output": list(output), **details}
    return {"type": f"response.{status}", "response": body}


def langchain(content: str, reason: str | None = None, **fields: Any) -> dict[str, Any]:
    metadata = MappingProxyType({"model_provider": "p", "finish_reason": reason})
    return {"type": "AIMessageChunk", "content": content, "response_metadata": metadata, **fields}


MESSAGE = {"type": "message", "content": [{"type": "output_text", "text": "hi"}]}
BEGUN = [
    {"type": "response.created", "response": {"object": "response", "status": "in_progress", "output": []}},
    {"type": "response.output_text.delta", "delta": "hi"},
]

KEPT: dict[str, list[Any]] = {
    "chat": [chat(role="assistant"), chat("h"), chat("i"), chat(reason="stop"), USAGE],
    "choices that end one after another": [chat("a"), chat("b", index=1), chat(None, "stop"), chat(None, "stop", 1)],
    "completions": [{"choices": [{"text": "a"}]}, {"choices": [{"text": "b", "finish_reason": "stop"}]}],
    "an image": [chat(images=[{"type": "image_url"}]), chat(reason="stop")],
    "anthropic": anthropic({"type": "text", "text": "hi"}),
    "langchain": [langchain("h"), langchain("i"), langchain("", "STOP", tool_calls=[], additional_kwargs={})],
    "responses": [*BEGUN, response("completed", MESSAGE)],
    "text": ["a", "b"],
    "bytes": [b"a"],
    "a chat completion in one piece": [
        {"choices": [{"index": 0, "message": {"content": "hi", "role": "assistant"}, "finish_reason": "stop"}]}
    ],
    "a message in one piece": [{"type": "message", "content": [{"type": "text", "text": "hi"}]}],
    "a response in one piece": [{"object": "response", "status": "completed", "output": [MESSAGE]}],
    "nothing": [],
    "dicts of somebody's": [{"a": 1}, {"error": "none of a provider's"}],
}
CUT: dict[str, list[Any]] = {
    "chat": [chat("h")],
    "one of two choices": [chat("a", "stop"), chat("b", index=1)],
    "anthropic": anthropic({"type": "text", "text": "hi"}, reason=None),
    "responses": BEGUN,
    "a null in words": [chat("h", "null"), chat("i", "FINISH_REASON_UNSPECIFIED")],
    "usage and nothing else": [USAGE],
    "begun anew": [chat("h"), StreamRestart("b", "timeout", 1), chat("hi", "stop")],
    "a chat completion in one piece": [{"choices": [{"index": 0, "message": {"content": "h"}}]}],
}
REFUSED: dict[str, tuple[str, list[Any]]] = {
    "length": ("length", [chat("h"), chat(None, "length")]),
    "filter": ("content_filter", [chat("h"), chat(None, "content_filter")]),
    "a refusal": ("content_filter", [chat(refusal="no"), chat(None, "stop")]),
    "tools": ("tool_call", [chat(tool_calls=CALL), chat(None, "tool_calls")]),
    "tools, ended otherwise": ("tool_call", [chat(tool_calls=CALL), chat(None, "stop")]),
    "a function": ("tool_call", [chat(function_call={"name": "f"}), chat(None, "stop")]),
    "one of two choices": ("length", [chat("a", "stop"), chat("b", "length", 1)]),
    "no text": ("empty", [chat(role="assistant"), chat(" \n", "stop")]),
    "an error in a chunk": ("error", [chat("a"), {**chat(None, "stop"), "error": {"code": 502, "message": "x"}}]),
    "an error for a chunk": ("error", ["a", {"type": "error", "error": {"type": "overloaded", "message": "x"}}]),
    "an error event": ("error", [{"type": "error", "code": "x", "message": "x"}]),
    "anthropic, length": ("length", anthropic({"type": "text", "text": "hi"}, reason="max_tokens")),
    "anthropic, tools": ("tool_call", anthropic({"type": "tool_use"}, reason="tool_use")),
    "anthropic, refusal": ("content_filter", anthropic({"type": "text", "text": "hi"}, reason="refusal")),
    "anthropic, empty": ("empty", anthropic()),
    "responses, length": (
        "length",
        [*BEGUN, response("incomplete", MESSAGE, incomplete_details={"reason": "max_output_tokens"})],
    ),
    "responses, tools": ("tool_call", [*BEGUN, response("completed", {"type": "function_call", "name": "f"})]),
    "responses, failed": ("error", [*BEGUN, response("failed")]),
    "responses, cancelled": ("length", [*BEGUN, response("cancelled", MESSAGE)]),
    "langchain, tools": ("tool_call", [langchain("a"), langchain("", "STOP", tool_call_chunks=CALL)]),
    "langchain, tools in one piece": ("tool_call", [langchain("a", "STOP", tool_calls=CALL)]),
    "langchain, a refusal": (
        "content_filter",
        [langchain("a", additional_kwargs={"refusal": "no"}), langchain("", "stop")],
    ),
    "in one piece, tools": ("tool_call", [{"choices": [{"message": {"tool_calls": CALL}, "finish_reason": "stop"}]}]),
    "in one piece, a message without text": ("empty", [{"type": "message", "content": []}]),
    "in one piece, a response that failed": ("error", [{"object": "response", "status": "failed", "output": []}]),
}


@pytest.mark.parametrize("like", [lambda value: value, objects], ids=["dicts", "objects"])
@pytest.mark.parametrize("stream", KEPT.values(), ids=KEPT)
def test_whole_streams_may_be_kept(stream: list[Any], like: Any) -> None:
    """Nothing is held against a stream that ended as it should, whoever produced it."""
    stream = [like(chunk) for chunk in stream]
    assert not ending(*stream).cut_off
    assert Admission().refuses(answer(*stream)) is None


def helper(chunk: Any) -> Any:
    """The event of OpenAI's helper around a chunk of its chat."""
    return {"type": "chunk", "chunk": chunk} if isinstance(chunk, dict) and "choices" in chunk else chunk


@pytest.mark.parametrize("like", [lambda value: value, objects, helper], ids=["dicts", "objects", "events"])
@pytest.mark.parametrize("stream", CUT.values(), ids=CUT)
def test_a_stream_without_a_finish_reason_is_cut(stream: list[Any], like: Any) -> None:
    """A connection that closes early looks like the end of the stream; the reason that is missing tells."""
    assert ending(*map(like, stream)).cut_off


@pytest.mark.parametrize("like", [lambda value: value, objects, helper], ids=["dicts", "objects", "events"])
@pytest.mark.parametrize(("reason", "stream"), REFUSED.values(), ids=REFUSED)
def test_what_is_judged_says_why_it_ended(reason: str, stream: list[Any], like: Any) -> None:
    """An answer in chunks is refused for the same reasons as one in one piece."""
    stream = [like(chunk) for chunk in stream]
    assert reason == Admission().refuses(answer(*stream))


def test_the_answer_is_put_together() -> None:
    """For a function of the user's that looks into it, and for the tokens that a hit saves."""
    whole = answer(*KEPT["chat"])
    assert "hi" == whole["choices"][0]["message"]["content"]
    assert Usage(3, 2) == usage_of(whole)
    whole = answer(*anthropic({"type": "text", "text": "hi"}))
    assert "hi" == whole["choices"][0]["message"]["content"]
    assert Usage(3, 2) == usage_of(whole)
    assert ["a", "b"] == [
        choice["message"]["content"] for choice in answer(*KEPT["choices that end one after another"])["choices"]
    ]
    assert "ab" == answer(*KEPT["completions"])["choices"][0]["message"]["content"]


def test_other_streams_are_judged_by_what_collecting_makes_of_them() -> None:
    """Text is joined, anything else is a list."""
    assert "ab" == answer("a", "b")
    assert ["a", {"b": 1}] == answer("a", {"b": 1})
    assert "" == answer()
