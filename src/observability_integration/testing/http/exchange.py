"""One request and its reply: writes the reply in HTTP, and says which status it was."""

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
# nginx's code for a request whose client left before there was an answer; it never goes over the wire.
CLIENT_GONE_STATUS = 499

JSON = "application/json"
_EVENT_STREAM = (("Content-Type", "text/event-stream; charset=utf-8"), ("Cache-Control", "no-cache"))

Header = tuple[str, str]


async def wait_for_ever() -> None:
    """Waits until cancelled, which a handler is when the client leaves."""
    await asyncio.get_running_loop().create_future()


class Exchange:
    """One request and its reply.

    Attributes:
        request: what was asked, or None when it could not be read.
        model: the model asked for, as far as whoever counts the replies wants to know.
        status: the status replied with, or None before there is a reply.
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
        await self._connection.write(head + self._visible(body))

    async def reply_half(self, status: int, body: bytes) -> None:
        """Announces a JSON document and sends half of it; the connection is of no use afterwards."""
        await self.announce(status, len(body))
        await self.send_part(body[: len(body) // 2])

    async def announce(self, status: int, size_bytes: int) -> None:
        """Announces a JSON document, which follows by `send_part`; the connection is of no use afterwards."""
        self.keep_alive = False
        await self._connection.write(self._document_head(status, size_bytes, JSON))

    async def send_part(self, data: bytes) -> None:
        """Sends the next bytes of an announced document."""
        await self._connection.write(data)

    async def open_stream(self) -> None:
        """Starts an event stream with status 200."""
        request = self.request
        self._chunked = request is not None and request.minor_version >= 1
        # Without chunks the end of the connection is the end of the reply.
        self.keep_alive = self.keep_alive and self._chunked
        framing = (("Transfer-Encoding", "chunked"),) if self._chunked else ()
        await self._connection.write(self._head(200, (*_EVENT_STREAM, *framing)))

    async def send_events(self, events: bytes) -> None:
        """Sends the next events of a stream."""
        await self._connection.write(b"%x\r\n%b\r\n" % (len(events), events) if self._chunked else events)

    async def close_stream(self) -> None:
        """Ends a stream in good order."""
        if self._chunked:
            await self._connection.write(b"0\r\n\r\n")

    def break_off(self) -> None:
        """Leaves the reply as it is; the connection closes without the end that was announced."""
        self.keep_alive = False

    def reset(self) -> None:
        """Resets the connection, now: the client gets an RST, whatever of the reply it has."""
        self.keep_alive = False
        self._connection.reset()

    def finish(self) -> None:
        """Counts a request that ended without a reply; harmless after one."""
        if self.status is None:
            self._decide(CLIENT_GONE_STATUS)

    def _decide(self, status: int) -> None:
        # Before a byte of the reply is sent, so that whoever has the reply finds it counted.
        self.status = status
        self._count(self.model, status)

    def _visible(self, body: bytes) -> bytes:
        return b"" if self.request is not None and self.request.method == "HEAD" else body

    def _document_head(
        self, status: int, size_bytes: int, content_type: str, headers: tuple[Header, ...] = ()
    ) -> bytes:
        return self._head(status, (("Content-Type", content_type), ("Content-Length", str(size_bytes)), *headers))

    def _head(self, status: int, headers: tuple[Header, ...]) -> bytes:
        self._decide(status)
        lines = [
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
            f"Date: {formatdate(usegmt=True)}",
            f"X-Request-Id: {self._request_id}",
            f"Connection: {'keep-alive' if self.keep_alive else 'close'}",
            *(f"{name}: {value}" for name, value in headers),
        ]
        return ("\r\n".join(lines) + "\r\n\r\n").encode("ascii")
