"""One request and its reply: writes the reply in HTTP and reports its status."""

from __future__ import annotations

import asyncio
from email.utils import formatdate
from http import HTTPStatus
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from .http1 import Connection, Request

NO_MODEL = "none"
UNKNOWN_MODEL = "unknown"
# nginx's status for a request whose client disconnected before the reply; it is counted, never sent.
CLIENT_CLOSED_REQUEST_STATUS = 499

JSON = "application/json"
_EVENT_STREAM = (("Content-Type", "text/event-stream; charset=utf-8"), ("Cache-Control", "no-cache"))

Header = tuple[str, str]


async def wait_until_cancelled() -> None:
    """Waits until the task is cancelled. The server cancels a handler when its client disconnects."""
    await asyncio.get_running_loop().create_future()


class Exchange:
    """One request and its reply.

    Attributes:
        request: the request, or None if it could not be parsed.
        model: the model under which the reply is counted.
        status: status of the reply, or None before the reply.
        keep_alive: whether another request may follow on the connection.
    """

    def __init__(
        self, connection: Connection, request: Request | None, request_id: str, count: Callable[[str, int], None]
    ) -> None:
        self.request = request
        self.model = NO_MODEL
        self.status: int | None = None
        self.keep_alive = request is not None and request.keep_alive
        self._connection = connection
        self._request_id = request_id
        self._count = count
        self._chunked = False

    async def reply(self, status: int, body: bytes, *headers: Header, content_type: str = JSON) -> None:
        """Sends a whole document."""
        head = self._document_head(status, len(body), content_type, headers)
        await self._connection.write(head + self._body_for_method(body))

    async def reply_half(self, status: int, body: bytes) -> None:
        """Announces a JSON document and sends half of it; the connection closes afterwards."""
        await self.announce(status, len(body))
        await self.send_part(body[: len(body) // 2])

    async def announce(self, status: int, size_bytes: int) -> None:
        """Sends the head of a JSON document, which `send_part` sends; the connection closes afterwards."""
        self.keep_alive = False
        await self._connection.write(self._document_head(status, size_bytes, JSON))

    async def send_part(self, data: bytes) -> None:
        """Sends the next bytes of an announced document."""
        await self._connection.write(data)

    async def open_stream(self) -> None:
        """Starts an event stream with status 200."""
        request = self.request
        self._chunked = request is not None and request.minor_version >= 1
        # Without chunked encoding the end of the connection is the end of the reply.
        self.keep_alive = self.keep_alive and self._chunked
        framing = (("Transfer-Encoding", "chunked"),) if self._chunked else ()
        await self._connection.write(self._head(200, (*_EVENT_STREAM, *framing)))

    async def send_events(self, events: bytes) -> None:
        """Sends the next events of a stream."""
        await self._connection.write(b"%x\r\n%b\r\n" % (len(events), events) if self._chunked else events)

    async def close_stream(self) -> None:
        """Ends a stream with its last chunk."""
        if self._chunked:
            await self._connection.write(b"0\r\n\r\n")

    def break_off(self) -> None:
        """Ends the reply where it is: the connection closes before the announced end."""
        self.keep_alive = False

    def reset(self) -> None:
        """Resets the connection at once: the client gets an RST, even in the middle of a reply."""
        self.keep_alive = False
        self._connection.reset()

    def finish(self) -> None:
        """Counts a request that ended without a reply; does nothing after a reply."""
        if self.status is None:
            self._count_status(CLIENT_CLOSED_REQUEST_STATUS)

    def _count_status(self, status: int) -> None:
        # Called before the first byte of the reply, so that a reply is counted when the client has it.
        self.status = status
        self._count(self.model, status)

    def _body_for_method(self, body: bytes) -> bytes:
        return b"" if self.request is not None and self.request.method == "HEAD" else body

    def _document_head(
        self, status: int, size_bytes: int, content_type: str, headers: tuple[Header, ...] = ()
    ) -> bytes:
        return self._head(status, (("Content-Type", content_type), ("Content-Length", str(size_bytes)), *headers))

    def _head(self, status: int, headers: tuple[Header, ...]) -> bytes:
        self._count_status(status)
        lines = [
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
            f"Date: {formatdate(usegmt=True)}",
            f"X-Request-Id: {self._request_id}",
            f"Connection: {'keep-alive' if self.keep_alive else 'close'}",
            *(f"{name}: {value}" for name, value in headers),
        ]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("ascii")
