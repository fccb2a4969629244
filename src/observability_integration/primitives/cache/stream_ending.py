"""Reads the chunks of a stream: whether it ended complete, and the answer, for the admission rules.

Collects only the fields that admission needs. The last event of an OpenAI response holds the whole response. OpenAI
chat and Anthropic messages become a chat completion, whose finish reasons mean the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from observability_integration.costs.shapes import chunk_inside, metadata_of, reason_or_none
from observability_integration.costs.usage import (
    Usage,
    finish_reasons_of,
    is_provider_chunk,
    is_whole_answer,
    read,
    usage_of,
)
from observability_integration.primitives.chunks import choice_text, chunk_text
from observability_integration.primitives.streams import StreamRestart

# Parts of a choice besides its text. Admission only checks their presence, so the last piece is enough.
_PARTS = ("tool_calls", "function_call", "refusal", "audio", "images")

_CALLS = ("tool_call_chunks", "tool_calls", "invalid_tool_calls")  # of LangChain's messages


class StreamEnding:
    """The end of one stream, read from its chunks.

    Attributes:
        restarted: whether the answer started again at another target, so that the stream also holds a cut answer.
    """

    def __init__(self) -> None:
        self.restarted = False
        self._is_provider_stream = False
        self._error: Any = None
        self._response: Any = None
        self._choices: dict[Any, dict[str, Any]] = {}
        self._usage = Usage()

    def note(self, chunk: Any) -> None:
        """Reads the next chunk."""
        if isinstance(chunk, StreamRestart):
            self.restarted = True
            return
        if not is_provider_chunk(chunk):
            if is_whole_answer(chunk):
                self._response = chunk
            if read(chunk, "type") == "error":
                self._error = read(chunk, "error") or chunk
            return
        self._is_provider_stream = True
        inner = chunk_inside(chunk)
        chunk = chunk if inner is None else inner
        self._usage = self._usage.merged(usage_of(chunk))
        self._error = read(chunk, "error") or self._error
        choices = read(chunk, "choices")
        if choices is not None:
            for choice in choices:
                self._note_choice(choice)
            return
        reasons = finish_reasons_of(chunk)
        response = read(chunk, "response")
        if response is not None:
            failed = read(response, "status") in ("failed", "cancelled")
            self._response = response if reasons or failed else self._response
            return
        choice = self._choice(0)
        self._add(choice, chunk_text(chunk), reasons[0] if reasons else None)
        if metadata_of(chunk) is not None:
            self._note_message(choice["message"], chunk)

    @staticmethod
    def _note_message(merged: dict[str, Any], message: Any) -> None:
        # Models of LangChain may end with a reason that does not tell of a tool call or a refusal.
        for field in _CALLS:
            calls = read(message, field)
            if calls:
                merged["tool_calls"] = calls
        refusal = read(message, "additional_kwargs", "refusal")
        if refusal:
            merged["refusal"] = refusal

    def _note_choice(self, choice: Any) -> None:
        merged = self._choice(read(choice, "index"))
        self._add(merged, choice_text(choice), reason_or_none(read(choice, "finish_reason")))
        message = read(choice, "delta") or read(choice, "message")
        for part in _PARTS:
            present = read(message, part)
            if present:
                merged["message"][part] = present

    def _choice(self, index: Any) -> dict[str, Any]:
        return self._choices.setdefault(index, {"message": {"content": []}, "finish_reason": None})

    @staticmethod
    def _add(choice: dict[str, Any], text: Any, reason: Any) -> None:
        if isinstance(text, str) and text:
            cast("list[str]", choice["message"]["content"]).append(text)
        choice["finish_reason"] = reason or choice["finish_reason"]

    @property
    def cut_off(self) -> bool:
        """Whether the stream has a provider's shape, but not a finish reason for each of its choices.

        True for a stream that was `restarted`: its first answer has no finish reason.
        """
        if self.restarted:
            return True
        if not self._is_provider_stream or self._response is not None:
            return False
        return not self._choices or any(choice["finish_reason"] is None for choice in self._choices.values())

    @property
    def is_complete(self) -> bool:
        """Whether the stream has a provider's shape and all finish reasons: later chunks are no part of the answer."""
        return self._is_provider_stream and not self.cut_off

    def answer(self, chunks: Callable[[], list[Any]]) -> Any:
        """Returns the answer, for the admission rules.

        Args:
            chunks: returns the chunks; called only if they have no provider's shape. Text is joined.
        """
        if self._response is not None:
            return self._response
        if self._is_provider_stream:
            return self._completion()
        if self._error is not None:
            return {"type": "error", "error": self._error}
        received = chunks()
        return "".join(received) if all(isinstance(chunk, str) for chunk in received) else received

    def _completion(self) -> dict[str, Any]:
        for choice in self._choices.values():
            message = choice["message"]
            message["content"] = "".join(message["content"])
        answer: dict[str, Any] = {
            "object": "chat.completion",
            "choices": list(self._choices.values()),
            "usage": {"prompt_tokens": self._usage.input_tokens, "completion_tokens": self._usage.output_tokens},
        }
        return answer if self._error is None else {**answer, "error": self._error}
