"""The scrape server, over real sockets."""

from __future__ import annotations

import contextlib
import errno
import gzip
import http.client
import io
import logging
import os
import socket
import ssl
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("prometheus_client")

from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.core import GaugeMetricFamily

from observability_integration.telemetry import guard
from observability_integration.telemetry.prometheus import acceptor
from observability_integration.telemetry.prometheus import server as scrape_server
from observability_integration.telemetry.prometheus.pages import ScrapePages
from observability_integration.telemetry.prometheus.server import ScrapeServer

pytestmark = [pytest.mark.once, pytest.mark.needs_otel, pytest.mark.promise("M5", "M9")]

TEXT = "text/plain; version=0.0.4; charset=utf-8"
WAIT_SECONDS = 20.0
HAS_IPV6 = True
try:
    socket.create_server(("::1", 0), family=socket.AF_INET6).close()
except OSError:
    HAS_IPV6 = False


class Stalling:
    """A collector that waits in the middle of a scrape until it is let go."""

    def __init__(self) -> None:
        self.inside = threading.Event()
        self.leave = threading.Event()

    def collect(self) -> Iterator[GaugeMetricFamily]:
        self.inside.set()
        assert self.leave.wait(WAIT_SECONDS * 2)
        yield GaugeMetricFamily("late", "d", 1)


@pytest.fixture
def registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    Gauge("answer", "The answer.", registry=registry).set(42)
    return registry


@pytest.fixture
def serve(registry: CollectorRegistry) -> Iterator[Callable[..., ScrapeServer]]:
    """Starts servers on free ports, and closes them after the test."""
    servers: list[ScrapeServer] = []

    def start(registry: Any = registry, **options: Any) -> ScrapeServer:
        server = ScrapeServer(registry, **{"port": 0, **options})
        server.start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.close()
    for thread in threading.enumerate():
        if thread.name.startswith("observability-scrape"):
            thread.join(WAIT_SECONDS)
            assert not thread.is_alive()


def ask(
    server: ScrapeServer,
    path: str = "/metrics",
    *,
    method: str = "GET",
    address: str = "127.0.0.1",
    tls: ssl.SSLContext | None = None,
    body: bytes | None = None,
    **headers: str,
) -> tuple[http.client.HTTPResponse, bytes]:
    connection: http.client.HTTPConnection
    if tls is None:
        connection = http.client.HTTPConnection(address, server.port, timeout=WAIT_SECONDS)
    else:
        connection = http.client.HTTPSConnection("localhost", server.port, timeout=WAIT_SECONDS, context=tls)
    with contextlib.closing(connection):
        connection.request(method, path, body, {name.replace("_", "-"): value for name, value in headers.items()})
        response = connection.getresponse()
        return response, response.read()


def is_open(port: int, address: str = "127.0.0.1") -> bool:
    with contextlib.suppress(OSError), socket.create_connection((address, port), timeout=WAIT_SECONDS):
        return True
    return False


def open_descriptors() -> int:
    """How many file descriptors this process has; 0 where the system does not tell."""
    descriptors = Path("/proc/self/fd")
    return len(list(descriptors.iterdir())) if descriptors.is_dir() else 0


def hung_up(connection: socket.socket) -> bool:
    """Waits until the other side has ended the connection; a TimeoutError when it does not."""
    connection.settimeout(WAIT_SECONDS)
    with contextlib.suppress(ConnectionError):
        while connection.recv(4096):  # over TLS a last alert may come first
            pass
    return True


class TestPages:
    def test_metrics_in_the_text_format(self, serve: Callable[..., ScrapeServer]) -> None:
        """What a person with curl sees."""
        response, body = ask(serve())
        assert (200, TEXT) == (response.status, response.headers["Content-Type"])
        assert b"# HELP answer The answer.\n# TYPE answer gauge\nanswer 42.0\n" == body

    def test_metrics_in_openmetrics_when_asked_as_prometheus_asks(self, serve: Callable[..., ScrapeServer]) -> None:
        """Exemplars travel in this format only."""
        accept = (
            "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,*/*;q=0.1"
        )
        response, body = ask(serve(), Accept=accept)
        assert response.headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0; charset=utf-8")
        assert body.endswith(b"answer 42.0\n# EOF\n")

    def test_compressed_when_asked(self, serve: Callable[..., ScrapeServer]) -> None:
        """Prometheus asks for it; labels repeat, and shrink to a tenth."""
        response, body = ask(serve(), Accept_Encoding="gzip, deflate")
        assert "gzip" == response.headers["Content-Encoding"]
        assert b"answer 42.0" in gzip.decompress(body)

    @pytest.mark.parametrize(
        "accept", ["application/openmetrics-text;version=abc", "text/plain;version=1.x", "\x80;=;;,"]
    )
    def test_an_accept_header_that_makes_no_sense_gets_an_answer(
        self, accept: str, serve: Callable[..., ScrapeServer]
    ) -> None:
        """prometheus_client trips over a version that is no number."""
        response, body = ask(serve(), Accept=accept)
        assert 200 == response.status
        assert b"answer 42.0" in body

    def test_header_names_are_read_in_any_case(self, serve: Callable[..., ScrapeServer]) -> None:
        """Proxies send them in lower case."""
        response, _ = ask(serve(bearer_token="secret"), authorization="bearer secret", accept_encoding="gzip")
        assert (200, "gzip") == (response.status, response.headers["Content-Encoding"])

    def test_a_folded_header_does_not_come_back_as_a_header(self, serve: Callable[..., ScrapeServer]) -> None:
        """The version that is asked for is part of our Content-Type."""
        with socket.create_connection(("127.0.0.1", serve().port), timeout=WAIT_SECONDS) as connection:
            connection.sendall(
                b"GET /metrics HTTP/1.1\r\nAccept: application/openmetrics-text;version=1.0.0.\r\n X-Own: 1\r\n\r\n"
            )
            answer = connection.makefile("rb").read()
        assert answer.startswith(b"HTTP/1.0 200 OK\r\n")
        assert b"X-Own" not in answer

    def test_head_says_what_get_would_send(self, serve: Callable[..., ScrapeServer]) -> None:
        """Health checks use it; a body that came nevertheless would pass for the next answer."""
        server = serve()
        with socket.create_connection(("127.0.0.1", server.port), timeout=WAIT_SECONDS) as connection:
            connection.sendall(b"HEAD /metrics HTTP/1.1\r\n\r\n")
            assert connection.makefile("rb").read().endswith(b"\r\n\r\n")
        (head, nothing), (_, body) = ask(server, method="HEAD"), ask(server)
        assert (200, str(len(body)), b"") == (head.status, head.headers["Content-Length"], nothing)

    def test_the_front_page_points_to_the_metrics(self, serve: Callable[..., ScrapeServer]) -> None:
        """Who opens the address in a browser finds the way."""
        response, body = ask(serve(), "/")
        assert 200 == response.status
        assert 2 == len(body.splitlines())
        assert b"/metrics" in body

    def test_query_strings_are_ignored(self, serve: Callable[..., ScrapeServer]) -> None:
        """Prometheus appends the parameters of its scrape configuration."""
        response, body = ask(serve(), "/metrics?name[]=other")
        assert 200 == response.status
        assert b"answer 42.0" in body

    @pytest.mark.parametrize("path", ["/other", "/metrics/", "/metrics/../etc/passwd", "*"])
    def test_other_paths_are_not_found(self, path: str, serve: Callable[..., ScrapeServer]) -> None:
        """There is nothing else to see, and nothing to trip over."""
        response, _ = ask(serve(), path)
        assert 404 == response.status

    @pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE"])
    def test_other_methods_are_refused_even_with_a_body(self, method: str, serve: Callable[..., ScrapeServer]) -> None:
        """The answer must arrive although nobody reads the body."""
        response, _ = ask(serve(), method=method, body=None if method == "TRACE" else b"x" * 50_000)
        assert (405, "GET, HEAD") == (response.status, response.headers["Allow"])

    @pytest.mark.parametrize("length", ["-1", "many", "9" * 5000])
    def test_a_body_of_impossible_length_is_refused_all_the_same(
        self, length: str, serve: Callable[..., ScrapeServer]
    ) -> None:
        """Python refuses to read numbers of thousands of digits; a negative length would read until the end."""
        with socket.create_connection(("127.0.0.1", serve().port), timeout=WAIT_SECONDS) as connection:
            connection.sendall(f"POST / HTTP/1.1\r\nContent-Length: {length}\r\n\r\n".encode())
            assert connection.makefile("rb").readline().startswith(b"HTTP/1.0 405 ")

    @pytest.mark.parametrize(
        "line", [b"\x00\xff\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n", b"BREW / HTTP/1.1\r\n\r\n", b"\r\n"]
    )
    def test_what_is_no_request_ends_the_connection_and_nothing_else(
        self, line: bytes, serve: Callable[..., ScrapeServer], capfd: pytest.CaptureFixture[str]
    ) -> None:
        """Port scanners call; the next scrape must not notice, nor the application's stderr."""
        server = serve()
        with socket.create_connection(("127.0.0.1", server.port), timeout=WAIT_SECONDS) as connection:
            connection.sendall(line)
            connection.shutdown(socket.SHUT_WR)
            connection.makefile("rb").read()
        assert 200 == ask(server)[0].status
        assert ("", "") == tuple(capfd.readouterr())

    def test_no_versions_are_given_away(self, serve: Callable[..., ScrapeServer]) -> None:
        """They would tell an attacker what to try."""
        assert "observability-integration" == ask(serve())[0].headers["Server"]


class TestFailures:
    def test_a_failing_collector_is_a_500_once_in_the_log_and_over_with_the_next_scrape(
        self, serve: Callable[..., ScrapeServer], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Prometheus shows the target as down, and nothing of the inside goes over the wire."""
        monkeypatch.setattr(guard, "_logged", set[tuple[str, str]]())
        fail = [True]

        class Failing:
            def collect(self) -> Iterator[GaugeMetricFamily]:
                yield GaugeMetricFamily("whole", "d", 1)
                if fail:
                    raise LookupError("a secret")

        registry = CollectorRegistry()
        registry.register(Failing())
        server = serve(registry)
        for _ in range(2):
            response, body = ask(server)
            assert (500, "text/plain; charset=utf-8") == (response.status, response.headers["Content-Type"])
            assert b"the metrics could not be collected; the log of the application says why\n" == body
        assert 1 == len(caplog.messages)
        assert "LookupError" in caplog.messages[0]
        assert "secret" not in caplog.text
        fail.clear()
        assert b"whole 1.0" in ask(server)[1]

    def test_scrapes_run_side_by_side(self, serve: Callable[..., ScrapeServer]) -> None:
        """One that is slow to collect must not delay the page of another."""
        stalling, registry = Stalling(), CollectorRegistry()
        registry.register(stalling)
        server = serve(registry)
        bodies: list[bytes] = []
        slow = threading.Thread(target=lambda: bodies.append(ask(server)[1]))
        slow.start()
        assert stalling.inside.wait(WAIT_SECONDS)
        assert 200 == ask(server, "/")[0].status
        stalling.leave.set()
        slow.join(WAIT_SECONDS)
        assert b"late 1.0" in bodies[0]

    def test_a_client_that_says_nothing_is_dropped(
        self, serve: Callable[..., ScrapeServer], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Each connection holds a thread."""
        monkeypatch.setattr(acceptor, "_CLIENT_SECONDS", 0.05)
        with socket.create_connection(("127.0.0.1", serve().port)) as silent:
            assert hung_up(silent)

    def test_the_oldest_connection_makes_room(
        self, serve: Callable[..., ScrapeServer], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Clients that send a byte now and then must not lock Prometheus out."""
        monkeypatch.setattr(acceptor, "_MAX_CONNECTIONS", 2)
        monkeypatch.setattr(acceptor, "_CLIENT_SECONDS", 1000.0)
        server = serve()
        with contextlib.ExitStack() as stack:
            dripping = [stack.enter_context(socket.create_connection(("127.0.0.1", server.port))) for _ in range(3)]
            assert hung_up(dripping[0])
            assert 200 == ask(server)[0].status
            assert hung_up(dripping[1])
            dripping[2].sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert b"HTTP/1.0 200" == dripping[2].recv(12)

    def test_accepting_survives_clients_that_vanish_and_a_lack_of_descriptors(
        self, serve: Callable[..., ScrapeServer], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A thread that dies here would leave a port that accepts nobody, until the next restart."""
        server = serve()
        accept = socket.socket.accept
        failures: list[OSError] = [OSError(errno.EMFILE, "Too many open files"), BlockingIOError()]

        def failing_at_first(listener: socket.socket) -> Any:
            if failures:
                raise failures.pop()
            return accept(listener)

        monkeypatch.setattr(socket.socket, "accept", failing_at_first)
        assert 200 == ask(server)[0].status
        assert [] == failures

    def test_a_fault_of_ours_ends_the_connection_and_is_told(
        self, serve: Callable[..., ScrapeServer], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Nobody waits for a connection's thread: unless it is logged, the fault is never known."""

        class UnforeseenError(Exception):
            pass

        def fail(*_: object) -> None:
            raise UnforeseenError

        server = serve()
        with monkeypatch.context() as patch:
            patch.setattr(ScrapePages, "answer", fail)
            with pytest.raises(http.client.HTTPException):
                ask(server)
        assert "UnforeseenError" in caplog.text
        assert 200 == ask(server)[0].status

    def test_nothing_is_written_to_stderr(
        self, serve: Callable[..., ScrapeServer], capfd: pytest.CaptureFixture[str]
    ) -> None:
        """A line every 15 seconds would bury the application's own."""
        server = serve(bearer_token="secret")
        for path in ("/metrics", "/other"):
            ask(server, path)
        with socket.create_connection(("127.0.0.1", server.port)) as impatient:
            impatient.sendall(b"GET /metrics HTTP/1.1\r\nAuthorization: Bearer secret\r\n\r\n")
        server.close()
        assert ("", "") == tuple(capfd.readouterr())


class TestToken:
    @pytest.mark.parametrize("path", ["/metrics", "/", "/other"])
    @pytest.mark.parametrize("given", [None, "", "Bearer", "Bearer wrong", "Basic s3cret", "s3cret", "Bearer s3cret2"])
    def test_nothing_is_shown_without_it(
        self, path: str, given: str | None, serve: Callable[..., ScrapeServer]
    ) -> None:
        """Metrics tell of customers and spending."""
        headers = {} if given is None else {"Authorization": given}
        response, body = ask(serve(bearer_token="s3cret"), path, **headers)
        assert (401, "Bearer") == (response.status, response.headers["WWW-Authenticate"])
        assert b"answer" not in body
        assert b"s3cret" not in body

    @pytest.mark.parametrize("given", ["Bearer s3cret", "bearer  s3cret "])
    def test_everything_is_shown_with_it(self, given: str, serve: Callable[..., ScrapeServer]) -> None:
        """The scheme is case-insensitive (RFC 9110)."""
        assert 200 == ask(serve(bearer_token="s3cret"), Authorization=given)[0].status

    def test_it_may_have_any_characters(self, serve: Callable[..., ScrapeServer]) -> None:
        """Comparing strings in constant time works for ASCII only; bytes are compared."""
        server = serve(bearer_token="gehören-密")
        for given, status in (("gehören-密", 200), ("gehoren", 401)):
            assert status == ask(server, Authorization=f"Bearer {given}".encode().decode("latin-1"))[0].status

    def test_it_is_never_logged_nor_printed(
        self, serve: Callable[..., ScrapeServer], caplog: pytest.LogCaptureFixture
    ) -> None:
        """Logs travel further than metrics."""
        with caplog.at_level(logging.DEBUG):
            server = serve(bearer_token="s3cret")
            ask(server, Authorization="Bearer nearly-s3cret")
            ask(server, Authorization="Bearer s3cret")
        assert "s3cret" not in caplog.text
        assert "s3cret" not in repr(server)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An authority, a server's certificate and a client's, made for this run."""
    trustme = pytest.importorskip("trustme")
    folder: Path = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(folder / "ca.pem"))
    server = authority.issue_cert("localhost", "127.0.0.1")
    server.private_key_pem.write_to_path(str(folder / "server.key"))
    server.cert_chain_pems[0].write_to_path(str(folder / "server.pem"))
    server.private_key_and_cert_chain_pem.write_to_path(str(folder / "both.pem"))
    authority.issue_cert("prometheus").private_key_and_cert_chain_pem.write_to_path(str(folder / "client.pem"))
    stranger = trustme.CA().issue_cert("stranger")
    stranger.private_key_and_cert_chain_pem.write_to_path(str(folder / "stranger.pem"))
    return {path.name: str(path) for path in folder.iterdir()}


class TestTls:
    def client(self, files: dict[str, str], certificate: str | None = None) -> ssl.SSLContext:
        context = ssl.create_default_context(cafile=files["ca.pem"])
        if certificate is not None:
            context.load_cert_chain(files[certificate])
        return context

    def test_metrics_over_tls(self, serve: Callable[..., ScrapeServer], files: dict[str, str]) -> None:
        """The chain is valid for the name under which it is scraped; key apart or in one file."""
        for names in (
            {"tls_certificate_file": files["server.pem"], "tls_key_file": files["server.key"]},
            {"tls_certificate_file": files["both.pem"]},
        ):
            server = serve(**names)
            assert f"https://localhost:{server.port}/metrics" == server.url
            assert b"answer 42.0" in ask(server, tls=self.client(files))[1]

    def test_old_versions_are_refused(self, serve: Callable[..., ScrapeServer], files: dict[str, str]) -> None:
        """TLS below 1.2 is broken."""
        server = serve(tls_certificate_file=files["both.pem"])
        context = self.client(files)
        context.set_ciphers("ALL:@SECLEVEL=0")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # to ask for what is deprecated is the point
            context.minimum_version = ssl.TLSVersion.TLSv1
            context.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises(OSError, match=r"(?i)version|protocol|reset"):
            ask(server, tls=context)
        assert b"answer 42.0" in ask(server, tls=self.client(files))[1]

    @pytest.mark.parametrize("certificate", [None, "stranger.pem"])
    def test_clients_without_a_certificate_of_the_authority_see_nothing(
        self, certificate: str | None, serve: Callable[..., ScrapeServer], files: dict[str, str]
    ) -> None:
        """With TLS 1.3 the client learns of it only when it reads."""
        server = serve(tls_certificate_file=files["both.pem"], tls_client_ca_file=files["ca.pem"])
        with pytest.raises((OSError, http.client.HTTPException)):
            ask(server, tls=self.client(files, certificate))
        assert b"answer 42.0" in ask(server, tls=self.client(files, "client.pem"))[1]

    def test_clients_that_do_not_shake_hands_delay_nobody(
        self, serve: Callable[..., ScrapeServer], files: dict[str, str]
    ) -> None:
        """A handshake in the accepting thread would let one silent client block every scrape."""
        server = serve(tls_certificate_file=files["both.pem"])
        with contextlib.ExitStack() as stack:
            silent = [stack.enter_context(socket.create_connection(("127.0.0.1", server.port))) for _ in range(5)]
            silent[0].sendall(b"\x16\x03\x01")
            silent[1].sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
            assert b"answer 42.0" in ask(server, tls=self.client(files))[1]
            server.close()
            assert all(hung_up(connection) for connection in silent[2:])

    def test_a_key_with_a_password_is_an_error_and_no_question(
        self, registry: CollectorRegistry, files: dict[str, str], tmp_path: Path
    ) -> None:
        """OpenSSL would ask for it on the terminal of the service, and wait."""
        serialization = pytest.importorskip("cryptography.hazmat.primitives.serialization")
        with open(files["server.key"], "rb") as key_file:  # noqa: PTH123 - a plain read
            key = serialization.load_pem_private_key(key_file.read(), None)
        encrypted = key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.TraditionalOpenSSL,
            serialization.BestAvailableEncryption(b"password"),
        )
        (tmp_path / "encrypted.key").write_bytes(encrypted)
        server = ScrapeServer(
            registry, port=0, tls_certificate_file=files["server.pem"], tls_key_file=str(tmp_path / "encrypted.key")
        )
        with pytest.raises(OSError, match=r"(?i)pem|ssl|decrypt|password"):
            server.start()

    def test_a_missing_file_is_an_error_before_anything_listens(self, registry: CollectorRegistry) -> None:
        """A server that fell back to no TLS would show everything."""
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = probe.getsockname()[1]
        server = ScrapeServer(registry, port=port, tls_certificate_file="/nowhere/certificate.pem")
        with pytest.raises(FileNotFoundError):
            server.start()
        assert not is_open(port)


class TestListening:
    def test_localhost_is_both_addresses(self, serve: Callable[..., ScrapeServer]) -> None:
        """Prometheus may resolve the name to either; no other address is opened."""
        server = serve()
        assert f"http://localhost:{server.port}/metrics" == server.url
        assert 200 == ask(server)[0].status
        if HAS_IPV6:
            assert 200 == ask(server, address="::1")[0].status
        assert not is_open(server.port, "127.0.0.2")

    def test_localhost_without_ipv6_is_one_address(
        self, serve: Callable[..., ScrapeServer], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Containers often have no ::1."""
        create_server = socket.create_server

        def without_ipv6(address: Any, *, family: int, **options: Any) -> socket.socket:
            if family == socket.AF_INET6:
                raise OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")
            return create_server(address, family=family, **options)

        monkeypatch.setattr(socket, "create_server", without_ipv6)
        assert 200 == ask(serve())[0].status

    def test_no_localhost_at_all_is_an_error(
        self, registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A sandbox may have no network, not even with itself."""

        def without_network(*_: object, **__: object) -> socket.socket:
            raise OSError(errno.EADDRNOTAVAIL, "Cannot assign requested address")

        monkeypatch.setattr(socket, "create_server", without_network)
        with pytest.raises(OSError, match="Cannot assign"):
            ScrapeServer(registry, port=0).start()

    @pytest.mark.parametrize(
        ("host", "url"),
        [("127.0.0.1", "http://127.0.0.1:{}/metrics"), ("0.0.0.0", "http://localhost:{}/metrics")],
    )
    def test_one_address_when_one_is_named(self, host: str, url: str, serve: Callable[..., ScrapeServer]) -> None:
        """Containers are scraped from outside."""
        server = serve(host=host)
        assert url.format(server.port) == server.url
        assert 200 == ask(server)[0].status
        assert not is_open(server.port, "::1")

    @pytest.mark.skipif(not HAS_IPV6, reason="this machine has no ::1")
    @pytest.mark.parametrize(
        ("host", "url"), [("::1", "http://[::1]:{}/metrics"), ("::", "http://localhost:{}/metrics")]
    )
    def test_addresses_of_ipv6(self, host: str, url: str, serve: Callable[..., ScrapeServer]) -> None:
        """``::`` means every address, of either family, as everywhere."""
        server = serve(host=host)
        assert url.format(server.port) == server.url
        assert 200 == ask(server, address="::1")[0].status
        assert (host == "::") == is_open(server.port)

    @pytest.mark.parametrize("taken", ["127.0.0.1", "0.0.0.0", *(["::1", "::"] if HAS_IPV6 else [])])
    def test_a_port_that_is_taken_on_either_address_is_an_error(self, taken: str, registry: CollectorRegistry) -> None:
        """Half a localhost would be scraped by half of the clients; nothing may stay open then."""
        family = socket.AF_INET6 if ":" in taken else socket.AF_INET
        with socket.create_server((taken, 0), family=family) as occupant:
            port = occupant.getsockname()[1]
            with pytest.raises(OSError, match="in use"):
                ScrapeServer(registry, port=port).start()
            if taken == "::1":
                assert not is_open(port)

    @pytest.mark.skipif(not HAS_IPV6, reason="this machine has no ::1")
    def test_a_free_port_is_free_on_both_addresses(
        self, serve: Callable[..., ScrapeServer], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The system gives a port that is free on the first address; on the second it may be taken."""
        create_server = socket.create_server
        refusals = [scrape_server._PORT_ATTEMPTS - 1]

        def sometimes(address: Any, *, family: int, **options: Any) -> socket.socket:
            if family == socket.AF_INET6 and refusals[0]:
                refusals[0] -= 1
                raise OSError(errno.EADDRINUSE, "Address already in use")
            return create_server(address, family=family, **options)

        monkeypatch.setattr(socket, "create_server", sometimes)
        server = serve()
        assert (0, 200) == (refusals[0], ask(server, address="::1")[0].status)

    def test_two_servers_never_share_a_port(
        self, serve: Callable[..., ScrapeServer], registry: CollectorRegistry
    ) -> None:
        """With SO_REUSEPORT each would get some of the scrapes, and every counter would seem to jump."""
        with pytest.raises(OSError, match="in use"):
            ScrapeServer(registry, port=serve().port).start()

    def test_nothing_happens_before_start(self, registry: CollectorRegistry) -> None:
        """The port is known, the socket is not open, and closing is harmless."""
        server = ScrapeServer(registry)
        assert (9464, "http://localhost:9464/metrics") == (server.port, server.url)
        server.close()
        server.release_after_fork()

    def test_no_threads_left_is_an_error_and_leaves_the_port_free(
        self, registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A container may be out of threads, or the interpreter on its way out."""

        def no_more(_: threading.Thread) -> None:
            raise RuntimeError("can't start new thread")

        server = ScrapeServer(registry, port=0)
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", no_more)
            with pytest.raises(OSError, match="thread"):
                server.start()
        server.start()
        assert 200 == ask(server)[0].status
        server.close()

    def test_a_connection_without_a_thread_is_hung_up(
        self, serve: Callable[..., ScrapeServer], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The accepting thread must survive a moment without threads."""
        server = serve()
        start = threading.Thread.start

        def refuse_clients(thread: threading.Thread) -> None:
            if thread.name == "observability-scrape-client":
                raise RuntimeError("can't start new thread")
            start(thread)

        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse_clients)
            with socket.create_connection(("127.0.0.1", server.port)) as unlucky:
                assert hung_up(unlucky)
        assert 200 == ask(server)[0].status

    def test_running_twice_is_an_error(self, serve: Callable[..., ScrapeServer]) -> None:
        """The first sockets would be lost, and stay open."""
        server = serve()
        with pytest.raises(RuntimeError, match="already"):
            server.start()


class TestClosing:
    def test_the_port_can_be_bound_again_at_once(self, serve: Callable[..., ScrapeServer]) -> None:
        """Switching telemetry off and on again must not fail on its own port."""
        server = serve()
        port = server.port
        for _ in range(3):
            assert 200 == ask(server)[0].status
            server.close()
            server.close()
            assert not is_open(port)
            server = serve(port=port)

    def test_it_can_be_started_again(self, serve: Callable[..., ScrapeServer]) -> None:
        """A server is its settings; sockets come and go."""
        server = serve()
        server.close()
        server.start()
        assert 200 == ask(server)[0].status

    def test_an_idle_client_does_not_hold_it_up(
        self, serve: Callable[..., ScrapeServer], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A connection that has asked for nothing is ended at once; waiting for it would outlast any test."""
        monkeypatch.setattr(acceptor, "_CLIENT_SECONDS", 1000.0)
        server = serve()
        with socket.create_connection(("127.0.0.1", server.port)) as idle:
            assert 200 == ask(server)[0].status
            server.close(timeout_seconds=1000.0)
            assert hung_up(idle)

    def test_an_answer_under_way_is_finished(self, serve: Callable[..., ScrapeServer]) -> None:
        """The last scrape of a process is the one that has its last numbers."""
        stalling, registry = Stalling(), CollectorRegistry()
        registry.register(stalling)
        server = serve(registry)
        bodies: list[bytes] = []
        scrape = threading.Thread(target=lambda: bodies.append(ask(server)[1]))
        scrape.start()
        assert stalling.inside.wait(WAIT_SECONDS)
        closing = threading.Thread(target=server.close, args=(WAIT_SECONDS,))
        closing.start()
        stalling.leave.set()
        for thread in (closing, scrape):
            thread.join(WAIT_SECONDS)
        assert b"late 1.0" in bodies[0]

    @pytest.mark.parametrize("timeout_seconds", [0.0, 0.05])
    def test_a_stuck_scrape_is_left_behind(self, timeout_seconds: float, serve: Callable[..., ScrapeServer]) -> None:
        """The application must be able to end, whatever a callback does."""
        stalling, registry = Stalling(), CollectorRegistry()
        registry.register(stalling)
        server = serve(registry)
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            client.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
            assert stalling.inside.wait(WAIT_SECONDS)
            server.close(timeout_seconds)
            assert hung_up(client)
        assert not is_open(server.port)
        stalling.leave.set()

    def test_a_client_that_does_not_read_is_cut_off(self, serve: Callable[..., ScrapeServer]) -> None:
        """Its answer fills the socket's buffers, and the thread hangs in the middle of sending."""

        class Huge:
            def collect(self) -> Iterator[GaugeMetricFamily]:
                yield GaugeMetricFamily("huge", "x" * 20_000_000, 1)

        registry = CollectorRegistry()
        registry.register(Huge())
        server = serve(registry)
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(("127.0.0.1", server.port))
            client.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
            assert b"H" == client.recv(1)
            server.close(timeout_seconds=0.05)
            assert not is_open(server.port)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
class TestForking:
    def in_child(self, work: Callable[[], bool]) -> bool:
        """Runs `work` in a forked child, and tells whether it returned True."""
        child = os.fork()
        if child == 0:
            status = 1
            with contextlib.suppress(BaseException), contextlib.redirect_stderr(io.StringIO()):
                status = 0 if work() else 2
            os._exit(status)
        deadline = time.monotonic() + WAIT_SECONDS
        while time.monotonic() < deadline:
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(status) == 0
            threading.Event().wait(0.01)
        os.kill(child, 9)
        os.waitpid(child, 0)
        raise AssertionError("the child hangs")

    def test_a_child_lets_go_of_the_port_and_the_parent_goes_on(self, serve: Callable[..., ScrapeServer]) -> None:
        """A child that kept the socket would keep the port after the parent's end, and answer to nobody."""
        server = serve()
        with socket.create_connection(("127.0.0.1", server.port)) as idle:
            assert 200 == ask(server)[0].status
            # The alarm's two ends, the selector, the idle connection, and one listener an address.
            inherited = 4 + (2 if HAS_IPV6 else 1)

            def release() -> bool:
                before = open_descriptors()
                server.release_after_fork()
                server.release_after_fork()
                server.close()
                return not before or before - open_descriptors() >= inherited

            assert self.in_child(release)
            assert 200 == ask(server)[0].status
            idle.sendall(b"GET / HTTP/1.1\r\n\r\n")
            assert b"HTTP/1.0 200" == idle.recv(12)

    def test_a_child_that_lives_on_does_not_hold_the_port(self, serve: Callable[..., ScrapeServer]) -> None:
        """Workers outlive the parent that forked them, or its telemetry."""
        server = serve()
        port = server.port
        released, ended = os.pipe(), os.pipe()
        child = os.fork()
        if child == 0:
            server.release_after_fork()
            os.write(released[1], b".")
            os.read(ended[0], 1)
            os._exit(0)
        try:
            assert b"." == os.read(released[0], 1)
            server.close()
            assert 200 == ask(serve(port=port))[0].status
        finally:
            os.write(ended[1], b".")
            os.waitpid(child, 0)
            for descriptor in (*released, *ended):
                os.close(descriptor)

    def test_a_child_may_serve_on_its_own(self, serve: Callable[..., ScrapeServer]) -> None:
        """A pre-forking server initialises telemetry in each worker."""
        server = serve()

        def serve_again() -> bool:
            server.release_after_fork()
            server.start()
            works = ask(server)[0].status == 200
            server.close()
            return works

        assert self.in_child(serve_again)
        assert 200 == ask(server)[0].status
