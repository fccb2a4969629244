"""docs/semantics-cache.md tells people which knobs there are and where they stand; it must not fall behind the code."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from observability_integration.caching import Keyring
from observability_integration.caching.keys import GLOBAL, KeySpace
from observability_integration.caching.policy import AdaptiveTtl, CachePolicy
from observability_integration.caching.semantic import DEFAULT_GATES, SemanticLookup
from observability_integration.primitives import CachePrimitive

pytestmark = pytest.mark.once

_TEXT = Path(__file__).parents[3].joinpath("docs", "semantics-cache.md").read_text()


@pytest.mark.parametrize(
    ("name", "taken_by"),
    [
        ("CachePrimitive", CachePrimitive),
        ("for_requests", CachePrimitive.for_requests),
        ("CachePolicy", CachePolicy),
        ("AdaptiveTtl", AdaptiveTtl),
        ("Keyring", Keyring),
        ("SemanticLookup", SemanticLookup),
    ],
)
def test_every_knob_stands_in_the_table_with_its_default(name: str, taken_by: Callable[..., Any]) -> None:
    """In the order of the code, none missing and none too many."""
    table = _TEXT.partition(f"<!-- {name}:begin -->")[2].partition(f"<!-- {name}:end -->")[0]
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+?) \|", table, re.MULTILINE)
    # What a class is called with, without what its overloads or its generics would make of it.
    signature = inspect.signature(taken_by.__init__ if inspect.isclass(taken_by) else taken_by)
    knobs = [parameter for parameter in signature.parameters.values() if parameter.name != "self"]
    assert [(parameter.name, _shown(parameter)) for parameter in knobs] == rows


def _shown(parameter: inspect.Parameter) -> str:
    default = parameter.default
    if parameter.kind is inspect.Parameter.VAR_KEYWORD:
        return "–"
    if default is inspect.Parameter.empty:
        return "required"
    if default is DEFAULT_GATES:
        return "DEFAULT_GATES"
    return default.__name__ if inspect.isfunction(default) else repr(default)


def test_the_default_of_the_ttl_is_that_of_the_code() -> None:
    """It is named in a sentence."""
    ttl = inspect.signature(CachePrimitive.__init__).parameters["ttl_seconds"].default
    assert f"`ttl_seconds` (default {ttl:g})" in _TEXT


def test_the_layout_of_keys_is_that_of_the_code() -> None:
    """People look for their entries by it."""
    keys = KeySpace("answers", GLOBAL)
    shown = re.escape("cache:{operation}:v3:{mark}:{hash}")
    assert re.search(shown, _TEXT)
    assert re.fullmatch(r"cache:answers:v3:\{[0-9a-f]{12}\}:[0-9a-f]{64}", keys.place(keys.digest("a")).key)
