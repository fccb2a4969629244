"""`completion_of`: an answer in chunks, put together again."""

from __future__ import annotations

from typing import Any

import pytest

from observability_integration.costs.usage import finish_reasons_of, model_of, usage_of
from observability_integration.primitives.llm.completion import Completion, ToolCall, answer_from_chunks, completion_of

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


def test_anthropic_messages_by_the_helper() -> None:
    """``messages.stream()`` adds events of its own, and whole blocks at their ends: nothing is told twice or lost."""
    block: Any = {"type": "tool_use", "id": "t", "name": "f", "input": {"a": 1}}
    events: list[Any] = [
        {"type": "message_start", "message": {"id": "msg_1", "model": "claude", "usage": {"input_tokens": 5}}},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "Hi"}},
        {"type": "text", "text": "Hi", "snapshot": "Hi"},
        {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "hm"}},
        {"type": "content_block_stop", "index": 0, "content_block": {"type": "text", "text": "Hi"}},
        {"type": "content_block_start", "index": 1, "content_block": {**block, "input": {}}},
        {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": '{"a":'}},
        {"type": "input_json", "partial_json": '{"a": ', "snapshot": {}},
        {"type": "content_block_delta", "index": 1, "delta": {"type": "input_json_delta", "partial_json": "1}"}},
        {"type": "content_block_stop", "index": 1, "content_block": block},
        {"type": "message_delta", "delta": {"stop_reason": "tool_use"}, "usage": {"output_tokens": 3}},
        {"type": "message_stop", "message": {"id": "msg_1", "content": [block], "stop_reason": "tool_use"}},
    ]
    answer = completion_of(events)
    assert ("Hi", (ToolCall("t", "f", '{"a":1}'),)) == (answer.text, answer.tool_calls)
    events[6]["content_block"] = block  # from servers that have no pieces
    assert '{"a": 1}' == completion_of([*events[:7], *events[10:]]).tool_calls[0].arguments


OUTPUT: list[Any] = [
    {"type": "reasoning", "summary": [{"type": "summary_text", "text": "hm"}]},
    {"type": "message", "content": [{"type": "output_text", "text": "Hi "}, {"type": "output_text", "text": "you"}]},
    {"type": "function_call", "id": "fc", "call_id": "call", "name": "f", "arguments": '{"a": 1}'},
    {"type": "custom_tool_call", "call_id": "custom", "name": "g", "input": "free text"},
]
RESPONSE = {"id": "resp", "object": "response", "model": "m", "status": "completed", "output": OUTPUT}


def event(kind: str, **fields: Any) -> dict[str, Any]:
    return {"type": f"response.{kind}", **fields}


BEGUN = event("created", response={**RESPONSE, "status": "in_progress", "output": []})
ENDED = event("completed", response={**RESPONSE, "usage": {"input_tokens": 5, "output_tokens": 3}})
TOOLS = (ToolCall("call", "f", '{"a": 1}'), ToolCall("custom", "g", "free text"))


def test_openai_responses() -> None:
    """Text is what is said, not what was thought; and the tools come with the id by which they are answered."""
    answer = completion_of(
        [
            BEGUN,
            event("reasoning_text.delta", delta="hm"),
            event("reasoning_summary_text.delta", delta="hm"),
            event("output_item.added", output_index=1, item={"type": "message", "content": []}),
            event("output_text.delta", output_index=1, delta="Hi "),
            event("output_text.delta", output_index=1, delta="you"),
            event("output_text.done", output_index=1, text="Hi you"),
            event("output_item.done", output_index=1, item=OUTPUT[1]),
            event("output_item.added", output_index=2, item={**OUTPUT[2], "arguments": ""}),
            event("function_call_arguments.delta", output_index=2, delta='{"a": '),
            event("function_call_arguments.delta", output_index=2, delta="1}"),
            event("function_call_arguments.done", output_index=2, arguments='{"a": 1}'),
            event("output_item.done", output_index=2, item=OUTPUT[2]),
            event("output_item.added", output_index=3, item={**OUTPUT[3], "input": ""}),
            event("custom_tool_call_input.delta", output_index=3, delta="free text"),
            event("output_item.done", output_index=3, item=OUTPUT[3]),
            ENDED,
        ]
    )
    usage = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}
    assert Completion("Hi you", "m", "completed", usage, TOOLS, id="resp") == answer


def test_openai_responses_without_their_parts() -> None:
    """The last event holds all of it, should the others not have come; a refusal is no text."""
    answer = completion_of([BEGUN, ENDED])
    assert ("Hi you", TOOLS) == (answer.text, answer.tool_calls)
    refusals = [event("refusal.delta", delta="I can"), event("refusal.delta", delta="not"), ENDED]
    assert ("", "I cannot") == (completion_of(refusals).text, completion_of(refusals).refusal)


def test_legacy_completions() -> None:
    """Their text stands in the choice itself."""
    chunks = [{"choices": [{"index": 0, "text": "Hel"}]}, {"choices": [{"text": "lo", "finish_reason": "stop"}]}]
    assert ("Hello", "stop") == (answer_from_chunks(chunks).text, answer_from_chunks(chunks).finish_reason)


CALLS = [
    {"id": "call", "function": {"name": "f", "arguments": '{"a": 1}'}},
    {"id": "custom", "function": {"name": "g", "arguments": "free text"}},
]


@pytest.mark.parametrize(
    "whole",
    [
        {
            "id": "resp",
            "model": "m",
            "choices": [{"message": {"content": "Hi you", "tool_calls": CALLS}, "finish_reason": "completed"}],
        },
        RESPONSE,
        {
            "type": "message",
            "id": "resp",
            "model": "m",
            "stop_reason": "completed",
            "content": [
                {"type": "thinking", "thinking": "hm"},
                {"type": "text", "text": "Hi you"},
                {"type": "tool_use", "id": "call", "name": "f", "input": {"a": 1}},
                {"type": "tool_use", "id": "custom", "name": "g", "input": {}},
            ],
        },
    ],
    ids=["chat", "response", "message"],
)
def test_an_answer_in_one_piece(whole: dict[str, Any]) -> None:
    """From a call that does not stream, where others do."""
    answer = answer_from_chunks([whole])
    tools = (TOOLS[0], ToolCall("custom", "g", "")) if "stop_reason" in whole else TOOLS
    assert Completion("Hi you", "m", "completed", None, tools, id="resp") == answer


def test_calls_of_tools_without_numbers() -> None:
    """Some servers send each call at once, and number none."""
    chunks = [openai_chunk({"tool_calls": [call]}) for call in CALLS]
    rest = {"function": {"arguments": "!"}}
    tools = completion_of([*chunks, openai_chunk({"tool_calls": [rest]})]).tool_calls
    assert ["f", "g"] == [tool.name for tool in tools]
    assert ['{"a": 1}', "free text!"] == [tool.arguments for tool in tools]


def test_content_in_blocks() -> None:
    """Mistral sends a list where it has thought."""
    blocks = [{"type": "thinking", "thinking": []}, {"type": "text", "text": "Hi"}]
    assert "Hi" == completion_of([openai_chunk({"content": blocks}, "stop")]).text


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
    answer = answer_from_chunks(chunks)
    assert (expected == answer) if expected is not None else isinstance(answer, Completion)


@pytest.mark.parametrize("with_chunks", [True, False])
def test_text_of_a_helper_is_there_once(with_chunks: bool) -> None:
    """Its events repeat the chunks; a reader that filters them keeps the text."""
    events: list[Any] = []
    for text in ("Hel", "lo"):
        chunk = {"type": "chunk", "chunk": openai_chunk({"content": text})}
        events += [chunk] * with_chunks + [{"type": "content.delta", "delta": text, "snapshot": text}]
    assert "Hello" == completion_of(events).text
