"""The simulated prompt cache of the local provider, for the cached tokens in its token counts."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import TYPE_CHECKING

from observability_integration.testing.http.tokens import message_tokens

if TYPE_CHECKING:
    from collections.abc import Iterator

    from observability_integration.testing.http.chat_request import Message

# OpenAI's prompt caching: no prefix under 1024 tokens, then steps of 128 (guide "Prompt caching").
CACHED_PREFIX_MINIMUM_TOKENS = 1024
CACHED_PREFIX_STEP_TOKENS = 128


class PrefixMemory:
    """Remembers the prefixes of prompts, as a provider's prompt cache does.

    Two prompts share a prefix if their first messages are equal; only whole messages count. The memory keeps digests,
    never text, and drops the least recently seen beyond `max_prefixes`.
    """

    def __init__(self, max_prefixes: int = 4096) -> None:
        self._max_prefixes = max_prefixes
        self._seen: OrderedDict[bytes, None] = OrderedDict()

    def cached_tokens(self, model: str, messages: tuple[Message, ...]) -> int:
        """Returns the tokens of the longest prefix seen before with this model, and remembers these messages."""
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
        # repr() escapes lone surrogates and delimits both fields, so different messages have different bytes.
        running.update(repr((message.role, message.text)).encode("utf-8", "backslashreplace"))
        tokens += message_tokens(message)
        yield running.digest(), tokens
