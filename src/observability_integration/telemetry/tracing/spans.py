"""The tracing interface of the primitives: begin a span, make it current, mark it failed, end it.

The primitives import this file only. `install`, which the providers call, decides what a span is: nothing, a
`LeanSpan` or a span of the application's SDK. While tracing is off, a span costs nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from observability_integration.context import ids_of

AttributeValue = str | int | float | bool | tuple[str, ...]
Attributes = Mapping[str, AttributeValue]


class OperationSpan(Protocol):
    """The part of OpenTelemetry's span interface that the primitives use."""

    def set_attribute(self, key: str, value: Any, /) -> None:
        """Sets one attribute."""

    def add_event(self, name: str, attributes: Any = None, /) -> None:
        """Adds an event with the current time."""

    def end(self) -> None:
        """Ends the span; only the first call counts."""


class _NoSpan:
    """The span of all operations while tracing is off."""

    __slots__ = ()

    def set_attribute(self, key: str, value: Any, /) -> None:
        pass

    def add_event(self, name: str, attributes: Any = None, /) -> None:
        pass

    def end(self) -> None:
        pass


NO_SPAN: OperationSpan = _NoSpan()


class Tracing:
    """Tracing that is off; subclasses make spans.

    Attributes:
        enabled: whether spans are made.
        captures_content: whether spans may carry prompts and answers; only if the user enabled it.
    """

    enabled = False
    captures_content = False

    def begin(self, name: str, attributes: dict[str, Any], *, client: bool = False, links: Any = ()) -> OperationSpan:
        """Begins a child of the current span; it keeps `attributes` itself, not a copy."""
        return NO_SPAN

    def activate(self, span: OperationSpan) -> Any:
        """Makes `span` current and returns a token for `deactivate`."""
        return None

    def deactivate(self, token: Any) -> None:
        """Undoes `activate`, in the same task and with no ``yield`` in between."""
        if token is not None and _latest is not None:  # activated before tracing was switched off
            _latest.deactivate(token)

    def mark_failed(self, span: OperationSpan, error: BaseException) -> None:
        """Sets the status ERROR and the attribute ``error.type``."""

    def link_to(self, span: OperationSpan) -> Any:
        """Creates a link to `span`, for `begin`."""
        return None

    def link(self, span: OperationSpan, other: OperationSpan) -> None:
        """Adds a link to `other` to `span`, which is open."""


off = Tracing()
tracing: Tracing = off
_latest: Tracing | None = None  # the last one that was enabled


def install(active: Tracing | None) -> None:
    """Makes `active` the tracing of all primitives, from the next span on; None switches tracing off."""
    global tracing, _latest
    tracing = off if active is None else active
    _latest = active or _latest


def error_type(error: BaseException) -> str:
    """The value of ``error.type``: the class, qualified by its module unless it is a builtin."""
    cls = type(error)
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"


def identify(span: OperationSpan, context: object) -> None:
    """Sets the ids of the workflow as attributes, if the caller gave any; the context may be of any type."""
    for key, value in ids_of(context).items():
        span.set_attribute(key, value)


def begin(name: str, context: object) -> OperationSpan:
    """Begins the span of a primitive's call, with the ids of its workflow."""
    span = tracing.begin(name, {})
    if context is not None:
        identify(span, context)
    return span
