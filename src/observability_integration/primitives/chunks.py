"""What a chunk of an answer carries: content, and its text."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from observability_integration.costs.usage import choices_of, read

_PARTS = (  # of an OpenAI choice, its delta or message; `reasoning` and `reasoning_content` are what some servers add
    "content",
    "text",
    "reasoning_content",
    "reasoning",
    "refusal",
    "tool_calls",
    "function_call",
    "audio",
)


def is_content(chunk: Any) -> bool:
    """Whether a chunk carries part of the answer, as opposed to a keep-alive, a role or a usage report.

    Understands text, OpenAI chat and completion chunks, OpenAI response events and Anthropic message events, as objects
    or dicts, and whole answers of theirs; any other non-empty chunk counts as content.
    """
    if chunk is None or isinstance(chunk, str | bytes):
        return bool(chunk)
    try:
        return _carries_answer(chunk)
    except Exception:  # noqa: BLE001 - a chunk that cannot be looked into is still the producer's
        return True


def _carries_answer(chunk: Any) -> bool:
    choices = choices_of(chunk)
    if choices is not None:
        for choice in choices:
            part = read(choice, "delta") or read(choice, "message") or choice
            for name in _PARTS:
                if read(part, name):
                    return True
        return False
    kind = read(chunk, "type")
    if isinstance(kind, str):
        if kind.startswith(("content_block_", "message_")) or kind in ("ping", "error"):
            return kind == "content_block_delta"
        if kind.startswith("response."):
            return kind.endswith(".delta")
    return not isinstance(cast("object", chunk), Mapping) or bool(chunk)


def chunk_text(chunk: Any) -> str:
    """The text in a chunk, or in an answer in one piece: plain, of OpenAI, or of Anthropic; empty where there is none.

    Reasoning, refusals and the arguments of tools are none.
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
        return text
    if kind == "message":
        return blocks_text(read(chunk, "content"))
    output = read(chunk, "output")
    if read(chunk, "object") != "response" or not isinstance(cast("object", output), list):
        return ""
    return "".join(blocks_text(read(item, "content")) for item in output)


def choice_text(choice: Any) -> str:
    """The text in one choice of OpenAI's chat or legacy completions, or in its delta."""
    part = read(choice, "delta")
    if part is None:
        part = read(choice, "message")
    text = read(choice, "text") if part is None else read(part, "content")
    return text if isinstance(text, str) else blocks_text(text)


def blocks_text(blocks: Any) -> str:
    """The text in a list of content blocks; empty if it is none."""
    if not isinstance(cast("object", blocks), list):
        return ""
    texts = [read(block, "text") for block in blocks if read(block, "type") in ("text", "output_text")]
    return "".join(text for text in texts if isinstance(text, str))
