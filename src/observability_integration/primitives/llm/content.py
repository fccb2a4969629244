"""Prompts and answers as JSON for a span, which carries them only where the user asked for it."""

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
