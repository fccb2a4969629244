"""The word lists of the gates, read once from `english_words.toml`."""

from __future__ import annotations

import tomllib
from importlib import resources
from typing import Any

_FILE = resources.files("observability_integration.caching.semantic.gates").joinpath("english_words.toml")
_LISTS: dict[str, Any] = tomllib.loads(_FILE.read_text(encoding="utf-8"))


def words(name: str) -> list[str]:
    """Returns the words of a list, in order."""
    text: str = _LISTS[name]
    return text.split()


def lines(name: str) -> list[str]:
    """Returns the lines of a list whose words are in groups."""
    text: str = _LISTS[name]
    return text.strip().splitlines()


def bases(name: str) -> dict[str, str]:
    """Maps each word of a table to its key."""
    table: dict[str, str] = _LISTS[name]
    return {form: base for base, forms in table.items() for form in forms.split()}


def values(name: str) -> dict[str, int]:
    """Maps each word of a table of numbers to its value."""
    table: dict[str, int] = _LISTS[name]
    return table


def counted(name: str, first: int) -> dict[str, int]:
    """Maps each word of a list to its position, counted from `first`."""
    return {word: number for number, word in enumerate(words(name), start=first)}
