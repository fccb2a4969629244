"""What an exception tells of the retries that a client made by itself: from whom it is believed, and what of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from enum import IntEnum
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import pytest

from observability_integration.resilience.faults.sdk_retries import MOST_RETRIES, sdk_retries_of

pytestmark = [pytest.mark.once, pytest.mark.promise("Y1")]


class Failed(Exception):
    """A client's error, with the attributes that it is given."""

    def __init__(self, **attributes: Any) -> None:
        self.__dict__.update(attributes)


def stainless(value: Any, name: str = "x-stainless-retry-count") -> Failed:
    """As openai, anthropic and others tell it, whose errors know their request."""
    return Failed(request=SimpleNamespace(headers={"authorization": "secret", name: value}))


def in_response(value: Any) -> Failed:
    """As httpx tells it: the request is that of the response."""
    request = SimpleNamespace(headers=[(b"X-Stainless-Retry-Count", value)])
    return Failed(response=SimpleNamespace(request=request))


def botocore(value: Any) -> Failed:
    """As botocore's ClientError tells it."""
    return Failed(response={"Error": {}, "ResponseMetadata": {"RetryAttempts": value, "HTTPStatusCode": 503}})


def tenacity(value: Any) -> Failed:
    """As tenacity's RetryError tells it, which counts attempts."""
    number = value + 1 if type(value) in (int, float) else value
    return Failed(last_attempt=SimpleNamespace(attempt_number=number))


def litellm(value: Any) -> Failed:
    """As the router of litellm notes it on the error."""
    return Failed(num_retries=value, max_retries=5)


SOURCES = pytest.mark.parametrize("source", [stainless, in_response, botocore, tenacity, litellm])


class Level(IntEnum):
    """A number of another class."""

    TWO = 2


@SOURCES
@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, 0),
        (1, 1),
        (2, 2),
        (2.0, 2),
        (Level.TWO, 2),
        (99, 99),
        (MOST_RETRIES, MOST_RETRIES),
        (101, MOST_RETRIES),
        (10**30, MOST_RETRIES),
        (1e300, MOST_RETRIES),
        (-1, 0),
        (-(10**30), 0),
        (2.5, 0),
        (math.nan, 0),
        (math.inf, 0),
        (-math.inf, 0),
        (True, 0),
        (False, 0),
        (None, 0),
        ("", 0),
        ("two", 0),
        ("-1", 0),
        ("2.5", 0),
        ("²", 0),
        ("9" * 5_000, 0),
        ([2], 0),
        ({}, 0),
        (object(), 0),
        (MagicMock(), 0),
    ],
    ids=lambda value: repr(value)[:20],
)
def test_each_source_and_what_it_may_say(source: Callable[[Any], Failed], value: Any, expected: int) -> None:
    """The number comes from outside: it is a small whole one, or it is none."""
    if source is tenacity and value in (MOST_RETRIES, 101, 10**30, 1e300):
        expected = MOST_RETRIES - 1  # the most that is believed, less the first attempt
    if source is tenacity and value is Level.TWO:
        expected = 1
    assert expected == sdk_retries_of(source(value))


@pytest.mark.parametrize("value", ["2", " 2 ", b"2"])
@pytest.mark.parametrize("source", [stainless, in_response])
def test_a_header_is_a_text(source: Callable[[Any], Failed], value: Any) -> None:
    """In any case, and as bytes."""
    assert 2 == sdk_retries_of(source(value))
    assert 2 == sdk_retries_of(stainless(value, "X-Stainless-Retry-Count"))
    assert 0 == sdk_retries_of(stainless(value, "retry-count"))


def test_requests_keeps_the_history_of_urllib3() -> None:
    """Each entry that is no redirect is one attempt before the last."""
    urllib3 = pytest.importorskip("urllib3")
    requests = pytest.importorskip("requests")
    retries = urllib3.Retry(9, backoff_factor=0.0)
    for status, location in ((503, None), (302, "/there"), (503, None)):
        answer = urllib3.HTTPResponse(status=status, headers={"location": location} if location else {})
        retries = retries.increment("GET", "/", response=answer)
    answer = requests.Response()
    answer.status_code = 503
    answer.raw = urllib3.HTTPResponse(status=503, retries=retries)
    with pytest.raises(requests.HTTPError) as caught:
        answer.raise_for_status()
    assert 2 == sdk_retries_of(caught.value)
    assert 2 == sdk_retries_of(Failed(response=answer.raw))
    long = Failed(response=SimpleNamespace(retries=SimpleNamespace(history=(None,) * 10_000)))
    assert MOST_RETRIES == sdk_retries_of(long)


def test_a_retry_library_around_an_sdk() -> None:
    """tenacity's error has its own number, and its cause that of the SDK inside."""
    error = tenacity(2)
    error.__cause__ = stainless("2")
    assert 4 == sdk_retries_of(error)


def _raised(run: Callable[[], Any]) -> Exception:
    try:
        run()
    except Exception as error:
        return error
    raise AssertionError("nothing was raised")


def _wrapped(error: Exception, how: str) -> Exception:
    def run() -> None:
        try:
            raise error
        except Failed as failed:
            if how == "from it":
                raise RuntimeError("ours") from failed
            if how == "from None":
                raise RuntimeError("ours") from None
            raise RuntimeError("ours")  # noqa: B904 - the context is what is tested

    return _raised(run)


@SOURCES
@pytest.mark.parametrize("how", ["from it", "from None", "while it was handled"])
def test_the_error_of_a_provider_function_that_wraps_the_sdk(how: str, source: Callable[[Any], Failed]) -> None:
    """The application's own error tells nothing; what it was raised from does, at any depth."""
    assert 2 == sdk_retries_of(_wrapped(source(2), how))
    assert 2 == sdk_retries_of(RuntimeErrorFrom(_wrapped(source(2), how)))
    assert 2 == sdk_retries_of(ExceptionGroup("g", [ValueError(), _wrapped(source(2), how)]))


class RuntimeErrorFrom(RuntimeError):
    """An error with a cause."""

    def __init__(self, cause: Exception) -> None:
        self.__cause__ = cause


def test_one_source_is_believed_once() -> None:
    """An SDK wraps the error of its HTTP client, which has the same request."""
    outer = stainless("2")
    outer.__cause__ = in_response("2")
    assert 2 == sdk_retries_of(outer)
    outer.__cause__ = litellm(1)
    assert 3 == sdk_retries_of(outer), "another layer's retries come on top"
    outer.__cause__ = litellm(99)
    assert MOST_RETRIES == sdk_retries_of(outer)
    first = stainless("0")
    first.__context__ = stainless("2")
    assert 0 == sdk_retries_of(first), "the nearest one is that of this attempt"


def test_what_raises_when_it_is_read_says_nothing() -> None:
    """Nor does a chain without an end take for ever."""

    class Trap(Exception):
        def __getattribute__(self, name: str) -> Any:
            if name in ("__class__", "__dict__"):
                return super().__getattribute__(name)
            raise RuntimeError(name)

    class Sly(dict[str, Any]):
        def get(self, *_: Any) -> Any:
            raise RuntimeError

    class Endless(list[Any]):
        def __iter__(self) -> Any:
            raise RuntimeError

    for error in (
        Trap(),
        Failed(response=Sly()),
        Failed(response={"ResponseMetadata": Sly()}),
        Failed(response=SimpleNamespace(retries=SimpleNamespace(history=Endless()))),
        Failed(request=SimpleNamespace(headers=Endless())),
        MagicMock(),
        None,
        "text",
    ):
        assert 0 == sdk_retries_of(error), error
    circle = RuntimeErrorFrom(ValueError())
    circle.__cause__.__cause__ = circle  # type: ignore[union-attr]
    assert 0 == sdk_retries_of(circle)
    far: Exception = stainless("2")
    for _ in range(5_000):
        far = RuntimeErrorFrom(far)
    assert 0 == sdk_retries_of(far)
