"""Tables that hold more than two figures in a row."""

from __future__ import annotations

from typing import NamedTuple

from .targets import Verdict


class GridRow(NamedTuple):
    """One thing that was looked at, and what each contestant did.

    Attributes:
        what: what was looked at.
        figures: one for each column, with its unit; the first is ours.
        target: what is promised of ours, if anything is.
        kept: whether that is kept to; None when it was not measured.
    """

    what: str
    figures: tuple[str, ...]
    target: str = ""
    kept: bool | None = None

    @property
    def verdict(self) -> Verdict:
        """Whether the target is kept to."""
        if not self.target:
            return Verdict.INFORMATION
        if self.kept is None:
            return Verdict.NOT_MEASURED
        return Verdict.MET if self.kept else Verdict.MISSED


class Grid(NamedTuple):
    """Rows of one kind.

    Attributes:
        title: what is compared.
        columns: what the rows are, and the headings of the figures.
        rows: what was found.
        note: what has to be known to read them.
    """

    title: str
    columns: tuple[str, ...]
    rows: list[GridRow]
    note: str = ""
