"""The documents that the OpenAI chat completions API answers with."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from .tokens import Usage

FinishReason = Literal["stop", "length", "content_filter"]

# The last event of a stream that ended as it should.
STREAM_END = b"data: [DONE]\n\n"


@dataclass(frozen=True, slots=True)
class ReplyFrame:
    """What all documents of one answer have in common.

    Attributes:
        id: the answer's id.
        created: Unix time of the answer, in whole seconds.
        model: the model that answers.
    """

    id: str
    created: int
    model: str

    def completion(self, text: str, finish_reason: FinishReason | None, usage: Usage) -> bytes:
        """The whole answer as one document."""
        message = {"role": "assistant", "content": text, "refusal": None}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish_reason}
        return encode({**self._head("chat.completion"), "choices": [choice], "usage": usage.as_openai()})

    def delta_event(
        self, delta: dict[str, str], finish_reason: FinishReason | None = None, *, announce_usage: bool = False
    ) -> bytes:
        """One piece of a streamed answer; `announce_usage` adds the empty usage that precedes a usage event."""
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish_reason}
        return self._event([choice], {"usage": None} if announce_usage else {})

    def usage_event(self, usage: Usage) -> bytes:
        """The token counts, the last piece but the end mark of a stream that asked for them."""
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
    """An error in the API's shape; `kind` is its ``type``."""
    return encode({"error": {"message": message, "type": kind, "param": param, "code": code}})


def refusal(message: str, *, code: str | None = None, param: str | None = None) -> bytes:
    """The error that says that the request is at fault."""
    return error_document(message, "invalid_request_error", code=code, param=param)


def model_list(names: tuple[str, ...], created: int) -> bytes:
    """The answer of ``GET /v1/models``; `created` is a Unix time in whole seconds."""
    models = [{"id": name, "object": "model", "created": created, "owned_by": "local"} for name in names]
    return encode({"object": "list", "data": models})


def encode(document: dict[str, object]) -> bytes:
    """Compact JSON in UTF-8; a lone surrogate, which UTF-8 cannot say, becomes a question mark."""
    return json.dumps(document, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace")
