"""Where the data are that are no part of the project: traces and pairs of prompts that others have published."""

from __future__ import annotations

import os
from pathlib import Path

VARIABLE = "BENCHMARK_DATA"
_PROJECT = Path(__file__).parents[1]


def find(name: str, project: Path = _PROJECT) -> Path | None:
    """The file of that name, or None if it is nowhere.

    Looked for in the folder that `VARIABLE` names, else in the folders called ``data`` of the neighbours of `project`.

    Raises:
        NotADirectoryError: `VARIABLE` names no folder.
    """
    named = os.environ.get(VARIABLE)
    if named and not Path(named).is_dir():
        raise NotADirectoryError(f"{VARIABLE} names {named}, which is no folder")
    folders = [Path(named)] if named else sorted(project.parent.glob("*/data"))
    return next((folder / name for folder in folders if Path(folder, name).is_file()), None)
