"""Tables of figures: rows, the target of a row, and the verdict on it."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from statistics import median
from typing import NamedTuple

from .measure import Ratio


class Verdict(Enum):
    """What came of a target."""

    MET = "met"
    MISSED = "MISSED"
    NOT_MEASURED = "not measured"
    INFORMATION = ""


class Target(NamedTuple):
    """A bound on a ratio."""

    bound: float
    at_least: bool = False

    def __str__(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {self.bound:g}×"


class RatioRow(NamedTuple):
    """One comparison: two figures, each with its unit, their ratio, and the target for it."""

    what: str
    ours: str
    other: str
    ratio: Ratio | None
    target: Target | None = None

    @property
    def verdict(self) -> Verdict:
        """Whether the target is kept to."""
        if self.target is None:
            return Verdict.INFORMATION
        if self.ratio is None:
            return Verdict.NOT_MEASURED
        bound, at_least = self.target
        kept = self.ratio.median >= bound if at_least else self.ratio.median <= bound
        return Verdict.MET if kept else Verdict.MISSED


class RatioTable(NamedTuple):
    """Rows of one kind.

    Attributes:
        title: what is compared.
        columns: what the rows are, the headings of the two figures, and which ratio is taken.
        rows: the comparisons.
        note: what has to be known to read them.
    """

    title: str
    columns: tuple[str, str, str, str]
    rows: list[RatioRow]
    note: str = ""


class TableRow(NamedTuple):
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


class Table(NamedTuple):
    """Rows of one kind.

    Attributes:
        title: what is compared.
        columns: what the rows are, and the headings of the figures.
        rows: what was found.
        note: what has to be known to read them.
    """

    title: str
    columns: tuple[str, ...]
    rows: list[TableRow]
    note: str = ""


def microseconds(seconds: Sequence[float]) -> str:
    """The median, with its unit."""
    return f"{median(seconds) * 1e6:.2f} µs"
