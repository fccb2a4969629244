"""Span processors on the path of the user's call: what they raise is kept away from it, and they can be let go."""

from __future__ import annotations

from typing import Any

from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor

from observability_integration.telemetry.guard import note_fault

_SITE = "tracing.processor"


class GuardedProcessor(SpanProcessor):
    """A span processor that never raises, and that forwards nothing any more once it was shut down.

    The latter is how a processor leaves a provider that is the application's, which has no way to remove one.
    """

    def __init__(self, inner: SpanProcessor) -> None:
        self._inner: SpanProcessor | None = inner

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        """Forwards."""
        inner = self._inner
        if inner is not None:
            try:
                inner.on_start(span, parent_context)
            except Exception as error:  # noqa: BLE001 - the processor may be anybody's
                note_fault(_SITE, error)

    def _on_ending(self, span: Any) -> None:
        inner = self._inner
        if inner is not None:
            try:
                inner._on_ending(span)
            except Exception as error:  # noqa: BLE001 - the processor may be anybody's
                note_fault(_SITE, error)

    def on_end(self, span: ReadableSpan) -> None:
        """Forwards."""
        inner = self._inner
        if inner is not None:
            try:
                inner.on_end(span)
            except Exception as error:  # noqa: BLE001 - the processor may be anybody's
                note_fault(_SITE, error)

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Forwards."""
        inner = self._inner
        try:
            return True if inner is None else inner.force_flush(timeout_millis)
        except Exception as error:  # noqa: BLE001 - the processor may be anybody's
            note_fault(_SITE, error)
            return False

    def shutdown(self) -> None:
        """Forwards, once."""
        inner, self._inner = self._inner, None
        try:
            if inner is not None:
                inner.shutdown()
        except Exception as error:  # noqa: BLE001 - the processor may be anybody's
            note_fault(_SITE, error)
