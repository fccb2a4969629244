"""The responses of the scrape endpoint, without their transport."""

from __future__ import annotations

import gzip
import hmac
from collections.abc import Callable
from contextlib import suppress
from email.message import Message
from http import HTTPStatus
from typing import NamedTuple

from prometheus_client.exposition import choose_encoder, gzip_accepted
from prometheus_client.registry import Collector

from observability_integration.telemetry.guard import note_fault

_PLAIN = ("Content-Type", "text/plain; charset=utf-8")
_WELCOME = b"The metrics of this process, for Prometheus.\nSee /metrics\n"


class Answer(NamedTuple):
    """A response.

    Attributes:
        status: the HTTP status.
        headers: in sending order, without ``Content-Length``.
        body: the bytes, compressed if the headers say so.
    """

    status: HTTPStatus
    headers: tuple[tuple[str, str], ...]
    body: bytes


def _plain(status: HTTPStatus, body: bytes, *headers: tuple[str, str]) -> Answer:
    return Answer(status, (_PLAIN, *headers), body)


def _format(accept: str) -> tuple[Callable[[Collector], bytes], str]:
    with suppress(TypeError):  # prometheus_client compares versions as numbers without checking that they are
        encode, content_type = choose_encoder(accept)
        if content_type.isprintable():  # it repeats the requested version, which may hold a folded line
            return encode, content_type
    return choose_encoder("")


class ScrapePages:
    """The pages of one registry, protected by a bearer token if one is set."""

    def __init__(self, registry: Collector, bearer_token: str | None) -> None:
        self._registry = registry
        self._token = None if bearer_token is None else bearer_token.encode("utf-8")

    def answer(self, method: str, target: str, headers: Message) -> Answer:
        """Returns the response to a request. It never raises, and never has only part of the metrics."""
        if not self._is_allowed(headers.get("Authorization", "")):
            return _plain(HTTPStatus.UNAUTHORIZED, b"a bearer token is needed\n", ("WWW-Authenticate", "Bearer"))
        if method not in {"GET", "HEAD"}:
            return _plain(HTTPStatus.METHOD_NOT_ALLOWED, b"GET and HEAD only\n", ("Allow", "GET, HEAD"))
        path = target.partition("?")[0]
        if path == "/metrics":
            return self._metrics(headers)
        if path == "/":
            return _plain(HTTPStatus.OK, _WELCOME)
        return _plain(HTTPStatus.NOT_FOUND, b"there is only /metrics\n")

    def _is_allowed(self, authorization: str) -> bool:
        if self._token is None:
            return True
        scheme, _, credentials = authorization.partition(" ")
        # http.server decodes headers as Latin-1; encoding them again restores the bytes to compare.
        given = credentials.strip().encode("latin-1", "replace")
        return hmac.compare_digest(given, self._token) and scheme.lower() == "bearer"

    def _metrics(self, headers: Message) -> Answer:
        encode, content_type = _format(headers.get("Accept", ""))
        try:
            body = encode(self._registry)
        except Exception as error:  # noqa: BLE001 - a broken callback or point fails this scrape only
            note_fault("prometheus.scrape", error)
            reason = b"the metrics could not be collected; the log of the application says why\n"
            return _plain(HTTPStatus.INTERNAL_SERVER_ERROR, reason)
        if gzip_accepted(headers.get("Accept-Encoding", "")):
            zipped = (("Content-Type", content_type), ("Content-Encoding", "gzip"))
            return Answer(HTTPStatus.OK, zipped, gzip.compress(body))
        return Answer(HTTPStatus.OK, (("Content-Type", content_type),), body)
