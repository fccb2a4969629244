"""A wrapper of span processors: their exceptions do not reach the user's call, and a provider can drop them."""

from __future__ import annotations

from typing import Any

from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor

from observability_integration.telemetry.guard import note_fault

_SITE = "tracing.processor"


class GuardedProcessor(SpanProcessor):
    """A span processor that never raises, and forwards nothing after its shutdown.

    So it can leave the application's provider, from which the SDK cannot remove a processor.
    """

    def __init__(self, inner: SpanProcessor) -> None:
        self._inner: SpanProcessor | None = inner

    def on_start(self, span: Any, parent_context: Any = None) -> None:
        """Forwards."""
        inner = self._inner
        if inner is not None:
            try:
                inner.on_start(span, parent_context)
            except Exception as error:  # noqa: BLE001 - the processor is foreign code
                note_fault(_SITE, error)

    def _on_ending(self, span: Any) -> None:
        inner = self._inner
        if inner is not None:
            try:
                inner._on_ending(span)
            except Exception as error:  # noqa: BLE001 - the processor is foreign code
                note_fault(_SITE, error)

    def on_end(self, span: ReadableSpan) -> None:
        """Forwards."""
        inner = self._inner
        if inner is not None:
            try:
                inner.on_end(span)
            except Exception as error:  # noqa: BLE001 - the processor is foreign code
                note_fault(_SITE, error)

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        """Forwards."""
        inner = self._inner
        try:
            return True if inner is None else inner.force_flush(timeout_millis)
        except Exception as error:  # noqa: BLE001 - the processor is foreign code
            note_fault(_SITE, error)
            return False

    def shutdown(self) -> None:
        """Forwards, once."""
        inner, self._inner = self._inner, None
        try:
            if inner is not None:
                inner.shutdown()
        except Exception as error:  # noqa: BLE001 - the processor is foreign code
            note_fault(_SITE, error)
