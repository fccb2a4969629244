"""Reads what a provider states about its limits in the headers of an answer or an error.

=====================  ===============================================  ===========================================
what                   OpenAI, Azure, Groq, Fireworks, xAI, ...         Anthropic
=====================  ===============================================  ===========================================
the limit              ``x-ratelimit-limit-{requests,tokens}``          ``anthropic-ratelimit-{...}-limit``
what is left           ``x-ratelimit-remaining-{requests,tokens}``      ``anthropic-ratelimit-{...}-remaining``
when it is full again  ``x-ratelimit-reset-{...}``: ``6m0s``, ``20ms``   ``anthropic-ratelimit-{...}-reset``: RFC 3339
=====================  ===============================================  ===========================================

The names do not say the period of a limit. It is taken for a minute, unless the limit is full again only after more
than a minute and a half: the requests of Groq, and of OpenAI's first tier, are limited by the day.

Answers and errors are read by shape; no SDK is imported.
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

_MINUTE_SECONDS = 90.0  # a limit with a later reset has a longer period
_MAX_HEADERS = 256
_MAX_CHARS = 64  # the longest value with a meaning is a time of some 35 characters
_NUMBER = re.compile(r"\d{1,15}(?:\.\d{1,15})?", re.ASCII)
_DURATION = re.compile(r"(?:\d{1,15}(?:\.\d{1,15})?(?:ms|[dhms]))+", re.ASCII)
_DURATION_PART = re.compile(r"([\d.]+)(ms|[dhms])", re.ASCII)
_SECONDS_OF = {"d": 86_400.0, "h": 3_600.0, "m": 60.0, "s": 1.0, "ms": 0.001}

# The headers of each limit: the limit, what is left, and when it is full again.
_NAMES = {
    kind: tuple(
        (f"x-ratelimit-{part}-{kind}", f"anthropic-ratelimit-{kind}-{part}") for part in ("limit", "remaining", "reset")
    )
    for kind in ("requests", "tokens")
}
_LIMIT_HEADERS = frozenset({"date"} | {name for parts in _NAMES.values() for names in parts for name in names})
# The attributes of an answer or an exception that hold its response, or the headers of the response.
_HEADERS = frozenset({"headers", "_response_headers"})
_PLACES = ("headers", "_response_headers", "response", "_response", "http_response")


class LimitState(NamedTuple):
    """The state of one limit.

    Attributes:
        limit: requests or tokens; None if not stated.
        remaining: what is left; None if not stated.
        reset_seconds: the seconds until the limit is full again; None if not stated.
    """

    limit: float | None = None
    remaining: float | None = None
    reset_seconds: float | None = None

    @property
    def is_per_minute(self) -> bool:
        """Whether the limit is per minute, as far as can be stated."""
        return self.reset_seconds is None or self.reset_seconds <= _MINUTE_SECONDS

    @property
    def pause_seconds(self) -> float:
        """The pause if nothing is left of a limit with a longer period: until one more request or token is left."""
        if self.is_per_minute or self.reset_seconds is None or self.remaining != 0:
            return 0.0
        return self.reset_seconds / (self.limit or 1.0)

    def left_by_now(self, gained: float) -> float | None:
        """Returns what is left of a limit per minute, 0 or more, with what it gained or lost since; None if unknown."""
        return max(0.0, self.remaining + gained) if self.remaining is not None and self.is_per_minute else None


class ProviderLimits(NamedTuple):
    """What a provider states about its limits.

    Attributes:
        requests: the state of its limit of requests.
        tokens: the state of its limit of tokens.
        limited: whether it refused the call because of a limit.
        retry_after_seconds: how long it asks to wait; None if not stated.
    """

    requests: LimitState = LimitState()
    tokens: LimitState = LimitState()
    limited: bool = False
    retry_after_seconds: float | None = None


def limits_from_headers(headers: object) -> ProviderLimits | None:
    """Reads headers, a mapping or pairs with names in any case; None if they state nothing about limits."""
    known = _limit_headers(headers)
    requests, tokens = _limit_state(known, "requests"), _limit_state(known, "tokens")
    return ProviderLimits(requests, tokens) if any(part is not None for part in (*requests, *tokens)) else None


def limits_from_answer(answer: object) -> ProviderLimits | None:
    """Reads the headers that an answer carries; None if it carries none, or they state nothing about limits.

    They are looked for in ``headers`` and ``_response_headers`` of the answer, and in its ``response``, ``_response``
    and ``http_response``: attributes, or items of a mapping.
    """
    if answer is None or isinstance(answer, str | bytes | int | float | list | tuple):
        return None
    places = _places_of(answer)
    if not places:
        return None
    for name in places:
        part = _item(answer, name)
        stated = limits_from_headers(part if name in _HEADERS else _item(part, "headers"))
        if stated is not None:
            return stated
    return None


def limits_from_error(error: BaseException) -> ProviderLimits | None:
    """Reads the error of a failed call; None if it states nothing about limits.

    A used-up quota does not come back with time, so it causes no pause.
    """
    response = read(error, "response")
    stated = limits_from_headers(read(response, "headers")) or limits_from_headers(read(error, "headers"))
    fault = classify(error)
    if fault.kind != "rate_limited" or fault.should_retry is False:
        return stated
    return (stated or ProviderLimits())._replace(limited=True, retry_after_seconds=fault.retry_after_seconds)


def _places_of(answer: object) -> list[str]:
    """Returns which of `_PLACES` an answer has: to ask a model of pydantic for others is slow."""
    kind = type(answer)
    if kind is dict or issubclass(kind, Mapping):
        own: Any = answer
    else:
        own = getattr(answer, "__dict__", None)
    named = _places_of_class(cast("Any", kind))
    if type(own) is dict and not named and own.keys().isdisjoint(_PLACES):
        return []
    return [name for name in _PLACES if name in named or (own is not None and name in own)]


@lru_cache(maxsize=256)
def _places_of_class(kind: type[Any]) -> frozenset[str]:
    return frozenset(name for name in _PLACES if hasattr(kind, name))


def _item(value: object, name: str) -> Any:
    if not issubclass(type(value), Mapping):
        return read(value, name)
    try:
        return value.get(name)  # type: ignore[attr-defined]
    except Exception:  # noqa: BLE001 - a foreign mapping may raise
        return None


def _limit_headers(headers: Any) -> dict[str, str]:
    if headers is None:
        return {}
    found: dict[str, str] = {}
    try:
        for name, value in islice(headers.items() if hasattr(headers, "items") else headers, _MAX_HEADERS):
            name = _text(name).lower()
            if name in _LIMIT_HEADERS:
                found.setdefault(name, _text(value).strip())
    except Exception:  # noqa: BLE001 - not headers
        return {}
    return found


def _text(value: object) -> str:
    if not isinstance(value, str | bytes) or len(value) > _MAX_CHARS:
        return ""
    return value if isinstance(value, str) else value.decode("latin-1")


def _limit_state(headers: Mapping[str, str], kind: str) -> LimitState:
    if not headers:
        return LimitState()
    limit, remaining, reset = (next((headers[name] for name in names if name in headers), "") for names in _NAMES[kind])
    return LimitState(_number(limit) or None, _number(remaining), _reset_seconds(reset, headers.get("date", "")))


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
        # Counted from the response's own date if it has one, because clocks differ.
        now = parsedate_to_datetime(date).timestamp() if date else time.time()
        return max(0.0, when.timestamp() - now)
    except (ValueError, TypeError, OverflowError, IndexError):
        return None
