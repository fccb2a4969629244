"""As much of HTTP/1.1 as a provider on the loopback interface needs, with a limit on everything a client can send.

Bodies come with Content-Length only; connections are kept alive; what cannot be read unambiguously is refused
(RFC 9112). A client that closes its sending side counts as gone, even if it would still read.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import socket
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

from observability_integration.tasks import spawn, wait_done

if TYPE_CHECKING:
    from collections.abc import Coroutine, Mapping

T = TypeVar("T")

_READ_BYTES = 65_536
_REQUEST_LINE = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+) ([\x21-\x7e]+) HTTP/([0-9])\.([0-9])")
_FIELD_NAME = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_FORBIDDEN_IN_VALUE = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
# Said twice, these leave open where a message ends or who it is for.
_ONCE_ONLY = frozenset({"host", "content-length", "authorization"})
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one client may take.

    Attributes:
        line_bytes: longest request line or header line.
        head_bytes: longest request line and headers together. A client that sends more than this while its last
            request is still being answered is dropped.
        body_bytes: longest body.
        read_seconds: longest wait for a request, idle or half sent, in seconds; never scaled.
        linger_seconds: longest wait for a client to take its last answer before the connection is dropped, in seconds.
    """

    line_bytes: int = 8_192
    head_bytes: int = 32_768
    body_bytes: int = 1_048_576
    read_seconds: float = 30.0
    linger_seconds: float = 1.0


@dataclass(frozen=True, slots=True)
class Request:
    """One request as received.

    Attributes:
        method: in capitals as a rule; compared as it came.
        path: the path of the target, without query.
        headers: by lower-case name; repeated ones joined with a comma.
        body: as many bytes as Content-Length said.
        minor_version: 1 for HTTP/1.1, 0 for HTTP/1.0.
    """

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes
    minor_version: int

    @property
    def keep_alive(self) -> bool:
        """Whether the client expects to send another request on this connection."""
        options = {option.strip().lower() for option in self.headers.get("connection", "").split(",")}
        return self.minor_version >= 1 and "close" not in options


class Connection:
    """One client's connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, limits: Limits) -> None:
        self._reader = reader
        self._writer = writer
        self._limits = limits
        self._ahead = bytearray()  # received, not yet part of a request
        self._begun = False

    async def read_request(self) -> Request | None:
        """Reads the next request, or returns None when the client has nothing more to say.

        Raises:
            RequestFault: if the request is malformed, too large or too slow.
            ConnectionError: if the connection broke.
        """
        self._begun = False
        reading = await _run_for(self._limits.read_seconds, self._read_request())
        if not reading.cancelled():
            return reading.result()
        if self._begun or self._ahead:
            raise RequestFault(408, "The request took too long to arrive.")
        return None

    async def wait_for_disconnect(self) -> None:
        """Returns once the client is gone, or has sent more ahead of its turn than it may.

        What it sends in the meantime is kept for the next request.
        """
        with contextlib.suppress(ConnectionError):
            while len(self._ahead) <= self._limits.head_bytes and await self._fill():
                pass

    async def write(self, data: bytes) -> None:
        """Sends, waiting while the client is slow to read.

        Raises:
            ConnectionError: if the connection broke.
        """
        self._writer.write(data)
        await self._writer.drain()

    async def linger(self) -> None:
        """Ends the sending side and waits, for a bounded time, until the client has closed too.

        Closing at once while the client still sends would reset the connection and could take the answer with it.
        """
        with contextlib.suppress(OSError):
            self._writer.write_eof()
            ending = await _run_for(self._limits.linger_seconds, self._drop_input())
            if not ending.cancelled():
                ending.result()

    def abort(self) -> None:
        """Drops the connection at once, with whatever has not been sent yet."""
        self._writer.transport.abort()

    def reset(self) -> None:
        """Drops the connection at once, so that the client gets an RST and not an end."""
        wire = self._writer.get_extra_info("socket")
        with contextlib.suppress(OSError):  # closed already: the client was faster
            wire.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
        self.abort()

    async def wait_closed(self) -> None:
        """Waits for the end of a connection that was aborted."""
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()

    async def _drop_input(self) -> None:
        while await self._reader.read(_READ_BYTES):
            pass

    async def _fill(self) -> bool:
        data = await self._reader.read(_READ_BYTES)
        self._ahead += data
        return bool(data)

    async def _read_request(self) -> Request | None:
        line = await self._read_request_line()
        if line is None:
            return None
        match = _REQUEST_LINE.fullmatch(line)
        if match is None:
            raise RequestFault(400, "The request line is malformed.")
        if match[3] != b"1":
            raise RequestFault(505, "Only HTTP/1.1 and HTTP/1.0 are spoken here.")
        minor_version = int(match[4])
        path = _path(match[2].decode("ascii"))
        headers = await self._read_headers(self._limits.head_bytes - len(line))
        if "host" not in headers and minor_version >= 1:
            raise RequestFault(400, "The Host header is missing.")
        body = await self._read_body(headers)
        return Request(match[1].decode("ascii"), path, headers, body, minor_version)

    async def _read_request_line(self) -> bytes | None:
        # One empty line before the request is a habit of old clients (RFC 9112, 2.2); a second one is malformed.
        for _ in range(2):
            if not self._ahead and not await self._fill():
                return None
            line = await self._read_line(too_long=414)
            self._begun = True
            if line:
                return line
        return b""

    async def _read_line(self, *, too_long: int) -> bytes:
        limit = self._limits.line_bytes
        searched = 0
        while (end := self._ahead.find(b"\n", searched)) < 0 and len(self._ahead) <= limit:
            searched = len(self._ahead)
            if not await self._fill():
                raise RequestFault(400, "The request ended early.")
        if end < 0 or end > limit:
            raise RequestFault(too_long, "A line of the request is too long.")
        line = bytes(self._ahead[:end])
        del self._ahead[: end + 1]
        if not line.endswith(b"\r"):
            raise RequestFault(400, "A line of the request does not end in CR LF.")
        return line[:-1]

    async def _read_headers(self, budget_bytes: int) -> dict[str, str]:
        headers: dict[str, str] = {}
        while line := await self._read_line(too_long=431):
            budget_bytes -= len(line) + 2
            if budget_bytes < 0:
                raise RequestFault(431, "The headers are too large.")
            name, value = _header(line)
            if name in headers:
                if name in _ONCE_ONLY:
                    raise RequestFault(400, "A header that may be sent once was sent twice.")
                value = f"{headers[name]}, {value}"
            headers[name] = value
        return headers

    async def _read_body(self, headers: Mapping[str, str]) -> bytes:
        length_text = headers.get("content-length")
        if "transfer-encoding" in headers:
            if length_text is not None:
                raise RequestFault(400, "Content-Length and Transfer-Encoding contradict each other.")
            raise RequestFault(501, "Transfer-Encoding is not supported: send Content-Length.")
        if length_text is None:
            return b""
        if not (length_text.isascii() and length_text.isdigit()):
            raise RequestFault(400, "Content-Length is not a number.")
        # A number too long to be within any limit is not worth converting, and Python refuses to beyond 4300 digits.
        if len(length_text) > 19 or (length := int(length_text)) > self._limits.body_bytes:
            raise RequestFault(413, f"The body is larger than {self._limits.body_bytes} bytes.")
        if headers.get("expect", "").lower() == "100-continue" and len(self._ahead) < length:
            await self.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        while len(self._ahead) < length:
            if not await self._fill():
                raise RequestFault(400, "The request ended early.")
        body = bytes(self._ahead[:length])
        del self._ahead[:length]
        return body


def _path(target: str) -> str:
    try:
        return urlsplit(target).path
    except ValueError:
        raise RequestFault(400, "The target of the request is malformed.") from None


def _header(line: bytes) -> tuple[str, str]:
    name, colon, value = line.partition(b":")
    value = value.strip(b" \t")
    if not colon or not _FIELD_NAME.fullmatch(name) or _FORBIDDEN_IN_VALUE.search(value):
        raise RequestFault(400, "A header line is malformed.")
    return name.decode("ascii").lower(), value.decode("latin-1")


async def _run_for(seconds: float, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """Gives the work that long and returns its task, which has ended by then: cancelled, if the time was up."""
    task = spawn(work, name="loopback connection read")
    try:
        await wait_done(task, seconds)
    finally:
        task.cancel()
        await asyncio.wait((task,))
    return task
