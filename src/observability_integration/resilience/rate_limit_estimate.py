"""How many tokens a call will use, before anybody knows: four characters a token, and all that it may answer with.

Four characters is OpenAI's rule of thumb for English. It is an estimate: what the answer says is charged in the end.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, cast

from observability_integration.telemetry.guard import note_fault

_CHARS_A_TOKEN = 4
_MOST_PARTS = 10_000  # of a request that are looked at
# Where the requests of OpenAI, Anthropic and Gemini have their text; images and files are told apart by their keys.
_TEXTS = frozenset(
    {
        "messages",
        "content",
        "text",
        "input",
        "prompt",
        "system",
        "instructions",
        "contents",
        "parts",
        "arguments",
        "tools",
        "function",
        "name",
        "description",
    }
)
_MOST_OUTPUT = ("max_completion_tokens", "max_output_tokens", "max_tokens")


def estimate_tokens(request: Any) -> int:
    """Tokens that a request is expected to use: those of its text, and the most that it lets the model answer with.

    Args:
        request: text, messages, or a request as a mapping or an object. What is neither text nor known counts 0.
    """
    chars = 0
    due: deque[Any] = deque((request,))
    for _ in range(_MOST_PARTS):
        if not due:
            break
        part = due.popleft()
        if isinstance(part, str):
            chars += len(part)
        elif isinstance(part, list | tuple):
            due.extend(cast("list[Any]", part)[:_MOST_PARTS])
        elif part is not None and not isinstance(part, bool | int | float | bytes | bytearray | memoryview):
            fields = _fields(part)
            due.extend(fields[name] for name in fields if name in _TEXTS)
    return math.ceil(chars / _CHARS_A_TOKEN) + _most_output(request)


def _most_output(request: Any) -> int:
    if request is None or isinstance(request, str | bytes | list | tuple):
        return 0
    fields = _fields(request)
    for name in _MOST_OUTPUT:
        value = fields.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return 0


def _fields(value: Any) -> Mapping[str, Any]:
    if value.__class__ is dict or isinstance(value, Mapping):
        return cast("Mapping[str, Any]", value)
    own = getattr(value, "__dict__", None)
    if own is None:  # it has slots
        own = {name: getattr(value, name, None) for name in (*_TEXTS, *_MOST_OUTPUT)}
    return cast("Mapping[str, Any]", own)


def estimated(function: Callable[[Any], float] | None, request: Any) -> float:
    """What a user's function says, or the default where there is none, it raises, or it does not say a number >= 0."""
    if function is not None:
        try:
            value: Any = function(request)
            if not isinstance(value, bool) and isinstance(value, int | float) and 0 <= value < math.inf:
                return float(value)
            raise TypeError("estimate_tokens must return a finite number >= 0")  # noqa: TRY301 - counted as its fault
        except Exception as error:  # noqa: BLE001 - a hook's fault is not the caller's
            note_fault("rate_limit.estimate_tokens", error)
    try:
        return float(estimate_tokens(request))
    except Exception as error:  # noqa: BLE001 - it is somebody else's object
        note_fault("rate_limit.request", error)
        return 0.0
