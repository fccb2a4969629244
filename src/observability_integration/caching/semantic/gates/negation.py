"""Negation: what is denied, left out or the only thing allowed."""

from __future__ import annotations

import re

from .english import GRAMMAR, Prompt, stem, words

_NEGATORS = {
    form: kind
    for kind, forms in {
        "not": "not no never none nobody nothing nowhere neither nor",
        "without": "without lack lacks lacking lacked devoid absent missing minus sans",
        "except": "except excepting excluding exclude excludes excluded omit omits omitting unless",
        "hardly": "hardly barely scarcely rarely seldom",
        "fail": "fail fails failed failing refuse refuses refused avoid avoids avoided avoiding stop stops stopped "
        "prevent prevents prevented preventing deny denies denied forbid forbids forbidden",
        "only": "only solely exclusively",
        "false": "false untrue wrong incorrect",
    }.items()
    for form in forms.split()
}
_PHRASES = re.compile(
    r"\b(?:instead of|rather than|other than|apart from|aside from|free of|free from|out of|no longer|yet to)\b"
    r"|(?<=\w)-free\b|\bnon(?=-?\w)",
    re.I,
)
_SELF = " negated "


def negation(prompt: Prompt) -> list[str] | None:
    """Each negator with the word it bears on (the next one with a meaning), in order; None if it cannot be judged."""
    if prompt.plain is None:
        return None
    found = words(_PHRASES.sub(_SELF, prompt.plain))
    seen: list[str] = []
    for at, word in enumerate(found):
        kind = "phrase" if word == "negated" else _NEGATORS.get(word)
        if kind is not None:
            seen += [kind, next((stem(later) for later in found[at + 1 :] if later not in GRAMMAR), "")]
    return seen
