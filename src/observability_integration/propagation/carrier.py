"""The headers that propagate a call, and their selection from the headers of a request or a message."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, cast

DEADLINE_HEADER = "X-Request-Deadline-Ms"
"""Whole milliseconds that remain, >= 0. A time of day would be wrong: the clocks of two machines differ."""

Headers = Mapping[Any, Any] | Iterable[tuple[Any, Any]] | None
"""A mapping, or pairs as in ASGI; names and values are text or bytes, and names are case-insensitive."""

DEADLINE = DEADLINE_HEADER.lower()
TRACEPARENT = "traceparent"
TRACESTATE = "tracestate"
BAGGAGE = "baggage"
NAMES = (DEADLINE, TRACEPARENT, TRACESTATE, BAGGAGE)


def select_headers(headers: Headers) -> dict[str, list[str]]:
    """Returns the values of each header of `NAMES`, in order; an empty list for a missing header."""
    found: dict[str, list[str]] = {name: [] for name in NAMES}
    pairs = cast("Iterable[tuple[Any, Any]]", headers.items() if isinstance(headers, Mapping) else headers or ())
    for key, value in pairs:
        name = _text(key).lower()
        if name in found:
            values = cast("list[Any]", value) if isinstance(value, list | tuple) else [value]
            found[name] += map(_text, values)
    return found


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode("latin-1")
    return value if isinstance(value, str) else ""
