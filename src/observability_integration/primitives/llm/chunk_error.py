"""Errors that a provider reports inside its stream, as a chunk: by then it has answered 200, and has no status left.

Understood are events of the type ``error`` (OpenAI responses, Anthropic), a response that failed, a chunk with an
``error`` (OpenRouter, TGI, Ollama), ``{"object": "error"}`` (vLLM), ``{"detail": ...}`` (FastAPI) and the finish reason
``error``.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, cast

from observability_integration.costs.usage import choices_of, read
from observability_integration.errors import ProviderStreamError
from observability_integration.resilience.faults import FaultKind, classify

_FIELDS = ("code", "type", "error_code", "error_type", "status", "message", "detail")
_NAMES = ("code", "type", "error_code", "error_type", "status")  # of the fields, those in which a name may stand
_NAME = re.compile(r"[\w.:-]{1,64}", re.ASCII)  # what is longer, or has spaces, is a message
# What an error is called that only the words of its message told apart, as they are not kept.
_CODES: dict[FaultKind, str] = {
    "content_filter": "content_filter",
    "context_length": "context_length_exceeded",
    "rate_limited": "insufficient_quota",
}
_ALONE = frozenset({"detail", "error", "error_code", "error_type", "message", "status", "status_code"})


def error_in(operation: str, chunk: Any) -> ProviderStreamError | None:
    """The error that a chunk reports, or None.

    Args:
        operation: name of the operation whose stream it is.
        chunk: any.
    """
    error = read(chunk, "error")
    choices = choices_of(chunk)
    if choices is not None:
        if error is None:
            for choice in choices:
                if read(choice, "finish_reason") == "error":
                    return _named(operation, read(choice, "error") or "error")
        return None if not error else _named(operation, error)
    kind = read(chunk, "type")
    if kind == "error" or read(chunk, "object") == "error":
        return _named(operation, error or chunk)
    if kind == "response.failed":
        return _named(operation, read(chunk, "response", "error") or "error")
    if isinstance(error, str):
        return _named(operation, chunk) if error and _has_only(chunk, _ALONE) else None
    if error is not None and any(isinstance(read(error, name), str | int) for name in ("message", "code", "type")):
        return _named(operation, error)
    detail = read(chunk, "detail")
    return _named(operation, chunk) if isinstance(detail, str | list) and _has_only(chunk, {"detail"}) else None


def _has_only(chunk: Any, names: frozenset[str] | set[str]) -> bool:
    fields: dict[Any, Any]
    if isinstance(cast("object", chunk), Mapping):
        fields = dict(chunk)
    else:
        fields = {**vars(chunk), **(getattr(chunk, "__pydantic_extra__", None) or {})}
    return all(name in names or value is None for name, value in fields.items())


class _ReportedError(Exception):
    """An error as the provider sent it: looked at, never raised."""

    def __init__(self, body: dict[str, Any]) -> None:
        self.body = body


def _named(operation: str, error: Any) -> ProviderStreamError:
    """The error by its names; where only its words tell what it is, by the name that says the same."""
    body = {name: read(error, name) for name in _FIELDS}
    body["message"] = error if isinstance(error, str) else body["message"] or read(error, "error")
    names = [name for field in _NAMES if isinstance(name := body[field], str) and _NAME.fullmatch(name)]
    fault = classify(_ReportedError(body))
    names = [name for name in names if name != "error" and not name.isdecimal()]
    code, kind = (*names, "error")[0], (*names[1:], None)[0]
    told = ProviderStreamError(operation, code, fault.status, kind=kind)
    known = classify(told)
    if fault.kind in _CODES and (fault.kind, fault.should_retry) != (known.kind, known.should_retry):
        told = ProviderStreamError(operation, _CODES[fault.kind], fault.status, kind=kind or code)
    return told
