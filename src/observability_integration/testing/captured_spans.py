"""Captures the spans of the primitives in memory, with or without OpenTelemetry."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import suppress
from contextvars import ContextVar, Token
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from observability_integration.telemetry.tracing.spans import NO_SPAN, OperationSpan, Tracing, error_type

_current: ContextVar[CapturedSpan | None] = ContextVar("observability_integration_captured_span", default=None)


@dataclass(slots=True, eq=False)
class CapturedSpan:
    """One span of this library, open or ended.

    Attributes:
        name: name of the span.
        kind: ``client`` for a call of a model, else ``internal``.
        parent: the captured span that was current at the start, or None.
        attributes: attributes of the span.
        events: events of the span, each a name and attributes.
        links: the captured spans that the span is linked to.
        status: ``error`` after a failure, else ``unset``.
        ended: whether the span has ended.
        duration_ms: duration in milliseconds; 0.0 while the span is open.
    """

    name: str
    kind: Literal["internal", "client"]
    parent: CapturedSpan | None = field(repr=False)
    attributes: dict[str, Any]
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list[tuple[str, dict[str, Any]]])
    links: list[CapturedSpan] = field(default_factory=list["CapturedSpan"], repr=False)
    status: Literal["unset", "error"] = "unset"
    ended: bool = False
    duration_ms: float = 0.0
    _inner: OperationSpan = field(default=NO_SPAN, repr=False)
    _began_ns: int = field(default_factory=time.perf_counter_ns, repr=False)

    @property
    def exemplar_context(self) -> Any:
        """The context that an exemplar under this span refers to, if the application traces too; else None."""
        return getattr(self._inner, "exemplar_context", None)

    def set_attribute(self, key: str, value: Any, /) -> None:
        """Sets one attribute; ignored once the span has ended."""
        if not self.ended:
            self.attributes[key] = value
            self._inner.set_attribute(key, value)

    def add_event(self, name: str, attributes: Any = None, /) -> None:
        """Adds an event; ignored once the span has ended."""
        if not self.ended:
            self.events.append((name, dict(attributes or {})))
            self._inner.add_event(name, attributes)

    def end(self) -> None:
        """Ends the span; only the first call counts."""
        if not self.ended:
            self.ended = True
            self.duration_ms = (time.perf_counter_ns() - self._began_ns) / 1e6
            self._inner.end()


class _Activation(NamedTuple):
    own: Token[CapturedSpan | None]
    inner: Any


class CapturingTracing(Tracing):
    """Keeps every span, and passes each call on to the tracing that was installed before.

    Args:
        inner: the tracing installed before.
        spans: receives the spans, in the order in which they begin.
    """

    enabled = True

    def __init__(self, inner: Tracing, spans: list[CapturedSpan]) -> None:
        self.captures_content = inner.captures_content
        self._inner = inner
        self._spans = spans

    def begin(self, name: str, attributes: dict[str, Any], *, client: bool = False, links: Any = ()) -> OperationSpan:
        """Begins a span under the current one."""
        linked: list[CapturedSpan] = [link.span for link in links if isinstance(link, _Link)]
        span = CapturedSpan(
            name,
            "client" if client else "internal",
            _current.get(),
            dict(attributes),
            links=linked,
            _inner=self._inner.begin(name, attributes, client=client, links=_inner_links(links)),
        )
        self._spans.append(span)
        return span

    def activate(self, span: OperationSpan) -> Any:
        """Makes `span` current and returns a token for `deactivate`."""
        inner = self._inner.activate(_inner_of(span))
        # A span that began before the capture is not captured, so captured spans inside have no parent.
        return _Activation(_current.set(span if isinstance(span, CapturedSpan) else None), inner)

    def deactivate(self, token: Any) -> None:
        """Undoes `activate`."""
        if isinstance(token, _Activation):
            with suppress(ValueError):  # a coroutine that is closed in another context: nothing to undo there
                _current.reset(token.own)
            token = token.inner
        self._inner.deactivate(token)

    def mark_failed(self, span: OperationSpan, error: BaseException) -> None:
        """Sets the status ERROR and the attribute ``error.type``."""
        if isinstance(span, CapturedSpan) and not span.ended:
            span.status = "error"
            span.attributes["error.type"] = error_type(error)
        self._inner.mark_failed(_inner_of(span), error)

    def link_to(self, span: OperationSpan) -> Any:
        """Returns a link to `span`, for `begin`."""
        inner = self._inner.link_to(_inner_of(span))
        return _Link(span, inner) if isinstance(span, CapturedSpan) else inner

    def link(self, span: OperationSpan, other: OperationSpan) -> None:
        """Links the open `span` to another span."""
        if isinstance(span, CapturedSpan) and isinstance(other, CapturedSpan):
            span.links.append(other)
        self._inner.link(_inner_of(span), _inner_of(other))


class _Link(NamedTuple):
    span: CapturedSpan
    inner: Any


def _inner_of(span: OperationSpan) -> OperationSpan:
    return span._inner if isinstance(span, CapturedSpan) else span  # pyright: ignore[reportPrivateUsage] - same module


def _inner_links(links: Iterable[Any]) -> list[Any]:
    inner = [link.inner if isinstance(link, _Link) else link for link in links]
    return [link for link in inner if link is not None]
