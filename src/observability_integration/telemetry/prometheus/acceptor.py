"""The threads of the scrape server.

One thread accepts connections on all addresses. Each connection has its own thread, so a slow client delays no other.
"""

from __future__ import annotations

import selectors
import socket
import ssl
import threading
import time
from contextlib import suppress

from .connection import serve
from .pages import ScrapePages

_CLIENT_SECONDS = 10.0  # a client that is silent for longer is dropped; Prometheus's default scrape_timeout
_MAX_CONNECTIONS = 64  # each has a thread; a pair of Prometheus servers needs two


def _shut(connection: socket.socket, how: int) -> None:
    """Shuts one or both directions down, from any thread; an SSLSocket's own method would remove its TLS layer."""
    with suppress(OSError):  # closed already
        socket.socket.shutdown(connection, how)


class Acceptor:
    """The sockets and threads of a server, from its start to its end."""

    def __init__(self, listeners: list[socket.socket], tls: ssl.SSLContext | None, pages: ScrapePages) -> None:
        self._listeners = listeners
        self._tls = tls
        self._pages = pages
        self._closing = threading.Event()
        self._changed = threading.Condition()
        self._connections: dict[socket.socket, None] = {}  # oldest first
        self._wakeup, self._waker = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        for source in (*listeners, self._wakeup):
            self._selector.register(source, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="observability-scrape", daemon=True)

    def start(self) -> None:
        """Starts to accept connections.

        Raises:
            RuntimeError: no thread can be started.
        """
        self._thread.start()

    def _run(self) -> None:
        try:
            while not self._closing.is_set():
                for key, _ in self._selector.select():
                    if key.fileobj is not self._wakeup and isinstance(key.fileobj, socket.socket):
                        self._accept(key.fileobj)
        finally:
            self._selector.close()
            self._wakeup.close()

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection, address = listener.accept()
        except BlockingIOError:
            return  # the client left before
        except OSError:
            self._closing.wait(0.1)  # no file descriptor is free; the listener stays ready, so the loop would spin
            return
        try:
            connection.settimeout(_CLIENT_SECONDS)
            if self._tls is not None:
                # Without the handshake, which blocks: the connection's own thread does it.
                connection = self._tls.wrap_socket(connection, server_side=True, do_handshake_on_connect=False)
            self._admit(connection)
            threading.Thread(
                target=self._serve, args=(connection, address), name="observability-scrape-client", daemon=True
            ).start()
        except (OSError, RuntimeError):  # the client left, or no thread can be started
            self._dismiss(connection)

    def _admit(self, connection: socket.socket) -> None:
        with self._changed:
            if len(self._connections) >= _MAX_CONNECTIONS:
                # The oldest connection is stuck, or kept open on purpose.
                oldest = next(iter(self._connections))
                del self._connections[oldest]
                _shut(oldest, socket.SHUT_RDWR)
            self._connections[connection] = None

    def _serve(self, connection: socket.socket, address: object) -> None:
        serve(connection, address, self._pages)
        self._dismiss(connection)

    def _dismiss(self, connection: socket.socket) -> None:
        _shut(connection, socket.SHUT_RDWR)
        connection.close()
        with self._changed:
            self._connections.pop(connection, None)
            self._changed.notify_all()

    def close(self, timeout_seconds: float) -> None:
        """Stops accepting, lets responses finish, and closes the rest after `timeout_seconds`."""
        deadline = time.monotonic() + timeout_seconds
        self._closing.set()
        with suppress(OSError):
            self._waker.send(b"\0")
        self._thread.join(timeout_seconds)
        for listener in self._listeners:
            listener.close()
        with self._changed:
            # Ends incomplete requests at once; responses may finish.
            for connection in self._connections:
                _shut(connection, socket.SHUT_RD)
            self._changed.wait_for(lambda: not self._connections, max(0.0, deadline - time.monotonic()))
            for connection in self._connections:
                _shut(connection, socket.SHUT_RDWR)
        self._waker.close()

    def release(self) -> None:
        """In a forked child: closes its copies of the sockets, which affects neither the peers nor the parent."""
        # Connections too: the parent's client sees no end while a copy is open.
        for inherited in (*self._listeners, *self._connections, self._wakeup, self._waker):
            with suppress(OSError):
                socket.close(inherited.detach())
        self._selector.close()
