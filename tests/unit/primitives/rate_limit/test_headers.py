"""What providers say of their limits, in all the places and spellings in which they say it, and in none of sense."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest

from observability_integration.primitives.rate_limit.headers import (
    LimitState,
    ProviderLimits,
    limits_from_answer,
    limits_from_error,
    limits_from_headers,
)

pytestmark = pytest.mark.once

DATE = "Sat, 21 Nov 2026 17:00:00 GMT"
OPENAI = {
    "X-RateLimit-Limit-Requests": "60",
    "x-ratelimit-limit-tokens": "150000",
    "x-ratelimit-remaining-requests": "59",
    "x-ratelimit-remaining-tokens": "149984",
    "x-ratelimit-reset-requests": "1s",
    "x-ratelimit-reset-tokens": "6m0s",
}
ANTHROPIC = {
    "date": DATE,
    "anthropic-ratelimit-requests-limit": "50",
    "anthropic-ratelimit-requests-remaining": "49",
    "anthropic-ratelimit-requests-reset": "2026-11-21T17:00:01Z",
    "anthropic-ratelimit-tokens-limit": "40000",
    "anthropic-ratelimit-tokens-remaining": "0",
    "anthropic-ratelimit-tokens-reset": "2026-11-21T17:00:30+00:00",
}


def test_openai() -> None:
    """Names in any case, durations of several parts."""
    assert ProviderLimits(LimitState(60, 59, 1), LimitState(150000, 149984, 360)) == limits_from_headers(OPENAI)


def test_anthropic() -> None:
    """Moments, counted from the response's own date: the clock here may differ."""
    assert ProviderLimits(LimitState(50, 49, 1), LimitState(40000, 0, 30)) == limits_from_headers(ANTHROPIC)


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        ("20ms", 0.02),
        ("1.5s", 1.5),
        ("1m30s", 90),
        ("1h2m3s", 3723),
        ("7", 7),
        ("0s", 0),
        ("2026-11-21T16:59:00Z", 0),
        ("2026-11-21T17:00:10", 10),
        ("2026-11-21T18:00:10+01:00", 10),
        ("-1", None),
        ("", None),
        ("soon", None),
        ("1e3", None),
        ("NaN", None),
        ("inf", None),
        ("99999999999999999999s", None),
        ("3000-01-01T00:00:00Z", None),
        ("1s" * 40, None),
        ("１s", None),
    ],
)
def test_resets(said: str, seconds: float | None) -> None:
    """A duration, a number of seconds or a moment; what is none, or beyond a day, was not said."""
    told = limits_from_headers({"x-ratelimit-reset-tokens": said, "x-ratelimit-remaining-tokens": "1", "date": DATE})
    assert told is not None
    assert seconds == told.tokens.reset_seconds


@pytest.mark.parametrize("said", ["-5", "NaN", "inf", "", "many", "1e9", "9" * 40, True, 7, None, b"\xff", object()])
def test_numbers_that_are_none(said: Any) -> None:
    """What a gateway made of a header must not become a limit; a limit of 0 would stop everything for good."""
    assert limits_from_headers({"x-ratelimit-limit-requests": said, "x-ratelimit-remaining-requests": said}) is None
    assert limits_from_headers({"x-ratelimit-limit-requests": "0"}) is None


class Loud:
    """An object that raises when it is asked."""

    @property
    def headers(self) -> Any:
        raise RuntimeError

    response = headers


class Locked(dict[str, Any]):
    """A mapping that raises when it is asked."""

    def get(self, *_: Any) -> Any:
        raise RuntimeError


class Parsed:
    """As the SDKs' raw responses are: headers are a property."""

    @property
    def headers(self) -> Any:
        return OPENAI


@pytest.mark.parametrize(
    "answer",
    [
        SimpleNamespace(headers=OPENAI),
        SimpleNamespace(response=SimpleNamespace(headers=OPENAI)),
        SimpleNamespace(_response=SimpleNamespace(headers=list(OPENAI.items()))),
        SimpleNamespace(http_response=SimpleNamespace(headers=OPENAI)),
        SimpleNamespace(_response_headers=OPENAI, headers=None),
        {"headers": {name.encode(): value.encode() for name, value in OPENAI.items()}},
        {"response": {"headers": OPENAI}},
        Parsed(),
    ],
)
def test_found_on_answers(answer: Any) -> None:
    """Wherever SDKs and wrappers keep them."""
    told = limits_from_answer(answer)
    assert told is not None
    assert LimitState(60, 59, 1) == told.requests


@pytest.mark.parametrize(
    "answer",
    [
        *(None, "text", b"bytes", 7, ["list"], object(), math, Loud()),
        *({}, {"headers": 5}, {"headers": {"x": "y"}}, {"response": None}, Locked(headers=OPENAI)),
    ],
)
def test_answers_that_say_nothing(answer: Any) -> None:
    """Most answers carry no headers, and some objects raise when they are asked."""
    assert limits_from_answer(answer) is None


class Limited(Exception):
    """An error as SDKs have it."""

    def __init__(self, status: int, headers: Any, **more: Any) -> None:
        super().__init__()
        self.status_code = status
        self.response = SimpleNamespace(headers=headers, status_code=status)
        self.__dict__.update(more)


def test_a_429_closes_the_gate_for_as_long_as_it_says() -> None:
    """Also when it says nothing else; and what it says of the limits is taken along."""
    assert ProviderLimits(limited=True, retry_after_seconds=7.0) == limits_from_error(
        Limited(429, {"retry-after": "7"})
    )
    assert ProviderLimits(limited=True) == limits_from_error(Limited(429, {}))
    told = limits_from_error(Limited(429, {**OPENAI, "retry-after-ms": "1500"}))
    assert told == ProviderLimits(LimitState(60, 59, 1), LimitState(150000, 149984, 360), True, 1.5)


def test_other_errors_close_no_gate() -> None:
    """An overloaded provider is a breaker's affair, and a used-up quota does not come back by waiting."""
    assert limits_from_error(Limited(529, {"retry-after": "7"})) is None
    assert limits_from_error(ValueError()) is None
    assert limits_from_error(Limited(429, {"retry-after": "7"}, body={"error": {"code": "insufficient_quota"}})) is None
    told = limits_from_error(Limited(500, OPENAI))
    assert told is not None
    assert not told.limited


def test_what_is_left_of_a_longer_time() -> None:
    """Only a minute's limit is lowered by it; for another one there is a pause when nothing is left."""
    day = LimitState(14400, 0, 86400.0)
    assert (False, None, 6.0) == (day.is_per_minute, day.left_by_now(5.0), day.pause_seconds)
    minute = LimitState(60, 3, 57.0)
    assert (True, 8.0, 0.0) == (minute.is_per_minute, minute.left_by_now(5.0), minute.pause_seconds)
    assert 0.0 == minute.left_by_now(-9.0)
    assert LimitState(60, None, 1.0).left_by_now(1.0) is None
