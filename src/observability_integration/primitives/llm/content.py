"""Prompts and answers as JSON for a span; recorded only if the user enabled it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, cast

from observability_integration.costs.usage import read


def request_content(request: Any) -> str:
    """Returns the messages of a request, or the request itself, as JSON."""
    return _as_json(read(request, "messages") or read(request, "input") or request)


def answer_content(answer: Any) -> str:
    """Returns the choices, content or output of an answer, or the answer itself, as JSON."""
    return _as_json(read(answer, "choices") or read(answer, "content") or read(answer, "output") or answer)


def streamed_content(parts: list[str]) -> str:
    """Returns the text of a streamed answer as JSON."""
    return _as_json([{"role": "assistant", "content": "".join(parts)}])


def sendable(text: str) -> str:
    """Returns a name as plain text that UTF-8 can encode: half a surrogate pair would block the export of all spans."""
    plain = str.__str__(text)  # `str` of an enum member would return the member's name
    return plain if plain.isascii() else plain.encode("utf-8", "replace").decode()


def _as_json(content: Any) -> str:
    def plain(value: Any) -> Any:
        dump = getattr(value.__class__, "model_dump", None)  # of the class: a mock has any attribute, and dumps mocks
        return dump(value, mode="json") if callable(dump) else str(value)

    if isinstance(content, Mapping):
        content = dict(cast("Mapping[str, Any]", content))
    # Escapes what is not ASCII: half of a surrogate pair would block the export of the span.
    return json.dumps(content, default=plain)
