"""Estimates the tokens of a call before it is made: a token for every four characters, plus the longest answer.

Four characters is OpenAI's rule of thumb for English. The estimate is corrected by the usage that the answer reports.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any, cast

from observability_integration.telemetry.guard import note_fault

_CHARS_A_TOKEN = 4
_MAX_PARTS = 10_000  # of a request that are read
# Where the requests of OpenAI, Anthropic and Gemini have their text; images and files have other keys.
_TEXT_FIELDS = frozenset(
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
_OUTPUT_LIMIT_FIELDS = ("max_completion_tokens", "max_output_tokens", "max_tokens")


def estimate_tokens(request: Any) -> int:
    """Estimates the tokens of a request: those of its text, plus the output limit that it sets.

    Args:
        request: text, messages, or a request as a mapping or an object. Images, files and unknown fields count 0.
    """
    chars = 0
    pending: deque[Any] = deque((request,))
    for _ in range(_MAX_PARTS):
        if not pending:
            break
        part = pending.popleft()
        if isinstance(part, str):
            chars += len(part)
        elif isinstance(part, list | tuple):
            pending.extend(cast("list[Any]", part)[:_MAX_PARTS])
        elif part is not None and not isinstance(part, bool | int | float | bytes | bytearray | memoryview):
            fields = _fields(part)
            pending.extend(fields[name] for name in fields if name in _TEXT_FIELDS)
    return math.ceil(chars / _CHARS_A_TOKEN) + _output_limit(request)


def _output_limit(request: Any) -> int:
    if request is None or isinstance(request, str | bytes | list | tuple):
        return 0
    fields = _fields(request)
    for name in _OUTPUT_LIMIT_FIELDS:
        value = fields.get(name)
        if isinstance(value, int) and not isinstance(value, bool) and value > 0:
            return value
    return 0


def _fields(value: Any) -> Mapping[str, Any]:
    if value.__class__ is dict or isinstance(value, Mapping):
        return cast("Mapping[str, Any]", value)
    own = getattr(value, "__dict__", None)
    if own is None:  # it has slots
        own = {name: getattr(value, name, None) for name in (*_TEXT_FIELDS, *_OUTPUT_LIMIT_FIELDS)}
    return cast("Mapping[str, Any]", own)


def estimated(function: Callable[[Any], float] | None, request: Any) -> float:
    """Returns the estimate of the user's function, or the default one if there is no function or it fails."""
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
    except Exception as error:  # noqa: BLE001 - a foreign object may raise when it is read
        note_fault("rate_limit.request", error)
        return 0.0
