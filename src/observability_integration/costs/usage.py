"""Token usage, read from the answers of providers by shape: OpenAI chat and responses, Anthropic messages, or a dict.

No SDK is imported; attributes and mapping keys are read alike, and whatever is missing or malformed is simply unknown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast


def read(value: Any, *path: str) -> Any:
    """Follows attribute names or mapping keys; None as soon as one is missing."""
    for name in path:
        if value is None:
            return None
        value = cast("Mapping[str, Any]", value).get(name) if isinstance(value, Mapping) else getattr(value, name, None)
    return value


def _count(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and value >= 0 else None


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one call. Each is None when the provider did not say.

    Attributes:
        input_tokens: all input tokens, cached ones included.
        output_tokens: all output tokens, reasoning included.
        cache_read_tokens: input tokens read from the provider's prompt cache.
        cache_write_tokens: input tokens written to it.
        reasoning_tokens: output tokens spent on reasoning.
    """

    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_tokens: int | None = None
    cache_write_tokens: int | None = None
    reasoning_tokens: int | None = None

    @property
    def known(self) -> bool:
        """Whether the provider said anything."""
        return self.input_tokens is not None or self.output_tokens is not None

    def merged(self, later: Usage) -> Usage:
        """This usage, updated by what a later report of the same call says."""
        return Usage(
            *(
                new if new is not None else old
                for old, new in (
                    (self.input_tokens, later.input_tokens),
                    (self.output_tokens, later.output_tokens),
                    (self.cache_read_tokens, later.cache_read_tokens),
                    (self.cache_write_tokens, later.cache_write_tokens),
                    (self.reasoning_tokens, later.reasoning_tokens),
                )
            )
        )


def usage_of(answer: Any) -> Usage:
    """The usage that an answer, or a chunk of a streamed one, reports."""
    usage = read(answer, "usage") or read(answer, "message", "usage") or read(answer, "response", "usage")
    if usage is None:
        return Usage()
    prompt = _count(read(usage, "prompt_tokens"))
    if prompt is not None:  # OpenAI chat completions
        return Usage(
            prompt,
            _count(read(usage, "completion_tokens")),
            _count(read(usage, "prompt_tokens_details", "cached_tokens")),
            None,
            _count(read(usage, "completion_tokens_details", "reasoning_tokens")),
        )
    tokens = _count(read(usage, "input_tokens"))
    cache_read = _count(read(usage, "cache_read_input_tokens"))
    cache_write = _count(read(usage, "cache_creation_input_tokens"))
    if cache_read is not None or cache_write is not None:  # Anthropic, whose input_tokens are the uncached ones only
        whole = None if tokens is None else tokens + (cache_read or 0) + (cache_write or 0)
        return Usage(whole, _count(read(usage, "output_tokens")), cache_read, cache_write, None)
    return Usage(  # OpenAI responses, or Anthropic without a prompt cache
        tokens,
        _count(read(usage, "output_tokens")),
        _count(read(usage, "input_tokens_details", "cached_tokens")),
        None,
        _count(read(usage, "output_tokens_details", "reasoning_tokens")),
    )


def model_of(answer: Any) -> str | None:
    """The model that answered, as the provider names it."""
    return _text(read(answer, "model")) or _text(read(answer, "message", "model"))


def id_of(answer: Any) -> str | None:
    """The provider's id of the answer."""
    return _text(read(answer, "id")) or _text(read(answer, "message", "id"))


def finish_reasons_of(answer: Any) -> tuple[str, ...]:
    """Why the answer ended, one reason a choice; empty when it has not ended or does not say."""
    choices = read(answer, "choices")
    if isinstance(choices, Sequence) and not isinstance(choices, str):
        reasons = [_text(read(choice, "finish_reason")) for choice in cast("Sequence[Any]", choices)]
        return tuple(reason for reason in reasons if reason is not None)
    reason = _text(read(answer, "stop_reason")) or _text(read(answer, "delta", "stop_reason"))
    return () if reason is None else (reason,)


def is_provider_chunk(chunk: Any) -> bool:
    """Whether a chunk has the shape of a provider's stream, whose end is announced by a finish reason."""
    if isinstance(chunk, str | bytes) or chunk is None:
        return False
    if isinstance(read(chunk, "choices"), Sequence):
        return True
    kind = read(chunk, "type")
    return isinstance(kind, str) and kind.startswith(("message_", "content_block_"))
