"""Prompts and answers as they go on a span, which happens only where the user asked for it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, cast

from observability_integration.costs.usage import read


def request_content(request: Any) -> str:
    """The messages of a request, or the request itself, as JSON."""
    return _as_json(read(request, "messages") or read(request, "input") or request)


def answer_content(answer: Any) -> str:
    """The choices, content or output of an answer, or the answer itself, as JSON."""
    return _as_json(read(answer, "choices") or read(answer, "content") or read(answer, "output") or answer)


def chunk_text(chunk: Any) -> str:
    """The text in a chunk: plain, of OpenAI chat or responses, or of Anthropic; empty where there is none."""
    if isinstance(chunk, str):
        return chunk
    choices = read(chunk, "choices")
    if isinstance(choices, list | tuple):
        deltas = [read(choice, "delta", "content") for choice in cast("list[Any]", choices)]
        return "".join(delta for delta in deltas if isinstance(delta, str))
    delta = read(chunk, "delta")
    text = delta if isinstance(delta, str) else read(delta, "text")
    return text if isinstance(text, str) else ""


def streamed_content(parts: list[str]) -> str:
    """The text of a streamed answer, as JSON."""
    return _as_json([{"role": "assistant", "content": "".join(parts)}])


def _as_json(content: Any) -> str:
    def plain(value: Any) -> Any:
        dump = getattr(value.__class__, "model_dump", None)  # of the class: a mock has every attribute, and dumps mocks
        return dump(value, mode="json") if callable(dump) else str(value)

    if isinstance(content, Mapping):
        content = dict(cast("Mapping[str, Any]", content))
    # Escaped where it is not ASCII: half of a surrogate pair would keep the span from being sent.
    return json.dumps(content, default=plain)
