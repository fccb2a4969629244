"""Reads token usage from answers by shape: OpenAI chat completions and responses, Anthropic messages, or a dict.

Imports no SDK: attributes and mapping keys are read alike. A missing or malformed value is unknown (None).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Literal, cast

import msgspec

_MAX_TOKENS = 2**63 - 1  # the greatest integer that a span attribute can hold
# The statuses with which an OpenAI response, or the last event of its stream, has ended and did not fail.
_ENDED = ("completed", "incomplete")
# The paths at which an answer or a chunk may hold its usage.
_USAGE_PATHS = (("usage",), ("message", "usage"), ("response", "usage"))
_BUILTIN_TYPES = frozenset({bool, bytes, dict, float, int, list, str, tuple})


@lru_cache(maxsize=256)
def _access_of(kind: type[Any]) -> Literal["items", "fields", "attributes"]:
    # Cached: `isinstance` with an abstract class costs four times as much, and an answer has about twenty fields.
    if issubclass(kind, Mapping):
        return "items"
    plain = getattr(kind, "__getattribute__", None) is object.__getattribute__ and hasattr(kind, "__pydantic_extra__")
    getattr_hook = getattr(kind, "__getattr__", None)
    return "fields" if plain and getattr(getattr_hook, "__module__", "") == "pydantic.main" else "attributes"


@lru_cache(maxsize=2_048)
def _class_has(kind: type[Any], name: str) -> bool:
    return hasattr(kind, name)


def _read_undeclared(model: Any, kind: Any, name: str) -> Any:
    # Faster than pydantic's own lookup, which takes 2.5 µs to raise AttributeError for a missing attribute.
    extra = getattr(model, "__pydantic_extra__", None)
    if extra and name in extra:
        return extra[name]
    return getattr(model, name, None) if _class_has(kind, name) else None


def read(value: Any, name: str, *path: str) -> Any:
    """Returns the value at a path of attribute names or mapping keys, or None if one is missing."""
    kind = value.__class__
    if kind is dict:
        value = value.get(name)
    elif value is None:
        return None
    else:
        access = _access_of(kind)
        if access == "items":
            value = value.get(name)
        elif access == "fields" and type(value) is kind:  # a mock has the `__class__` of another class
            fields = value.__dict__
            value = fields[name] if name in fields else _read_undeclared(value, kind, name)
        else:
            value = getattr(value, name, None)
    return read(value, *path) if path and value is not None else value


def _token_count(value: Any) -> int | None:
    valid = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MAX_TOKENS
    return value if valid else None


def _partial_count(value: Any, total: int | None) -> int | None:
    # A part greater than its total is a mistake of the provider, and would make the remainder negative.
    count = _token_count(value)
    return None if count is None or (total is not None and count > total) else count


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None


class Usage(msgspec.Struct, frozen=True):
    """Tokens of one call; each is None if the provider did not report it.

    Attributes:
        input_tokens: all input tokens, including cached ones.
        output_tokens: all output tokens, including reasoning.
        cache_read_tokens: input tokens read from the provider's prompt cache.
        cache_write_tokens: input tokens written to the provider's prompt cache.
        reasoning_tokens: output tokens spent on reasoning.
    """

    input_tokens: int | None = None
    output_tokens: int | None = None
    cache_read_tokens: int | None = None
    cache_write_tokens: int | None = None
    reasoning_tokens: int | None = None

    def merged(self, later: Usage) -> Usage:
        """Returns this usage, updated by a `later` report of the same call.

        Reports of one call are cumulative, so the greater number is the later one. A report may lack some numbers.
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
    """Returns the usage that an answer or a chunk reports; all None if it reports none."""
    usage = _find_usage(answer)
    if usage is None:
        return _UNKNOWN
    prompt = _token_count(read(usage, "prompt_tokens"))
    if prompt is not None:  # OpenAI chat completions
        output = _token_count(read(usage, "completion_tokens"))
        of_input, of_output = read(usage, "prompt_tokens_details"), read(usage, "completion_tokens_details")
        return Usage(
            prompt,
            output,
            _partial_count(read(of_input, "cached_tokens"), prompt),
            _partial_count(read(of_input, "cache_write_tokens"), prompt),
            _partial_count(read(of_output, "reasoning_tokens"), output),
        )
    tokens, output = _token_count(read(usage, "input_tokens")), _token_count(read(usage, "output_tokens"))
    thinking_tokens = _partial_count(read(usage, "output_tokens_details", "thinking_tokens"), output)
    cache_read = _token_count(read(usage, "cache_read_input_tokens"))
    cache_write = _token_count(read(usage, "cache_creation_input_tokens"))
    if cache_read is not None or cache_write is not None:  # Anthropic, whose input_tokens exclude cached ones
        total = None if tokens is None else _token_count(tokens + (cache_read or 0) + (cache_write or 0))
        return Usage(total, output, cache_read, cache_write, thinking_tokens)
    reasoning_tokens = _partial_count(read(usage, "output_tokens_details", "reasoning_tokens"), output)
    return Usage(  # OpenAI responses, or Anthropic without a prompt cache
        tokens,
        output,
        _partial_count(read(usage, "input_tokens_details", "cached_tokens"), tokens),
        _partial_count(read(usage, "input_tokens_details", "cache_write_tokens"), tokens),
        thinking_tokens if reasoning_tokens is None else reasoning_tokens,
    )


def total_tokens_of(answer: Any) -> int:
    """Returns the sum of input and output tokens that an answer reports; an unreported number counts as 0."""
    usage = _find_usage(answer)
    if usage is None:
        return 0
    prompt = _token_count(read(usage, "prompt_tokens"))
    if prompt is not None:  # OpenAI chat completions, the most frequent: reads no details
        return prompt + (_token_count(read(usage, "completion_tokens")) or 0)
    counted = usage_of(answer)
    return (counted.input_tokens or 0) + (counted.output_tokens or 0)


def _find_usage(answer: Any) -> Any:
    if isinstance(answer, str):
        return None
    for path in _USAGE_PATHS:
        usage = read(answer, *path)
        # Tests the truth of builtin types only: an array raises when it is tested.
        if usage is not None and (usage.__class__ not in _BUILTIN_TYPES or usage):
            return usage
    return None


def model_of(answer: Any) -> str | None:
    """Returns the name of the model that answered, as the provider reports it."""
    return _find_text(answer, "model")


def id_of(answer: Any) -> str | None:
    """Returns the provider's id of the answer."""
    return _find_text(answer, "id")


def _find_text(answer: Any, name: str) -> str | None:
    # A chunk of an Anthropic stream may hold a message; a chunk of an OpenAI response stream may hold a response.
    return _text(read(answer, name)) or _text(read(answer, "message", name)) or _text(read(answer, "response", name))


def choices_of(answer: Any) -> Sequence[Any] | None:
    """Returns the choices of an OpenAI chat completion, or of a chunk of one; None for any other shape."""
    choices = read(answer, "choices")
    if choices.__class__ is list:
        return choices
    listed = isinstance(choices, Sequence) and not isinstance(choices, str | bytes)
    return list(cast("Any", choices)) if listed else None


def finish_reasons_of(answer: Any) -> tuple[str, ...]:
    """Returns the finish reason of each choice; empty if the answer has not ended, failed or reports none."""
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
    """Whether a chunk has the shape of a provider's stream, which announces its end with a finish reason."""
    if isinstance(chunk, str | bytes) or chunk is None:
        return False
    if choices_of(chunk) is not None:
        return True
    kind = read(chunk, "type")
    return isinstance(kind, str) and kind.startswith(("message_", "content_block_", "response."))


def is_whole_answer(chunk: Any) -> bool:
    """Whether `chunk` is a whole answer: an OpenAI chat completion or response, or an Anthropic message."""
    choices = choices_of(chunk)
    if choices is not None:
        return bool(choices) and read(choices[0], "message") is not None
    if read(chunk, "object") == "response":
        return isinstance(read(chunk, "output"), list)
    return read(chunk, "type") == "message" and isinstance(read(chunk, "content"), list)
