"""Formats the result tables for the terminal, as Markdown and as JSON."""

from __future__ import annotations

import os
import platform
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from textwrap import wrap as wrapped
from typing import NamedTuple

from .measure import Ratio
from .table import RatioRow, RatioTable, Table, TableRow, Verdict

_PACKAGES = (
    "opentelemetry-sdk",
    "opentelemetry-exporter-prometheus",
    "opentelemetry-exporter-otlp-proto-http",
    "msgspec",
    "litellm",
    "cashews",
    "aiocache",
    "dogpile.cache",
    "async-lru",
    "openai",
    "tenacity",
    "stamina",
    "redis",
)

HOW = (
    "A figure is the time of one call around work that answers at once. Contestants take turns in the same event loop "
    "on the same arguments. The figure of a turn is its fastest batch; a ratio is taken within a round. Tables show "
    "the median over the rounds, with the quartiles in brackets. The garbage collector is off during a turn, and spans "
    "are exported between batches."
)

wrap = partial(wrapped, width=118, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)


class Run(NamedTuple):
    """Date, command, machine and package versions of a run."""

    date: str
    command: str
    machine: str
    packages: dict[str, str]


def this_run(command: str) -> Run:
    """Describes the run that starts now."""
    packages = {name: _version(name) for name in _PACKAGES}
    return Run(datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"), command, _machine(), packages)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _machine() -> str:
    load = f", load average {os.getloadavg()[0]:.2f} at the start" if hasattr(os, "getloadavg") else ""
    python = f"{platform.python_implementation()} {platform.python_version()}"
    return f"{_cpu()}, {os.cpu_count()} cores, {platform.system()} {platform.machine()}, {python}{load}"


def _cpu() -> str:
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown CPU"


def as_text(run: Run, tables: Sequence[RatioTable | Table], checked: Sequence[str]) -> str:
    """Formats a run for the terminal."""
    lines = [run.machine, *wrap(", ".join(f"{name} {number}" for name, number in run.packages.items())), "", *wrap(HOW)]
    for table in tables:
        lines += ["", table.title, *_aligned(table), *wrap(table.note)]
    lines += ["", *(f"Checked: {what}." for what in checked), "", summary(tables)]
    return "\n".join(lines)


def as_markdown(run: Run, tables: Sequence[RatioTable | Table], checked: Sequence[str]) -> str:
    """Formats a run for RESULTS.md."""
    lines = ["# Results of the benchmarks", "", f"{run.date}, by `{run.command}`", "", f"- {run.machine}"]
    lines += [f"- {', '.join(f'{name} {number}' for name, number in run.packages.items())}", "", HOW]
    for table in tables:
        lines += ["", f"## {table.title}", ""]
        header, *rows = _cells(table)
        lines.append(f"| {' | '.join(header)} |")
        lines.append(f"|---|{'---:|' * (len(header) - 3)}---|---|")
        lines += [f"| {' | '.join(row)} |" for row in rows]
        if table.note:
            lines += ["", table.note]
    lines += ["", "## Checks", "", *(f"- {what}." for what in checked), "", summary(tables), ""]
    return "\n".join(lines)


def summary(tables: Sequence[RatioTable | Table]) -> str:
    """Counts the targets that are met, and lists those that are missed."""
    rows = [row for table in tables for row in table.rows]
    counts = Counter(row.verdict for row in rows)
    text = f"{counts[Verdict.MET]} targets met, {counts[Verdict.MISSED]} missed"
    if counts[Verdict.NOT_MEASURED]:
        text += f", {counts[Verdict.NOT_MEASURED]} not measured"
    missed = [f"{table.title}: {row.what}" for table in tables for row in table.rows if row.verdict is Verdict.MISSED]
    return "\n".join([f"{text}.", *(f"- missed: {what}" for what in missed)])


def _cells(table: RatioTable | Table) -> Iterator[tuple[str, ...]]:
    yield (*table.columns, "target", "verdict")
    for row in table.rows:
        figures = row.figures if isinstance(row, TableRow) else (row.ours, row.other, _ratio(row.ratio))
        yield (row.what, *figures, str(row.target or ""), row.verdict.value)


def _ratio(found: Ratio | None) -> str:
    if found is None:
        return ""
    digits = 2 if found.median < 10 else 1
    if found.low == found.high:
        return f"{found.median:.{digits}f}×"
    return f"{found.median:.{digits}f}× ({found.low:.{digits}f}–{found.high:.{digits}f})"


def _aligned(table: RatioTable | Table) -> Iterator[str]:
    rows = list(_cells(table))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for number, row in enumerate(rows):
        first, *figures, target, verdict = (
            cell.ljust(width) if column in (0, len(row) - 2, len(row) - 1) else cell.rjust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        yield "  ".join([f"  {first}", *figures, target, verdict]).rstrip()
        if number == 0:
            yield f"  {'-' * (sum(widths) + 2 * (len(widths) - 1))}"


def as_json(row: RatioRow | TableRow) -> dict[str, object]:
    """Formats a row for JSON."""
    if isinstance(row, TableRow):
        return {**row._asdict(), "verdict": row.verdict.name.lower()}
    found = row.ratio
    return {
        "what": row.what,
        "ours": row.ours,
        "other": row.other,
        "ratio": None if found is None else found._asdict(),
        "target": str(row.target) if row.target else None,
        "verdict": row.verdict.name.lower(),
    }


def progress(text: str) -> None:
    """Prints a line of progress on stderr."""
    print(text, file=sys.stderr, flush=True)
