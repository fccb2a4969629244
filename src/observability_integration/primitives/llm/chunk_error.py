"""Reads errors that a provider reports as a chunk of its stream, because it has already answered with status 200.

Recognised are events of the type ``error`` (OpenAI responses, Anthropic), a response that failed, a chunk with an
``error`` (OpenRouter, TGI, Ollama), ``{"object": "error"}`` (vLLM), ``{"detail": ...}`` (FastAPI) and the finish reason
``error``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, cast

from observability_integration.costs.shapes import choices_of, chunk_inside, read
from observability_integration.errors import ProviderStreamError
from observability_integration.resilience.faults import FaultKind, classify

_FIELDS = ("code", "type", "error_code", "error_type", "status", "message", "detail")
_NAMES = ("code", "type", "error_code", "error_type", "status")  # of the fields, those that may hold a name
_NAME = re.compile(r"[\w.:-]{1,64}", re.ASCII)  # a longer text, or one with spaces, is a message
# Codes for faults that only the message revealed; the error keeps no message.
_CODES: dict[FaultKind, str] = {
    "content_filter": "content_filter",
    "context_length": "context_length_exceeded",
    "rate_limited": "insufficient_quota",
}
_BARE_ERROR_FIELDS = frozenset({"detail", "error", "error_code", "error_type", "message", "status", "status_code"})


def error_in(operation: str, chunk: Any) -> ProviderStreamError | None:
    """Returns the error that a chunk reports, or None.

    Args:
        operation: name of the operation that streams.
        chunk: any chunk.
    """
    inner = chunk_inside(chunk)
    chunk = chunk if inner is None else inner
    error = read(chunk, "error")
    choices = choices_of(chunk)
    if choices is not None:
        if error is None:
            for choice in choices:
                if read(choice, "finish_reason") == "error":
                    return _stream_error(operation, read(choice, "error") or "error")
        return None if not error else _stream_error(operation, error)
    kind = read(chunk, "type")
    if kind == "error" or read(chunk, "object") == "error":
        return _stream_error(operation, error or chunk)
    if kind == "response.failed":
        return _stream_error(operation, read(chunk, "response", "error") or "error")
    if isinstance(error, str):
        return _stream_error(operation, chunk) if error and _has_only(chunk, _BARE_ERROR_FIELDS) else None
    if error is not None and any(isinstance(read(error, name), str | int) for name in ("message", "code", "type")):
        return _stream_error(operation, error)
    detail = read(chunk, "detail")
    return _stream_error(operation, chunk) if isinstance(detail, str | list) and _has_only(chunk, {"detail"}) else None


def _has_only(chunk: Any, names: frozenset[str] | set[str]) -> bool:
    fields: dict[Any, Any]
    if isinstance(cast("object", chunk), Mapping):
        fields = dict(chunk)
    else:
        fields = {**vars(chunk), **(getattr(chunk, "__pydantic_extra__", None) or {})}
    return all(name in names or value is None for name, value in fields.items())


class _ReportedError(Exception):
    """An error as the provider sent it, for `classify`; never raised."""

    def __init__(self, body: dict[str, Any]) -> None:
        self.body = body


def _stream_error(operation: str, error: Any) -> ProviderStreamError:
    """Makes an error of the names in `error`; if only its message reveals the fault, with the code for that fault."""
    body = {name: read(error, name) for name in _FIELDS}
    body["message"] = error if isinstance(error, str) else body["message"] or read(error, "error")
    names = [name for field in _NAMES if isinstance(name := body[field], str) and _NAME.fullmatch(name)]
    fault = classify(_ReportedError(body))
    names = [name for name in names if name != "error" and not name.isdecimal()]
    code, kind = (*names, "error")[0], (*names[1:], None)[0]
    reported = ProviderStreamError(operation, code, fault.status, kind=kind)
    known = classify(reported)
    if fault.kind in _CODES and (fault.kind, fault.should_retry) != (known.kind, known.should_retry):
        reported = ProviderStreamError(operation, _CODES[fault.kind], fault.status, kind=kind or code)
    return reported
