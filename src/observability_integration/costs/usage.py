"""Reads token usage, model and id of answers: OpenAI chat completions and responses, Anthropic and LangChain messages.

A missing or malformed value is unknown (None).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from .finish_reasons import finish_reasons_of
from .shapes import choices_of, chunk_inside, is_provider_chunk, is_whole_answer, metadata_of, read, text_or_none

__all__ = [
    "Usage",
    "choices_of",
    "finish_reasons_of",
    "id_of",
    "is_provider_chunk",
    "is_whole_answer",
    "model_of",
    "read",
    "total_tokens_of",
    "usage_of",
]

_MAX_TOKENS = 2**63 - 1  # the greatest integer that a span attribute can hold
# The paths at which an answer or a chunk may hold its usage.
_USAGE_PATHS = (("usage",), ("message", "usage"), ("response", "usage"), ("usage_metadata",))
_RUN_IDS = ("run-", "lc_run-")  # LangChain's own ids, of answers without one of the provider
_BUILTIN_TYPES = frozenset({bool, bytes, dict, float, int, list, str, tuple})


def _token_count(value: Any) -> int | None:
    valid = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MAX_TOKENS
    return value if valid else None


def _bounded_sum(counts: list[int]) -> int:
    return min(sum(counts), _MAX_TOKENS)


def _partial_count(value: Any, total: int | None) -> int | None:
    # A part greater than its total is a mistake of the provider, and would make the remainder negative.
    count = _token_count(value)
    return None if count is None or (total is not None and count > total) else count


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
        return self if later is _UNKNOWN else self._joined(later, max)

    def plus(self, later: Usage) -> Usage:
        """Returns the sum of this usage and a `later` report of the same call, as LangChain's chunks report it."""
        return self if later is _UNKNOWN else self._joined(later, _bounded_sum)

    def _joined(self, later: Usage, join: Callable[[list[int]], int]) -> Usage:
        joined: list[int | None] = []
        for mine, other in (
            (self.input_tokens, later.input_tokens),
            (self.output_tokens, later.output_tokens),
            (self.cache_read_tokens, later.cache_read_tokens),
            (self.cache_write_tokens, later.cache_write_tokens),
            (self.reasoning_tokens, later.reasoning_tokens),
        ):
            known = [count for count in (mine, other) if count is not None]
            joined.append(join(known) if known else None)
        return Usage(*joined)


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
    if read(usage, "input_tokens_details") is None and read(usage, "output_tokens_details") is None:
        of_input, of_output = read(usage, "input_token_details"), read(usage, "output_token_details")  # LangChain's
        return Usage(
            tokens,
            output,
            _partial_count(read(of_input, "cache_read"), tokens),
            _partial_count(read(of_input, "cache_creation"), tokens),
            _partial_count(read(of_output, "reasoning"), output),
        )
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
    inner = chunk_inside(answer)
    return None if inner is None else _find_usage(inner)


def model_of(answer: Any) -> str | None:
    """Returns the name of the model that answered, as the provider reports it."""
    metadata = metadata_of(answer)
    if metadata is not None:
        return text_or_none(metadata.get("model_name")) or text_or_none(metadata.get("model"))
    return _find_text(answer, "model")


def id_of(answer: Any) -> str | None:
    """Returns the provider's id of the answer."""
    metadata = metadata_of(answer)
    if metadata is None:
        return _find_text(answer, "id")
    found = text_or_none(metadata.get("id")) or text_or_none(read(answer, "id"))
    return None if found is None or found.startswith(_RUN_IDS) else found


def _find_text(answer: Any, name: str) -> str | None:
    # A chunk of an Anthropic stream may hold a message; a chunk of an OpenAI response stream may hold a response.
    inner = chunk_inside(answer)
    answer = answer if inner is None else inner
    return (
        text_or_none(read(answer, name))
        or text_or_none(read(answer, "message", name))
        or text_or_none(read(answer, "response", name))
    )
