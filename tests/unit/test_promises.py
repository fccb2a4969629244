"""The numbered promises and the tests that hold them."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

pytestmark = pytest.mark.once

ROOT = Path(__file__).parents[2]


def _promised() -> set[str]:
    text = (ROOT / "specs" / "observability-integration.md").read_text(encoding="utf-8")
    return set(re.findall(r"^- \*\*([A-Z]\d+)\*\*", text, re.MULTILINE))


@cache
def _held() -> dict[str, list[str]]:
    held: dict[str, list[str]] = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.promise":
                for argument in node.args:
                    assert isinstance(argument, ast.Constant), f"{path.name}: promises are named by literals"
                    held.setdefault(str(argument.value), []).append(path.name)
    return held


def test_every_promise_is_held_by_a_test():
    """A promise that no test names is a wish."""
    assert set() == _promised() - set(_held())


def test_no_test_holds_a_promise_that_was_never_made():
    """A number that is not in the specification is a slip of the pen, or a promise that was dropped."""
    assert {} == {number: files for number, files in _held().items() if number not in _promised()}
