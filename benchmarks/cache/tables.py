"""What was found about the cache with a Redis, in a stampede and in an hour of chat, as tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import median
from typing import Any, NamedTuple

from benchmarks.measure import Samples, ratio
from benchmarks.table import RatioRow, RatioTable, Table, TableRow, Target, microseconds
from observability_integration.caching.policy import CachePolicy

from . import chat_replay, redis_hits, stampede
from .stampede import Case, Scale, Seen
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
    """All of it, in the order in which it is shown.

    Args:
        found: under ``redis_hits``, ``stampede`` and ``replay`` what `measure` of each returned.
        scale: of the stampedes.
    """
    yield _redis_hits(found["redis_hits"])
    yield _stampede(found["stampede"], scale)
    yield from _replays(found["replay"])


def _redis_hits(samples: Samples) -> RatioTable:
    ours, bare = (redis_hits.BY_URL, redis_hits.BY_CLIENT), redis_hits.BARE
    rows = [_beside(samples, f"{one}, beside {bare}", one, bare, REDIS_BARE) for one in ours]
    for peer in (redis_hits.CASHEWS, redis_hits.AIOCACHE):
        rows += [_beside(samples, f"{one}, beside {peer}", one, peer, REDIS_PEERS) for one in ours]
    return RatioTable(
        "A hit in Redis that memory has not",
        ("what", "ours", "other", f"ours / {bare}; peer / ours"),
        rows,
        "The value is a chat completion of some 2 kB, written by another cache; what memory held was something else. "
        f"{bare} is redis.asyncio's GET and msgspec's msgpack, on a client as it comes, which is also the client that "
        "ours is given. aiocache reads by pickle, as does cashews. OpenTelemetry is not initialised.",
    )


def _beside(samples: Samples, what: str, ours: str, other: str, target: Target) -> RatioRow:
    if ours not in samples or other not in samples:
        return RatioRow(what, microseconds(samples[ours]) if ours in samples else "", _NOT_INSTALLED, None, target)
    found = ratio(samples, other, ours) if target.at_least else ratio(samples, ours, other)
    return RatioRow(what, microseconds(samples[ours]), microseconds(samples[other]), found, target)


class _Line(NamedTuple):
    # A row of the stampedes: what is made of what was seen, and what is promised of ours.
    what: str
    case: Case
    figure: Callable[[Seen], str]
    target: str = ""
    keeps: Callable[[Seen], bool] = lambda _: True

    def row(self, found: Mapping[str, Mapping[str, Any]], contestants: Sequence[str]) -> TableRow:
        figures = [self._figure(found.get(self.case.name, {}), contestant) for contestant in contestants]
        ours = found.get(self.case.name, {}).get(OURS)
        return TableRow(self.what, tuple(figures), self.target, None if ours is None else self.keeps(Seen(**ours)))

    def _figure(self, seen_of: Mapping[str, Any], contestant: str) -> str:
        if contestant not in seen_of:
            return _NONE
        seen = seen_of[contestant]
        return _NOT_INSTALLED if seen is None else self.figure(Seen(**seen))


def _stampede(found: Mapping[str, Mapping[str, Any]], scale: Scale) -> Table:
    contestants = stampede.CONTESTANTS
    return Table(
        "Stampedes",
        ("what", *contestants),
        [line.row(found, contestants) for line in _lines(scale)],
        f"Processes have {stampede.CALLERS} callers each, connections they have used before, and a Redis that nobody "
        "else uses; each case was run once. Commands are those that Redis counts, inside of scripts too. "
        f"After {stampede.CAP_SECONDS:g} s nobody was waited for any longer. Everything is set up as its documentation "
        "has it: cashews with lock=True, whose lock lives as long as the entry, aiocache's cached_stampede, dogpile's "
        "lock in Redis with a timeout of 10 s in threads; cashews and aiocache without locks where a caller is "
        f"cancelled and where Redis is paused. async-lru works within one process. {_NONE}: there is no such thing, "
        "or it was not run.",
    )


def _lines(scale: Scale) -> Iterator[_Line]:
    def calls(seen: Seen) -> str:
        return f"{seen.calls} call{'s' * (seen.calls != 1)}"

    def one(seen: Seen) -> bool:
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
        f"{work}, killed in the middle: the others answered after",
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
        f"1 of {stampede.CALLERS} callers is cancelled: others answered",
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


def _since_killed(seen: Seen) -> float:
    return seen.ended_at - (seen.killed_at or seen.ended_at)


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f} s"


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:,.1f} ms"


def _replays(found: Mapping[str, Any]) -> Iterator[Table]:
    columns = "what", "calls", "saved", "stale", "failures", "p50", "p99"
    how = (
        "Simulated: an answer takes "
        f"{chat_replay.FIRST_TOKEN_SECONDS:g} s and {chat_replay.TOKEN_SECONDS * 1e3:g} ms a token. The TTL is "
        f"{chat_replay.TTL_SECONDS:g} s, stale entries may be served for {chat_replay.STALE_SECONDS:g} s more, the soft timeout "
        f"is {chat_replay.SOFT_SECONDS:g} s, an eager refresh begins at {chat_replay.EAGER:.0%} of the TTL. Where calls fail, "
        f"{chat_replay.FAILING:.0%} of them do, and from {chat_replay.OUTAGE_SECONDS[0] / 60:g} to "
        f"{chat_replay.OUTAGE_SECONDS[1] / 60:g} minutes all. Failures and seconds are those that callers saw; a refresh "
        "in the background is a call too."
    )
    if found["lacking"]:
        yield Table("An hour of chat", columns, [], f"Not measured: {found['lacking']}.")
    for workload, outcomes in found["outcomes"].items():
        rows = [TableRow(name, _outcome(chat_replay.Outcome(**outcome))) for name, outcome in outcomes.items()]
        repeating = found["repeating"][workload]
        ceiling = (
            f"{repeating:.2%} of these {next(iter(outcomes.values()))['requests']:,} requests have come before: "
            "no exact cache can save more. "
        )
        yield Table(
            f"An hour of chat, keyed by {workload}", columns, rows, ceiling + chat_replay.MEANING[workload] + how
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
