"""ASGI middleware that applies the deadline, trace and baggage of a request to the application's work on it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from observability_integration.checks import check_positive
from observability_integration.propagation import continue_from
from observability_integration.propagation.extract import read_headers

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

_BODY = b'{"error":"deadline_exceeded","message":"The deadline of the request had passed before it was begun."}'
_HEADERS = [
    (b"content-type", b"application/json"),
    (b"content-length", str(len(_BODY)).encode()),
    (b"cache-control", b"no-store"),
]
_TRY_AGAIN_LATER = 1013  # IANA registry of WebSocket close codes


class DeadlineMiddleware:
    """Applies the deadline, trace and baggage of a request while the application works on it.

    A request whose deadline has passed does not reach the application. The middleware answers with status 504, as gRPC
    answers with DEADLINE_EXCEEDED. A WebSocket gets the 504 too, if the server has the ``websocket.http.response``
    extension; else it is closed before it is accepted, and the server answers with 403. The middleware cancels nothing:
    the primitives in the application enforce the deadline. Responses and streams pass through unchanged.

    Usage::

        app.add_middleware(DeadlineMiddleware, max_seconds=60.0)  # FastAPI, Starlette
        app = DeadlineMiddleware(app, max_seconds=60.0)  # any ASGI application

    Args:
        app: the ASGI application.
        max_seconds: the longest deadline, in seconds, > 0. Applies to every HTTP request, also where its header is
            missing or malformed, and to a WebSocket with a deadline header.
        default_seconds: the deadline of an HTTP request without a deadline header, in seconds, > 0; `max_seconds` caps
            it. A WebSocket without the header has no deadline.

    Raises:
        ConfigurationError: `max_seconds` or `default_seconds` is not a finite number > 0.
    """

    def __init__(self, app: App, *, max_seconds: float | None = None, default_seconds: float | None = None) -> None:
        check_positive("max_seconds", max_seconds, optional=True)
        check_positive("default_seconds", default_seconds, optional=True)
        self._app = app
        self._max_seconds = max_seconds
        self._default_seconds = max_seconds if default_seconds is None else default_seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one ASGI connection."""
        kind = scope["type"]
        if kind not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        default_seconds = self._default_seconds if kind == "http" else None
        received = read_headers(scope.get("headers"), self._max_seconds, default_seconds)
        if received.deadline is not None and received.deadline.remaining() <= 0:
            await _refuse(scope, send)
            return
        with continue_from(received):
            await self._app(scope, receive, send)


async def _refuse(scope: Scope, send: Send) -> None:
    response = "http.response"
    if scope["type"] == "websocket":
        response = "websocket.http.response"
        if response not in (scope.get("extensions") or {}):
            await send({"type": "websocket.close", "code": _TRY_AGAIN_LATER, "reason": "deadline exceeded"})
            return
    await send({"type": f"{response}.start", "status": 504, "headers": list(_HEADERS)})
    await send({"type": f"{response}.body", "body": _BODY})
