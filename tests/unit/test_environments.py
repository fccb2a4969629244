"""The runs of `make test`: none leaves out what only it could find, and what is skipped is told."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

from tests import environments

pytestmark = [pytest.mark.once, pytest.mark.unmeasured]

_ROOT = Path(__file__).parents[2]

_TESTS = """
import pytest

@pytest.mark.each_environment
def test_in_each():
    pass

@pytest.mark.needs_otel
def test_not_in_neither():
    pytest.skip("there is no such program")

def test_in_neither():
    raise AssertionError("this one runs where both are absent, and where none is")
"""


def test_where_one_package_is_absent_what_needs_the_other_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """That is what no other environment sees, and all that is worth its time; a skip is told with its reason."""
    monkeypatch.chdir(_ROOT)
    file = tmp_path / "test_it.py"
    file.write_text(_TESTS)
    options = ["-c", str(_ROOT / "pyproject.toml"), "-p", "no:cacheprovider", str(file)]
    run = environments._run("no redis", "redis", tmp_path / "results.xml", options, is_chosen=True)
    assert ((1, 0, 1), Counter({"there is no such program": 1})) == (run.outcome, run.reasons), run.printed


@pytest.mark.parametrize("absent", environments.NOT_IN_NEITHER)
def test_every_file_with_such_tests_is_among_those_that_run(monkeypatch: pytest.MonkeyPatch, absent: str) -> None:
    """A module that skips itself where a package is absent, without its marker, would run in no such environment."""
    monkeypatch.chdir(_ROOT)
    [other] = environments.NOT_IN_NEITHER.keys() - {absent}
    skips_itself = re.compile(rf'importorskip\("{other}\b')
    chosen = environments._files_with(absent)
    files = {str(path) for path in Path("tests").rglob("test_*.py") if skips_itself.search(path.read_text())}
    assert files
    assert files <= set(chosen)
