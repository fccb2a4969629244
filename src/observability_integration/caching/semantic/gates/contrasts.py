"""Contrasts: words of one family that exclude each other, such as before and after, all and some, is and was."""

from __future__ import annotations

from . import english_words
from .english import GRAMMAR, Prompt, stem
from .gate import Trace

_MODALS = frozenset(english_words.words("modals"))
_PREFIXES = ("un", "in", "im", "il", "ir", "dis", "non", "de", "mis", "anti")
_MIN_BASE = 4  # letters after a prefix; with fewer it is mostly another word ("under", "inter")


def _key(word: str) -> str:
    return word if word in GRAMMAR else stem(word)


def _members() -> dict[str, list[str]]:
    members: dict[str, list[str]] = {}
    for number, family in enumerate(english_words.lines("contrasts")):
        for side, member in enumerate(family.split("|")):
            for word in member.split():
                members.setdefault(_key(word), []).extend((f"family {number}", f"side {side}"))
    return members


_MEMBERS = _members()


def contrasts(prompt: Prompt) -> list[str] | None:
    """Pairs of a family and the side that the prompt takes in it; None if the prompt cannot be judged."""
    if prompt.words is None:
        return None
    seen: list[str] = []
    previous = ""
    for word in prompt.words:
        key = _key(word)
        if not (word in _MODALS and previous == "how"):
            seen += _MEMBERS.get(key, ())
        if word not in GRAMMAR:
            seen += [key, "as it is"]
            for prefix in _PREFIXES:
                if key.startswith(prefix) and len(key) >= len(prefix) + _MIN_BASE:
                    seen += [key.removeprefix(prefix), "prefixed"]
        previous = word
    return seen


def no_contrast(first: Trace, second: Trace) -> bool:
    """Whether two prompts take the same sides in every family of which both have a word."""
    one, other = _sides(first), _sides(second)
    return all(one[family] == other[family] for family in one.keys() & other.keys())


def _sides(trace: Trace) -> dict[int, set[int]]:
    sides: dict[int, set[int]] = {}
    for family, side in zip(trace[::2], trace[1::2], strict=True):
        sides.setdefault(family, set()).add(side)
    return sides
