"""Token counts of the local providers: an estimate by one simple rule, not a tokeniser.

A token is up to four characters of text, the rule of thumb that OpenAI's help pages give for English ("What are tokens
and how to count them?"). Other languages come out too low. What matters here is that the counts are the same every
time, that they grow with the text, and that a streamed answer has as many content chunks as tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .chat_request import Message

CHARACTERS_PER_TOKEN = 4
# What the role and the separators of a message add, about as in OpenAI's own counting recipe ("How to count tokens").
TOKENS_PER_MESSAGE = 4


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
