"""How many retries a client has made by itself before it raised an exception, as far as the exception tells."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, cast

from .shapes import chain_of, is_mapping, item_of, pairs_of, read, text_of

#: The most retries that are believed; no client makes more for one call.
MOST_RETRIES = 100

_COUNT = re.compile(r"\d{1,9}", re.ASCII)


def sdk_retries_of(error: object, handled: BaseException | None = None) -> int:
    """Returns how many retries of its own the client made in the attempt that failed, 0 to 100; 0 if it does not say.

    Several layers may retry, each of them the one inside. Their numbers are added up, which is never too many. Where
    an exception and its cause tell the same, as when an SDK wraps the error of its HTTP client, it counts once.

    Args:
        error: the exception.
        handled: an exception of an earlier call, which Python has chained to it (see `chain_of`).
    """
    told: dict[Callable[[Any], int | None], int] = {}
    for each in chain_of(error, handled):
        for source in _SOURCES:
            if source not in told:
                try:
                    count = source(each)
                except Exception:  # noqa: BLE001 - a foreign object may raise anything when it is read
                    count = None
                if count is not None:
                    told[source] = count
    return min(sum(told.values()), MOST_RETRIES)


def _count(value: Any) -> int | None:
    """Reads a number of retries, at most `MOST_RETRIES`; None if it is no such number."""
    if isinstance(value, str | bytes):
        digits = text_of(value).strip()
        value = int(digits) if _COUNT.fullmatch(digits) else None
    elif isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        return None
    return min(int(value), MOST_RETRIES)


def _stainless(error: Any) -> int | None:
    """Reads the header in which the SDKs of OpenAI, Anthropic, Groq and others number the requests of a call."""
    for request in (read(error, "request"), read(read(error, "response"), "request")):
        for name, value in pairs_of(read(request, "headers")):
            if text_of(name).lower() == "x-stainless-retry-count":
                return _count(value)
    return None


def _botocore(error: Any) -> int | None:
    response = read(error, "response")
    metadata = item_of(response, "ResponseMetadata") if is_mapping(response) else None
    return _count(item_of(metadata, "RetryAttempts")) if is_mapping(metadata) else None


def _tenacity(error: Any) -> int | None:
    attempts = _count(read(read(error, "last_attempt"), "attempt_number"))
    return attempts - 1 if attempts else None


def _litellm(error: Any) -> int | None:
    return _count(read(error, "num_retries"))


def _urllib3(error: Any) -> int | None:
    """Reads the history of urllib3's ``Retry``, which requests keeps too. It lists redirects as well."""
    response = read(error, "response")
    for answer in (response, read(response, "raw")):
        history = read(read(answer, "retries"), "history")
        if isinstance(history, tuple | list):
            made = islice(cast("Sequence[Any]", history), MOST_RETRIES)
            return sum(read(each, "redirect_location") is None for each in made)
    return None


_SOURCES: tuple[Callable[[Any], int | None], ...] = (_stainless, _botocore, _tenacity, _litellm, _urllib3)
