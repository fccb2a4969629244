"""Ends the spans of the equivalents written by hand."""

from __future__ import annotations

import asyncio
from typing import Any

from opentelemetry.trace import Span, StatusCode

# The SDK would put the error's message, which may quote the prompt, on the span.
QUIET: Any = {"record_exception": False, "set_status_on_exception": False}


def failed(span: Span, error: BaseException) -> None:
    """Marks the span of a call that raised."""
    span.set_attribute("error.type", type(error).__qualname__)
    span.set_status(StatusCode.ERROR)


def ended(span: Span, error: BaseException) -> None:
    """Marks the span with the outcome; a cancellation is not an error."""
    if isinstance(error, asyncio.CancelledError):
        span.set_attribute("outcome", "cancelled")
        return
    span.set_attribute("outcome", "error")
    failed(span, error)
