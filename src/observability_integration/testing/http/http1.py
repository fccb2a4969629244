"""One connection of an HTTP/1.1 client: h11 parses the requests; replies are sent unchecked, since some are malformed.

A client that closes its sending side counts as disconnected, even if it would still read.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from observability_integration.errors import MissingDependencyError
from observability_integration.tasks import spawn, wait_done

if TYPE_CHECKING:
    from collections.abc import Mapping

try:
    import h11
except ImportError as error:
    raise MissingDependencyError(
        "h11 is not installed. Install with: pip install 'observability-integration[testing]'"
    ) from error

_READ_BYTES = 65_536
_HEAD_BYTES = 32_768  # twice h11's default: trace context and baggage add to a client's own headers
_LINGER_SECONDS = 1.0
# struct linger: on, with a timeout of 0 s. Two unsigned shorts on Windows, two ints elsewhere.
_NO_LINGER = struct.pack("hh" if os.name == "nt" else "ii", 1, 0)


class InvalidRequestError(Exception):
    """The received bytes are not a valid request. The server replies with `status` and closes the connection.

    Attributes:
        status: HTTP status of the reply.
        message: description of the error, without any content of the request.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


@dataclass(frozen=True, slots=True)
class Request:
    """One request as received.

    Attributes:
        method: HTTP method, case-sensitive.
        path: path of the target, without the query.
        headers: headers by lower-case name; repeated ones are joined with a comma.
        body: the whole body, without chunk framing.
        minor_version: 1 for HTTP/1.1, 0 for HTTP/1.0.
        keep_alive: whether the client may send another request on this connection.
    """

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    minor_version: int
    keep_alive: bool


class Connection:
    """The connection of one client.

    Args:
        reader: stream of the bytes from the client.
        writer: stream of the bytes to the client.
        max_body_bytes: maximum size of a body, in bytes.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, max_body_bytes: int) -> None:
        self._reader = reader
        self._writer = writer
        self._max_body_bytes = max_body_bytes
        self._parser = h11.Connection(h11.SERVER)

    async def read_request(self) -> Request | None:
        """Reads the next request; returns None if the client closed the connection.

        Raises:
            InvalidRequestError: the request is malformed or too large.
            ConnectionError: the connection broke.
        """
        ahead, _ = self._parser.trailing_data
        # A new parser for each request: h11 continues with the next request only after a valid reply that it formatted.
        self._parser = h11.Connection(h11.SERVER, max_incomplete_event_size=_HEAD_BYTES)
        if ahead:  # h11 takes empty bytes for the end of the connection
            self._parser.receive_data(ahead)
        try:
            return await self._read_request()
        except h11.RemoteProtocolError as error:
            raise InvalidRequestError(error.error_status_hint, "The request is malformed.") from None

    async def wait_for_disconnect(self) -> None:
        """Waits until the client disconnects; bytes that it sends before belong to the next request."""
        with contextlib.suppress(ConnectionError):
            while data := await self._reader.read(_READ_BYTES):
                self._parser.receive_data(data)

    async def write(self, data: bytes) -> None:
        """Sends `data`, and waits while the client reads slowly.

        Raises:
            ConnectionError: the connection broke.
        """
        self._writer.write(data)
        await self._writer.drain()

    async def linger(self) -> None:
        """Closes the sending side and waits up to a second until the client closes too.

        Closing both sides while the client still sends would reset the connection, and the client could lose the reply.
        """
        with contextlib.suppress(OSError):
            self._writer.write_eof()
        reading = spawn(self._read_to_end(), name="test provider lingering")
        try:
            await wait_done(reading, _LINGER_SECONDS)
        finally:
            reading.cancel()

    async def _read_to_end(self) -> None:
        with contextlib.suppress(OSError):
            while await self._reader.read(_READ_BYTES):
                pass

    def reset(self) -> None:
        """Resets the connection at once: the client gets an RST instead of an end."""
        client_socket = self._writer.get_extra_info("socket")
        with contextlib.suppress(OSError):  # the client has closed it already
            client_socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        self._writer.transport.abort()

    async def close(self) -> None:
        """Drops the connection at once, including unsent bytes, and waits until it is closed."""
        self._writer.transport.abort()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()

    async def _read_request(self) -> Request | None:
        head = await self._next_event()
        if not isinstance(head, h11.Request):
            return None
        headers: dict[str, str] = {}
        for name, value in ((name.decode("ascii"), value.decode("latin-1")) for name, value in head.headers):
            headers[name] = f"{headers[name]}, {value}" if name in headers else value
        body = await self._read_body(int(headers.get("content-length", "0")))
        return Request(
            method=head.method.decode("ascii"),
            path=_path(head.target.decode("ascii")),
            headers=headers,
            body=body,
            minor_version=int(head.http_version >= b"1.1"),
            keep_alive=self._parser.their_state is not h11.MUST_CLOSE,
        )

    async def _read_body(self, announced_bytes: int) -> bytes:
        body = bytearray()
        self._check_size(announced_bytes)
        if self._parser.they_are_waiting_for_100_continue:
            await self.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        while isinstance(event := await self._next_event(), h11.Data):
            body += event.data
            self._check_size(len(body))
        return bytes(body)

    def _check_size(self, body_bytes: int) -> None:
        if body_bytes > self._max_body_bytes:
            raise InvalidRequestError(413, f"The body is larger than {self._max_body_bytes} bytes.")

    async def _next_event(self) -> object:
        while (event := self._parser.next_event()) is h11.NEED_DATA:
            self._parser.receive_data(await self._reader.read(_READ_BYTES))
        return event


def _path(target: str) -> str:
    try:
        return urlsplit(target).path
    except ValueError:
        raise InvalidRequestError(400, "The target of the request is malformed.") from None
