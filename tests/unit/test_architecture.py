"""ARCHITECTURE.md against the tree: a reader who follows it must find the file."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.once

ROOT = Path(__file__).parents[2]
HOUSE = ROOT / "src" / "observability_integration"
TEXT = (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8")


def _section(title: str) -> str:
    return TEXT.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


def _rows() -> list[tuple[str, str, str]]:
    rows = re.findall(r"^\| (.+?) \| `([^`]+)` \| ([A-Z0-9 ]+) \|$", _section("Where is it decided?"), re.MULTILINE)
    assert len(rows) > 50
    return rows


def _walks() -> list[list[str]]:
    walks = re.split(r"^\*\*", _section("Three walks"), flags=re.MULTILINE)[1:]
    return [re.findall(r"^\d\. .*?`([a-z_/]+\.py)`", walk, re.MULTILINE) for walk in walks]


def test_every_row_names_a_file() -> None:
    """An index that points to what has moved is worse than none."""
    assert [] == [file for _, file, _ in _rows() if not (HOUSE / file).is_file()]


def test_every_row_names_promises_that_were_made_and_every_promise_has_a_row() -> None:
    """Else a reader who has a promise in hand does not find what keeps it."""
    spec = (ROOT / "specs" / "observability-integration.md").read_text(encoding="utf-8")
    promised = set(re.findall(r"^- \*\*([A-Z]\d+)\*\*", spec, re.MULTILINE))
    assert promised == {number for _, _, numbers in _rows() for number in numbers.split()}


def test_every_walk_is_short_and_every_step_is_a_file() -> None:
    """Eight files are what a reader can hold in mind."""
    walks = _walks()
    assert 3 == len(walks)
    for walk in walks:
        assert 5 <= len(walk) <= 8
        assert [] == [file for file in walk if not (HOUSE / file).is_file()]


def test_every_file_that_is_named_anywhere_exists() -> None:
    """In the tree a name stands without its folder; everywhere else it is a path."""
    named = set(re.findall(r"`([a-z_]+(?:/[a-z_]+)+\.py)`", TEXT))
    assert [] == sorted(file for file in named if not ((HOUSE / file).is_file() or (ROOT / file).is_file()))
    names = {path.name for path in HOUSE.rglob("*.py")}
    tree = TEXT.split("```")[1]
    assert [] == sorted(set(re.findall(r"[a-z_]+\.py", tree)) - names)


# Files over 400 lines, each with its reason.
LONG = {"testing/faults.py": "a table: one small class for each of 29 faults"}


def test_no_folder_is_crowded_and_no_file_is_long() -> None:
    """More than a dozen rooms in a folder, or 400 lines in a file, hide a second idea."""
    folders: dict[Path, int] = {}
    for path in HOUSE.rglob("*.py"):
        if path.name != "__init__.py":
            folders[path.parent] = folders.get(path.parent, 0) + 1
    assert {} == {str(folder.relative_to(HOUSE)): count for folder, count in folders.items() if count > 12}
    lines = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in HOUSE.rglob("*.py")}
    assert set(LONG) == {str(path.relative_to(HOUSE)) for path, count in lines.items() if count > 400}
