"""Operation spans: begun, made current, failed and ended the same way everywhere, at no cost when tracing is off.

The primitives know this file only. What a span really is (nothing, our own lean span, or one of the application's
SDK) is decided by `install`, which the providers call.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from observability_integration.context import WorkflowContext

AttributeValue = str | int | float | bool | tuple[str, ...]
Attributes = Mapping[str, AttributeValue]


class OperationSpan(Protocol):
    """What the primitives use of a span; every OpenTelemetry span has it."""

    def set_attribute(self, key: str, value: Any, /) -> None:
        """Sets one attribute."""

    def add_event(self, name: str, attributes: Any = None, /) -> None:
        """Adds an event that happened now."""

    def end(self) -> None:
        """Ends the span; only the first call counts."""


class _NoSpan:
    """Stands in for a span while tracing is off."""

    __slots__ = ()

    def set_attribute(self, key: str, value: Any, /) -> None:
        pass

    def add_event(self, name: str, attributes: Any = None, /) -> None:
        pass

    def end(self) -> None:
        pass


NO_SPAN: OperationSpan = _NoSpan()


class Tracing:
    """Tracing switched off: the interface that an active one replaces.

    Attributes:
        enabled: whether spans are made at all.
        captures_content: whether prompts and answers may be put on them; off unless the user said so.
    """

    enabled = False
    captures_content = False

    def begin(self, name: str, attributes: dict[str, Any], *, client: bool = False, links: Any = ()) -> OperationSpan:
        """Begins a span under the current one; `attributes` is taken over, not copied."""
        return NO_SPAN

    def activate(self, span: OperationSpan) -> Any:
        """Makes `span` current and returns a token for `deactivate`."""
        return None

    def deactivate(self, token: Any) -> None:
        """Undoes `activate`, in the same task and with no ``yield`` in between."""
        if token is not None and _latest is not None:  # switched off in between
            _latest.deactivate(token)

    def mark_failed(self, span: OperationSpan, error: BaseException) -> None:
        """Gives the span the status ERROR and says of which type the error is."""

    def link_to(self, span: OperationSpan) -> Any:
        """A link to `span`, for `begin`."""
        return None

    def link(self, span: OperationSpan, other: OperationSpan) -> None:
        """Links `span`, which is open, to another one."""


off = Tracing()
tracing: Tracing = off
_latest: Tracing | None = None  # the last one that was on


def install(active: Tracing | None) -> None:
    """Makes `active` the tracing of every primitive from the next span on; None switches it off."""
    global tracing, _latest
    tracing = off if active is None else active
    _latest = active or _latest


def error_type(error: BaseException) -> str:
    """The value of ``error.type``: the class, qualified by its module unless it is a builtin."""
    cls = type(error)
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"


def identify(span: OperationSpan, context: WorkflowContext) -> None:
    """Puts the ids of the workflow on a span, if the caller gave any."""
    if context.workflow_id is not None or context.session_id is not None:
        for key, value in context.to_otel_context().items():
            span.set_attribute(key, value)


def begin(name: str, context: WorkflowContext | None) -> OperationSpan:
    """Begins the span of a primitive's call, with the ids of its workflow."""
    span = tracing.begin(name, {})
    if context is not None:
        identify(span, context)
    return span
