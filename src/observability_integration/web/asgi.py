"""ASGI middleware: a request goes on with the deadline, the trace and the baggage that it came with."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from observability_integration.checks import check_positive
from observability_integration.propagation import continue_from
from observability_integration.propagation.extract import read

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
_TRY_AGAIN_LATER = 1013  # of the IANA registry of WebSocket close codes


class DeadlineMiddleware:
    """Puts what a request brought along in force while the application works on it.

    A request whose deadline has passed never reaches the application: it is answered with status 504, as gRPC answers
    with DEADLINE_EXCEEDED. So is a WebSocket where the server has the ``websocket.http.response`` extension; elsewhere
    it is closed before it is accepted, which servers answer with 403. Nothing is cancelled here: within the
    application the primitives keep to the deadline. Responses pass through untouched, streams too.

    Usage::

        app.add_middleware(DeadlineMiddleware, max_seconds=60.0)  # FastAPI, Starlette
        app = DeadlineMiddleware(app, max_seconds=60.0)  # any ASGI application

    Args:
        app: the ASGI application.
        max_seconds: the longest deadline of an HTTP request, whatever its peer asks for, sends malformed or leaves out;
            of a WebSocket whose peer asks for one. > 0.
        default_seconds: the deadline of an HTTP request that brings none, if that is less; > 0. A WebSocket lives on.

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
        """Serves one connection, as ASGI calls it."""
        kind = scope["type"]
        if kind not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        default_seconds = self._default_seconds if kind == "http" else None
        arrived = read(scope.get("headers"), self._max_seconds, default_seconds)
        if arrived.deadline is not None and arrived.deadline.remaining() <= 0:
            await _refuse(scope, send)
            return
        with continue_from(arrived):
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
