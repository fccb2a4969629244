"""`completion_of`: an answer in chunks, put together again."""

from __future__ import annotations

from typing import Any

import pytest

from observability_integration.costs.usage import finish_reasons_of, model_of, usage_of
from observability_integration.primitives.completion import Completion, ToolCall, answer_of, completion_of

pytestmark = pytest.mark.once


def openai_chunk(delta: dict[str, Any] | None = None, reason: str | None = None, **fields: Any) -> dict[str, Any]:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": reason}]
    return {"id": "chatcmpl-1", "model": "small", "object": "chat.completion.chunk", "choices": choices, **fields}


def test_openai_chat() -> None:
    """Text, model, reason and usage; and what we read of answers elsewhere can be read of this one."""
    usage = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
    answer = completion_of(
        [
            openai_chunk({"role": "assistant", "content": ""}),
            openai_chunk({"content": "Hel"}),
            openai_chunk({"content": "lo"}),
            openai_chunk({}, "stop"),
            openai_chunk(usage=usage),
        ]
    )
    assert Completion("Hello", "small", "stop", usage, id="chatcmpl-1") == answer
    assert "Hello" == str(answer)
    assert (("stop",), "small", 7) == (finish_reasons_of(answer), model_of(answer), usage_of(answer).input_tokens)


def test_of_several_choices_the_first() -> None:
    """Two answers are never spliced."""
    other = {"index": 1, "delta": {"content": "other"}, "finish_reason": "length"}
    chunk = openai_chunk({"content": "a"}, "stop")
    chunk["choices"].insert(0, other)
    assert ("a", "stop") == (completion_of([chunk]).text, completion_of([chunk]).finish_reason)


def test_openai_tools_and_refusals() -> None:
    """Arguments come in pieces, and two calls of tools at once."""
    answer = completion_of(
        [
            openai_chunk({"tool_calls": [{"index": 0, "id": "c0", "function": {"name": "f", "arguments": '{"a'}}]}),
            openai_chunk({"tool_calls": [{"index": 1, "id": "c1", "function": {"name": "g", "arguments": "{}"}}]}),
            openai_chunk({"tool_calls": [{"index": 0, "function": {"arguments": '": 1}'}}]}),
            openai_chunk({"refusal": "I can"}),
            openai_chunk({"refusal": "not"}, "tool_calls"),
        ]
    )
    assert (ToolCall("c0", "f", '{"a": 1}'), ToolCall("c1", "g", "{}")) == answer.tool_calls
    assert ("I cannot", "") == (answer.refusal, answer.text)


def test_anthropic_messages() -> None:
    """The same, of their events."""
    answer = completion_of(
        [
            {"type": "message_start", "message": {"id": "msg_1", "model": "claude", "usage": {"input_tokens": 5}}},
            {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
            {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hi"}},
            {"type": "content_block_start", "index": 1, "content_block": {"type": "tool_use", "id": "t", "name": "f"}},
            {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": "{}"}},
            {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 3}},
            {"type": "message_stop"},
        ]
    )
    usage = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}
    assert Completion("Hi", "claude", "tool_use", usage, (ToolCall("t", "f", "{}"),), id="msg_1") == answer


@pytest.mark.parametrize(
    ("chunks", "expected"),
    [
        ([], ""),
        (["a", "b"], "ab"),
        ([1, "a"], [1, "a"]),
        ([b"a"], [b"a"]),
        ([openai_chunk({"content": "é€😀"}, "stop")], Completion("é€😀", "small", "stop", id="chatcmpl-1")),
        ([{"choices": None}, {"choices": [None]}], Completion("")),
        ([{"choices": [{"delta": {"tool_calls": [None, {"index": "x", "function": 5}]}}]}], None),
    ],
)
def test_answers_of_any_kind(chunks: list[Any], expected: Any) -> None:
    """Text stays text, and what is odd breaks nothing."""
    answer = answer_of(chunks)
    assert (expected == answer) if expected is not None else isinstance(answer, Completion)
