"""Finds published data sets that are not part of the project: traces and pairs of prompts."""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "BENCHMARK_DATA"
_PROJECT = Path(__file__).parents[1]


def find(name: str, project: Path = _PROJECT) -> Path | None:
    """Returns the path of a data file, or None if there is no such file.

    Searches the folder that `VARIABLE` names, else every folder ``data`` of a sibling of `project`.

    Raises:
        NotADirectoryError: `VARIABLE` does not name a folder.
    """
    named = os.environ.get(VARIABLE)
    if named and not Path(named).is_dir():
        raise NotADirectoryError(f"{VARIABLE} names {named}, which is not a folder")
    folders = [Path(named)] if named else sorted(project.parent.glob("*/data"))
    return next((folder / name for folder in folders if Path(folder, name).is_file()), None)
