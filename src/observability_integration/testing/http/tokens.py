"""Token counts of the local providers, estimated by one rule instead of a tokeniser.

A token is up to four characters of text, the rule of thumb of OpenAI's help pages for English ("What are tokens and how
to count them?"); it is too low for other languages. The counts are reproducible and grow with the text, and a streamed
answer has as many content chunks as tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .chat_request import Message

CHARACTERS_PER_TOKEN = 4
# Tokens of the role and the separators of a message, about as in OpenAI's recipe ("How to count tokens").
TOKENS_PER_MESSAGE = 4


def split_tokens(text: str) -> list[str]:
    """Splits the text into tokens; joined, they are the text again."""
    return [text[start : start + CHARACTERS_PER_TOKEN] for start in range(0, len(text), CHARACTERS_PER_TOKEN)]


def message_tokens(message: Message) -> int:
    """Returns the prompt tokens of one message: those of its text, rounded up, plus `TOKENS_PER_MESSAGE`."""
    return -(-len(message.text) // CHARACTERS_PER_TOKEN) + TOKENS_PER_MESSAGE


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenCounts:
    """The token counts of one answer. `cached` is part of `prompt`, `reasoning` is part of `completion`."""

    prompt: int
    cached: int
    completion: int
    reasoning: int

    def as_openai(self) -> dict[str, object]:
        """Returns the ``usage`` object of the chat completions API."""
        return {
            "prompt_tokens": self.prompt,
            "completion_tokens": self.completion,
            "total_tokens": self.prompt + self.completion,
            "prompt_tokens_details": {"cached_tokens": self.cached},
            "completion_tokens_details": {"reasoning_tokens": self.reasoning},
        }
