"""Names of people, places and products, acronyms, quotations, identifiers of code, and pictographs."""

from __future__ import annotations

import re

from . import english_words
from .english import GRAMMAR, PICTOGRAPHS, Prompt

_QUOTED = re.compile(r"`([^`]+)`|\"([^\"]+)\"|(?<!\w)'([^']+)'(?!\w)")
_TOKEN = re.compile(r"[^\s\"'`(),;?!<>{}|=~*^%&\[\]]+")
_HAS_CODE = re.compile(r"[_@#\\]|\w[.:/]\w|\w\+\+|::|^--?[A-Za-z]|[a-z][A-Z]|^[./]\w")
_MIXED = re.compile(r"(?=.*\d)(?=.*[^\W\d_])")
_QUANTITY = re.compile(r"^[-+$]?\d[\d,.]*(?:[a-zA-Z]{1,3}|(?:-[a-z]+)+)?$|^\d+x\d+$")
_PICTOGRAPH = re.compile(f"[{PICTOGRAPHS}]")
_WORD = re.compile(r"[^\W\d_]+")
_SENTENCE_ENDS = frozenset(".!?:;\n\"'(-*>")
_OPENERS = frozenset(english_words.words("openers"))


def names(prompt: Prompt) -> list[str] | None:
    """The names, in the order of first mention; None if they cannot be told from other words."""
    spelled = prompt.plain
    if spelled is None or (spelled.isupper() and len(spelled.split()) > 2):
        return None
    seen: dict[str, None] = {}
    for quoted in _QUOTED.finditer(spelled):
        seen.setdefault(f"quoted {next(filter(None, quoted.groups()))}")
    for token in _TOKEN.finditer(spelled):
        for name in _names_in(token[0].rstrip(".:/-"), _begins_sentence(spelled, token.start())):
            seen.setdefault(name)
    for pictograph in _PICTOGRAPH.findall(spelled):
        seen.setdefault(pictograph)
    return list(seen)


def _names_in(token: str, begins_sentence: bool) -> list[str]:
    if _HAS_CODE.search(token):
        return [f"code {token}"]
    if _MIXED.match(token):
        return [] if _QUANTITY.match(token) else [f"id {token.lower()}"]
    found: list[str] = []
    for part in _WORD.findall(token):
        lower = part.lower()
        acronym = len(part) > 1 and (part.isupper() or (part[:-1].isupper() and part.endswith("s") and len(part) > 2))
        if acronym:
            found.append(lower.removesuffix("s") if part[-1] == "s" else lower)
        elif part[0].isupper() and lower not in GRAMMAR and not (begins_sentence and lower in _OPENERS):
            found.append(lower)
        begins_sentence = False
    return found


def _begins_sentence(text: str, at: int) -> bool:
    before = text[:at].rstrip(" \t")
    return not before or before[-1] in _SENTENCE_ENDS
