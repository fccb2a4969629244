"""The table of the part "hedging"."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from benchmarks.table import Table, TableRow

from .benchmark import (
    FAST_SECONDS,
    HEDGED,
    MORE_CALLS,
    SLOW_SECONDS,
    SLOW_SHARE,
    SPENT,
    SPENT_RATIO,
    TIMES_LOWER,
    WITHOUT,
    HedgingResult,
    Scale,
)


def tables(found: Mapping[str, Any], scale: Scale) -> Iterator[Table]:
    """Yields the table.

    Args:
        found: the result of `measure`.
        scale: of the run.
    """
    seen = {name: HedgingResult(**figures) for name, figures in found.items()}
    yield Table(
        "Hedging: a second call when the first is slow",
        ("hedge", "p50", "p99", "p99 without / with", "more calls", "cancelled"),
        [_row(name, one, seen[WITHOUT]) for name, one in seen.items()],
        f"Two providers on loopback sockets, one connection per call. Each answers after {_range(FAST_SECONDS)}, and "
        f"{SLOW_SHARE:.0%} of the requests, at random, after {_range(SLOW_SECONDS)}. {scale.callers} callers ask one "
        f"question after the other, {scale.calls:,} in all, after {scale.before} for warm-up. More calls are requests "
        "beyond one per question; cancelled are requests whose connection was closed before the answer. A quantile "
        "must lie below the share of normal calls: slow calls begin at p95, so it is chance on which side the measured "
        "quantile lies. A budget of 1 % is always exhausted.",
    )


def _row(name: str, seen: HedgingResult, without: HedgingResult) -> TableRow:
    lower = without.percentile(99) / seen.percentile(99)
    figures = (
        f"{seen.percentile(50) * 1e3:.1f} ms",
        f"{seen.percentile(99) * 1e3:.0f} ms",
        "" if name == WITHOUT else f"{lower:.1f}×",
        f"{seen.more_calls:.1%}",
        f"{seen.cut_off}",
    )
    if name == HEDGED:
        kept = lower >= TIMES_LOWER and seen.more_calls <= MORE_CALLS
        return TableRow(name, figures, f"≥ {TIMES_LOWER:g}× for ≤ {MORE_CALLS:.0%} more", kept)
    if name == SPENT:
        return TableRow(name, figures, f"≤ {SPENT_RATIO:.0%} more", seen.more_calls <= SPENT_RATIO)
    return TableRow(name, figures)


def _range(seconds: tuple[float, float]) -> str:
    return f"{seconds[0] * 1e3:.0f} to {seconds[1] * 1e3:.0f} ms"
