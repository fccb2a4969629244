"""What a `FaultyProvider` received, for tests to assert on."""

from __future__ import annotations

import re
from collections import defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

Outcome = Literal["open", "complete", "refused", "broken", "left", "closed"]

REDACTED = "[redacted]"
# Names by their end, since gateways put their own before it: `x-goog-api-key`, `cf-aig-authorization`, `helicone-auth`,
# `ocp-apim-subscription-key`, `x-amz-security-token`. A lone `key` is none: an `idempotency-key` is for tests to see.
_SECRET_HEADER = re.compile(
    r"(?:.*[-_])?(?:(?:api|access|subscription|functions|virtual|secret)[-_]?key|authorization|auth|token|secret|password|cookie)"
)


@dataclass(slots=True, eq=False)
class ReceivedRequest:
    """One request to a `FaultyProvider`. Its body is not kept.

    Attributes:
        model: the model asked for; empty where the body was no chat request.
        time_seconds: when it had arrived, on the event loop's clock.
        headers: by lower-case name; those that carry secrets say ``[redacted]``.
        stream: whether the answer was to come in pieces.
        status: the HTTP status replied with, or None before there is one.
        outcome: ``open`` while it is worked on, then how that ended: ``complete`` (a reply with a status below 400 was
            sent to its end, however odd), ``refused`` (so was one of 400 or more), ``broken`` (the provider broke
            off), ``left`` (the client went first) or ``closed`` (the provider was closed meanwhile).
        disconnected_seconds: when the client went while its request was still worked on, on the loop's clock.
    """

    model: str
    time_seconds: float
    headers: Mapping[str, str]
    stream: bool
    status: int | None = None
    outcome: Outcome = "open"
    disconnected_seconds: float | None = None


def without_secrets(headers: Mapping[str, str]) -> dict[str, str]:
    """The headers, with the values of those that carry secrets replaced."""
    return {name: REDACTED if _SECRET_HEADER.fullmatch(name) else value for name, value in headers.items()}


class RequestLog:
    """The latest requests, and when each model was asked; the oldest go beyond `max_requests`."""

    def __init__(self, max_requests: int = 10_000) -> None:
        self._requests: deque[ReceivedRequest] = deque(maxlen=max_requests)
        self._attempts: defaultdict[str, int] = defaultdict(int)
        self._first_seconds: dict[str, float] = {}

    @property
    def requests(self) -> tuple[ReceivedRequest, ...]:
        """In the order of their arrival."""
        return tuple(self._requests)

    def add(self, request: ReceivedRequest) -> tuple[int, float]:
        """Takes in a request; returns its number among those for its model, and when the first of them arrived."""
        self._requests.append(request)
        self._attempts[request.model] += 1
        first_seconds = self._first_seconds.setdefault(request.model, request.time_seconds)
        return self._attempts[request.model], first_seconds

    def attempts(self, model: str) -> int:
        """How many requests named the model, also those no longer kept."""
        return self._attempts.get(model, 0)

    def gaps(self, model: str) -> list[float]:
        """Seconds between one request for the model and the next."""
        times = [request.time_seconds for request in self._requests if request.model == model]
        return [later - earlier for earlier, later in pairwise(times)]
