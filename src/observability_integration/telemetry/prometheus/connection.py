"""One client of the scrape endpoint: reads its request and sends the answer."""

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
    """A request and its answer, over HTTP/1.0: a kept connection would only hold a thread between two scrapes."""

    error_message_format = "%(code)d %(message)s\n"
    error_content_type = "text/plain; charset=utf-8"

    def __init__(self, connection: socket, address: Any, pages: ScrapePages) -> None:
        self._pages = pages
        # The parent keeps a server to pass on to subclasses, and handles the request before it returns.
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
        # A body that is not read resets the connection as it is closed, and the client may not get to see why.
        with suppress(ValueError):  # a length that is no number
            self.rfile.read(max(0, min(int(self.headers.get("Content-Length", "0")), _MAX_BODY_BYTES)))
        self._answer()

    # The names under which the parent looks for them.
    do_GET = do_HEAD = _answer  # noqa: N815
    do_POST = do_PUT = do_PATCH = do_DELETE = do_OPTIONS = do_TRACE = do_CONNECT = _refuse  # noqa: N815

    def version_string(self) -> str:
        """What the header ``Server`` says: no versions, which would only help an attacker."""
        return "observability-integration"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the parent's name
        """Logs nothing: a line every few seconds about a scrape tells nobody anything."""


def serve(connection: socket, address: Any, pages: ScrapePages) -> None:
    """Serves one connection, and leaves it to the caller to close it; never raises.

    Args:
        connection: accepted, with a timeout set; over TLS the handshake is still to be done.
        address: where the client is.
        pages: what there is to see.
    """
    try:
        if isinstance(connection, SSLSocket):
            connection.do_handshake()
        _Exchange(connection, address, pages)
    except OSError:
        pass  # the client left, was too slow or speaks no TLS: its own affair
    except Exception as error:  # noqa: BLE001 - nobody waits for this thread who could be told
        note_fault("prometheus.connection", error)
