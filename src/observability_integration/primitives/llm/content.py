"""Prompts and answers as they go on a span, which happens only where the user asked for it; and the text of a chunk."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, cast

from observability_integration.costs.usage import choices_of, read


def request_content(request: Any) -> str:
    """The messages of a request, or the request itself, as JSON."""
    return _as_json(read(request, "messages") or read(request, "input") or request)


def answer_content(answer: Any) -> str:
    """The choices, content or output of an answer, or the answer itself, as JSON."""
    return _as_json(read(answer, "choices") or read(answer, "content") or read(answer, "output") or answer)


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


def streamed_content(parts: list[str]) -> str:
    """The text of a streamed answer, as JSON."""
    return _as_json([{"role": "assistant", "content": "".join(parts)}])


def sendable(text: str) -> str:
    """A name as plain text that can be sent: one half of a surrogate pair would hold up everybody's spans."""
    plain = str.__str__(text)  # an enum's own would give the name of the member
    return plain if plain.isascii() else plain.encode("utf-8", "replace").decode()


def _as_json(content: Any) -> str:
    def plain(value: Any) -> Any:
        dump = getattr(value.__class__, "model_dump", None)  # of the class: a mock has every attribute, and dumps mocks
        return dump(value, mode="json") if callable(dump) else str(value)

    if isinstance(content, Mapping):
        content = dict(cast("Mapping[str, Any]", content))
    # Escaped where it is not ASCII: half of a surrogate pair would keep the span from being sent.
    return json.dumps(content, default=plain)
