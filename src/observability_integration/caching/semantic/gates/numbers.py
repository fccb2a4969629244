"""Numbers with their units, dates, versions and operators, in digits or in words, in order."""

from __future__ import annotations

import re
from decimal import Decimal

from . import english_words
from .english import Prompt

_SMALL = english_words.counted("small", 0)
_TENS = {word: 10 * tens for word, tens in english_words.counted("tens", 2).items()}
_SCALES = english_words.values("scales")
_SUFFIXES = english_words.values("suffixes")
_ORDINALS = english_words.counted("ordinals", 1)
_MULTIPLES = {word: f"times {multiple}" for word, multiple in english_words.bases("multiples").items()}
_UNITS = english_words.bases("units")
_SHORT_UNITS = english_words.bases("short_units")
_MONTHS = {form: f"month {month}" for form, month in english_words.bases("months").items()}
_CURRENCIES = english_words.bases("currencies")

QUANTITIES = frozenset({*_SMALL, *_TENS, *_SCALES, *_ORDINALS, *_MULTIPLES, *_UNITS, *_MONTHS} - {"may"})
"""Words that this gate reads, so that others can skip them."""

_CURRENCY_FIRST = re.compile(r"([$€£¥])\s?(\d[\d,]*(?:\.\d+)?(?:\s?(?:k|m|bn|thousand|million|billion)\b)?)", re.I)
_TOKEN = re.compile(
    r"(?P<number>(?<![\w.])-?\d+(?:,\d{3})*(?:\.\d+)*|\d+(?:,\d{3})*(?:\.\d+)*)"
    r"|(?P<word>[^\W\d_]+)"
    r"|(?P<symbol>[-+*/=<>^&|~%$€£¥!\\]+)"
)


def numbers(prompt: Prompt) -> list[str] | None:
    """All quantities in one spelling, each followed by its unit; None if the prompt cannot be judged."""
    if prompt.plain is None:
        return None
    spelled = _CURRENCY_FIRST.sub(lambda found: f"{found[2]} {_CURRENCIES[found[1]]} ", prompt.plain)
    return _Reader(spelled).read()


class _Reader:
    """Reads one text from left to right."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._tokens = list(_TOKEN.finditer(text))
        self._at = 0
        self._seen: list[str] = []

    def read(self) -> list[str]:
        while self._at < len(self._tokens):
            token = self._tokens[self._at]
            if token["number"]:
                self._read_digits(token["number"])
            elif token["symbol"]:
                self._read_symbol(token)
            else:
                self._read_word(token["word"])
        return self._seen

    def _next_word(self) -> str:
        """The next token in lower case if it is a word that follows directly or after a space, else ''."""
        if self._at >= len(self._tokens):
            return ""
        token = self._tokens[self._at]
        between = self._text[self._tokens[self._at - 1].end() : token.start()]
        return (token["word"] or "").lower() if between in {"", " "} else ""

    def _read_digits(self, digits: str) -> None:
        self._at += 1
        value = digits.replace(",", "")
        following = self._next_word()
        joined = self._at < len(self._tokens) and self._tokens[self._at].start() == self._tokens[self._at - 1].end()
        scale = _SCALES.get(following) or (_SUFFIXES.get(following) if joined else None)
        if scale and value.count(".") <= 1:
            self._at += 1
            value = f"{(Decimal(value) * scale).normalize():f}"
        self._seen.append(value)
        self._read_unit()

    def _read_unit(self) -> None:
        following = self._next_word()
        unit = _SHORT_UNITS.get(following)
        if unit:
            self._at += 1
            self._seen.append(unit)

    def _read_word(self, cased: str) -> None:
        word = cased.lower()
        if word in _SMALL or word in _TENS or word in _SCALES:
            self._read_number_word()
            return
        self._at += 1
        if word in _ORDINALS:
            self._seen += [str(_ORDINALS[word]), "th"]
        elif word in _MULTIPLES:
            self._seen.append(_MULTIPLES[word])
        elif word in _UNITS:
            self._seen.append(_UNITS[word])
        elif word in _MONTHS and (cased[0].isupper() or word not in {"may", "march", "mar"}):
            self._seen.append(_MONTHS[word])

    def _read_number_word(self) -> None:
        """Reads a number in words, such as "two hundred and five"; "one" alone, mostly a pronoun, is skipped."""
        total, group, count = 0, 0, 0
        first = self._tokens[self._at]["word"].lower()
        previous = ""
        while self._at < len(self._tokens):
            word = (self._tokens[self._at]["word"] or "").lower()
            if self._is_joint(previous):
                self._at += 1
                continue
            if word in _SMALL and (not previous or previous in _SCALES or (previous in _TENS and _SMALL[word] < 10)):
                group += _SMALL[word]
            elif word in _TENS and (not previous or previous in _SCALES):
                group += _TENS[word]
            elif word in {"hundred", "dozen"}:
                group = max(group, 1) * _SCALES[word]
            elif word in _SCALES:
                total, group = total + max(group, 1) * _SCALES[word], 0
            else:
                break
            previous = word
            count += 1
            self._at += 1
        if count > 1 or first != "one" or self._next_word() in _UNITS:
            self._seen.append(str(total + group))
            self._read_unit()

    def _is_joint(self, previous: str) -> bool:
        """Whether the token is the "and" of "two hundred and five" or the hyphen of "twenty-five"."""
        if self._at + 1 >= len(self._tokens):
            return False
        following = (self._tokens[self._at + 1]["word"] or "").lower()
        if self._tokens[self._at][0].lower() == "and":
            return previous in _SCALES and (following in _SMALL or following in _TENS)
        return self._tokens[self._at][0] == "-" and previous in _TENS and 0 < _SMALL.get(following, 0) < 10

    def _read_symbol(self, token: re.Match[str]) -> None:
        self._at += 1
        symbol = token["symbol"]
        if symbol == "%":
            self._seen.append("percent")
        elif symbol.strip("!") and not self._is_punctuation(token):
            self._seen.append(symbol)

    def _is_punctuation(self, token: re.Match[str]) -> bool:
        """Whether the token is a hyphen, dash or slash between words, and not an operator between quantities."""
        if token["symbol"] not in {"-", "/"}:
            return False
        around = self._text[max(0, token.start() - 2) : token.start()] + self._text[token.end() : token.end() + 2]
        return not any(character.isdigit() for character in around) and not _single_letters(self._text, token)


def _single_letters(text: str, token: re.Match[str]) -> bool:
    """Whether the token is between two variables of one letter each, as in "a - b"."""
    return bool(
        re.search(r"(?:^|\W)[A-Za-z]\s?$", text[: token.start()][-4:])
        and re.match(r"\s?[A-Za-z](?:\W|$)", text[token.end() :][:4])
    )
