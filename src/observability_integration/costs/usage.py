"""Token usage, read from the answers of providers by shape: OpenAI chat and responses, Anthropic messages, or a dict.

No SDK is imported; attributes and mapping keys are read alike, and whatever is missing or malformed is simply unknown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal, cast

import msgspec

_MOST_TOKENS = 2**63 - 1  # what an attribute of a span can carry
# Statuses with which an OpenAI response, or the last event of its stream, says that this is the answer.
_ENDED = ("completed", "incomplete")
# Where an answer, or a chunk of one, has its usage.
_REPORTED = (("usage",), ("message", "usage"), ("response", "usage"))
_MAY_BE_EMPTY = frozenset({bool, bytes, dict, float, int, list, str, tuple})


@lru_cache(maxsize=256)
def _access(kind: type[Any]) -> Literal["items", "fields", "attributes"]:
    # Asking the abstract class itself costs four times as much, and each answer is asked for some twenty fields.
    if issubclass(kind, Mapping):
        return "items"
    plain = getattr(kind, "__getattribute__", None) is object.__getattribute__ and hasattr(kind, "__pydantic_extra__")
    missing = getattr(kind, "__getattr__", None)
    return "fields" if plain and getattr(missing, "__module__", "") == "pydantic.main" else "attributes"


@lru_cache(maxsize=2_048)
def _defines(kind: type[Any], name: str) -> bool:
    return hasattr(kind, name)


def _beyond_fields(model: Any, kind: Any, name: str) -> Any:
    # What pydantic itself takes 2.5 µs for, to say that there is no such attribute.
    extra = getattr(model, "__pydantic_extra__", None)
    if extra and name in extra:
        return extra[name]
    return getattr(model, name, None) if _defines(kind, name) else None


def read(value: Any, name: str, *path: str) -> Any:
    """Follows attribute names or mapping keys; None as soon as one is missing."""
    kind = value.__class__
    if kind is dict:
        value = value.get(name)
    elif value is None:
        return None
    else:
        access = _access(kind)
        if access == "items":
            value = value.get(name)
        elif access == "fields" and type(value) is kind:  # a mock says that it is of the class it stands for
            fields = value.__dict__
            value = fields[name] if name in fields else _beyond_fields(value, kind, name)
        else:
            value = getattr(value, name, None)
    return read(value, *path) if path and value is not None else value


def _count(value: Any) -> int | None:
    valid = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MOST_TOKENS
    return value if valid else None


def _part(value: Any, whole: int | None) -> int | None:
    # A part that is greater than its whole is a mistake of the provider, and would make the rest negative.
    count = _count(value)
    return None if count is None or (whole is not None and count > whole) else count


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


class Usage(msgspec.Struct, frozen=True):
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

    def merged(self, later: Usage) -> Usage:
        """This usage, updated by what a later report of the same call says.

        Reports of one call are cumulative, so the greater number is the later one; a report may leave parts out.
        """
        if later is _UNKNOWN:
            return self
        return Usage(
            *(
                max((count for count in counts if count is not None), default=None)
                for counts in (
                    (self.input_tokens, later.input_tokens),
                    (self.output_tokens, later.output_tokens),
                    (self.cache_read_tokens, later.cache_read_tokens),
                    (self.cache_write_tokens, later.cache_write_tokens),
                    (self.reasoning_tokens, later.reasoning_tokens),
                )
            )
        )


_UNKNOWN = Usage()


def usage_of(answer: Any) -> Usage:
    """The usage that an answer, or a chunk of a streamed one, reports."""
    usage = _reported(answer)
    if usage is None:
        return _UNKNOWN
    prompt = _count(read(usage, "prompt_tokens"))
    if prompt is not None:  # OpenAI chat completions
        output = _count(read(usage, "completion_tokens"))
        of_input, of_output = read(usage, "prompt_tokens_details"), read(usage, "completion_tokens_details")
        return Usage(
            prompt,
            output,
            _part(read(of_input, "cached_tokens"), prompt),
            _part(read(of_input, "cache_write_tokens"), prompt),
            _part(read(of_output, "reasoning_tokens"), output),
        )
    tokens, output = _count(read(usage, "input_tokens")), _count(read(usage, "output_tokens"))
    thinking = _part(read(usage, "output_tokens_details", "thinking_tokens"), output)
    cache_read = _count(read(usage, "cache_read_input_tokens"))
    cache_write = _count(read(usage, "cache_creation_input_tokens"))
    if cache_read is not None or cache_write is not None:  # Anthropic, whose input_tokens are the uncached ones only
        whole = None if tokens is None else _count(tokens + (cache_read or 0) + (cache_write or 0))
        return Usage(whole, output, cache_read, cache_write, thinking)
    reasoning = _part(read(usage, "output_tokens_details", "reasoning_tokens"), output)
    return Usage(  # OpenAI responses, or Anthropic without a prompt cache
        tokens,
        output,
        _part(read(usage, "input_tokens_details", "cached_tokens"), tokens),
        _part(read(usage, "input_tokens_details", "cache_write_tokens"), tokens),
        thinking if reasoning is None else reasoning,
    )


def total_tokens_of(answer: Any) -> int:
    """Input and output tokens that an answer reports; 0 for what it does not."""
    usage = _reported(answer)
    if usage is None:
        return 0
    prompt = _count(read(usage, "prompt_tokens"))
    if prompt is not None:  # OpenAI chat completions, which are the most: the parts are not asked for here
        return prompt + (_count(read(usage, "completion_tokens")) or 0)
    counted = usage_of(answer)
    return (counted.input_tokens or 0) + (counted.output_tokens or 0)


def _reported(answer: Any) -> Any:
    if isinstance(answer, str):
        return None
    for path in _REPORTED:
        usage = read(answer, *path)
        # What is empty says nothing; whether it is must not be asked of just anything, as an array refuses to say.
        if usage is not None and (usage.__class__ not in _MAY_BE_EMPTY or usage):
            return usage
    return None


def model_of(answer: Any) -> str | None:
    """The model that answered, as the provider names it."""
    return _named(answer, "model")


def id_of(answer: Any) -> str | None:
    """The provider's id of the answer."""
    return _named(answer, "id")


def _named(answer: Any, name: str) -> str | None:
    # A chunk of an Anthropic stream may hold a message, one of an OpenAI response stream a response.
    return _text(read(answer, name)) or _text(read(answer, "message", name)) or _text(read(answer, "response", name))


def choices_of(answer: Any) -> Sequence[Any] | None:
    """The choices of an answer in the form of OpenAI's completions, or of a chunk of one; None where there are none."""
    choices = read(answer, "choices")
    if choices.__class__ is list:
        return choices
    listed = isinstance(choices, Sequence) and not isinstance(choices, str | bytes)
    return list(cast("Any", choices)) if listed else None


def finish_reasons_of(answer: Any) -> tuple[str, ...]:
    """Why the answer ended, one reason a choice; empty when it has not ended, does not say, or failed."""
    choices = choices_of(answer)
    if choices is not None:
        reasons = [_text(read(choice, "finish_reason")) for choice in choices]
        return tuple(reason for reason in reasons if reason is not None)
    reason = _text(read(answer, "stop_reason")) or _text(read(answer, "delta", "stop_reason"))
    reason = reason or _text(read(answer, "finish_reason"))
    if reason is None:
        response = answer if read(answer, "object") == "response" else read(answer, "response")
        status = read(response, "status")
        reason = (_text(read(response, "incomplete_details", "reason")) or status) if status in _ENDED else None
    return () if reason is None else (reason,)


def is_provider_chunk(chunk: Any) -> bool:
    """Whether a chunk has the shape of a provider's stream, whose end is announced by a finish reason."""
    if isinstance(chunk, str | bytes) or chunk is None:
        return False
    if choices_of(chunk) is not None:
        return True
    kind = read(chunk, "type")
    return isinstance(kind, str) and kind.startswith(("message_", "content_block_", "response."))


def is_whole_answer(chunk: Any) -> bool:
    """Whether it is an answer in one piece: a chat completion, a response of OpenAI's, or a message of Anthropic's."""
    choices = choices_of(chunk)
    if choices is not None:
        return bool(choices) and read(choices[0], "message") is not None
    if read(chunk, "object") == "response":
        return isinstance(read(chunk, "output"), list)
    return read(chunk, "type") == "message" and isinstance(read(chunk, "content"), list)
