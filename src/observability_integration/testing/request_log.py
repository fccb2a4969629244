"""The requests that a `FaultyProvider` received, for assertions in tests."""

from __future__ import annotations

import re
from collections import defaultdict, deque
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

RequestOutcome = Literal["open", "complete", "refused", "broken", "left", "closed"]

REDACTED = "[redacted]"
# Matches the end of a name, because gateways add prefixes: `x-goog-api-key`, `cf-aig-authorization`, `helicone-auth`,
# `ocp-apim-subscription-key`, `x-amz-security-token`. A lone `key` does not match: tests read `idempotency-key`.
_SECRET_HEADER = re.compile(
    r"(?:.*[-_])?(?:(?:api|access|subscription|functions|virtual|secret)[-_]?key|authorization|auth|token|secret|password|cookie)"
)


@dataclass(slots=True, eq=False)
class ReceivedRequest:
    """One request to a `FaultyProvider`. Its body is not kept.

    Attributes:
        model: requested model; empty if the body is no chat request.
        time_seconds: time of arrival, on the event loop's clock.
        headers: headers by lower-case name; the value of a header with a secret is ``[redacted]``.
        stream: whether the client requested a stream.
        status: HTTP status of the reply, or None before the reply.
        outcome: ``open`` until the request ends, then ``complete`` (the whole reply was sent, with a status below 400,
            faulty or not), ``refused`` (the same with a status of 400 or more), ``broken`` (the provider broke the
            connection), ``left`` (the client disconnected first) or ``closed`` (the provider was closed meanwhile).
        disconnected_seconds: time of the client's disconnect if it came before the end, on the loop's clock.
    """

    model: str
    time_seconds: float
    headers: Mapping[str, str]
    stream: bool
    status: int | None = None
    outcome: RequestOutcome = "open"
    disconnected_seconds: float | None = None


def redact_headers(headers: Mapping[str, str]) -> dict[str, str]:
    """Returns the headers with the values of secret ones replaced."""
    return {name: REDACTED if _SECRET_HEADER.fullmatch(name) else value for name, value in headers.items()}


class RequestLog:
    """The latest `max_requests` requests, and the number and first time of the requests for each model."""

    def __init__(self, max_requests: int = 10_000) -> None:
        self._requests: deque[ReceivedRequest] = deque(maxlen=max_requests)
        self._attempts: defaultdict[str, int] = defaultdict(int)
        self._first_seconds: dict[str, float] = {}

    @property
    def requests(self) -> tuple[ReceivedRequest, ...]:
        """The latest requests, in the order of their arrival."""
        return tuple(self._requests)

    def add(self, request: ReceivedRequest) -> tuple[int, float]:
        """Adds a request; returns its number among those for its model, and the arrival time of the first of them."""
        self._requests.append(request)
        self._attempts[request.model] += 1
        first_seconds = self._first_seconds.setdefault(request.model, request.time_seconds)
        return self._attempts[request.model], first_seconds

    def attempts(self, model: str) -> int:
        """Returns the number of requests for the model, including those no longer kept."""
        return self._attempts.get(model, 0)

    def gaps(self, model: str) -> list[float]:
        """Returns the seconds between successive requests for the model."""
        times = [request.time_seconds for request in self._requests if request.model == model]
        return [later - earlier for earlier, later in pairwise(times)]
