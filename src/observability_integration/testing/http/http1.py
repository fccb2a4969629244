"""One connection of an HTTP/1.1 client: h11 parses the requests; replies are sent as they are, wrong on purpose or not.

A client that closes its sending side counts as gone, even if it would still read.
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
_HEAD_BYTES = 32_768  # twice h11's default: trace context and baggage come on top of a client's own headers
_LINGER_SECONDS = 1.0
# Two unsigned shorts on Windows, two ints elsewhere: on, and for no time at all.
_NO_LINGER = struct.pack("hh" if os.name == "nt" else "ii", 1, 0)


class RequestFault(Exception):  # noqa: N818 - a fault of the client's, answered and not raised further
    """The bytes received are not a request that can be served; the connection ends after the answer.

    Attributes:
        status: the HTTP status to answer with.
        message: what is wrong; it never repeats what the client sent.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message


@dataclass(frozen=True, slots=True)
class Request:
    """One request as received.

    Attributes:
        method: in capitals as a rule; compared as it came.
        path: the path of the target, without query.
        headers: by lower-case name; repeated ones joined with a comma.
        body: all of it, without the framing of chunks.
        minor_version: 1 for HTTP/1.1, 0 for HTTP/1.0.
        keep_alive: whether the client expects to send another request on this connection.
    """

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    minor_version: int
    keep_alive: bool


class Connection:
    """One client's connection.

    Args:
        reader: what the client sends.
        writer: what is sent to the client.
        max_body_bytes: the size of the longest body that is accepted, in bytes.
    """

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, max_body_bytes: int) -> None:
        self._reader = reader
        self._writer = writer
        self._max_body_bytes = max_body_bytes
        self._parser = h11.Connection(h11.SERVER)

    async def read_request(self) -> Request | None:
        """Reads the next request, or returns None when the client has nothing more to say.

        Raises:
            RequestFault: if the request is malformed or too large.
            ConnectionError: if the connection broke.
        """
        ahead, _ = self._parser.trailing_data
        # One parser a request: h11 begins a second one only after a reply of its own, which could not be a wrong one.
        self._parser = h11.Connection(h11.SERVER, max_incomplete_event_size=_HEAD_BYTES)
        if ahead:  # to h11, no bytes are the end of the connection
            self._parser.receive_data(ahead)
        try:
            return await self._read_request()
        except h11.RemoteProtocolError as error:
            raise RequestFault(error.error_status_hint, "The request is malformed.") from None

    async def wait_for_disconnect(self) -> None:
        """Returns once the client is gone; what it sends in the meantime is kept for the next request."""
        with contextlib.suppress(ConnectionError):
            while data := await self._reader.read(_READ_BYTES):
                self._parser.receive_data(data)

    async def write(self, data: bytes) -> None:
        """Sends, waiting while the client is slow to read.

        Raises:
            ConnectionError: if the connection broke.
        """
        self._writer.write(data)
        await self._writer.drain()

    async def linger(self) -> None:
        """Ends the sending side and waits, for at most a second, until the client has closed too.

        Closing at once while the client still sends would reset the connection and could take the answer with it.
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
        """Drops the connection at once, so that the client gets an RST and not an end."""
        wire = self._writer.get_extra_info("socket")
        with contextlib.suppress(OSError):  # closed already: the client was faster
            wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        self._writer.transport.abort()

    async def close(self) -> None:
        """Drops the connection at once, with whatever has not been sent yet, and waits for its end."""
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
            raise RequestFault(413, f"The body is larger than {self._max_body_bytes} bytes.")

    async def _next_event(self) -> object:
        while (event := self._parser.next_event()) is h11.NEED_DATA:
            self._parser.receive_data(await self._reader.read(_READ_BYTES))
        return event


def _path(target: str) -> str:
    try:
        return urlsplit(target).path
    except ValueError:
        raise RequestFault(400, "The target of the request is malformed.") from None
