"""The documents and events of replies of the OpenAI chat completions API."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from .tokens import TokenCounts

FinishReason = Literal["stop", "length", "content_filter"]

# The last event of a complete stream.
STREAM_END = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class ReplyFrame:
    """The common fields of all documents and events of one answer.

    Attributes:
        id: id of the answer.
        created: Unix time of the answer, in whole seconds.
        model: name of the model.
    """

    id: str
    created: int
    model: str

    def completion(self, text: str, finish_reason: FinishReason | None, usage: TokenCounts) -> bytes:
        """Returns the whole answer as one document."""
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason}
        return encode({**self._head("chat.completion"), "choices": [choice], "usage": usage.as_openai()})

    def delta_event(
        self, delta: dict[str, str], finish_reason: FinishReason | None = None, *, announce_usage: bool = False
    ) -> bytes:
        """Returns one event of a streamed answer; `announce_usage` adds the empty usage that precedes a usage event."""
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return self._event([choice], {"usage": None} if announce_usage else {})

    def usage_event(self, usage: TokenCounts) -> bytes:
        """Returns the event of the token counts, the last before ``[DONE]`` in a stream with usage."""
        return self._event([], {"usage": usage.as_openai()})

    def _event(self, choices: list[object], extra: dict[str, object]) -> bytes:
        document = {**self._head("chat.completion.chunk"), "choices": choices, **extra}
        return b"data: " + encode(document) + b"\n\n"

    def _head(self, kind: str) -> dict[str, object]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": "fp_local",
        }


def error_document(message: str, kind: str, *, code: str | None = None, param: str | None = None) -> bytes:
    """Returns an error document of the API; `kind` is its ``type``."""
    return encode({"error": {"message": message, "type": kind, "param": param, "code": code}})


def refusal(message: str, *, code: str | None = None, param: str | None = None) -> bytes:
    """Returns the error document for an invalid request."""
    return error_document(message, "invalid_request_error", code=code, param=param)


def model_list(names: tuple[str, ...], created: int) -> bytes:
    """Returns the reply to ``GET /v1/models``; `created` is a Unix time in whole seconds."""
    models = [{"id": name, "object": "model", "created": created, "owned_by": "local"} for name in names]
    return encode({"object": "list", "data": models})


def encode(document: dict[str, object]) -> bytes:
    """Returns compact JSON in UTF-8; a lone surrogate, which UTF-8 cannot encode, becomes a question mark."""
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
