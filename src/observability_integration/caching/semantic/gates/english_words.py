"""Word lists of the gates, read once from `english_words.toml`."""

from __future__ import annotations

import tomllib
from importlib import resources
from typing import Any

_FILE = resources.files("observability_integration.caching.semantic.gates").joinpath("english_words.toml")
_LISTS: dict[str, Any] = tomllib.loads(_FILE.read_text(encoding="utf-8"))


def words(name: str) -> list[str]:
    """Words of a list, in its order."""
    text: str = _LISTS[name]
    return text.split()


def lines(name: str) -> list[str]:
    """Lines of a list that has its words in groups."""
    text: str = _LISTS[name]
    return text.strip().splitlines()


def bases(name: str) -> dict[str, str]:
    """Each word of a table, with the key it stands for."""
    table: dict[str, str] = _LISTS[name]
    return {form: base for base, forms in table.items() for form in forms.split()}


def values(name: str) -> dict[str, int]:
    """Words of a table of numbers, with their values."""
    table: dict[str, int] = _LISTS[name]
    return table


def counted(name: str, first: int) -> dict[str, int]:
    """Words of a list with their places in it, counted up from `first`."""
    return {word: number for number, word in enumerate(words(name), start=first)}
