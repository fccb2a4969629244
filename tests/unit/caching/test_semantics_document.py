"""docs/semantics-cache.md tells people which knobs there are and where they stand; it must not fall behind the code."""

from __future__ import annotations

import dataclasses
import inspect
import re
from pathlib import Path

from observability_integration.caching import guarded
from observability_integration.caching.keys import GLOBAL, KeySpace
from observability_integration.caching.policy import CachePolicy
from observability_integration.primitives import CachePrimitive

_TEXT = Path(__file__).parents[3].joinpath("docs", "semantics-cache.md").read_text()


def test_every_knob_stands_in_the_table_with_its_default() -> None:
    """In the order of the code, none missing and none too many."""
    table = _TEXT.partition("<!-- policy:begin -->")[2].partition("<!-- policy:end -->")[0]
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+?) \|", table, re.MULTILINE)
    assert [(field.name, str(field.default)) for field in dataclasses.fields(CachePolicy)] == rows


def test_the_figures_in_the_text_are_those_of_the_code() -> None:
    """TTL, slots and patience are named in sentences."""
    ttl = inspect.signature(CachePrimitive.__init__).parameters["ttl_seconds"].default
    assert f"`ttl_seconds` (default {ttl:g})" in _TEXT
    assert f"more than {guarded._SLOTS} accesses at once" in _TEXT
    assert guarded._PATIENCE == 10
    assert "up to ten budgets" in _TEXT


def test_the_layout_of_keys_is_that_of_the_code() -> None:
    """People look for their entries by it."""
    keys = KeySpace("answers", GLOBAL)
    shown = re.escape("cache:{operation}:v2:{mark}:{hash}")
    assert re.search(shown, _TEXT)
    assert re.fullmatch(r"cache:answers:v2:\{[0-9a-f]{12}\}:[0-9a-f]{64}", keys.place(keys.digest("a")).key)
