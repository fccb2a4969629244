"""What the chunks of a stream say in sum: whether it ended whole, and the answer that they make up.

Only what decides whether the answer may be kept is put together. An OpenAI response comes whole with its last event;
OpenAI chat and Anthropic messages are put together as a chat completion, whose reasons say the same things.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

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

# What makes an answer of a choice besides its text: looked at for whether it is there, so the last part will do.
_PARTS = ("tool_calls", "function_call", "refusal", "audio")


class StreamEnding:
    """Takes note of the chunks of one stream.

    Attributes:
        restarted: whether it began anew at another target, so that it holds half an answer besides the whole one.
    """

    def __init__(self) -> None:
        self.restarted = False
        self._announced = False
        self._error: Any = None
        self._response: Any = None
        self._choices: dict[Any, dict[str, Any]] = {}
        self._usage = Usage()

    def note(self, chunk: Any) -> None:
        """One more chunk."""
        if isinstance(chunk, StreamRestart):
            self.restarted = True
            return
        if not is_provider_chunk(chunk):
            if is_whole_answer(chunk):
                self._response = chunk
            if read(chunk, "type") == "error":
                self._error = read(chunk, "error") or chunk
            return
        self._announced = True
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

    def _note_choice(self, choice: Any) -> None:
        noted = self._choice(read(choice, "index"))
        self._add(noted, choice_text(choice), read(choice, "finish_reason"))
        said = read(choice, "delta") or read(choice, "message")
        for part in _PARTS:
            present = read(said, part)
            if present:
                noted["message"][part] = present

    def _choice(self, index: Any) -> dict[str, Any]:
        return self._choices.setdefault(index, {"message": {"content": []}, "finish_reason": None})

    @staticmethod
    def _add(choice: dict[str, Any], text: Any, reason: Any) -> None:
        if isinstance(text, str) and text:
            cast("list[str]", choice["message"]["content"]).append(text)
        choice["finish_reason"] = reason or choice["finish_reason"]

    @property
    def cut_off(self) -> bool:
        """Whether it has the shape of a provider's stream, and no finish reason, or not one for each of its choices.

        So is one that was `restarted`: its first answer has none.
        """
        if self.restarted:
            return True
        if not self._announced or self._response is not None:
            return False
        return not self._choices or any(choice["finish_reason"] is None for choice in self._choices.values())

    @property
    def is_whole(self) -> bool:
        """Whether it has that shape, and the reasons: what may still come is no part of the answer."""
        return self._announced and not self.cut_off

    def answer(self, chunks: Callable[[], list[Any]]) -> Any:
        """The answer, to be judged.

        Args:
            chunks: the chunks, asked for if they are none of a provider's; what `collect` makes of them is the answer.
        """
        if self._response is not None:
            return self._response
        if self._announced:
            return self._completion()
        if self._error is not None:
            return {"type": "error", "error": self._error}
        gathered = chunks()
        return "".join(gathered) if all(isinstance(chunk, str) for chunk in gathered) else gathered

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
