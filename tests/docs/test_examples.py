"""Every python block in README.md and docs/ runs, so that no reader ever copies a line that does not work."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.each_environment

_ROOT = Path(__file__).parents[2]
_BLOCK = re.compile(r"^```python(?P<options>[^\n]*)\n(?P<code>.*?)^```$", re.MULTILINE | re.DOTALL)
_OPTION = re.compile(r'(\w+)="([^"]*)"')
_OUTPUT = re.compile(r"^\s*#> ?(.*)$", re.MULTILINE)

# An example runs as the reader's own script would, except that what is absent for the suite is absent for it too.
_RUN = f"""
import runpy, sys
sys.path.append({str(_ROOT)!r})
import tests.absent
runpy.run_path(sys.argv[1], run_name="__main__")
"""


def _blocks() -> Iterator[object]:
    for path in [_ROOT / "README.md", *sorted(_ROOT.glob("docs/**/*.md"))]:
        text = path.read_text()
        for block in _BLOCK.finditer(text):
            line = text.count("\n", 0, block.start("code"))
            yield pytest.param(
                dict(_OPTION.findall(block["options"])), block["code"], id=f"{path.relative_to(_ROOT)}:{line}"
            )


@pytest.mark.parametrize(("options", "code"), list(_blocks()))
def test_example_runs(options: dict[str, str], code: str, tmp_path: Path) -> None:
    """A block runs as it stands; if it has `#>` comments, they are exactly what it prints.

    After the word python a block may say `test="skip"`, or `needs="redis"` where it cannot do without that package.
    """
    if options.get("test") == "skip":
        pytest.skip("the block asks not to be run")
    if "needs" in options and importlib.util.find_spec(options["needs"]) is None:
        pytest.skip(f"the package {options['needs']} is absent")
    example = tmp_path / "example.py"
    example.write_text(code)
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", _RUN, str(example)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=50,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    if expected := _OUTPUT.findall(code):
        assert expected == result.stdout.splitlines()
