"""Reads chunks of an answer: whether a chunk has content, and its text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from observability_integration.costs.shapes import choices_of, metadata_of, read, repeats

_CONTENT_FIELDS = (  # of an OpenAI choice, delta or message; some servers add reasoning and images
    "content",
    "text",
    "reasoning_content",
    "reasoning",
    "reasoning_details",
    "refusal",
    "tool_calls",
    "function_call",
    "audio",
    "images",
)

_BLOCK_LABELS = ("type", "id", "index")  # of a LangChain block, what is no content


def is_content(chunk: Any) -> bool:
    """Whether a chunk carries part of the answer. Keep-alives, roles and usage reports do not.

    Reads text, OpenAI chat and completion chunks, OpenAI response events, Anthropic message events, LangChain messages
    and whole answers of all, as objects or dicts, and the events of the SDKs' stream helpers around them. Any other
    non-empty chunk counts as content.
    """
    if chunk is None or isinstance(chunk, str | bytes):
        return bool(chunk)
    try:
        return _carries_content(chunk)
    except Exception:  # noqa: BLE001 - a chunk that cannot be read may be content
        return True


def _carries_content(chunk: Any) -> bool:
    choices = choices_of(chunk)
    if choices is not None:
        for choice in choices:
            part = read(choice, "delta") or read(choice, "message") or choice
            for name in _CONTENT_FIELDS:
                if read(part, name):
                    return True
        return False
    kind = read(chunk, "type")
    if isinstance(kind, str):
        if kind.startswith(("content_block_", "message_")) or kind in ("ping", "error"):
            return kind == "content_block_delta"
        if kind.startswith("response."):
            return kind.endswith(".delta")
        if "." in kind and repeats(chunk, kind):
            return bool(read(chunk, "delta") or read(chunk, "arguments_delta"))
        if metadata_of(chunk) is not None:
            return _message_has_content(chunk)
    return not isinstance(cast("object", chunk), Mapping) or bool(chunk)


def _message_has_content(message: Any) -> bool:
    content = read(message, "content")
    blocks: list[Any] = content if isinstance(cast("object", content), list) else [content]
    if any(map(_block_has_content, blocks)):
        return True
    if any(read(message, name) for name in ("tool_call_chunks", "tool_calls", "invalid_tool_calls")):
        return True
    more = read(message, "additional_kwargs")
    return isinstance(more, Mapping) and any(map(cast("Mapping[str, Any]", more).get, _CONTENT_FIELDS))


def _block_has_content(block: Any) -> bool:
    if not isinstance(block, Mapping):
        return bool(block)
    return any(value for name, value in cast("Mapping[str, Any]", block).items() if name not in _BLOCK_LABELS)


def chunk_text(chunk: Any) -> str:
    """Returns the text of a chunk or of a whole answer: plain, of OpenAI, Anthropic or LangChain; empty if it has none.

    Reasoning, refusals and tool arguments are not text, nor is what an event of an SDK's helper repeats.
    """
    if isinstance(chunk, str):
        return chunk
    choices = choices_of(chunk)
    if choices is not None:
        return "".join(map(choice_text, choices))
    kind = read(chunk, "type")
    if isinstance(kind, str) and kind.startswith("response.") and kind != "response.output_text.delta":
        return ""
    delta = read(chunk, "delta")
    text = delta if isinstance(delta, str) else read(delta, "text")
    if isinstance(text, str):
        return "" if repeats(chunk, kind) else text
    if kind == "message" or metadata_of(chunk) is not None:
        content = read(chunk, "content")
        return content if isinstance(content, str) else blocks_text(content)
    output = read(chunk, "output")
    if read(chunk, "object") != "response" or not isinstance(cast("object", output), list):
        return ""
    return "".join(blocks_text(read(item, "content")) for item in output)


def choice_text(choice: Any) -> str:
    """Returns the text of a choice, or of its delta, of OpenAI's chat or legacy completions."""
    part = read(choice, "delta")
    if part is None:
        part = read(choice, "message")
    text = read(choice, "text") if part is None else read(part, "content")
    return text if isinstance(text, str) else blocks_text(text)


def blocks_text(blocks: Any) -> str:
    """Returns the text of a list of content blocks; empty if `blocks` is no list."""
    if not isinstance(cast("object", blocks), list):
        return ""
    texts = [_block_text(block) for block in blocks]
    return "".join(text for text in texts if isinstance(text, str))


def _block_text(block: Any) -> Any:
    if isinstance(block, str):  # of LangChain's
        return block
    return read(block, "text") if read(block, "type") in ("text", "output_text") else None
