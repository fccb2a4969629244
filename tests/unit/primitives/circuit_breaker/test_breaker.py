"""A breaker that opens without cause, lets a crowd through, or never closes again is worse than none."""

from __future__ import annotations

import heapq
import itertools
import math
import random
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from observability_integration.primitives.circuit_breaker.breaker import Breaker, Permit, Refusal
from observability_integration.primitives.circuit_breaker.policy import BreakerPolicy
from observability_integration.resilience.backoff import Backoff

pytestmark = pytest.mark.once

_OUTAGE_SEEDS = 12
_CALL_EVERY_SECONDS = 4.0


class _Rig:
    """A breaker on a clock of its own, without jitter."""

    def __init__(self, now: float = 1000.0, **policy: Any) -> None:
        self.now = now
        self.turns: list[tuple[str, str, str]] = []
        self.breaker = Breaker(
            BreakerPolicy(**{"jitter": 0.0, **policy}),
            on_transition=lambda *turn: self.turns.append(turn),
            clock=lambda: self.now,
        )

    def permit(self, *, force: bool = False) -> Permit:
        answer = self.breaker.force_probe() if force else self.breaker.admit()
        assert isinstance(answer, Permit)
        return answer

    def refusal(self, *, force: bool = False) -> float:
        answer = self.breaker.force_probe() if force else self.breaker.admit()
        assert isinstance(answer, Refusal)
        assert answer.retry_after_seconds > 0
        return answer.retry_after_seconds

    def calls(self, outcomes: str) -> None:
        for outcome in outcomes:
            permit = self.permit()
            permit.failure() if outcome == "x" else permit.success()

    def opened(self) -> _Rig:
        self.calls("xxx")
        assert "open" == self.breaker.state
        return self


def test_three_failures_in_a_row_open_a_quiet_one() -> None:
    """A lone target with little traffic trips too; a success in between starts the row again."""
    rig = _Rig()
    rig.calls("xx.xx.xx")
    assert "closed" == rig.breaker.state
    rig.calls("x")
    assert [("closed", "open", "consecutive_failures")] == rig.turns


def test_failures_in_a_row_count_however_slowly_they_come() -> None:
    """One call an hour is what a quiet target may have; three of them failing in a row is all that can be known."""
    rig = _Rig()
    for _ in range(3):
        rig.calls("x")
        rig.now += 3600.0
    assert "open" == rig.breaker.state


def test_three_in_a_row_do_not_open_a_busy_one() -> None:
    """Among many calls they come by chance; as many as the minimum of calls do not."""
    quiet = _Rig()
    quiet.calls("." * 9 + "xxx")
    assert "open" == quiet.breaker.state
    rig = _Rig()
    rig.calls("." * 10 + "x" * 9)
    assert "closed" == rig.breaker.state
    rig.calls("." * 90 + "x" * 9)
    assert "closed" == rig.breaker.state
    rig.calls("x")
    assert [("closed", "open", "consecutive_failures")] == rig.turns


def test_half_of_the_calls_failing_opens() -> None:
    """Though never two in a row; below the minimum of calls, nothing."""
    rig = _Rig()
    rig.calls("x." * 4 + ".")
    assert (9, 4, 0, False) == rig.breaker.counts()
    rig.calls("x")
    assert [("closed", "open", "failure_ratio")] == rig.turns
    less = _Rig()
    less.calls("x.." * 40)
    assert "closed" == less.breaker.state


def test_what_is_older_than_the_window_does_not_count() -> None:
    """It moves on in tenths: what was counted 30 s ago is gone, what was counted 27 s ago is not."""
    rig = _Rig()
    rig.now = 3000.0
    rig.calls("x.")
    rig.now = 3003.0
    rig.calls("x.x.")
    rig.now = 3029.9
    assert (6, 3, 0, False) == rig.breaker.counts()
    rig.now = 3030.0
    assert (4, 2, 0, False) == rig.breaker.counts()
    rig.now = 3100.0
    assert (0, 0, 0, False) == rig.breaker.counts()
    assert (1, 0, 0, False) == (rig.calls("."), rig.breaker.counts(rig.now + 1.0))[1]


def test_the_window_goes_round() -> None:
    """A place in the ring is used again, and what stood there is taken out once."""
    rig = _Rig(minimum_calls=1000, consecutive_failures=1000)
    for number in range(1, 50):
        rig.calls("x.")
        assert (2 * min(number, 10), min(number, 10), 0, False) == rig.breaker.counts()
        rig.now += 3.0


@pytest.mark.parametrize("begins_at", [-20.0, 0.0, 1e9])
def test_a_clock_may_begin_anywhere(begins_at: float) -> None:
    """What it counts from is of no account: the window moves on as it does later."""
    rig = _Rig(begins_at)
    rig.calls("x.")
    rig.now += 26.0
    assert (2, 1, 0, False) == rig.breaker.counts()
    rig.now += 4.0
    assert (0, 0, 0, False) == rig.breaker.counts()


def test_an_open_one_refuses_and_says_for_how_long() -> None:
    """Until its pause is over; then one probe is out, and all others are refused for a moment."""
    rig = _Rig().opened()
    assert 21.0 == rig.refusal()
    rig.now += 20.5
    assert 0.5 == rig.refusal()
    answer = rig.breaker.admit(rig.now + 0.25)
    assert isinstance(answer, Refusal)
    assert 0.25 == answer.retry_after_seconds
    rig.now += 0.5
    assert rig.permit().probe
    assert [1.0, 1.0] == [rig.refusal(), rig.refusal(force=True)]
    assert ("open", "half_open", "due") == rig.turns[-1]
    assert rig.breaker.counts().probing


def test_a_probe_that_succeeds_closes_it_and_ends_the_growth() -> None:
    """With a clean slate: two failures do not open it, and the next pause is a first one."""
    rig = _Rig(max_open_seconds=100.0).opened()
    for pause in (21.0, 31.5, 47.25, 70.875, 100.0, 100.0):
        assert pause == rig.refusal()
        rig.now += pause
        rig.permit().failure()
        assert ("half_open", "open", "probe_failed") == rig.turns[-1]
    rig.now += 100.0
    rig.permit().success()
    assert ("half_open", "closed", "probe_succeeded") == rig.turns[-1]
    rig.calls("xx.")
    assert 21.0 == rig.opened().refusal()


def test_several_successes_may_be_asked_for() -> None:
    """In a row, one probe at a time; a failure between them opens it again."""
    rig = _Rig(successes_to_close=2).opened()
    rig.now += 21.0
    rig.permit().success()
    assert "half_open" == rig.breaker.state
    rig.permit().failure()
    assert 23.5 == rig.refusal()
    rig.now += 23.5
    rig.permit().success()
    assert "half_open" == rig.breaker.state
    rig.permit().success()
    assert "closed" == rig.breaker.state


def test_a_probe_that_says_nothing_gives_its_permit_back() -> None:
    """Cancelled, or refused by a content filter: the next caller probes at once."""
    rig = _Rig().opened()
    rig.now += 21.0
    rig.permit().ignore()
    assert "half_open" == rig.breaker.state
    rig.permit().success()
    assert "closed" == rig.breaker.state


def test_a_call_that_says_nothing_is_not_counted() -> None:
    """Neither as a call nor as the end of a row of failures."""
    rig = _Rig()
    rig.calls("xx")
    rig.permit().ignore()
    assert (2, 2, 2, False) == rig.breaker.counts()
    rig.calls("x")
    assert "open" == rig.breaker.state


def test_only_the_first_word_counts() -> None:
    """A primitive may give up a call that reports later all the same."""
    rig = _Rig()
    permit = rig.permit()
    permit.failure()
    permit.failure()
    permit.success()
    assert (1, 1, 1, False) == rig.breaker.counts()
    assert permit.settled


def test_late_words_change_nothing() -> None:
    """Of calls admitted before it opened: neither while open, nor beside a probe, nor after it has closed again."""
    rig = _Rig()
    late = [rig.permit() for _ in range(8)]
    rig.opened()
    late[0].success()
    late[1].failure()
    assert (rig.breaker.state, rig.refusal()) == ("open", 21.0)
    rig.now += 21.0
    probe = rig.permit()
    late[2].success()
    late[3].failure()
    assert "half_open" == rig.breaker.state
    assert rig.breaker.counts().probing
    probe.success()
    for permit in late[4:]:
        permit.failure()
    assert (0, 0, 0, False) == rig.breaker.counts()
    assert "closed" == rig.breaker.state


def test_a_probe_that_is_never_heard_of_is_given_up() -> None:
    """After its limit another is let through, and what the lost one says then is not heard."""
    rig = _Rig(probe_seconds=10.0).opened()
    rig.now += 21.0
    lost = rig.permit()
    rig.now += 9.75
    assert 0.25 == rig.refusal()
    rig.now += 0.25
    probe = rig.permit()
    lost.failure()
    assert "half_open" == rig.breaker.state
    assert (0, 0, 0, True) == rig.breaker.counts()
    probe.success()
    assert "closed" == rig.breaker.state


def test_a_pause_is_counted_from_the_beginning_of_the_probe() -> None:
    """A target that hangs is found again as soon as one that refuses; but half of a pause is one in any case."""
    rig = _Rig().opened()
    rig.now += 21.0
    probe = rig.permit()
    rig.now += 10.0
    probe.failure()
    assert 13.5 == rig.refusal()
    rig.now += 13.5
    probe = rig.permit()
    rig.now += 30.0
    probe.failure()
    assert 11.75 == rig.refusal()


def test_a_pause_is_cut_at_random() -> None:
    """By a tenth at the most: replicas that saw the same outage do not probe at the same time."""
    pauses = []
    for number in (0.0, 0.5, 1.0):
        breaker = Breaker(clock=lambda: 0.0, random=lambda number=number: number)  # type: ignore[misc]
        for _ in range(3):
            permit = breaker.admit()
            assert isinstance(permit, Permit)
            permit.failure()
        refusal = breaker.admit()
        assert isinstance(refusal, Refusal)
        pauses.append(refusal.retry_after_seconds)
    assert pytest.approx([21.0, 19.95, 18.9]) == pauses


def test_a_forced_probe_goes_before_its_time() -> None:
    """For the last target that is left: one at a time, and what it finds counts."""
    rig = _Rig().opened()
    rig.now += 1.0
    probe = rig.permit(force=True)
    assert ("open", "half_open", "forced") == rig.turns[-1]
    assert 1.0 == rig.refusal(force=True)
    probe.success()
    assert "closed" == rig.breaker.state
    assert not rig.permit(force=True).probe


@pytest.mark.parametrize("end", ["failure", "ignore"])
def test_a_forced_probe_that_fails_changes_no_pause(end: str) -> None:
    """Else a target that everybody depends on would be probed the later, the more depends on it."""
    rig = _Rig().opened()
    for _ in range(5):
        rig.now += 1.0
        getattr(rig.permit(force=True), end)()
        assert ("half_open", "open", "probe_failed" if end == "failure" else "probe_ignored") == rig.turns[-1]
    assert 16.0 == rig.refusal()
    rig.now += 16.0
    assert rig.permit().probe


def test_a_forced_probe_becomes_an_ordinary_one_in_time() -> None:
    """When the pause has ended meanwhile, or was over before: then it opens for longer, or gives its place up."""
    rig = _Rig().opened()
    probe = rig.permit(force=True)
    rig.now += 21.0
    probe.failure()
    assert 11.75 == rig.refusal()
    rig.now += 11.75
    rig.permit(force=True).ignore()
    assert "half_open" == rig.breaker.state
    assert ("open", "half_open", "due") == rig.turns[-1]
    early = _Rig(successes_to_close=2).opened()
    early.permit(force=True).success()
    early.permit().ignore()
    assert "half_open" == early.breaker.state


def test_a_clock_that_is_set_back_lengthens_a_pause_once() -> None:
    """It must not last until the clock has caught up; nor must a probe's."""
    rig = _Rig().opened()
    rig.now += 10.0
    rig.now -= 500.0
    assert 21.0 == rig.refusal()
    rig.now += 21.0
    rig.permit()
    rig.now -= 200.0
    assert 1.0 == rig.refusal()
    rig.now += 60.0
    rig.permit().failure()
    assert "open" == rig.breaker.state


def test_a_clock_that_jumps_and_returns() -> None:
    """What was measured in between is not waited for."""
    rig = _Rig().opened()
    rig.now += 21.0
    probe = rig.permit()
    rig.now += 1e9
    probe.failure()
    assert 11.75 == rig.refusal()
    rig.now -= 1e9
    assert rig.refusal() <= 23.5
    rig.now += 23.5
    rig.permit().success()
    rig.now += 1e9
    rig.calls("x.")
    rig.now -= 1e9
    rig.calls("." * 10 + "x" * 8)
    assert (18, 8, 8, False) == rig.breaker.counts()
    rig.now -= 2.0
    rig.calls("xx")
    assert "failure_ratio" == rig.turns[-1][2]


def test_turns_are_told_in_order() -> None:
    """Also when the one who is told makes the next one happen; and the breaker is not locked meanwhile."""
    now = 0.0
    turns: list[tuple[str, str, str]] = []

    def told(old: str, new: str, why: str) -> None:
        nonlocal now
        if new == "open":
            now += 60.0
            probe = breaker.admit()
            assert isinstance(probe, Permit)
            probe.success()
        turns.append((old, new, why))

    breaker = Breaker(on_transition=told, clock=lambda: now)
    for _ in range(3):
        permit = breaker.admit()
        assert isinstance(permit, Permit)
        permit.failure()
    assert [
        ("closed", "open", "consecutive_failures"),
        ("open", "half_open", "due"),
        ("half_open", "closed", "probe_succeeded"),
    ] == turns


def test_a_hook_that_raises_is_kept_away(metrics: Callable[..., Any]) -> None:
    """It is counted, and told of the next turn all the same."""

    def broken(*turn: str) -> None:
        raise LookupError

    rig = _Rig(consecutive_failures=1)
    rig.breaker.watch(broken)
    rig.calls("x")
    rig.now += 21.0
    rig.calls(".")
    assert "closed" == rig.breaker.state
    assert 3 == metrics("telemetry.faults", site="breaker.on_transition")


def test_threads_share_one() -> None:
    """No count is lost between them."""
    rig = _Rig(minimum_calls=10**6, consecutive_failures=10**6)
    _in_threads(4, lambda: rig.calls("x" * 1000))
    assert (4000, 4000, 4000, False) == rig.breaker.counts()


def test_threads_get_one_probe() -> None:
    """Of all who ask at the same moment."""
    for _ in range(20):
        rig = _Rig().opened()
        answers: list[Permit | Refusal] = []
        start = threading.Barrier(8)

        def ask(rig: _Rig = rig, answers: list[Permit | Refusal] = answers, start: threading.Barrier = start) -> None:
            start.wait()
            answers.append(rig.breaker.force_probe())

        _in_threads(8, ask)
        assert 1 == sum(isinstance(answer, Permit) for answer in answers)


def _in_threads(count: int, work: Callable[[], None]) -> None:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    threads = [threading.Thread(target=work) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    sys.setswitchinterval(before)


@dataclass
class _Outage:
    """A target that is down from 0 to `ends_at`, asked every four seconds with up to three attempts each."""

    ends_at: float
    random: random.Random
    takes_seconds: float
    retry_refused: bool
    offset_seconds: float
    attempts: int = 0
    answered_at: float | None = None
    now: float = field(default=-60.0)

    def run(self) -> None:
        breaker = Breaker(clock=lambda: self.now, random=self.random.random)
        backoff = Backoff()
        number = itertools.count()
        due: list[tuple[float, int, Callable[[], None]]] = []

        def at(when: float, act: Callable[[], None]) -> None:
            heapq.heappush(due, (when, next(number), act))

        def attempt(count: int) -> None:
            permit = breaker.admit(self.now)
            if isinstance(permit, Refusal):
                if self.retry_refused:
                    again(count)
                return
            failed = 0 <= self.now < self.ends_at
            self.attempts += failed
            at(self.now + self.takes_seconds, lambda: end(permit, failed, count))

        def end(permit: Permit, failed: bool, count: int) -> None:
            if failed:
                permit.failure()
                again(count)
                return
            permit.success()
            if self.answered_at is None and self.now >= self.ends_at:
                self.answered_at = self.now

        def again(count: int) -> None:
            if count < 3:
                at(self.now + backoff.delay(count, self.random.random), lambda: attempt(count + 1))

        for call in range(-10, int((self.ends_at + 60) / _CALL_EVERY_SECONDS)):
            at(self.offset_seconds + call * _CALL_EVERY_SECONDS, lambda: attempt(1))
        while due:
            self.now, _, act = heapq.heappop(due)
            act()


def _outages(*, takes_seconds: float) -> list[_Outage]:
    return [
        _Outage(
            ends_at=ends_at,
            random=seeded,
            takes_seconds=seeded.uniform(0.0, takes_seconds),
            retry_refused=retry_refused,
            offset_seconds=seeded.choice([0.0, seeded.uniform(0.0, 4.0)]),
        )
        for seed in range(_OUTAGE_SEEDS)
        for ends_at in (20.0, 37.0, 60.0, 61.0, 90.0, 150.0, 300.0)
        for retry_refused in (False, True)
        for seeded in (random.Random(f"{seed} {ends_at} {retry_refused}"),)
    ]


def test_an_outage_costs_few_attempts_and_is_over_soon() -> None:
    """Five in 60 s, one more for every 21.15 s after that; and within 30 s of its end the target answers again."""
    seen = set()
    for outage in _outages(takes_seconds=0.5):
        outage.run()
        assert outage.attempts <= 4 + (outage.ends_at - 18.9) // 21.15
        assert outage.attempts <= 5 or outage.ends_at > 60
        assert outage.answered_at is not None
        assert outage.answered_at <= outage.ends_at + 30
        seen.add(outage.attempts)
    assert {4, 5, 15} <= seen


def test_of_twenty_calls_the_target_answers_the_last() -> None:
    """One every four seconds, down for the first 60: the nineteenth at the latest finds it well."""
    for seed in range(5 * _OUTAGE_SEEDS):
        outage = _Outage(60.0, random.Random(seed), 0.05, retry_refused=seed % 2 == 0, offset_seconds=0.0)
        outage.run()
        assert outage.attempts <= 5
        assert outage.answered_at is not None
        assert outage.answered_at < 74.0


def test_a_silent_outage_is_over_as_soon() -> None:
    """A target whose calls take until their limit of 10 s fails later, and is found again no later."""
    for outage in _outages(takes_seconds=10.0):
        outage.run()
        assert outage.answered_at is not None
        assert outage.answered_at <= outage.ends_at + 30 + outage.takes_seconds


_POLICY = BreakerPolicy(
    minimum_calls=4,
    window_seconds=10.0,
    consecutive_failures=2,
    open_seconds=8.0,
    max_open_seconds=15.0,
    jitter=0.5,
    probe_seconds=20.0,
    successes_to_close=2,
)


class _Model:
    """A breaker of `_POLICY`, written down without thrift: it remembers every call, and looks at all of them."""

    def __init__(self) -> None:
        self.state = "closed"
        self.era = 0
        self.log: list[tuple[int, bool]] = []
        self.row = 0
        self.second = 0
        self.pause = 8.0
        self.open_from = self.open_for = 0.0
        self.probe: int | None = None
        self.probe_from = 0.0
        self.early = False
        self.good = 0

    def turn(self, state: str) -> None:
        self.state = state
        self.probe = None
        self.era += 1
        self.log, self.row = [], 0

    def open(self, since: float, now: float, jitter: float) -> None:
        self.open_for = self.pause * (1 - 0.5 * jitter)
        self.open_from = max(since, now - self.open_for / 2)
        self.turn("open")

    def close(self) -> None:
        self.pause, self.early = 8.0, False
        self.turn("closed")

    def passes(self, now: float) -> None:
        second = math.floor(now)
        if second >= self.second:
            self.second = second
        elif second <= self.second - 10:
            self.second, self.log = second, []
        self.log = [(when, failed) for when, failed in self.log if when > self.second - 10]

    def admits(self, now: float, force: bool, name: int) -> bool:
        if self.state == "open":
            self.open_from = min(self.open_from, now)
            early = now < self.open_from + self.open_for
            if early and not force:
                return False
            self.early, self.good = early, 0
            self.turn("half_open")
        elif self.state == "half_open" and self.probe is not None:
            self.probe_from = min(self.probe_from, now)
            if now < self.probe_from + 20.0:
                return False
        if self.state == "half_open":
            self.probe, self.probe_from = name, now
        return True

    def hears(self, name: int, era: int, failed: bool | None, now: float, jitter: float) -> None:
        if name == self.probe:
            self.probe = None
            self.open_from = min(self.open_from, now) if self.early else self.open_from
            if self.early and failed is not False and now < self.open_from + self.open_for:
                self.turn("open")
            elif failed:
                self.pause = min(15.0, self.pause * 1.5)
                self.open(self.probe_from, now, jitter)
            elif failed is False:
                self.early = False
                self.good += 1
                if self.good == 2:
                    self.close()
        elif self.state == "closed" and era == self.era and failed is not None:
            self.passes(now)
            self.log.append((self.second, failed))
            self.row = self.row + 1 if failed else 0
            share = sum(failed for _, failed in self.log) / len(self.log)
            enough = len(self.log) >= 4
            quiet = len(self.log) - self.row < 4
            if failed and ((enough and share >= 0.5) or (self.row >= 2 and quiet) or self.row >= 4):
                self.open(now, now, jitter)


class _BreakerMachine(RuleBasedStateMachine):
    """Calls come, end, and are cancelled at any time, and the clock does what it likes."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.jitter = 0.0
        self.told: list[str] = ["closed"]
        self.model = _Model()
        self.permits: list[tuple[int, int, Permit]] = []
        self.names = itertools.count()
        self.breaker = Breaker(_POLICY, on_transition=self.tell, clock=lambda: self.now, random=lambda: self.jitter)

    def tell(self, old: str, new: str, why: str) -> None:
        assert old == self.told[-1] != new
        opens = {"failure_ratio", "consecutive_failures", "probe_failed", "probe_ignored"}
        assert why == "by_hand" or (new == "open") == (why in opens)
        self.told.append(new)

    @rule(seconds=st.sampled_from([0.25, 1.0, 4.0, 8.0, 20.0, 1e6]))
    def passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(seconds=st.sampled_from([0.25, 3.0, 50.0, 1e6]))
    def is_set_back(self, seconds: float) -> None:
        self.now -= seconds

    @rule(seconds=st.sampled_from([None, 3.0]), jitter=st.sampled_from([0.0, 1.0]))
    def force_open(self, seconds: float | None, jitter: float) -> None:
        self.jitter = jitter
        self.breaker.force_open(seconds)
        self.model.open(self.now, self.now, jitter)
        self.model.open_for = seconds or self.model.open_for

    @rule()
    def reset(self) -> None:
        self.breaker.reset()
        self.model.close()

    @rule(force=st.booleans(), count=st.integers(1, 4))
    def ask(self, force: bool, count: int) -> None:
        for _ in range(count):
            name = next(self.names)
            answer = self.breaker.force_probe() if force else self.breaker.admit(self.now)
            assert self.model.admits(self.now, force, name) == isinstance(answer, Permit)
            if isinstance(answer, Permit):
                assert answer.probe == (self.model.state == "half_open")
                self.permits.append((name, self.model.era, answer))
            else:
                assert 0 < answer.retry_after_seconds <= 15.0

    @precondition(lambda self: self.permits)
    @rule(
        which=st.integers(0, 7),
        failed=st.sampled_from([True, True, False, None]),
        jitter=st.sampled_from([0.0, 0.3, 1.0]),
        again=st.booleans(),
    )
    def end(self, which: int, failed: bool | None, jitter: float, again: bool) -> None:
        self.jitter = jitter
        name, era, permit = self.permits.pop(-1 - which % len(self.permits))
        words = [permit.success, permit.failure, permit.ignore]
        words[2 if failed is None else failed]()
        self.model.hears(name, era, failed, self.now, jitter)
        if again:
            words[1 if not failed else 0]()

    @invariant()
    def agrees_with_the_model(self) -> None:
        assert self.model.state == self.breaker.state == self.told[-1]
        counts = self.breaker.counts()
        self.model.passes(self.now)
        failures = sum(failed for _, failed in self.model.log)
        assert (len(self.model.log), failures, self.model.row, self.model.probe is not None) == counts
        assert min(counts) >= 0
        out = [permit for _, _, permit in self.permits if permit.probe and permit is self.breaker._probe]
        assert len(out) <= 1
        assert not counts.probing or self.breaker.state == "half_open"

    def teardown(self) -> None:
        # Wherever it stands, and though the first permit is lost: it closes when the target is well and time passes.
        self.breaker.admit()
        self.now += 20.0
        for _ in range(2):
            answer = self.breaker.admit()
            assert isinstance(answer, Permit)
            answer.success()
        assert "closed" == self.breaker.state


_BreakerMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestBreakerMachine = _BreakerMachine.TestCase


def test_a_busy_target_is_probed_sooner() -> None:
    """Among a hundred calls a probe more is nothing, and an overload that is over must be found out soon."""
    for calls, expected in ((9, 21.0), (57, 21.0), (58, 5.25), (10_000, 5.25)):
        assert expected == BreakerPolicy().first_open_seconds(calls)
    assert 2.0 == BreakerPolicy(busy_open_seconds=2.0).first_open_seconds(10_000)
    now = [0.0]
    breaker = Breaker(clock=lambda: now[0], random=lambda: 0.0)
    for _ in range(200):
        now[0] += 0.1
        permit = breaker.admit()
        if isinstance(permit, Permit):
            permit.failure() if now[0] > 10.0 else permit.success()
        if breaker.state == "open":
            break
    refusal = breaker.admit()
    assert isinstance(refusal, Refusal)
    assert 5.25 == pytest.approx(refusal.retry_after_seconds)
