"""What a provider says about its limits in the headers of an answer or an error, found by shape and read with care.

=====================  ===============================================  ===========================================
what                   OpenAI, Azure, Groq, Fireworks, xAI, ...         Anthropic
=====================  ===============================================  ===========================================
the limit              ``x-ratelimit-limit-{requests,tokens}``          ``anthropic-ratelimit-{...}-limit``
what is left of it     ``x-ratelimit-remaining-{requests,tokens}``      ``anthropic-ratelimit-{...}-remaining``
when it is whole again ``x-ratelimit-reset-{...}``: ``6m0s``, ``20ms``   ``anthropic-ratelimit-{...}-reset``: RFC 3339
=====================  ===============================================  ===========================================

The names do not say per what time. It is taken for a minute, unless the limit is whole again only after more than one
and a half: Groq's requests, and those of OpenAI's first tier, are those of a day.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import lru_cache
from itertools import islice
from typing import Any, NamedTuple, cast

from observability_integration.resilience.faults import classify
from observability_integration.resilience.faults.shapes import MOST_SECONDS, read

_MINUTE_SECONDS = 90.0  # from here on it is the limit of a longer time
_MOST_HEADERS = 256
_MOST_CHARS = 64  # the longest that means anything is a moment of some 35 characters
_NUMBER = re.compile(r"\d{1,15}(?:\.\d{1,15})?", re.ASCII)
_DURATION = re.compile(r"(?:\d{1,15}(?:\.\d{1,15})?(?:ms|[dhms]))+", re.ASCII)
_DURATION_PART = re.compile(r"([\d.]+)(ms|[dhms])", re.ASCII)
_SECONDS_OF = {"d": 86_400.0, "h": 3_600.0, "m": 60.0, "s": 1.0, "ms": 0.001}

# Of each limit: the names of what it is, of what is left, and of when it is whole again.
_NAMES = {
    kind: tuple(
        (f"x-ratelimit-{part}-{kind}", f"anthropic-ratelimit-{kind}-{part}") for part in ("limit", "remaining", "reset")
    )
    for kind in ("requests", "tokens")
}
_KNOWN = frozenset({"date"} | {name for parts in _NAMES.values() for names in parts for name in names})
# Where an answer, or an exception, has the response that it came with, or the headers of it.
_HEADERS = frozenset({"headers", "_response_headers"})
_PLACES = ("headers", "_response_headers", "response", "_response", "http_response")


class Standing(NamedTuple):
    """How one limit stands.

    Attributes:
        limit: requests or tokens; None if nothing was said.
        remaining: what is left.
        reset_seconds: after how many seconds the limit is whole again.
    """

    limit: float | None = None
    remaining: float | None = None
    reset_seconds: float | None = None

    @property
    def is_per_minute(self) -> bool:
        """Whether it is the limit of a minute, as far as can be told."""
        return self.reset_seconds is None or self.reset_seconds <= _MINUTE_SECONDS

    @property
    def pause_seconds(self) -> float:
        """For how long to pause where nothing is left of the limit of a longer time: until one more has come back."""
        if self.is_per_minute or self.reset_seconds is None or self.remaining != 0:
            return 0.0
        return self.reset_seconds / (self.limit or 1.0)

    def left_by_now(self, gained: float) -> float | None:
        """What is left of the limit of a minute, 0 or more, with what it gained (or lost) since; None if unknown."""
        return max(0.0, self.remaining + gained) if self.remaining is not None and self.is_per_minute else None


class Told(NamedTuple):
    """What a provider says.

    Attributes:
        requests: how its limit of requests stands.
        tokens: how its limit of tokens stands.
        limited: whether it refused the call for one of them.
        retry_after_seconds: how long it asks to wait; None if it does not.
    """

    requests: Standing = Standing()
    tokens: Standing = Standing()
    limited: bool = False
    retry_after_seconds: float | None = None


def told_by_headers(headers: object) -> Told | None:
    """What headers say: a mapping or pairs, names in any case; None if it is nothing about limits."""
    known = _known(headers)
    requests, tokens = _standing(known, "requests"), _standing(known, "tokens")
    return Told(requests, tokens) if any(part is not None for part in (*requests, *tokens)) else None


def told_by_answer(answer: object) -> Told | None:
    """What the headers say that an answer carries along; None if it carries none, or they say nothing.

    Looked at are ``headers`` and ``_response_headers`` of the answer, and those of its ``response``, ``_response`` and
    ``http_response``: attributes, or items of a mapping.
    """
    if answer is None or isinstance(answer, str | bytes | int | float | list | tuple):
        return None
    there = _there(answer)
    if not there:
        return None
    for name in there:
        part = _part(answer, name)
        told = told_by_headers(part if name in _HEADERS else _part(part, "headers"))
        if told is not None:
            return told
    return None


def told_by_error(error: BaseException) -> Told | None:
    """What a failed call says; None if it is nothing about limits.

    A quota that is used up is no rate: waiting does not bring it back, so it closes no gate.
    """
    response = read(error, "response")
    told = told_by_headers(read(response, "headers")) or told_by_headers(read(error, "headers"))
    fault = classify(error)
    if fault.kind != "rate_limited" or fault.should_retry is False:
        return told
    return (told or Told())._replace(limited=True, retry_after_seconds=fault.retry_after_seconds)


def _there(answer: object) -> list[str]:
    """Which of the names an answer really has: to ask a model of pydantic's for others is slow."""
    kind = type(answer)
    if kind is dict or issubclass(kind, Mapping):
        own: Any = answer
    else:
        own = getattr(answer, "__dict__", None)
    named = _named_by(cast("Any", kind))
    if type(own) is dict and not named and own.keys().isdisjoint(_PLACES):
        return []
    return [name for name in _PLACES if name in named or (own is not None and name in own)]


@lru_cache(maxsize=256)
def _named_by(kind: type[Any]) -> frozenset[str]:
    return frozenset(name for name in _PLACES if hasattr(kind, name))


def _part(value: object, name: str) -> Any:
    if not issubclass(type(value), Mapping):
        return read(value, name)
    try:
        return value.get(name)  # type: ignore[attr-defined]
    except Exception:  # noqa: BLE001 - it is somebody else's mapping
        return None


def _known(headers: Any) -> dict[str, str]:
    if headers is None:
        return {}
    found: dict[str, str] = {}
    try:
        for name, value in islice(headers.items() if hasattr(headers, "items") else headers, _MOST_HEADERS):
            name = _text(name).lower()
            if name in _KNOWN:
                found.setdefault(name, _text(value).strip())
    except Exception:  # noqa: BLE001 - whatever it is, it is no headers
        return {}
    return found


def _text(value: object) -> str:
    if not isinstance(value, str | bytes) or len(value) > _MOST_CHARS:
        return ""
    return value if isinstance(value, str) else value.decode("latin-1")


def _standing(headers: Mapping[str, str], kind: str) -> Standing:
    if not headers:
        return Standing()
    limit, remaining, reset = (next((headers[name] for name in names if name in headers), "") for names in _NAMES[kind])
    return Standing(_number(limit) or None, _number(remaining), _reset_seconds(reset, headers.get("date", "")))


def _number(value: str) -> float | None:
    return float(value) if _NUMBER.fullmatch(value) else None


def _reset_seconds(value: str, date: str) -> float | None:
    if _DURATION.fullmatch(value):
        seconds: float | None = math.fsum(
            float(amount) * _SECONDS_OF[unit] for amount, unit in _DURATION_PART.findall(value) if _number(amount)
        )
    else:
        seconds = _number(value)  # a bare number is seconds
        if seconds is None:
            seconds = _seconds_until(value, date)
    return None if seconds is None or not 0 <= seconds <= MOST_SECONDS else seconds


def _seconds_until(moment: str, date: str) -> float | None:
    try:
        when = datetime.fromisoformat(moment)
        if when.tzinfo is None:
            when = when.replace(tzinfo=UTC)
        # Counted from the response's own date where there is one, because clocks differ.
        now = parsedate_to_datetime(date).timestamp() if date else time.time()
        return max(0.0, when.timestamp() - now)
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
