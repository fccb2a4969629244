"""An OTLP receiver on loopback that accepts every request and counts spans."""

from __future__ import annotations

import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, NamedTuple, Self


class Shape(NamedTuple):
    """The part of a span that must be equal on both sides."""

    name: str
    kind: int
    status: int
    has_parent: bool
    attributes: tuple[tuple[str, str], ...]


class OtlpSink:
    """Runs inside the block. The first segment of a request's path names the sender."""

    def __init__(self) -> None:
        self.received: dict[str, Counter[Shape]] = {}
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), name="sink", daemon=True)

    def url(self, sender: str) -> str:
        """Returns the endpoint for a sender."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/{sender}"

    def count(self, path: str, body: bytes) -> None:
        """Counts the spans of a request."""
        # OpenTelemetry may be absent when this module is imported.
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        sender = path.split("/")[1]
        shapes = Counter(
            Shape(
                span.name,
                span.kind,
                span.status.code,
                bool(span.parent_span_id),
                tuple(sorted((item.key, _text(item.value)) for item in span.attributes)),
            )
            for resource in ExportTraceServiceRequest.FromString(body).resource_spans
            for scope in resource.scope_spans
            for span in scope.spans
        )
        with self._lock:
            self.received.setdefault(sender, Counter()).update(shapes)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(5.0)


def _text(value: Any) -> str:
    kind = value.WhichOneof("value")
    return str(getattr(value, kind)).strip() if kind else ""


def _handler(sink: OtlpSink) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            sink.count(self.path, self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the name is the base class's
            pass

    return Handler
