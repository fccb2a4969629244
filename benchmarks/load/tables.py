"""What was found about storms of retries, brown-outs, and the replay of arrivals, as tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from statistics import median
from typing import Any, NamedTuple

from benchmarks.table import Table, TableRow

from . import retry_storm, traffic_replay
from .retry_storm import Scene
from .retry_storm import Seen as BrownOut
from .retry_storm_contestants import (
    BROWN_OUT_CONTESTANTS,
    OURS,
    PATIENCE_SECONDS,
    PIPELINE,
    PIPELINE_AIMD,
    STORM_CONTESTANTS,
)
from .traffic_replay_watch import LAG_EVERY_SECONDS

MOST_ATTEMPTS = 1.2
RECOVERED_SECONDS = 10.0
OVERRUN_MS, LAG_MS = 50.0, 20.0
MEMORY_GROWTH = 0.05
_SETTLED_SECONDS = 30.0  # in a shorter replay the number of calls at once has not settled by its second quarter
_OURS = (OURS, PIPELINE, PIPELINE_AIMD)
_NOT_RUN, _NOT_INSTALLED, _NEVER = "–", "not installed", f"not in {Scene().after:g} s"


def tables(found: Mapping[str, Any]) -> Iterator[Table]:
    """All of it, in the order in which it is shown.

    Args:
        found: under ``retry_storm`` and ``traffic_replay`` what `measure` of each returned.
    """
    yield _storm(found["retry_storm"]["storm"])
    yield _brown_out(found["retry_storm"]["brown_out"])
    yield _arrivals(found["traffic_replay"])


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
        f"A retry storm: attempts for each of {retry_storm.STORM_CALLS:,} calls of which all fail",
        ("what", *columns),
        rows,
        "Simulated: the provider refuses each call with a 503, and nobody really waits. Ours are at their defaults, "
        "the others are set up as their documentation has it, with as many attempts.",
    )


class _Column(NamedTuple):
    title: str
    figure: Callable[[list[BrownOut]], str]


def _of_longest(runs: list[BrownOut]) -> str:
    longer = [run for run in runs if run.seconds > retry_storm.BROWN_OUT_SECONDS]
    return _recovered(longer) if longer else _NOT_RUN


def _usual(runs: list[BrownOut]) -> list[BrownOut]:
    return [run for run in runs if run.seconds == retry_storm.BROWN_OUT_SECONDS]


def _middle(field: str, form: str) -> Callable[[list[BrownOut]], str]:
    return lambda runs: format(median(getattr(run, field) for run in _usual(runs)), form)


_COLUMNS = (
    _Column("attempts a call", _middle("attempts", ".2f")),
    _Column("answered in it", _middle("during", ".0%")),
    _Column("after it", _middle("after", ".0%")),
    _Column("recovered after", lambda runs: _recovered(_usual(runs))),
    _Column("slowest answers", lambda runs: _middle("slowest_seconds", ".1f")(runs) + " s"),
    _Column("work for nobody", _middle("wasted", ".0%")),
    _Column(f"recovered, if it lasts {retry_storm.LONG_SECONDS:g} s", _of_longest),
)


def _recovered(runs: list[BrownOut]) -> str:
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
            runs = [BrownOut(**run) for run in found[name]]
            figures = tuple(column.figure(runs) for column in _COLUMNS)
            seconds = [run.recovered_seconds for run in _usual(runs)]
            kept = all(each is not None and each <= RECOVERED_SECONDS for each in seconds)
        rows.append(TableRow(name, figures, f"≤ {RECOVERED_SECONDS:g} s" if name in _OURS else "", kept))
    scene = Scene()
    return Table(
        f"A brown-out of {scene.during:g} s",
        ("what", *(column.title for column in _COLUMNS)),
        rows,
        f"Simulated: a provider that serves {scene.slots} requests at once, each in {scene.seconds:g} s, and the "
        f"others in their order, also those whose callers have left. {scene.calls_per_second:g} calls a second "
        f"come in, {scene.load:.0%} of what it can do, whatever became of those before; in the brown-out it "
        f"serves {scene.slots_left} at once, and they are {scene.browned_out:g} times that. An attempt "
        f"is given up after {PATIENCE_SECONDS:g} s. Answers are counted for each call that comes in, where "
        "callers had waited above 100 %. It is over when there are nine for ten calls, in the "
        f"{retry_storm.WINDOW_SECONDS:g} s that follow and to the end of the watch, {scene.after:g} s after the "
        "brown-out. Slowest are all but a hundredth of the answers. Work for nobody is that of the provider "
        "after the brown-out. At its defaults RetryPrimitive makes no second attempt after a time-out, so it "
        "does here what no retries do, and nothing that it could do would shorten what the provider still has to "
        "work off; the two rows that retry time-outs too have the same waits and differ in "
        "the budget alone.",
    )


def _missing(found: Mapping[str, Any], name: str) -> str:
    return _NOT_INSTALLED if name in found else _NOT_RUN


def _arrivals(found: Mapping[str, Any]) -> Table:
    title, columns = "Chat arrivals through a pipeline of two targets", ("what", "ours")
    if found["seen"] is None:
        return Table(title, columns, [], f"Not measured: {found['lacking']}.")
    seen, scale = traffic_replay.Seen(**found["seen"]), traffic_replay.Scale(**found["scale"])
    return Table(
        title,
        columns,
        list(_arrival_rows(seen)),
        f"Real arrivals, {scale.arrivals:g} times as fast, on the real event loop and clock, in one process with two "
        f"providers that stream their answers, {scale.answers:g} times as fast as usual; all limits pass as fast. "
        f"{traffic_replay.FAILING:.0%} of the attempts at the first target meet a fault: 429, 503, a reset, a cut, a stall "
        f"or a malformed chunk. Every {_ordinal(traffic_replay.STREAMED_EVERY)} caller reads the stream as it comes. The "
        f"deadline is {traffic_replay.DEADLINE_SECONDS:g} s, that of every {_ordinal(traffic_replay.HURRIED_EVERY)} caller "
        f"{traffic_replay.HURRIED_SECONDS:g} s, which is less than many answers take. The lag of the event loop is looked "
        f"at every {LAG_EVERY_SECONDS * 1e3:g} ms; where it says busy, what this process waited for a processor is "
        "left out. Telemetry is not initialised.",
    )


def _arrival_rows(seen: traffic_replay.Seen) -> Iterator[TableRow]:
    yield TableRow("calls", (f"{seen.calls:,} in {seen.seconds:.0f} s, up to {seen.most_in_flight:,} at once",))
    yield TableRow("told the whole answer, or that the deadline had passed", (f"{seen.whole:,}, {seen.late:,}",))
    wrongs = {
        "lost": seen.lost,
        "told a wrong or incomplete answer": seen.wrong,
        "answered in full twice": seen.doubled,
    }
    for what, number in {**wrongs, "attempts left open": seen.left_open}.items():
        yield TableRow(what, (f"{number:,}",), "0", number == 0)
    errors = ", ".join(f"{number} {kind}" for kind, number in seen.failed.items())
    yield TableRow("told another error", (errors or "0",), "0", not seen.failed)
    yield TableRow("beyond the deadline, of those that it passed for", (_three(seen.overrun_ms),))
    yield TableRow(
        "the same, less the lag of the event loop",
        (_three(seen.beyond_lag_ms),),
        f"99 % ≤ {OVERRUN_MS:g} ms",
        seen.beyond_lag_ms[1] <= OVERRUN_MS,
    )
    yield TableRow("lag of the event loop", (_three(seen.lag_ms),))
    yield TableRow(
        "the same, where it was busy",
        (_three(seen.busy_lag_ms),),
        f"99 % ≤ {LAG_MS:g} ms",
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
    yield TableRow("attempts a call, at both targets", (f"{(first + second_target) / seen.calls:.3f}",))
    faults = ", ".join(f"{number} {kind}" for kind, number in sorted(seen.faults.items()))
    yield TableRow("faults that were met", (faults,))
    yield TableRow("answers of the second target", (f"{seen.failovers:,}",))
    yield TableRow("streams begun anew before their reader", (f"{seen.restarted:,}",))
    yield TableRow(
        "processor time a call, providers included", (f"{seen.processor_seconds / seen.calls * 1e3:.2f} ms",)
    )


def _three(milliseconds: tuple[float, float, float]) -> str:
    half, most, worst = milliseconds
    return f"50 % {half:.1f}, 99 % {most:.1f}, all {worst:.1f} ms"


def _ordinal(number: int) -> str:
    return {3: "third", 20: "twentieth"}.get(number, f"{number}th")
