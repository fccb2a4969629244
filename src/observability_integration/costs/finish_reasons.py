"""Reads the finish reasons of answers and chunks, and says what each means for the answer."""

from __future__ import annotations

from typing import Any, Literal

from .shapes import choices_of, metadata_of, read, reason_in_metadata, reason_or_none, text_or_none

FinishKind = Literal["error", "content_filter", "length", "tool_call"]

# Finish reasons in lower case, of providers and gateways: OpenAI (finish_reason, incomplete_details), Anthropic
# (stop_reason), Mistral, DeepSeek, Gemini, Bedrock and Cohere, and OpenRouter and vLLM in OpenAI's shape. Any other
# finish reason is a normal end.
BY_FINISH_REASON: dict[str, FinishKind] = {
    "error": "error",
    "malformed_function_call": "error",
    "malformed_model_output": "error",
    "malformed_tool_use": "error",
    "missing_thought_signature": "error",
    "too_many_tool_calls": "error",
    "unexpected_tool_call": "error",
    "content_filter": "content_filter",
    "content_filtered": "content_filter",
    "guardrail_intervened": "content_filter",
    "refusal": "content_filter",
    "safety": "content_filter",
    "image_prohibited_content": "content_filter",
    "image_recitation": "content_filter",
    "image_safety": "content_filter",
    "language": "content_filter",
    "recitation": "content_filter",
    "blocklist": "content_filter",
    "prohibited_content": "content_filter",
    "spii": "content_filter",
    "error_toxic": "content_filter",
    "length": "length",
    "max_tokens": "length",
    "max_output_tokens": "length",
    "model_length": "length",
    "model_context_window_exceeded": "length",
    "error_limit": "length",
    "insufficient_system_resource": "length",
    "pause_turn": "length",
    "abort": "length",
    "timeout": "length",
    "other": "length",  # Gemini's, for an unknown reason
    "tool_call": "tool_call",
    "tool_calls": "tool_call",
    "tool_use": "tool_call",
    "function_call": "tool_call",
}
# The statuses with which an OpenAI response, or the last event of its stream, has ended and did not fail.
_ENDED = ("completed", "incomplete")


def finish_kind(reason: Any) -> FinishKind | None:
    """Returns what a finish reason says of the answer; None for a normal end and for what is no text."""
    return BY_FINISH_REASON.get(reason.lower()) if isinstance(reason, str) else None


def may_lack_content(reason: str) -> bool:
    """Whether an answer that ends with this reason may rightly have no content.

    It was filtered or refused, or all tokens went into reasoning.
    """
    return finish_kind(reason) in ("content_filter", "length")


def finish_reasons_of(answer: Any) -> tuple[str, ...]:
    """Returns the finish reason of each choice; empty if the answer has not ended, failed or reports none."""
    choices = choices_of(answer)
    if choices is not None:
        reasons = [reason_or_none(read(choice, "finish_reason")) for choice in choices]
        return tuple(reason for reason in reasons if reason is not None)
    metadata = metadata_of(answer)
    if metadata is not None:
        reason = reason_in_metadata(metadata) or _status_of(metadata)
    else:
        reason = reason_or_none(read(answer, "stop_reason")) or reason_or_none(read(answer, "delta", "stop_reason"))
        reason = reason or reason_or_none(read(answer, "finish_reason"))
        if reason is None:
            reason = _status_of(answer if read(answer, "object") == "response" else read(answer, "response"))
    return () if reason is None else (reason,)


def _status_of(response: Any) -> str | None:
    status = read(response, "status")
    return (text_or_none(read(response, "incomplete_details", "reason")) or status) if status in _ENDED else None
