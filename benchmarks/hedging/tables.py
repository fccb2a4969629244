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
    Scale,
    Seen,
)


def tables(found: Mapping[str, Any], scale: Scale) -> Iterator[Table]:
    """What was found.

    Args:
        found: what `measure` returned.
        scale: that it was given.
    """
    seen = {name: Seen(**figures) for name, figures in found.items()}
    yield Table(
        "A second call when the first is slow",
        ("second call", "p50", "p99", "p99 without / with", "more calls", "given up"),
        [_row(name, one, seen[WITHOUT]) for name, one in seen.items()],
        f"Two providers on loopback sockets, a connection a call. Each answers after {_range(FAST_SECONDS)}, and "
        f"{SLOW_SHARE:.0%} of the requests, drawn at random, after {_range(SLOW_SECONDS)}. {scale.callers} callers ask "
        f"one question after the other, {scale.calls:,} in all, after {scale.before} that are not counted. More calls "
        "are those that the providers got beyond one a question; given up are those whose connection was closed before "
        "the answer. A quantile has to lie below the share of normal calls: at p95 the slow ones begin, and which side "
        "of that the measured one is on is chance. A budget of 1 % is one that is used up all the time.",
    )


def _row(name: str, seen: Seen, without: Seen) -> TableRow:
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
