"""English prompts for the gates: plain characters, words, stems, and the test for English."""

from __future__ import annotations

import re
import unicodedata
from functools import cached_property

from . import english_words

_TYPOGRAPHIC = str.maketrans(
    {"’": "'", "‘": "'", "“": '"', "”": '"', "–": " - ", "—": " - ", "−": "-", "…": " ", "\u00a0": " ", "×": "*"}
    | {"°": " degrees "}
)
PICTOGRAPHS = "\u2600-\u27bf\U0001f300-\U0001faff"
# Neither ASCII nor Latin letters up to Latin Extended-B: the gates do not know what it means.
_UNKNOWN = re.compile(f"[^\\t\\n\\r -~\\u00c0-\\u00d6\\u00d8-\\u00f6\\u00f8-\\u024f€£¥\\ufe0f{PICTOGRAPHS}]")
_WORD = re.compile(r"[^\W_]+(?:'[^\W\d_]+)?")
_CONTRACTIONS = (
    (re.compile(r"\bcan't\b|\bcannot\b", re.I), "can not"),
    (re.compile(r"\bwon't\b", re.I), "will not"),
    (re.compile(r"\bshan't\b", re.I), "shall not"),
    (re.compile(r"\bain't\b", re.I), "is not"),
    (re.compile(r"n't\b", re.I), " not"),
    (re.compile(r"\b(what|who|where|when|why|how|that|it|there|here|he|she)'s\b", re.I), r"\1 is"),
    (re.compile(r"'re\b", re.I), " are"),
    (re.compile(r"'ve\b", re.I), " have"),
    (re.compile(r"'ll\b", re.I), " will"),
    (re.compile(r"'d\b", re.I), " would"),
    (re.compile(r"\bI'm\b", re.I), "I am"),
    (re.compile(r"(?<=\w)'s\b|(?<=s)'(?=\s)"), ""),
)

# Written without an apostrophe, as people do in chats.
_SLOPPY = re.compile(r"\b(do|does|did|is|are|was|were|has|have|had|would|could|should|ca|wo|must)nt\b(?!-)", re.I)
GRAMMAR = frozenset(english_words.words("grammar"))
_FOREIGN = frozenset(english_words.words("foreign"))
_MIN_WORDS_TO_JUDGE = 5  # shorter prompts, as for a search engine, have no grammar to judge by
_MIN_GRAMMAR_SHARE = 0.15  # running English text has about 0.5; telegram style about 0.2
_IRREGULAR = english_words.bases("irregular")


class Prompt:
    """A prompt, with the forms of it that several gates share, computed once.

    Args:
        text: the prompt.
    """

    def __init__(self, text: str) -> None:
        self.text = text

    @cached_property
    def plain(self) -> str | None:
        """The text with plain quotes and dashes and without contractions; None if it has unknown characters."""
        return _plain(self.text)

    @cached_property
    def words(self) -> list[str] | None:
        """The words and numbers of the plain text, in lower case; None if it has unknown characters."""
        return None if self.plain is None else words(self.plain)


def _plain(text: str) -> str | None:
    text = unicodedata.normalize("NFC", text).translate(_TYPOGRAPHIC)
    if _UNKNOWN.search(text):
        return None
    text = _SLOPPY.sub(r"\1n't", text)
    for pattern, instead in _CONTRACTIONS:
        text = pattern.sub(instead, text)
    return text


def words(text: str) -> list[str]:
    """The words and numbers of a plain text, in lower case."""
    return [word.lower() for word in _WORD.findall(text)]


def language(prompt: Prompt) -> list[str] | None:
    """An empty list if the prompt reads as English, else None: the other gates know English words only."""
    found = prompt.words
    if not found or not _FOREIGN.isdisjoint(found):
        return None
    known = sum(word in GRAMMAR for word in found)
    return None if len(found) >= _MIN_WORDS_TO_JUDGE and known < _MIN_GRAMMAR_SHARE * len(found) else []


def stem(word: str) -> str:
    """The word without its commonest endings: crude, but the same for all forms of nearly all words."""
    word = _IRREGULAR.get(word, word)
    if len(word) > 4 and word.endswith("ies"):
        word = word[:-3] + "y"
    elif len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        word = word[:-1]
    for ending in ("ing", "ed"):
        base = word[: -len(ending)]
        if word.endswith(ending) and len(base) >= 3 and not word.endswith("eed") and re.search("[aeiouy]", base):
            word = base[:-1] if base[-1] == base[-2] and base[-1] not in "ls" else base
            break
    return word[:-1] if len(word) > 3 and word.endswith("e") else word
