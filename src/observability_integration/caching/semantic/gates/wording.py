"""Wording: prompts of the same words in another order, or with one differing word that matters.

The vectors of two such prompts are near each other, whatever the words mean: the embedder cannot tell them apart.
"""

from __future__ import annotations

from collections import Counter

from . import english_words
from .english import GRAMMAR, Prompt, stem
from .gate import Trace
from .numbers import QUANTITIES

_EMPTY = frozenset(english_words.words("empty"))
_BEFORE_TO = frozenset(english_words.words("before_to"))
_SYNONYMS = {stem(form): stem(base) for form, base in english_words.bases("synonyms").items()}
_SMALL_SHARE = 0.2  # of the words of the longer prompt: their vector hardly shows a difference so small
_LARGE_SHARE = 0.7  # of the words of the shorter prompt: from here on the prompts have mostly the same words


def wording(prompt: Prompt) -> list[str] | None:
    """The stems of the content words, in order, without numbers and units; None if the prompt cannot be judged."""
    if prompt.words is None:
        return None
    found: list[str] = []
    previous = ""
    for word in prompt.words:
        empty = word in _EMPTY or word in QUANTITIES or word[0].isdigit() or (word == "to" and previous in _BEFORE_TO)
        if not empty:
            key = stem(word)
            found.append(_SYNONYMS.get(key, key))
        previous = word
    return found


def subjects(prompt: Prompt) -> list[str] | None:
    """The stems of `wording` without grammatical words, such as prepositions and question words."""
    stems = wording(prompt)
    return None if stems is None else [found for found in stems if found not in GRAMMAR]


def same_order(first: Trace, second: Trace) -> bool:
    """Whether prompts of mostly the same words have them in the same order: "A beats B" is not "B beats A"."""
    one, other = set(first), set(second)
    shared = one & other
    if len(shared) < _LARGE_SHARE * min(len(one), len(other)):
        return True
    return _mentions(first, shared) == _mentions(second, shared)


def _mentions(trace: Trace, shared: set[int]) -> list[int]:
    return list(dict.fromkeys(token for token in trace if token in shared))


def no_lone_difference(first: Trace, second: Trace) -> bool:
    """Whether two prompts have the same words, or differ in more than one word and more than a fifth of them."""
    one, other = Counter(first), Counter(second)
    difference = max((one - other).total(), (other - one).total())
    return not 0 < difference <= max(1, _SMALL_SHARE * max(len(first), len(second)))
