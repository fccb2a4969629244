"""What the exception of a provider's SDK, or of an HTTP client, says: its status, headers, codes and words.

Everything is read by shape: nothing here imports an SDK. An attribute may raise when it is read, a body may be anything
and a message may be huge or hold a prompt, so each reading is guarded and bounded, what cannot be read counts as not
said, and words are looked at and let go.
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

#: How much of a message is looked at.
MOST_CHARS = 2_000
#: A wait longer than a day is no answer to this call: the backoff, or another target, serves it better.
MOST_SECONDS = 86_400.0

_MOST_BODY = 65_536  # bytes or characters; what is longer is an error page, or an echo of the request
_MOST_PARTS = 16
_MOST_HEADERS = 256
_MOST_HEADER_CHARS = 64  # the longest that means anything is a date of 37 characters

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
    """An attribute; None if there is none, or if reading it raises."""
    try:
        return getattr(value, name, None)
    except Exception:  # noqa: BLE001 - a property of somebody else's class may raise anything
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
    """What the provider sent with the error: decoded JSON, else text, else None."""
    body: Any = read(error, "body")
    if body is None:
        response = read(error, "response")
        # A closed response of httpx has been read, or raises; other clients might begin to read it here.
        body = read(response, "content") if read(response, "is_closed") is True else None
    if isinstance(body, bytes | bytearray):
        body = bytes(body[:_MOST_BODY]).decode("utf-8", "replace")
    if isinstance(body, str) and len(body) < _MOST_BODY:
        try:
            body = json.loads(body)
        except (ValueError, RecursionError):
            return body
    return body


def parts_of(body: Any) -> list[Mapping[Any, Any]]:
    """The mappings of a body that may carry codes and words, outermost first."""
    parts: list[Mapping[Any, Any]] = []
    due: list[Any] = [body]
    for part in islice(due, _MOST_PARTS):  # `due` grows meanwhile, and a body may hold itself
        if _is_mapping(part):
            parts.append(part)
            due += [inner for name in ("error", "innererror", "details") if (inner := _item(part, name)) is not None]
        elif _is_list(part):  # Gemini wraps its error into one, in OpenAI's shape, and keeps its details in another
            due += part[:_MOST_PARTS]
    return parts


def status_of(error: object, parts: Iterable[Mapping[Any, Any]] = ()) -> int | None:
    """The HTTP status, if it tells of a fault: an error inside a stream comes with the 200 that began the stream."""
    for source in (error, read(error, "response")):
        # `code` last, and only without the others: it is a word in some libraries, and deprecated in aiohttp.
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
    """The names that the provider has for the fault, in lower case."""
    names = [read(error, "type"), read(error, "error_code")]
    if not isinstance(read(error, "status"), int):  # see `status_of`
        names.append(read(error, "code"))
    for part in parts:
        names += [_item(part, "code"), _item(part, "type"), _item(part, "error_code"), _item(part, "status")]
    return frozenset(name.lower() for name in names if isinstance(name, str) and len(name) <= _MOST_HEADER_CHARS)


def words_of(error: object, body: object, parts: Iterable[Mapping[Any, Any]]) -> str:
    """The beginning of the provider's message, in lower case; the caller looks for what it knows and lets it go."""
    said: list[Any] = [_item(part, name) for part in parts for name in ("message", "detail", "error")]
    for words in (*said, body, read(error, "message")):
        if isinstance(words, str) and words:
            return words[:MOST_CHARS].lower()
    try:
        return str(error)[:MOST_CHARS].lower()
    except Exception:  # noqa: BLE001 - as in `read`
        return ""


def headers_of(error: object) -> dict[str, str]:
    """Those headers of the response that say something about asking again, by names in lower case."""
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
        return [pair for pair in islice(pairs, _MOST_HEADERS) if type(pair) in (tuple, list) and len(pair) == 2]
    except Exception:  # noqa: BLE001 - as in `read`
        return ()


def _text(value: object) -> str:
    if isinstance(value, bytes):
        value = value[:_MOST_HEADER_CHARS].decode("latin-1")
    return value[:_MOST_HEADER_CHARS] if isinstance(value, str) else ""


def retry_after_seconds(
    headers: Mapping[str, str], limited: bool, codes: Collection[str], parts: Iterable[Mapping[Any, Any]] = ()
) -> float | None:
    """How long the provider asks to wait, in seconds; None if it does not say, or says what makes no sense.

    In this order: ``retry-after-ms``, ``retry-after`` as seconds or as a date (counted from the response's own ``date``
    where there is one, because clocks differ), the ``retryDelay`` in the body of Gemini's errors, and for a rate limit
    OpenAI's ``x-ratelimit-reset-*``.

    Args:
        headers: what `headers_of` found.
        limited: whether the fault is a rate limit; without one, the resets are those of limits that were not met.
        codes: what `codes_of` found; OpenAI names the limit that was met: ``requests`` or ``tokens``.
        parts: what `parts_of` found.
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
    """The time until the limit that was met is whole again; if that one is not named, the shorter of the two."""
    resets = {name: _duration(headers.get(f"x-ratelimit-reset-{name}", "")) for name in ("requests", "tokens")}
    known = {name: wait for name, wait in resets.items() if wait is not None}
    met = [wait for name, wait in known.items() if name in codes or headers.get(f"x-ratelimit-remaining-{name}") == "0"]
    return max(met) if met else min(known.values(), default=None)


def _duration(value: str) -> float | None:
    """Seconds of ``1s``, ``6m0s`` or ``120ms``; a bare number is seconds, as Azure has it."""
    if not _DURATION.fullmatch(value):
        return _number(value)
    return math.fsum(float(count) * _SECONDS_OF[unit] for count, unit in _DURATION_PART.findall(value))


def sdk_retries_of(error: object) -> int:
    """How many retries of its own the SDK had made with the request that failed; 0 if it does not say.

    The SDKs of OpenAI and Anthropic number them in the header ``x-stainless-retry-count`` of the request.
    """
    headers: Any = read(read(error, "request"), "headers")
    try:
        return int(headers.get("x-stainless-retry-count", 0))
    except Exception:  # noqa: BLE001 - no headers, or no number
        return 0
