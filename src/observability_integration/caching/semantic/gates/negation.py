"""Negations: words that deny, exclude or restrict."""

from __future__ import annotations

import re

from . import english_words
from .english import GRAMMAR, Prompt, stem, words

_NEGATORS = english_words.bases("negators")
_PHRASES = re.compile(
    r"\b(?:instead of|rather than|other than|apart from|aside from|free of|free from|out of|no longer|yet to)\b"
    r"|(?<=\w)-free\b|\bnon(?=-?\w)",
    re.I,
)
_SELF = " negated "


def negation(prompt: Prompt) -> list[str] | None:
    """Each negator with the next content word, in order; None if the prompt cannot be judged."""
    if prompt.plain is None:
        return None
    found = words(_PHRASES.sub(_SELF, prompt.plain))
    seen: list[str] = []
    for at, word in enumerate(found):
        kind = "phrase" if word == "negated" else _NEGATORS.get(word)
        if kind is not None:
            seen += [kind, next((stem(later) for later in found[at + 1 :] if later not in GRAMMAR), "")]
    return seen
