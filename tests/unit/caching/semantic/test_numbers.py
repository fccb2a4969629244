"""Numbers are where vectors are blindest: every spelling must come out the same, and every other value different."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from observability_integration.caching.semantic import Prompt
from observability_integration.caching.semantic.gates.numbers import numbers

pytestmark = pytest.mark.once


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("nothing here", []),
        ("the one who", []),
        ("one hour", ["1", "hour"]),
        ("1 hour", ["1", "hour"]),
        ("twenty-five", ["25"]),
        ("two hundred and five", ["205"]),
        ("two hundred and cats", ["200"]),
        ("hundred and", ["100"]),
        ("one million two hundred thousand", ["1200000"]),
        ("a dozen eggs", ["12"]),
        ("2 dozen", ["24"]),
        ("twenty twenty", ["20", "20"]),
        ("five six", ["5", "6"]),
        ("2.5 million", ["2500000"]),
        ("1.5k", ["1500"]),
        ("5 k", ["5"]),
        ("1.2.3 million", ["1.2.3", "1000000"]),
        ("1,000", ["1000"]),
        ("3.10", ["3.10"]),
        ("3.1", ["3.1"]),
        ("-3.5", ["-3.5"]),
        ("5-10", ["5", "-", "10"]),
        ("5 - 10", ["5", "-", "10"]),
        ("5km", ["5", "kilometre"]),
        ("30 s or 30 ms", ["30", "second", "30", "millisecond"]),
        ("9 pm", ["9", "pm"]),
        ("in miles", ["mile"]),
        ("15% of it", ["15", "percent"]),
        ("15 percent of it", ["15", "percent"]),
        ("$5", ["5", "dollar"]),
        ("5 dollars", ["5", "dollar"]),
        ("€2 million", ["2000000", "euro"]),
        ("37°C", ["37"]),
        ("2024-03-05", ["2024", "-", "03", "-", "05"]),
        ("March 5", ["month 3", "5"]),
        ("5 May", ["5", "month 5"]),
        ("may I march", []),
        ("the first", ["1", "th"]),
        ("the 1st", ["1", "th"]),
        ("half of it", ["times 1/2"]),
        ("2 + 2", ["2", "+", "2"]),
        ("a - b", ["-"]),
        ("state-of-the-art and/or well - so", []),
        ("x <= 10!", ["<=", "10"]),
        ("640x480", ["640", "times", "480"]),
        ("3rd", ["3", "th"]),
    ],
)
def test_numbers(text: str, seen: list[str]) -> None:
    """One spelling for all that mean the same."""
    assert seen == numbers(Prompt(text))


@given(st.integers(0, 10**9 - 1))
def test_words_are_read_as_the_digits_are(number: int) -> None:
    """A number in words is the number, whatever its size."""
    spelled = _spelled(number)
    assert ([] if number == 1 else [str(number)]) == numbers(Prompt(spelled)), spelled


_SMALL = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen "
    "eighteen nineteen"
)
_TENS = "- - twenty thirty forty fifty sixty seventy eighty ninety"


def _spelled(number: int) -> str:
    for scale, name, joint in ((10**6, "million", " "), (1000, "thousand", " "), (100, "hundred", " and ")):
        if number >= scale:
            rest = joint + _spelled(number % scale) if number % scale else ""
            return f"{_spelled(number // scale)} {name}{rest}"
    if number < 20:
        return _SMALL.split()[number]
    return _TENS.split()[number // 10] + (f"-{_SMALL.split()[number % 10]}" if number % 10 else "")
