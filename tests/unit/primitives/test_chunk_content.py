"""Which chunks of a stream carry part of the answer."""

from __future__ import annotations

from collections.abc import Callable
from types import MappingProxyType, SimpleNamespace
from typing import Any

import pytest

from observability_integration.primitives.chunks import chunk_text, is_content

pytestmark = pytest.mark.once


def as_object(value: Any) -> Any:
    """The same, as the objects that an SDK makes of it."""
    if isinstance(value, dict):
        return SimpleNamespace(**{key: as_object(inner) for key, inner in value.items()})
    return [as_object(inner) for inner in value] if isinstance(value, list) else value


def openai(**delta: Any) -> dict[str, Any]:
    return {"object": "chat.completion.chunk", "choices": [{"index": 0, "delta": delta, "finish_reason": None}]}


@pytest.mark.promise("T8")
@pytest.mark.parametrize("shape", [lambda chunk: chunk, as_object], ids=["dict", "object"])
@pytest.mark.parametrize(
    ("content", "chunk"),
    [
        (True, openai(content="a")),
        (True, openai(content=" ")),
        (True, openai(role="assistant", content="a")),
        (True, openai(reasoning_content="hm")),
        (True, openai(reasoning="hm")),
        (True, openai(refusal="I cannot")),
        (True, openai(tool_calls=[{"index": 0}])),
        (True, openai(function_call={"name": "f"})),
        (True, openai(audio={"data": "UklG"})),
        (False, openai(role="assistant", content="")),
        (False, openai(role="assistant", content=None)),
        (False, openai()),
        (False, {"choices": [], "usage": {"prompt_tokens": 1}}),
        (False, {"choices": [{"delta": None, "finish_reason": "stop"}]}),
        (True, {"choices": [{"text": "a", "finish_reason": None}]}),
        (False, {"choices": [{"text": "", "finish_reason": "stop"}]}),
        (True, {"choices": [{"delta": {}}, {"delta": {"content": "b"}}]}),
        (True, {"choices": [{"message": {"content": "a"}, "finish_reason": "stop"}]}),
        (True, {"choices": [{"message": {"content": None, "tool_calls": [{}]}}]}),
        (False, {"choices": [{"message": {"content": ""}, "finish_reason": "stop"}]}),
        (True, {"type": "message", "role": "assistant", "content": [{"type": "text", "text": "a"}]}),
        (True, {"object": "response", "output": []}),
        (False, {"type": "error", "error": {"type": "overloaded_error"}}),
        (True, {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "a"}}),
        (True, {"type": "content_block_delta", "delta": {"type": "thinking_delta", "thinking": "hm"}}),
        (False, {"type": "content_block_start", "content_block": {"type": "text", "text": ""}}),
        (False, {"type": "content_block_stop", "index": 0}),
        (False, {"type": "message_start", "message": {"id": "1"}}),
        (False, {"type": "message_delta", "delta": {"stop_reason": "end_turn"}}),
        (False, {"type": "message_stop"}),
        (False, {"type": "ping"}),
        (True, {"type": "response.output_text.delta", "delta": "a"}),
        (True, {"type": "response.reasoning_summary_text.delta", "delta": "hm"}),
        (False, {"type": "response.created"}),
        (False, {"type": "response.in_progress"}),
        (False, {"type": "response.output_item.added"}),
        (False, {"type": "response.completed"}),
        (False, {"type": "chunk", "chunk": openai(role="assistant", content="")}),
        (True, {"type": "chunk", "chunk": openai(content="a")}),
        (False, {"data": openai(role="assistant", content="")}),
        (True, {"data": openai(content="a")}),
        (False, {"type": "content.delta", "delta": "", "snapshot": ""}),
        (True, {"type": "content.delta", "delta": "a", "snapshot": "a"}),
        (True, {"type": "tool_calls.function.arguments.delta", "arguments_delta": "{", "arguments": "{"}),
        (False, {"type": "content.done", "content": "a"}),
        (True, {"type": "text", "text": "a"}),
        (True, {"type": "text", "value": "a"}),
        (True, {"type": "something of another provider"}),
        (True, {"token": "a"}),
    ],
)
def test_content_of_provider_chunks(shape: Callable[[Any], Any], content: bool, chunk: Any) -> None:
    """Only what carries part of an answer re-arms the clocks, whether it comes as a dict or as an SDK's object."""
    assert content is is_content(shape(chunk))


@pytest.mark.parametrize(
    ("text", "chunk"),
    [
        ("a", {"type": "chunk", "chunk": openai(content="a")}),
        ("a", SimpleNamespace(data=openai(content="a"))),
        ("", {"type": "content.delta", "delta": "a", "snapshot": "a"}),
        ("", {"type": "refusal.delta", "delta": "a", "snapshot": "a"}),
        ("", SimpleNamespace(type="text", text="a", snapshot="a")),
        ("a", {"type": "text", "delta": "a"}),
        ("a", {"type": "ai", "content": "a", "response_metadata": {}}),
        ("", {"type": "ai", "content": "a"}),
    ],
    ids=repr,
)
def test_the_text_of_an_event_is_there_once(text: str, chunk: Any) -> None:
    """An event of an SDK's helper holds the provider's chunk, or repeats a part of it; a dict may be the user's own."""
    assert text == chunk_text(chunk)


class Unreadable:
    """An object whose attributes cannot be read."""

    @property
    def choices(self) -> Any:
        raise RuntimeError


class Ambiguous:
    """An object that, like an array, has no truth and no single answer to ==."""

    def __eq__(self, other: object) -> bool:
        raise TypeError

    def __bool__(self) -> bool:
        raise TypeError

    __hash__ = None  # type: ignore[assignment]


@pytest.mark.promise("S9", "T8")
@pytest.mark.parametrize(
    ("content", "chunk"),
    [
        (True, "a"),
        (True, " "),
        (True, b"a"),
        (False, ""),
        (False, b""),
        (False, None),
        (False, {}),
        (False, MappingProxyType({})),
        (True, MappingProxyType({"a": 1})),
        (True, 0),
        (True, [1]),
        (True, object()),
        (True, Unreadable()),
        (True, Ambiguous()),
    ],
)
def test_content_of_other_chunks(content: bool, chunk: Any) -> None:
    """Text is content unless empty; whatever is unknown is; and no chunk is so odd that it breaks the stream."""
    assert content is is_content(chunk)
