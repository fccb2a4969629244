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
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from email.utils import mktime_tz, parsedate_tz
from itertools import islice
from typing import Any, TypeGuard

#: Characters of a message that are searched.
MOST_CHARS = 2_000
#: Exceptions that are read for one call, in a chain and in groups.
MOST_EXCEPTIONS = 32
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


def cause_of(error: object) -> Any:
    """Returns the exception that led to this one: that of ``raise ... from``, else the one that was being handled."""
    cause = read(error, "__cause__")
    if cause is None and not read(error, "__suppress_context__"):
        cause = read(error, "__context__")
    return cause


def chain_of(error: object, handled: BaseException | None = None) -> Iterator[Any]:
    """Yields an exception, the members of its group and all that led to them, nearest first and each once.

    Goes on behind a ``raise ... from None``, which hides what has happened from the reader of a traceback only.

    Args:
        error: the exception.
        handled: the exception that the caller's own code was handling when the call began. Python chains it too, but
            neither it nor what led to it is yielded: it is of an earlier call.
    """
    pending: deque[Any] = deque([error])
    seen: set[int] = set() if handled is None or handled is error else {id(handled)}
    while pending and len(seen) < MOST_EXCEPTIONS:
        each = pending.popleft()
        if each is None or id(each) in seen:
            continue
        seen.add(id(each))
        yield each
        if issubclass(type(each), BaseExceptionGroup):
            pending.extend(islice(each.exceptions, MOST_EXCEPTIONS))
        pending += (read(each, "__cause__"), read(each, "__context__"))


def is_mapping(value: object) -> TypeGuard[Mapping[Any, Any]]:
    """Whether a value is a mapping by its type; a mock is none."""
    return issubclass(type(value), Mapping)


def _is_list(value: object) -> TypeGuard[list[Any]]:
    return type(value) is list


def item_of(part: Mapping[Any, Any], name: str) -> Any:
    """Reads an item of a mapping; None if there is none, or if reading it raises."""
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
        if is_mapping(part):
            parts.append(part)
            pending += [
                inner for name in ("error", "innererror", "details") if (inner := item_of(part, name)) is not None
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
        value = item_of(part, "code")
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
        names += [item_of(part, "code"), item_of(part, "type"), item_of(part, "error_code"), item_of(part, "status")]
    return frozenset(name.lower() for name in names if isinstance(name, str) and len(name) <= _MAX_HEADER_CHARS)


def words_of(error: object, body: object, parts: Iterable[Mapping[Any, Any]]) -> str:
    """Returns the beginning of the provider's message, in lower case. It may hold a prompt: callers keep none of it."""
    messages: list[Any] = [item_of(part, name) for part in parts for name in ("message", "detail", "error")]
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
        for name, value in pairs_of(read(source, "headers")):
            name = text_of(name).lower()
            if name in _HEADERS:
                found.setdefault(name, text_of(value).strip())
    return found


def pairs_of(headers: Any) -> Sequence[tuple[Any, Any]]:
    """Returns the names and values of headers, of which there may be too many; nothing if they cannot be read."""
    try:
        pairs = headers.items() if hasattr(headers, "items") else headers
        return [pair for pair in islice(pairs, _MAX_HEADERS) if type(pair) in (tuple, list) and len(pair) == 2]
    except Exception:  # noqa: BLE001 - as in `read`
        return ()


def text_of(value: object) -> str:
    """Returns the beginning of a text, or of bytes as Latin-1; empty for anything else."""
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
    waits += [_duration(text_of(item_of(part, "retryDelay"))) for part in parts]
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
