"""Reads the status, headers, codes and words from the exception of a provider's SDK or of an HTTP client.

Everything is read by shape; no SDK is imported. An attribute may raise when it is read, a body may be anything, and a
message may be huge or hold a prompt. So each reading is guarded and bounded, what cannot be read counts as absent, and
no words are kept.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from email.utils import mktime_tz, parsedate_tz
from itertools import islice
from typing import Any, TypeGuard

#: Characters of a message that are searched.
MOST_CHARS = 2_000
#: A longer wait than a day is ignored: the backoff, or another target, serves the call better.
MOST_SECONDS = 86_400.0

_MAX_BODY = 65_536  # bytes or characters; a longer body is an error page, or an echo of the request
_MAX_PARTS = 16
_MAX_HEADERS = 256
_MAX_HEADER_CHARS = 64  # the longest value with a meaning is a date of 37 characters

_HEADERS = frozenset(
    {
        "date",
        "retry-after",
        "retry-after-ms",
        "x-ratelimit-remaining-requests",
        "x-ratelimit-remaining-tokens",
        "x-ratelimit-reset-requests",
        "x-ratelimit-reset-tokens",
        "x-should-retry",
    }
)
_NUMBER = re.compile(r"\d{1,16}(?:\.\d{0,16})?", re.ASCII)
_DURATION = re.compile(r"(?:\d{1,16}(?:\.\d{1,16})?(?:ms|[dhms]))+", re.ASCII)
_DURATION_PART = re.compile(r"([\d.]+)(ms|[dhms])", re.ASCII)
_SECONDS_OF = {"d": 86_400.0, "h": 3_600.0, "m": 60.0, "s": 1.0, "ms": 0.001}


def read(value: object, name: str) -> Any:
    """Reads an attribute; None if there is none, or if reading it raises."""
    try:
        return getattr(value, name, None)
    except Exception:  # noqa: BLE001 - a property of a foreign class may raise anything
        return None


def _is_mapping(value: object) -> TypeGuard[Mapping[Any, Any]]:
    return issubclass(type(value), Mapping)


def _is_list(value: object) -> TypeGuard[list[Any]]:
    return type(value) is list


def _item(part: Mapping[Any, Any], name: str) -> Any:
    try:
        return part.get(name)
    except Exception:  # noqa: BLE001 - as in `read`
        return None


def body_of(error: object) -> Any:
    """Returns the body that came with the error: decoded JSON, else text, else None."""
    body: Any = read(error, "body")
    if body is None:
        response = read(error, "response")
        # A closed response of httpx has been read, or raises; other clients might begin to read it here.
        body = read(response, "content") if read(response, "is_closed") is True else None
    if isinstance(body, bytes | bytearray):
        body = bytes(body[:_MAX_BODY]).decode("utf-8", "replace")
    if isinstance(body, str) and len(body) < _MAX_BODY:
        try:
            body = json.loads(body)
        except (ValueError, RecursionError):
            return body
    return body


def parts_of(body: Any) -> list[Mapping[Any, Any]]:
    """Returns the mappings of a body that may carry codes and words, outermost first."""
    parts: list[Mapping[Any, Any]] = []
    pending: list[Any] = [body]
    for part in islice(pending, _MAX_PARTS):  # `pending` grows meanwhile, and a body may hold itself
        if _is_mapping(part):
            parts.append(part)
            pending += [
                inner for name in ("error", "innererror", "details") if (inner := _item(part, name)) is not None
            ]
        elif _is_list(part):  # Gemini wraps its error in OpenAI's shape into a list, and keeps its details in another
            pending += part[:_MAX_PARTS]
    return parts


def status_of(error: object, parts: Iterable[Mapping[Any, Any]] = ()) -> int | None:
    """Returns the HTTP status of a fault, 300 to 599; None if there is none.

    An error inside a stream comes with the 200 that began the stream: that is no status of a fault.
    """
    for source in (error, read(error, "response")):
        # `code` last, and only without the others: some libraries put a word there, and aiohttp deprecated it.
        for name in ("status_code", "status", "code"):
            value = read(source, name)
            if isinstance(value, int):
                if 300 <= value <= 599:
                    return int(value)
                break
    for part in parts:
        value = _item(part, "code")
        if isinstance(value, int) and 400 <= value <= 599:
            return int(value)
        if isinstance(value, str) and re.fullmatch("[45][0-9][0-9]", value):
            return int(value)
    return None


def codes_of(error: object, parts: Iterable[Mapping[Any, Any]]) -> frozenset[str]:
    """Returns the provider's names for the fault, in lower case."""
    names = [read(error, "type"), read(error, "error_code")]
    if not isinstance(read(error, "status"), int):  # see `status_of`
        names.append(read(error, "code"))
    for part in parts:
        names += [_item(part, "code"), _item(part, "type"), _item(part, "error_code"), _item(part, "status")]
    return frozenset(name.lower() for name in names if isinstance(name, str) and len(name) <= _MAX_HEADER_CHARS)


def words_of(error: object, body: object, parts: Iterable[Mapping[Any, Any]]) -> str:
    """Returns the beginning of the provider's message, in lower case. It may hold a prompt: callers keep none of it."""
    messages: list[Any] = [_item(part, name) for part in parts for name in ("message", "detail", "error")]
    for words in (*messages, body, read(error, "message")):
        if isinstance(words, str) and words:
            return words[:MOST_CHARS].lower()
    try:
        return str(error)[:MOST_CHARS].lower()
    except Exception:  # noqa: BLE001 - as in `read`
        return ""


def headers_of(error: object) -> dict[str, str]:
    """Returns the headers of the response that concern a retry, by names in lower case."""
    found: dict[str, str] = {}
    for source in (read(error, "response"), error):
        for name, value in _pairs(read(source, "headers")):
            name = _text(name).lower()
            if name in _HEADERS:
                found.setdefault(name, _text(value).strip())
    return found


def _pairs(headers: Any) -> Sequence[tuple[Any, Any]]:
    try:
        pairs = headers.items() if hasattr(headers, "items") else headers
        return [pair for pair in islice(pairs, _MAX_HEADERS) if type(pair) in (tuple, list) and len(pair) == 2]
    except Exception:  # noqa: BLE001 - as in `read`
        return ()


def _text(value: object) -> str:
    if isinstance(value, bytes):
        value = value[:_MAX_HEADER_CHARS].decode("latin-1")
    return value[:_MAX_HEADER_CHARS] if isinstance(value, str) else ""


def retry_after_seconds(
    headers: Mapping[str, str], limited: bool, codes: Collection[str], parts: Iterable[Mapping[Any, Any]] = ()
) -> float | None:
    """Returns how long the provider asks to wait, in seconds; None if it does not say, or says no such time.

    The order: ``retry-after-ms``, ``retry-after`` as seconds or as a date (counted from the response's own ``date``
    where there is one, because clocks differ), the ``retryDelay`` in the body of Gemini's errors, and for a rate limit
    OpenAI's ``x-ratelimit-reset-*``.

    Args:
        headers: from `headers_of`.
        limited: whether the fault is a rate limit. Without one, the resets are those of limits that were not reached.
        codes: from `codes_of`. OpenAI names the limit that was reached: ``requests`` or ``tokens``.
        parts: from `parts_of`.
    """
    milliseconds = _number(headers.get("retry-after-ms", ""))
    waits = [None if milliseconds is None else milliseconds / 1_000]
    after = headers.get("retry-after", "")
    waits += [_number(after), _until(after, headers.get("date", ""))]
    waits += [_duration(_text(_item(part, "retryDelay"))) for part in parts]
    if limited:
        waits.append(_reset(headers, codes))
    return next((wait for wait in waits if wait is not None and 0 <= wait <= MOST_SECONDS), None)


def _number(value: str) -> float | None:
    return float(value) if _NUMBER.fullmatch(value) else None


def _until(value: str, now: str) -> float | None:
    moment = _moment(value)
    if moment is None:
        return None
    began = _moment(now)
    return moment - (time.time() if began is None else began)


def _moment(value: str) -> float | None:
    try:
        parsed = parsedate_tz(value)
        return None if parsed is None else float(mktime_tz((*parsed[:9], parsed[9] or 0)))
    except (ValueError, OverflowError, TypeError, IndexError):
        return None


def _reset(headers: Mapping[str, str], codes: Collection[str]) -> float | None:
    """Returns when the limit that was reached is full again; the shorter time of the two if that limit is not named."""
    resets = {name: _duration(headers.get(f"x-ratelimit-reset-{name}", "")) for name in ("requests", "tokens")}
    known = {name: wait for name, wait in resets.items() if wait is not None}
    reached = [
        wait for name, wait in known.items() if name in codes or headers.get(f"x-ratelimit-remaining-{name}") == "0"
    ]
    return max(reached) if reached else min(known.values(), default=None)


def _duration(value: str) -> float | None:
    """Parses ``1s``, ``6m0s`` or ``120ms`` into seconds; Azure sends bare seconds."""
    if not _DURATION.fullmatch(value):
        return _number(value)
    return math.fsum(float(count) * _SECONDS_OF[unit] for count, unit in _DURATION_PART.findall(value))


def sdk_retries_of(error: object) -> int:
    """Returns how many retries of its own the SDK made with the request that failed; 0 if it does not say.

    The SDKs of OpenAI and Anthropic number them in the header ``x-stainless-retry-count`` of the request.
    """
    headers: Any = read(read(error, "request"), "headers")
    try:
        return int(headers.get("x-stainless-retry-count", 0))
    except Exception:  # noqa: BLE001 - no headers, or no number
        return 0
