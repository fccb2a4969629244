"""Serves one connection of the scrape endpoint: reads the request and sends the response."""

from __future__ import annotations

from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from socket import socket
from socketserver import BaseServer
from ssl import SSLSocket
from typing import Any, cast

from observability_integration.telemetry.guard import note_fault

from .pages import ScrapePages

_MAX_BODY_BYTES = 65_536


class _Exchange(BaseHTTPRequestHandler):
    """One request and its response, over HTTP/1.0: keep-alive would only hold a thread between two scrapes."""

    error_message_format = "%(code)d %(message)s\n"
    error_content_type = "text/plain; charset=utf-8"

    def __init__(self, connection: socket, address: Any, pages: ScrapePages) -> None:
        self._pages = pages
        # The base class only stores the server; its constructor handles the request.
        super().__init__(connection, address, cast(BaseServer, None))

    def _answer(self) -> None:
        answer = self._pages.answer(self.command, self.path, self.headers)
        self.send_response(answer.status)
        for name, value in answer.headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    def _refuse(self) -> None:
        # Closing with an unread body resets the connection, and the client may not see the response.
        with suppress(ValueError):  # a length that is not a number
            self.rfile.read(max(0, min(int(self.headers.get("Content-Length", "0")), _MAX_BODY_BYTES)))
        self._answer()

    # The base class looks these names up.
    do_GET = do_HEAD = _answer  # noqa: N815
    do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_TRACE = do_CONNECT = _refuse  # noqa: N815

    def version_string(self) -> str:
        """Returns the header ``Server``, without versions, which would help an attacker."""
        return "observability-integration"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
        """Logs nothing: a line every few seconds about a scrape has no use."""


def serve(connection: socket, address: Any, pages: ScrapePages) -> None:
    """Serves one connection and never raises; the caller closes it.

    Args:
        connection: an accepted socket with a timeout; over TLS, before the handshake.
        address: the client's address.
        pages: make the response.
    """
    try:
        if isinstance(connection, SSLSocket):
            connection.do_handshake()
        _Exchange(connection, address, pages)
    except OSError:
        pass  # the client left, was too slow or does not speak TLS
    except Exception as error:  # noqa: BLE001 - no caller waits for this thread
        note_fault("prometheus.connection", error)
