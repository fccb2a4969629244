"""Token counts of the local provider: an estimate by one simple rule, not a tokeniser.

A token is up to four characters of text, the rule of thumb that OpenAI's help pages give for English ("What are tokens
and how to count them?"). Other languages come out too low. What matters here is that the counts are the same every
time, that they grow with the text, and that a streamed answer has as many content chunks as tokens.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from .chat_request import Message

CHARACTERS_PER_TOKEN = 4
# What the role and the separators of a message add, about as in OpenAI's own counting recipe ("How to count tokens").
TOKENS_PER_MESSAGE = 4
# OpenAI's prompt caching: nothing under 1024 tokens, then in steps of 128 (guide "Prompt caching").
CACHED_PREFIX_MINIMUM_TOKENS = 1024
CACHED_PREFIX_STEP_TOKENS = 128


def split_tokens(text: str) -> list[str]:
    """Cuts the text into its tokens; joined, they are the text again."""
    return [text[start : start + CHARACTERS_PER_TOKEN] for start in range(0, len(text), CHARACTERS_PER_TOKEN)]


def message_tokens(message: Message) -> int:
    """The prompt tokens of one message: its text, rounded up, and the message's own overhead."""
    return -(-len(message.text) // CHARACTERS_PER_TOKEN) + TOKENS_PER_MESSAGE


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """The token counts of one answer. `cached` is part of `prompt`, `reasoning` is part of `completion`."""

    prompt: int
    cached: int
    completion: int
    reasoning: int

    def as_openai(self) -> dict[str, object]:
        """The ``usage`` object of the chat completions API."""
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": self.cached},
            "completion_tokens_details": {"reasoning_tokens": self.reasoning},
        }


class PrefixMemory:
    """Tells how much of a prompt the provider has read before, as a prompt cache would.

    Two prompts share a prefix when their leading messages are equal, whole messages only. Keeps digests, never text,
    and forgets the least recently seen beyond `max_prefixes`.
    """

    def __init__(self, max_prefixes: int = 4096) -> None:
        self._max_prefixes = max_prefixes
        self._seen: OrderedDict[bytes, None] = OrderedDict()

    def cached_tokens(self, model: str, messages: tuple[Message, ...]) -> int:
        """Counts the tokens of the longest prefix seen before with this model, and remembers these messages."""
        longest = 0
        for digest, tokens in _prefixes(model, messages):
            if tokens < CACHED_PREFIX_MINIMUM_TOKENS:
                continue
            if digest in self._seen:
                longest = tokens
                self._seen.move_to_end(digest)
            else:
                self._seen[digest] = None
        while len(self._seen) > self._max_prefixes:
            self._seen.popitem(last=False)
        return longest - longest % CACHED_PREFIX_STEP_TOKENS


def _prefixes(model: str, messages: tuple[Message, ...]) -> Iterator[tuple[bytes, int]]:
    running = hashlib.blake2b(repr(model).encode(), digest_size=16)
    tokens = 0
    for message in messages:
        # repr() escapes lone surrogates and delimits both fields, so that no two lists of messages look alike.
        running.update(repr((message.role, message.text)).encode("utf-8", "backslashreplace"))
        tokens += message_tokens(message)
        yield running.digest(), tokens
