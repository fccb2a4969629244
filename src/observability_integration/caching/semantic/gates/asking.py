"""The kind of answer asked for: a person, a place, a time, a reason, a number, a way, a thing, or yes or no."""

from __future__ import annotations

import re

from . import english_words
from .english import Prompt
from .gate import Trace

_MEASURES = "|".join(english_words.words("measures"))
_AUXILIARIES = "|".join(english_words.words("auxiliaries"))
_KINDS = (
    ("number", rf"how (?:{_MEASURES})|(?:number|amount|count|quantity) of"),
    ("time", r"when|(?:what|which) (?:time|date|day|year|month)|release date|date of"),
    ("place", r"where|(?:what|which) (?:place|country|city|location)"),
    ("reason", r"why|how come|(?:what|for) (?:is |are |was |were )?(?:the )?reasons?|what cause[sd]?"),
    ("person", r"who|whom|whose|(?:what|which) person"),
    ("way", rf"how (?:to|{_AUXILIARIES})|(?:way|steps) to"),
    ("yes or no", rf"^(?:{_AUXILIARIES}) (?!you\b|we\b)"),  # "can you tell me" is no question for yes or no
)
_PATTERN = re.compile("|".join(rf"(\b(?:{pattern})\b)" for _, pattern in _KINDS))


def asking(prompt: Prompt) -> list[str] | None:
    """The kinds of answer asked for, each once; none for orders, which may ask for any; None without words to judge."""
    if prompt.words is None:
        return None
    text = " ".join(prompt.words)
    kinds = sorted({_KINDS[(found.lastindex or 1) - 1][0] for found in _PATTERN.finditer(text)})
    return kinds or ["thing"] * ("what" in prompt.words or "which" in prompt.words)


def same_kind(first: Trace, second: Trace) -> bool:
    """Whether both prompts ask for the same kinds of answer; True if one of them names none."""
    return not first or not second or first == second
