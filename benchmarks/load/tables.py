"""The tables of the part "load": retry storm, brown-out, and traffic replay."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from statistics import median
from typing import Any, NamedTuple

from benchmarks.table import Table, TableRow

from . import retry_storm, traffic_replay
from .process_monitor import LAG_EVERY_SECONDS
from .retry_storm import BrownOutResult, Scenario
from .retry_storm_contestants import (
    BROWN_OUT_CONTESTANTS,
    OURS,
    PATIENCE_SECONDS,
    PIPELINE,
    PIPELINE_AIMD,
    STORM_CONTESTANTS,
)

MOST_ATTEMPTS = 1.2
RECOVERED_SECONDS = 10.0
OVERRUN_MS, LAG_MS = 50.0, 20.0
MEMORY_GROWTH = 0.05
_SETTLED_SECONDS = 30.0  # in a shorter replay the number of concurrent calls is not stable by the second quarter
_OURS = (OURS, PIPELINE, PIPELINE_AIMD)
_NOT_RUN, _NOT_INSTALLED, _NEVER = "–", "not installed", f"not in {Scenario().after:g} s"


def tables(found: Mapping[str, Any]) -> Iterator[Table]:
    """Yields the tables in the order of display.

    Args:
        found: under ``retry_storm`` and ``traffic_replay``, the results of `measure` of each module.
    """
    yield _storm(found["retry_storm"]["storm"])
    yield _brown_out(found["retry_storm"]["brown_out"])
    yield _traffic_replay(found["traffic_replay"])


def _storm(found: Mapping[str, Any]) -> Table:
    columns = [f"in {spread:g} s" if spread else "at once" for spread in retry_storm.SPREADS_SECONDS]
    rows: list[TableRow] = []
    for name in STORM_CONTESTANTS:
        attempts = found.get(name)
        ours = name in _OURS
        rows.append(
            TableRow(
                name,
                (_missing(found, name),) * len(columns)
                if attempts is None
                else tuple(f"{each:.3f}" for each in attempts),
                f"≤ {MOST_ATTEMPTS:g}" if ours else "",
                None if attempts is None else max(attempts) <= MOST_ATTEMPTS,
            )
        )
    return Table(
        f"Retry storm: attempts per call while all {retry_storm.STORM_CALLS:,} calls fail",
        ("what", *columns),
        rows,
        "Simulated time: the provider refuses each call with a 503. Ours are at their defaults; the others are set up "
        "as documented, with the same number of attempts.",
    )


class _Column(NamedTuple):
    title: str
    figure: Callable[[list[BrownOutResult]], str]


def _of_longest(runs: list[BrownOutResult]) -> str:
    longer = [run for run in runs if run.seconds > retry_storm.BROWN_OUT_SECONDS]
    return _recovered(longer) if longer else _NOT_RUN


def _usual(runs: list[BrownOutResult]) -> list[BrownOutResult]:
    return [run for run in runs if run.seconds == retry_storm.BROWN_OUT_SECONDS]


def _middle(field: str, form: str) -> Callable[[list[BrownOutResult]], str]:
    return lambda runs: format(median(getattr(run, field) for run in _usual(runs)), form)


_COLUMNS = (
    _Column("attempts per call", _middle("attempts", ".2f")),
    _Column("answered during it", _middle("during", ".0%")),
    _Column("answered after it", _middle("after", ".0%")),
    _Column("recovered after", lambda runs: _recovered(_usual(runs))),
    _Column("p99 latency", lambda runs: _middle("slowest_seconds", ".1f")(runs) + " s"),
    _Column("wasted work", _middle("wasted", ".0%")),
    _Column(f"recovered after, brown-out of {retry_storm.LONG_SECONDS:g} s", _of_longest),
)


def _recovered(runs: list[BrownOutResult]) -> str:
    seconds = [run.recovered_seconds for run in runs]
    found = sorted(each for each in seconds if each is not None)
    if len(found) < len(seconds):
        return _NEVER if not found else f"{len(seconds) - len(found)} of {len(seconds)} {_NEVER}"
    return f"{found[0]:.1f} s" if found[0] == found[-1] else f"{found[0]:.1f} to {found[-1]:.1f} s"


def _brown_out(found: Mapping[str, Any]) -> Table:
    rows: list[TableRow] = []
    for name in BROWN_OUT_CONTESTANTS:
        if found.get(name) is None:
            figures, kept = (_missing(found, name),) * len(_COLUMNS), None
        else:
            runs = [BrownOutResult(**run) for run in found[name]]
            figures = tuple(column.figure(runs) for column in _COLUMNS)
            seconds = [run.recovered_seconds for run in _usual(runs)]
            kept = all(each is not None and each <= RECOVERED_SECONDS for each in seconds)
        rows.append(TableRow(name, figures, f"≤ {RECOVERED_SECONDS:g} s" if name in _OURS else "", kept))
    scenario = Scenario()
    return Table(
        f"Brown-out of {scenario.during:g} s",
        ("what", *(column.title for column in _COLUMNS)),
        rows,
        f"Simulated time: a provider serves {scenario.slots} requests at once, {scenario.seconds:g} s each on average, "
        f"and queues the others, also after their caller has gone. Calls arrive at {scenario.calls_per_second:g} per "
        f"second, {scenario.load:.0%} of its capacity, independent of earlier outcomes. In the brown-out it serves "
        f"{scenario.slots_left} at once, and calls are {scenario.browned_out:g} times its capacity. An attempt times "
        f"out after {PATIENCE_SECONDS:g} s. Answers are per call that arrives, so queued calls can lift them above 100 "
        f"%. Recovered means at least {retry_storm.RECOVERED:g} answers per call, both in the next "
        f"{retry_storm.WINDOW_SECONDS:g} s and up to the end, {scenario.after:g} s after the brown-out. Wasted work is "
        "work of the provider after the brown-out for callers that have gone. At its defaults RetryPrimitive does not "
        "retry after a timeout, so here it equals no retries, and it cannot shorten the provider's queue. The two rows "
        "that also retry after timeouts have the same waits and differ in the budget alone.",
    )


def _missing(found: Mapping[str, Any], name: str) -> str:
    return _NOT_INSTALLED if name in found else _NOT_RUN


def _traffic_replay(found: Mapping[str, Any]) -> Table:
    title, columns = "Traffic replay: real chat arrivals through a pipeline of two targets", ("what", "ours")
    if found["seen"] is None:
        return Table(title, columns, [], f"Not measured: {found['lacking']}.")
    seen, scale = traffic_replay.ReplayResult(**found["seen"]), traffic_replay.Scale(**found["scale"])
    return Table(
        title,
        columns,
        list(_traffic_replay_rows(seen)),
        f"Real arrivals, {scale.arrivals:g} times as fast, on the real event loop and clock, in one process with two "
        f"providers that stream answers {scale.answers:g} times as fast; all limits are divided by the same factor. "
        f"{traffic_replay.FAILING:.0%} of the attempts at the first target fail: 429, 503, a reset, a cut, a stall or "
        f"a malformed chunk. Every {_ordinal(traffic_replay.STREAMED_EVERY)} caller reads the stream. The deadline is "
        f"{traffic_replay.DEADLINE_SECONDS:g} s; for every {_ordinal(traffic_replay.SHORT_DEADLINE_EVERY)} caller it "
        f"is {traffic_replay.SHORT_DEADLINE_SECONDS:g} s, shorter than many answers. The lag of the event loop is "
        f"sampled every {LAG_EVERY_SECONDS * 1e3:g} ms; the lag while busy excludes waits for a processor. Telemetry "
        "is not initialised.",
    )


def _traffic_replay_rows(seen: traffic_replay.ReplayResult) -> Iterator[TableRow]:
    yield TableRow("calls", (f"{seen.calls:,} in {seen.seconds:.0f} s, up to {seen.most_in_flight:,} at once",))
    yield TableRow("complete answers, timeouts at the deadline", (f"{seen.whole:,}, {seen.late:,}",))
    wrongs = {
        "lost calls": seen.lost,
        "wrong or incomplete answers": seen.wrong,
        "answered in full twice": seen.doubled,
    }
    for what, number in {**wrongs, "attempts still open at the end": seen.left_open}.items():
        yield TableRow(what, (f"{number:,}",), "0", number == 0)
    errors = ", ".join(f"{number} {kind}" for kind, number in seen.failed.items())
    yield TableRow("other errors", (errors or "0",), "0", not seen.failed)
    yield TableRow("time past the deadline, of calls that passed it", (_three(seen.overrun_ms),))
    yield TableRow(
        "the same, less the lag of the event loop",
        (_three(seen.beyond_lag_ms),),
        f"p99 ≤ {OVERRUN_MS:g} ms",
        seen.beyond_lag_ms[1] <= OVERRUN_MS,
    )
    yield TableRow("lag of the event loop", (_three(seen.lag_ms),))
    yield TableRow(
        "the same, while busy",
        (_three(seen.busy_lag_ms),),
        f"p99 ≤ {LAG_MS:g} ms",
        seen.busy_lag_ms[1] <= LAG_MS,
    )
    if seen.memory_bytes is not None:
        second, last = seen.memory_bytes
        yield TableRow(
            "resident memory in the second and the last quarter",
            (f"{second / 1e6:.1f} MB, {last / 1e6:.1f} MB",),
            f"≤ {MEMORY_GROWTH:+.0%}",
            last <= second * (1 + MEMORY_GROWTH) if seen.seconds >= _SETTLED_SECONDS else None,
        )
    first, second_target = seen.attempts
    yield TableRow("attempts per call, at both targets", (f"{(first + second_target) / seen.calls:.3f}",))
    faults = ", ".join(f"{number} {kind}" for kind, number in sorted(seen.faults.items()))
    yield TableRow("faults", (faults,))
    yield TableRow("answers by the second target", (f"{seen.failovers:,}",))
    yield TableRow("streams restarted", (f"{seen.restarted:,}",))
    yield TableRow(
        "processor time per call, providers included", (f"{seen.processor_seconds / seen.calls * 1e3:.2f} ms",)
    )


def _three(milliseconds: tuple[float, float, float]) -> str:
    half, most, worst = milliseconds
    return f"p50 {half:.1f}, p99 {most:.1f}, max {worst:.1f} ms"


def _ordinal(number: int) -> str:
    return {3: "third", 20: "twentieth"}.get(number, f"{number}th")
