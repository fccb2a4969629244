"""An OTLP receiver for tests: a real HTTP server on the loopback interface that decodes what the exporters send."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

_WAIT_SECONDS = 10.0
_KINDS = ("unspecified", "internal", "server", "client", "producer", "consumer")
_STATUSES = ("unset", "ok", "error")


@dataclass(frozen=True)
class ReceivedSpan:
    """One span as it arrived; ids in hexadecimal, an absent parent as the empty text."""

    name: str
    kind: str
    trace_id: str
    span_id: str
    parent_id: str
    status: str
    status_message: str
    attributes: dict[str, Any]
    events: list[tuple[str, dict[str, Any]]]
    links: list[str]
    resource: dict[str, Any]
    scope: str
    start_ns: int
    end_ns: int


@dataclass(frozen=True)
class ReceivedPoint:
    """One point of a metric: a value, or count, sum and buckets."""

    attributes: dict[str, Any]
    value: float
    count: int = 0
    bucket_counts: tuple[int, ...] = ()
    bounds: tuple[float, ...] = ()


@dataclass
class ReceivedMetric:
    """One metric as of the last time it was pushed."""

    name: str
    unit: str
    description: str
    kind: str
    points: list[ReceivedPoint] = field(default_factory=list)


class OtlpReceiver:
    """Listens until it is closed; what it got stays readable."""

    def __init__(self) -> None:
        self._arrived = threading.Condition()
        self._bodies: list[tuple[str, dict[str, str], bytes]] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def endpoint(self) -> str:
        """The base URL to give to the exporters."""
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    @property
    def bodies(self) -> bytes:
        """Everything that was sent, undecoded and one after the other."""
        return b"".join(body for _, _, body in self._bodies)

    @property
    def headers(self) -> list[dict[str, str]]:
        """The headers of each request, names in lower case."""
        return [headers for _, headers, _ in self._bodies]

    @property
    def paths(self) -> list[str]:
        """The path of each request."""
        return [path for path, _, _ in self._bodies]

    def close(self) -> None:
        """Stops listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def spans(self, count: int = 0) -> list[ReceivedSpan]:
        """The spans received, once there are at least `count`."""
        self._wait(lambda: len(list(self._spans())) >= count, f"{count} spans")
        return list(self._spans())

    def metrics(self, *names: str) -> dict[str, ReceivedMetric]:
        """The metrics received by name, each as of its last push, once all of `names` are among them."""
        self._wait(lambda: set(names) <= set(self._metrics()), f"the metrics {names}")
        return self._metrics()

    def _wait(self, condition: Callable[[], bool], what: str) -> None:
        with self._arrived:
            assert self._arrived.wait_for(condition, _WAIT_SECONDS), f"{what} did not arrive; got {self.paths}"

    def _spans(self) -> Iterator[ReceivedSpan]:
        from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

        for path, _, body in self._bodies:
            if path != "/v1/traces":
                continue
            for group in ExportTraceServiceRequest.FromString(body).resource_spans:
                resource = _attributes(group.resource.attributes)
                for scoped in group.scope_spans:
                    for span in scoped.spans:
                        yield _span(span, resource, scoped.scope.name)

    def _metrics(self) -> dict[str, ReceivedMetric]:
        from opentelemetry.proto.collector.metrics.v1.metrics_service_pb2 import ExportMetricsServiceRequest

        found: dict[str, ReceivedMetric] = {}
        for path, _, body in self._bodies:
            if path != "/v1/metrics":
                continue
            for group in ExportMetricsServiceRequest.FromString(body).resource_metrics:
                for scoped in group.scope_metrics:
                    for metric in scoped.metrics:
                        found[metric.name] = _metric(metric)
        return found

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                with receiver._arrived:
                    headers = {name.lower(): value for name, value in self.headers.items()}
                    receiver._bodies.append((self.path, headers, body))
                    receiver._arrived.notify_all()
                self.send_response(200)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *args: object) -> None:
                pass

        return Handler


def _plain(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind == "array_value":
        return tuple(map(_plain, value.array_value.values))
    return None if kind is None else getattr(value, kind)


def _attributes(pairs: Any) -> dict[str, Any]:
    return {pair.key: _plain(pair.value) for pair in pairs}


def _span(span: Any, resource: dict[str, Any], scope: str) -> ReceivedSpan:
    return ReceivedSpan(
        span.name,
        _KINDS[span.kind],
        span.trace_id.hex(),
        span.span_id.hex(),
        span.parent_span_id.hex(),
        _STATUSES[span.status.code],
        span.status.message,
        _attributes(span.attributes),
        [(event.name, _attributes(event.attributes)) for event in span.events],
        [link.span_id.hex() for link in span.links],
        resource,
        scope,
        span.start_time_unix_nano,
        span.end_time_unix_nano,
    )


def _metric(metric: Any) -> ReceivedMetric:
    kind = metric.WhichOneof("data")
    received = ReceivedMetric(metric.name, metric.unit, metric.description, kind)
    for point in getattr(metric, kind).data_points:
        attributes = _attributes(point.attributes)
        if kind == "histogram":
            received.points.append(
                ReceivedPoint(
                    attributes, point.sum, point.count, tuple(point.bucket_counts), tuple(point.explicit_bounds)
                )
            )
        else:
            received.points.append(ReceivedPoint(attributes, getattr(point, point.WhichOneof("value"))))
    return received
