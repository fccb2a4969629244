"""The HTTP server that Prometheus scrapes: addresses, bearer token and TLS.

Token and TLS are configured before the first socket listens.
"""

from __future__ import annotations

import errno
import socket
import ssl

from prometheus_client.registry import Collector

from .acceptor import Acceptor
from .pages import ScrapePages

_BACKLOG = 16
_PORT_ATTEMPTS = 10
_NO_SUCH_ADDRESS = {errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT}


def _addresses(host: str, port: int) -> list[tuple[int, str]]:
    if host.lower() == "localhost":
        # Clients may resolve the name to either address, whatever this machine's /etc/hosts says.
        return [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")]
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    return [(found[0][0], str(found[0][4][0]))]


def _bind(addresses: list[tuple[int, str]], port: int) -> list[socket.socket]:
    """Listens on those of `addresses` that the machine has, on one port.

    Raises:
        OSError: the port is taken on one of them, or the machine has none of them.
    """
    listeners: list[socket.socket] = []
    missing: OSError | None = None
    try:
        for family, address in addresses:
            dual = address == "::" and socket.has_dualstack_ipv6()
            try:
                listener = socket.create_server((address, port), family=family, backlog=_BACKLOG, dualstack_ipv6=dual)
            except OSError as error:
                if len(addresses) == 1 or error.errno not in _NO_SUCH_ADDRESS:
                    raise
                missing = error
                continue
            listener.setblocking(False)
            listeners.append(listener)
            port = listener.getsockname()[1]
    except BaseException:
        for listener in listeners:
            listener.close()
        raise
    if missing is not None and not listeners:
        raise missing
    return listeners


def _listen(host: str, port: int) -> list[socket.socket]:
    addresses = _addresses(host, port)
    for _ in range(_PORT_ATTEMPTS - 1):
        try:
            return _bind(addresses, port)
        except OSError as error:
            # The port that was free on the first address may be taken on the second: try another.
            if port != 0 or error.errno != errno.EADDRINUSE:
                raise
    return _bind(addresses, port)


class ScrapeServer:
    """Serves ``/metrics`` of a registry.

    Attributes:
        port: the port it listens on; before `start`, the requested one.
    """

    def __init__(
        self,
        registry: Collector,
        *,
        host: str = "localhost",
        port: int = 9464,
        bearer_token: str | None = None,
        tls_certificate_file: str | None = None,
        tls_key_file: str | None = None,
        tls_client_ca_file: str | None = None,
    ) -> None:
        """Prepares a server; opens and reads nothing yet.

        Args:
            registry: collected at every scrape.
            host: name or address to listen on. ``localhost`` means 127.0.0.1 and, if the machine has it, ::1.
            port: 0 picks a free one. 9464 is the default of the OpenTelemetry specification.
            bearer_token: token that clients must send as ``Authorization: Bearer``; None means no authentication.
            tls_certificate_file: PEM file with the server's certificate chain; enables HTTPS, with TLS 1.2 or later.
            tls_key_file: PEM file with its unencrypted key; by default the key is in the certificate's file.
            tls_client_ca_file: PEM file of authorities; one of them must have signed the client's certificate.

        `PrometheusSettings` has checked the arguments.
        """
        self.port = port
        self._host = host
        self._requested_port = port
        self._pages = ScrapePages(registry, bearer_token)
        self._certificate_file = tls_certificate_file
        self._key_file = tls_key_file
        self._client_ca_file = tls_client_ca_file
        self._acceptor: Acceptor | None = None

    @property
    def url(self) -> str:
        """The URL of the metrics, for a client on this machine."""
        scheme = "http" if self._certificate_file is None else "https"
        host = "localhost" if self._host in {"0.0.0.0", "::"} else self._host  # noqa: S104 - compared, not bound
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{self.port}/metrics"

    def start(self) -> None:
        """Listens and serves in daemon threads.

        Raises:
            OSError: the port is taken on one of the addresses, the host is not this machine's, a TLS file cannot be
                used, or no thread can be started. All sockets are closed then.
            RuntimeError: the server is running.
        """
        if self._acceptor is not None:
            raise RuntimeError("the scrape server is running already")
        tls = self._tls_context()
        listeners = _listen(self._host, self._requested_port)
        acceptor = Acceptor(listeners, tls, self._pages)
        try:
            acceptor.start()
        except RuntimeError as error:
            acceptor.release()
            raise OSError(errno.EAGAIN, "no thread can be started for the scrape server") from error
        self.port = listeners[0].getsockname()[1]
        self._acceptor = acceptor

    def _tls_context(self) -> ssl.SSLContext | None:
        if self._certificate_file is None:
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        # Without a password OpenSSL would ask for one on the terminal and wait.
        context.load_cert_chain(self._certificate_file, self._key_file, password="")
        if self._client_ca_file is not None:
            context.load_verify_locations(self._client_ca_file)
            context.verify_mode = ssl.CERT_REQUIRED
        return context

    def close(self, timeout_seconds: float = 1.0) -> None:
        """Stops listening, lets responses finish, and closes the rest after `timeout_seconds`.

        Frees the port. A second call does nothing; `start` opens it again.
        """
        acceptor, self._acceptor = self._acceptor, None
        if acceptor is not None:
            acceptor.close(timeout_seconds)

    def release_after_fork(self) -> None:
        """In a forked child: closes the inherited sockets; the parent goes on serving."""
        acceptor, self._acceptor = self._acceptor, None
        if acceptor is not None:
            acceptor.release()
