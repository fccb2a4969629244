"""Tables of figures: rows, the target of a row, and the verdict on it."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from statistics import median
from typing import NamedTuple

from .measure import Ratio


class Verdict(Enum):
    """The verdict on a target."""

    MET = "met"
    MISSED = "MISSED"
    NOT_MEASURED = "not measured"
    INFORMATION = ""


class Target(NamedTuple):
    """A bound on a ratio: an upper one, or a lower one with `at_least`."""

    bound: float
    at_least: bool = False

    def __str__(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {self.bound:g}×"


class RatioRow(NamedTuple):
    """A comparison: two figures with units, their ratio, and the target of the ratio."""

    what: str
    ours: str
    other: str
    ratio: Ratio | None
    target: Target | None = None

    @property
    def verdict(self) -> Verdict:
        """Whether the target is met."""
        if self.target is None:
            return Verdict.INFORMATION
        if self.ratio is None:
            return Verdict.NOT_MEASURED
        bound, at_least = self.target
        kept = self.ratio.median >= bound if at_least else self.ratio.median <= bound
        return Verdict.MET if kept else Verdict.MISSED


class RatioTable(NamedTuple):
    """A table of ratios.

    Attributes:
        title: of the table.
        columns: headings of the row names, of the two figures, and of the ratio.
        rows: the comparisons.
        note: explains the figures.
    """

    title: str
    columns: tuple[str, str, str, str]
    rows: list[RatioRow]
    note: str = ""


class TableRow(NamedTuple):
    """A row of figures, one per contestant or column.

    Attributes:
        what: the name of the row.
        figures: one per column, with units; the first is ours.
        target: the target for ours, or empty.
        kept: whether the target is met; None if it was not measured.
    """

    what: str
    figures: tuple[str, ...]
    target: str = ""
    kept: bool | None = None

    @property
    def verdict(self) -> Verdict:
        """Whether the target is met."""
        if not self.target:
            return Verdict.INFORMATION
        if self.kept is None:
            return Verdict.NOT_MEASURED
        return Verdict.MET if self.kept else Verdict.MISSED


class Table(NamedTuple):
    """A table with any number of figures per row.

    Attributes:
        title: of the table.
        columns: headings of the row names and of the figures.
        rows: of the table.
        note: explains the figures.
    """

    title: str
    columns: tuple[str, ...]
    rows: list[TableRow]
    note: str = ""


def microseconds(seconds: Sequence[float]) -> str:
    """Formats the median in microseconds."""
    return f"{median(seconds) * 1e6:.2f} µs"
