"""The tables of the part "cache": hits in Redis, stampedes, and the chat replay."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

from benchmarks.measure import Samples, ratio
from benchmarks.table import RatioRow, RatioTable, Table, TableRow, Target, microseconds
from observability_integration.caching.policy import CachePolicy

from . import chat_replay, redis_hits, stampede
from .stampede import Case, Scale, StampedeResult
from .stampede_contestants import OURS

REDIS_BARE = Target(1.3)
REDIS_PEERS = Target(1.0, at_least=True)
MOST_COMMANDS = 100
SLOWEST_BEYOND_WORK_SECONDS = 0.05
BEYOND_LEASE_AND_WORK_SECONDS = 0.5
ADDED_FIRST_SECONDS, ADDED_LATER_SECONDS = 0.1, 0.001
_NONE, _NOT_INSTALLED = "–", "not installed"
_UNANSWERED = f"> {stampede.CAP_SECONDS:g} s"


def tables(found: Mapping[str, Any], scale: Scale) -> Iterator[RatioTable | Table]:
    """Yields the tables in the order of display.

    Args:
        found: under ``redis_hits``, ``stampede`` and ``replay``, the results of `measure` of each module.
        scale: of the stampedes.
    """
    yield _redis_hits(found["redis_hits"])
    yield _stampede(found["stampede"], scale)
    yield from _replays(found["replay"])


def _redis_hits(samples: Samples) -> RatioTable:
    ours, bare = (redis_hits.BY_URL, redis_hits.BY_CLIENT), redis_hits.BARE
    rows = [_beside(samples, f"{one}, compared with {bare}", one, bare, REDIS_BARE) for one in ours]
    for peer in (redis_hits.CASHEWS, redis_hits.AIOCACHE):
        rows += [_beside(samples, f"{one}, compared with {peer}", one, peer, REDIS_PEERS) for one in ours]
    return RatioTable(
        "Cache hit in Redis after a miss in memory",
        ("what", "ours", "other", f"ours / {bare}; peer / ours"),
        rows,
        "The value is a chat completion of about 2 kB, written by another cache, and memory holds another entry. "
        f"{bare} is redis.asyncio's GET and msgspec's msgpack, with a client at its defaults; ours by redis_client "
        "gets such a client. aiocache and cashews use pickle. OpenTelemetry is not initialised.",
    )


def _beside(samples: Samples, what: str, ours: str, other: str, target: Target) -> RatioRow:
    if ours not in samples or other not in samples:
        return RatioRow(what, microseconds(samples[ours]) if ours in samples else "", _NOT_INSTALLED, None, target)
    found = ratio(samples, other, ours) if target.at_least else ratio(samples, ours, other)
    return RatioRow(what, microseconds(samples[ours]), microseconds(samples[other]), found, target)


class _Line(NamedTuple):
    # A row of the stampedes: its figure, and the target for ours.
    what: str
    case: Case
    figure: Callable[[StampedeResult], str]
    target: str = ""
    keeps: Callable[[StampedeResult], bool] = lambda _: True

    def row(self, found: Mapping[str, Mapping[str, Any]], contestants: Sequence[str]) -> TableRow:
        figures = [self._figure(found.get(self.case.name, {}), contestant) for contestant in contestants]
        ours = found.get(self.case.name, {}).get(OURS)
        return TableRow(
            self.what, tuple(figures), self.target, None if ours is None else self.keeps(StampedeResult(**ours))
        )

    def _figure(self, seen_of: Mapping[str, Any], contestant: str) -> str:
        if contestant not in seen_of:
            return _NONE
        seen = seen_of[contestant]
        return _NOT_INSTALLED if seen is None else self.figure(StampedeResult(**seen))


def _stampede(found: Mapping[str, Mapping[str, Any]], scale: Scale) -> Table:
    contestants = stampede.CONTESTANTS
    return Table(
        "Cache stampedes",
        ("what", *contestants),
        [line.row(found, contestants) for line in _lines(scale)],
        f"Each process has {stampede.CALLERS} callers, warm connections, and shares a Redis with the other processes "
        "of its case; each case ran once. Commands are counted by Redis, commands inside scripts included. "
        f"A case ends after {stampede.CAP_SECONDS:g} s. Libraries are set up as documented: cashews with lock=True, "
        "whose lock lasts as long as the entry; aiocache with cached_stampede; dogpile with a lock in Redis with a "
        "timeout of 10 s, in threads. cashews and aiocache have no locks where a caller is cancelled and where Redis "
        f"is paused. async-lru works within one process. {_NONE}: not supported, or not run.",
    )


def _lines(scale: Scale) -> Iterator[_Line]:
    def calls(seen: StampedeResult) -> str:
        return f"{seen.calls} call{'s' * (seen.calls != 1)}"

    def one(seen: StampedeResult) -> bool:
        return seen.calls == 1 and seen.complete

    wanted = f"{scale.processes * stampede.CALLERS} callers in {scale.processes} processes"
    work = f"{scale.work:g} s of work"
    yield _Line(f"{wanted}, {work}", stampede.ONE_CALL, calls, "1 call", one)
    yield _Line(
        "the same: commands",
        stampede.ONE_CALL,
        lambda seen: f"{seen.commands:,}",
        f"≤ {MOST_COMMANDS}",
        lambda seen: seen.commands <= MOST_COMMANDS,
    )
    slowest = scale.work + SLOWEST_BEYOND_WORK_SECONDS
    yield _Line(
        "the same: slowest caller",
        stampede.ONE_CALL,
        lambda seen: _seconds(max(seen.seconds)) if seen.complete else _UNANSWERED,
        f"≤ {_seconds(slowest)}",
        lambda seen: seen.complete and max(seen.seconds) <= slowest,
    )
    lease = CachePolicy().lease_seconds if scale.lease is None else scale.lease
    latest = lease + scale.work + BEYOND_LEASE_AND_WORK_SECONDS
    yield _Line(
        f"{work}, caller process killed halfway: other callers answered after",
        stampede.KILLED,
        lambda seen: _seconds(_since_killed(seen)) if seen.complete else _UNANSWERED,
        f"≤ {_seconds(latest)}",
        lambda seen: seen.complete and _since_killed(seen) <= latest,
    )
    yield _Line("the same: calls", stampede.KILLED, calls, "2 calls", lambda seen: seen.calls == 2)
    yield _Line(
        f"{scale.long_work:g} s of work under a lease of {scale.short_lease:g} s",
        stampede.SHORT_LEASE,
        lambda seen: calls(seen) + "".join(f", {count} {kind}" for kind, count in seen.errors.items()),
        "1 call",
        lambda seen: one(seen) and not seen.errors,
    )
    yield _Line(
        f"the call fails, {wanted}",
        stampede.FAILING,
        lambda seen: f"{calls(seen)}, {_seconds(max(seen.seconds))}" if seen.complete else _UNANSWERED,
        "1 call",
        one,
    )
    if scale.many:
        yield _Line(f"the call fails, {scale.many:,} callers", stampede.MANY_FAILING, calls, "1 call", one)
    others = stampede.CALLERS - 1
    yield _Line(
        f"1 of {stampede.CALLERS} callers is cancelled: other callers answered",
        stampede.CANCELLED,
        lambda seen: f"{len(seen.seconds) - sum(seen.errors.values())} of {others}, {calls(seen)}",
        f"{others}, 1 call",
        lambda seen: one(seen) and sum(seen.errors.values()) == 1,
    )
    yield _Line(
        "Redis is paused: added to the first call",
        stampede.PAUSED,
        lambda seen: _milliseconds(seen.added[0]) if seen.added else _UNANSWERED,
        f"≤ {_milliseconds(ADDED_FIRST_SECONDS)}",
        lambda seen: bool(seen.added) and seen.added[0] <= ADDED_FIRST_SECONDS,
    )
    yield _Line(
        "the same: added to each later call",
        stampede.PAUSED,
        lambda seen: _milliseconds(median(seen.added[1:])) if seen.added[1:] else _UNANSWERED,
        f"≤ {_milliseconds(ADDED_LATER_SECONDS)}",
        lambda seen: seen.complete and median(seen.added[1:]) <= ADDED_LATER_SECONDS,
    )


def _since_killed(seen: StampedeResult) -> float:
    return seen.ended_at - (seen.killed_at or seen.ended_at)


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f} s"


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:,.1f} ms"


def _replays(found: Mapping[str, Any]) -> Iterator[Table]:
    columns = "what", "calls", "saved", "stale", "failures", "p50", "p99"
    how = (
        f"Simulated: an answer takes {chat_replay.FIRST_TOKEN_SECONDS:g} s plus {chat_replay.TOKEN_SECONDS * 1e3:g} ms "
        f"per token. The TTL is {chat_replay.TTL_SECONDS:g} s, stale entries may be served for "
        f"{chat_replay.STALE_SECONDS:g} s more, the soft timeout is {chat_replay.SOFT_SECONDS:g} s, an eager refresh "
        f"starts at {chat_replay.EAGER:.0%} of the TTL. Where calls fail, {chat_replay.FAILING:.0%} of them do, and "
        f"all of them from minute {chat_replay.OUTAGE_SECONDS[0] / 60:g} to {chat_replay.OUTAGE_SECONDS[1] / 60:g}. "
        "Failures and seconds are those of callers; a refresh in the background counts as a call."
    )
    if found["lacking"]:
        yield Table("Chat replay of one hour", columns, [], f"Not measured: {found['lacking']}.")
    for workload, outcomes in found["outcomes"].items():
        rows = [TableRow(name, _outcome(chat_replay.Outcome(**outcome))) for name, outcome in outcomes.items()]
        repeating = found["repeating"][workload]
        ceiling = (
            f"{repeating:.2%} of these {next(iter(outcomes.values()))['requests']:,} requests repeat an earlier one: "
            "no exact cache can save more. "
        )
        yield Table(
            f"Chat replay of one hour, keyed by {workload}",
            columns,
            rows,
            ceiling + chat_replay.MEANING[workload] + how,
        )


def _outcome(outcome: chat_replay.Outcome) -> tuple[str, ...]:
    return (
        f"{outcome.calls:,}",
        f"{1 - outcome.calls / outcome.requests:.2%}",
        f"{outcome.stale:,}",
        f"{outcome.failures:,}",
        _seconds(outcome.p50_seconds),
        _seconds(outcome.p99_seconds),
    )
