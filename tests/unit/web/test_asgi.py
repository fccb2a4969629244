"""The middleware: what a request brought along holds while the application works on it."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from observability_integration.context import current_deadline, remaining
from observability_integration.propagation import outgoing_headers
from observability_integration.testing import FakeClockLoop
from observability_integration.web import DeadlineMiddleware

pytestmark = pytest.mark.promise("W1")

LOOP_FACTORY = FakeClockLoop

_PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


class _App:
    """Notes what holds while it runs, and answers in two pieces."""

    def __init__(self) -> None:
        self.seen: list[tuple[float | None, dict[str, str]]] = []
        self.given: list[float | None] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.seen.append((remaining(), outgoing_headers()))
        self.given.append(remaining())
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"a", "more_body": True})
            await asyncio.sleep(1.0)
            self.seen.append((remaining(), outgoing_headers()))
            await send({"type": "http.response.body", "body": b"b"})


async def _serve(
    app: Any,
    headers: dict[str, str] | None,
    kind: str = "http",
    sent: list[dict[str, Any]] | None = None,
    extensions: Any = None,
) -> list[dict[str, Any]]:
    messages = [] if sent is None else sent
    scope: dict[str, Any] = {"type": kind, "extensions": extensions}
    if headers is not None:
        scope["headers"] = [(name.lower().encode(), value.encode()) for name, value in headers.items()]

    async def receive() -> dict[str, Any]:
        raise AssertionError("the middleware reads nothing")

    async def send(message: Any) -> None:
        messages.append(message)

    await app(scope, receive, send)
    assert current_deadline() is None
    assert {} == outgoing_headers()
    return messages


async def test_what_came_holds_while_the_application_runs() -> None:
    """Until the end of a stream, whose pieces pass through one by one."""
    app, sent = _App(), list[dict[str, Any]]()
    headers = {"X-Request-Deadline-Ms": "3000", "traceparent": _PARENT, "baggage": "a=1"}
    serving = asyncio.create_task(_serve(DeadlineMiddleware(app), headers, sent=sent))
    await asyncio.sleep(0.5)
    assert [b"a"] == [message["body"] for message in sent if "body" in message]
    await serving
    assert [b"a", b"b"] == [message["body"] for message in sent if "body" in message]
    assert [(3.0, headers), (2.0, {**headers, "X-Request-Deadline-Ms": "2000"})] == app.seen


async def test_limits_of_the_server() -> None:
    """A peer gets no more time than the server gives, and one that asks for nothing gets the default."""
    app = _App()
    bounded = DeadlineMiddleware(app, max_seconds=2.0, default_seconds=1.5)
    for asked in (
        {"x-request-deadline-ms": "60000"},
        {"x-request-deadline-ms": "1750"},
        {},
        {"x-request-deadline-ms": "x"},
    ):
        await _serve(bounded, asked)
    await _serve(DeadlineMiddleware(app), {})
    await _serve(bounded, {}, "websocket")
    await _serve(bounded, {"x-request-deadline-ms": "60000"}, "websocket")
    await _serve(bounded, None)
    assert [2.0, 1.75, 1.5, 1.5, None, None, 2.0, 1.5] == app.given


@pytest.mark.parametrize("default_seconds", [None, 30.0])
@pytest.mark.parametrize("asked", [{}, {"x-request-deadline-ms": "-4"}], ids=["nothing", "malformed"])
async def test_nobody_gets_more_than_the_most(asked: dict[str, str], default_seconds: float | None) -> None:
    """A peer that leaves the header out, or sends nonsense, has no more time than one that asks for too much."""
    app = _App()
    await _serve(DeadlineMiddleware(app, max_seconds=2.0, default_seconds=default_seconds), asked)
    assert [2.0] == app.given


async def test_a_request_that_comes_too_late_is_answered_at_once() -> None:
    """Nobody waits for the answer any more: the application is spared the work."""
    app = _App()
    start, body = await _serve(DeadlineMiddleware(app), {"X-Request-Deadline-Ms": "0"})
    headers = dict(start["headers"])
    assert ("http.response.start", 504) == (start["type"], start["status"])
    assert (b"application/json", str(len(body["body"])).encode()) == (
        headers[b"content-type"],
        headers[b"content-length"],
    )
    assert "deadline_exceeded" == json.loads(body["body"])["error"]
    assert [] == app.seen


async def test_a_websocket_that_comes_too_late_is_never_accepted() -> None:
    """Where the server can answer it like any request it gets the same status; a bare close is a 403 to its peer."""
    app = _App()
    late = {"X-Request-Deadline-Ms": "0"}
    for extensions in list[Any]([None, {}, {"tls": {}}]):
        (close,) = await _serve(DeadlineMiddleware(app), late, "websocket", extensions=extensions)
        assert ("websocket.close", 1013) == (close["type"], close["code"])
    can_answer: dict[str, Any] = {"websocket.http.response": {}}
    start, body = await _serve(DeadlineMiddleware(app), late, "websocket", extensions=can_answer)
    assert ("websocket.http.response.start", 504) == (start["type"], start["status"])
    assert "websocket.http.response.body" == body["type"]
    plain = await _serve(DeadlineMiddleware(app), late, extensions=can_answer)
    assert [(start["headers"], body["body"])] == [(plain[0]["headers"], plain[1]["body"])]
    assert ["http.response.start", "http.response.body"] == [message["type"] for message in plain]
    assert [] == app.seen


async def test_the_lifespan_passes_through() -> None:
    """It has no headers, and its own messages."""
    app = _App()
    assert [] == await _serve(DeadlineMiddleware(app, default_seconds=1.0), None, "lifespan")
    assert [(None, {})] == app.seen


@pytest.mark.parametrize("error", [ValueError("own"), asyncio.CancelledError()])
async def test_what_the_application_raises_passes_through(error: BaseException) -> None:
    """The server has its own ways with errors, and a client that went away cancels."""

    async def fails(scope: Any, receive: Any, send: Any) -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        await _serve(DeadlineMiddleware(fails), {"X-Request-Deadline-Ms": "50"})
    assert error is caught.value
    assert current_deadline() is None
