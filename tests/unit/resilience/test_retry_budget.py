"""A budget of retries: a quiet service may always retry, and a storm of failures does not become a storm of retries."""

from __future__ import annotations

import gc
import heapq
import random
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import copy_context
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from observability_integration.errors import ConfigurationError
from observability_integration.resilience.backoff import Backoff
from observability_integration.resilience.retry_budget import RetryBudget, enter_scope, leave_scope, open_scope

pytestmark = pytest.mark.once


class _Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def _failing_calls(
    budget: RetryBudget, clock: _Clock, starts: list[float], random: Callable[[], float], attempts: int = 3
) -> int:
    """Retries made by calls that begin at `starts` and of which every attempt fails."""
    backoff = Backoff()
    due = [(start, number, 0) for number, start in enumerate(starts)]
    heapq.heapify(due)
    retries = 0
    while due:
        clock.now, number, failed = heapq.heappop(due)
        if failed == 0:
            budget.deposit()
            heapq.heappush(due, (clock.now + 0.05, number, 1))
        elif failed < attempts and budget.withdraw():
            retries += 1
            heapq.heappush(due, (clock.now + backoff.delay(failed, random) + 0.05, number, failed + 1))
    return retries


def _nothing(budget: RetryBudget, clock: _Clock) -> None:
    """A process that has just begun."""


def _healthy(budget: RetryBudget, clock: _Clock) -> None:
    for _ in range(5000):
        clock.now += 0.01
        budget.deposit()


def _idle(budget: RetryBudget, clock: _Clock) -> None:
    clock.now += 86_400.0


def _another_storm(budget: RetryBudget, clock: _Clock) -> None:
    _failing_calls(budget, clock, [clock.now] * 100, lambda: 0.5)
    clock.now += 120.0


@pytest.mark.parametrize("before", [_nothing, _healthy, _idle, _another_storm])
@pytest.mark.parametrize("over_seconds", [0.0, 1.0, 30.0])
@pytest.mark.parametrize("attempts", [3, 10])
def test_a_storm_stays_below_a_fifth_more(
    before: Callable[[RetryBudget, _Clock], None], over_seconds: float, attempts: int
) -> None:
    """A thousand calls that all fail make at most 1,200 attempts, the last late retry included, whatever was before."""
    clock = _Clock()
    budget = RetryBudget(clock=clock)
    before(budget, clock)
    starts = [clock.now + over_seconds * number / 1000 for number in range(1000)]
    retries = _failing_calls(budget, clock, starts, random.Random(1).random, attempts)
    assert retries <= 200
    # Those of one instant have what can be saved up.
    assert retries >= (50 if over_seconds == 0 else 150)


def test_a_twentieth_of_a_thousand_calls_at_once_is_retried() -> None:
    """The burst is as large as what an ordinary rate of faults may want in one instant."""
    budget = RetryBudget(clock=_Clock())
    for _ in range(1000):
        budget.deposit()
    assert 50.0 == budget.balance
    assert [True] * 50 + [False] == [budget.withdraw() for _ in range(51)]


def test_a_steady_share_of_faults_is_always_retried() -> None:
    """With one fault in eight, for hours: less than what the calls earn, so no retry is ever refused."""
    clock = _Clock()
    budget = RetryBudget(min_per_second=0.0, burst=10, clock=clock, over_operations=160)
    assert 0.1375 == pytest.approx(budget.earned)
    for number in range(20_000):
        budget.deposit()
        if number % 8 == 0:
            assert budget.withdraw()


def test_a_quiet_service_can_retry() -> None:
    """One call every four seconds, each failing: twice each at first, and still most of them once after an hour."""
    clock = _Clock()
    budget = RetryBudget(clock=clock)
    retries = []
    for _ in range(900):
        clock.now += 4.0
        budget.deposit()
        retries.append(budget.withdraw() + budget.withdraw())
    assert [2] * 20 == retries[:20]
    assert 0.9 < sum(retries[-100:]) / 100 < 1.0


@settings(max_examples=50, deadline=None)
@given(
    steps=st.lists(
        st.tuples(st.sampled_from([0.0, 0.01, 1.0, 7.0]), st.integers(0, 4), st.integers(0, 6)), min_size=1, max_size=25
    ),
    min_per_second=st.sampled_from([0.0, 0.05]),
)
def test_the_bound_holds_in_every_stretch(steps: list[tuple[float, int, int]], min_per_second: float) -> None:
    """As the docstring states it, for any schedule, from any moment to any later one."""
    clock = _Clock()
    budget = RetryBudget(0.5, min_per_second, 4.0, over_operations=20, clock=clock)
    rows = []
    for passing_seconds, operations, asked in steps:
        clock.now += passing_seconds
        for _ in range(operations):
            budget.deposit()
        rows.append((clock.now, operations, sum(budget.withdraw() for _ in range(asked))))
        assert 0 <= budget.balance <= 4.0
    for first in range(len(rows)):
        operations = retries = 0
        for now, began, granted in rows[first:]:
            operations += began
            retries += granted
            seconds = now - rows[first][0]
            assert retries <= budget.earned * operations + 4.0 + min_per_second * seconds + 1e-9
            if operations >= 20 and seconds <= 60:
                assert retries <= 0.5 * operations + 1e-9


def test_time_brings_tokens_up_to_the_burst() -> None:
    """Also without any call, and no more than can be saved up."""
    clock = _Clock()
    budget = RetryBudget(min_per_second=0.5, burst=4, clock=clock)
    assert [True] * 4 + [False] == [budget.withdraw() for _ in range(5)]
    clock.now += 3.0
    assert 1.5 == budget.balance
    clock.now += 1000.0
    assert 4.0 == budget.balance


def test_a_clock_that_is_set_back() -> None:
    """Brings nothing, and goes on bringing from there."""
    clock = _Clock()
    budget = RetryBudget(min_per_second=0.5, burst=4, clock=clock)
    for _ in range(4):
        budget.withdraw()
    clock.now -= 50.0
    assert 0.0 == budget.balance
    clock.now += 2.0
    assert 1.0 == budget.balance


def test_exhaustion_is_told_once() -> None:
    """A turn, not every refusal: again only after the bucket was half full."""
    clock = _Clock()
    told: list[float] = []
    budget = RetryBudget(
        min_per_second=0.5, burst=4, on_exhausted=lambda: told.append(clock.now), clock=clock, over_operations=500
    )
    for _ in range(8):
        budget.withdraw()
    assert [100.0] == told
    clock.now = 103.0
    assert [True, False] == [budget.withdraw(), budget.withdraw()]
    assert [100.0] == told
    clock.now = 107.0
    assert [True, True, False] == [budget.withdraw(), budget.withdraw(), budget.withdraw()]
    assert [100.0, 107.0] == told


def test_a_hook_that_raises_is_kept_away(metrics: Callable[..., Any]) -> None:
    """It is counted; the answer is the same."""

    def broken() -> None:
        raise LookupError

    budget = RetryBudget(burst=1, on_exhausted=broken, clock=_Clock())
    assert [True, False, False] == [budget.withdraw() for _ in range(3)]
    assert 1 == metrics("telemetry.faults", site="retry_budget.on_exhausted")


class _Sharer:
    """Something that shares a budget, for as long as it lives."""

    def __init__(self, told: list[str], name: str) -> None:
        self.told = told
        self.name = name

    def exhausted(self) -> None:
        self.told.append(self.name)
        if self.name == "broken":
            raise LookupError


def test_every_sharer_hears_of_exhaustion(metrics: Callable[..., Any]) -> None:
    """Once each, whoever asked, whatever another one makes of it; and those that are gone are let go."""
    clock = _Clock()
    told: list[str] = []
    budget = RetryBudget(burst=1, on_exhausted=lambda: told.append("maker"), clock=clock)
    sharers = [_Sharer(told, name) for name in ("broken", "second", "gone")]
    for sharer in sharers:
        budget.watch(sharer.exhausted)
    budget.watch(lambda: told.append("function"))
    del sharer, sharers[2:]
    gc.collect()
    assert [True, False, False] == [budget.withdraw() for _ in range(3)]
    assert ["maker", "broken", "second", "function"] == told
    assert 1 == metrics("telemetry.faults", site="retry_budget.on_exhausted")
    clock.now += 100.0
    assert [True, False] == [budget.withdraw() for _ in range(2)]
    assert 8 == len(told)


def test_shared_is_what_two_watch() -> None:
    """Who is alone need not make known what it pays, as little as one after the other, each gone before the next."""
    budget = RetryBudget(clock=_Clock())
    for _ in range(3):
        sharer = _Sharer([], "one")
        budget.watch(sharer.exhausted)
        del sharer
        gc.collect()
        assert not budget.is_shared
        assert enter_scope(budget) is None
    one, two = _Sharer([], "one"), _Sharer([], "two")
    budget.watch(one.exhausted)
    budget.watch(two.exhausted)
    del one, two
    assert budget.is_shared


def _shared() -> RetryBudget:
    budget = RetryBudget(burst=10, clock=_Clock())
    for _ in range(2):
        budget.watch(lambda: None)
    while budget.withdraw():
        pass
    return budget


def test_operations_inside_of_one_pay_nothing() -> None:
    """However deep, and whichever other budgets are in between; and again when it is over."""
    first, second = _shared(), _shared()
    assert enter_scope(None) is None
    leave_scope(None)
    outer = enter_scope(first)
    middle = enter_scope(second)
    assert (None, None) == (enter_scope(first), open_scope(second))
    leave_scope(middle)
    inner = open_scope(second)
    assert open_scope(second) is not None
    assert inner is not None
    with inner:
        assert open_scope(second) is None
    assert open_scope(second) is not None
    leave_scope(inner)
    leave_scope(outer)
    assert open_scope(first) is not None
    assert pytest.approx([2 * first.earned, 4 * second.earned]) == [first.balance, second.balance]


def test_what_an_operation_leaves_running_pays_for_itself() -> None:
    """Its context has a copy of what was paid; it would live on it for ever."""
    budget = _shared()
    outer = enter_scope(budget)
    context = copy_context()
    assert context.run(enter_scope, budget) is None
    leave_scope(outer)
    assert context.run(enter_scope, budget) is not None


def test_an_operation_that_ends_elsewhere() -> None:
    """A coroutine that dies with its loop is closed in whatever context the collection sets in."""
    budget = _shared()
    outer = copy_context().run(enter_scope, budget)
    leave_scope(outer)
    leave_scope(outer)
    assert open_scope(budget) is not None


@pytest.fixture
def _threads_switch_often() -> Iterator[None]:
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


@pytest.mark.usefixtures("_threads_switch_often")
def test_threads_share_one() -> None:
    """No token is lost between them, and none is given out twice."""

    class Slow(float):
        """Lets another thread take over whenever the budget reckons with it."""

        def __gt__(self, other: float) -> bool:
            time.sleep(0)
            return float(self) > other

        def __truediv__(self, other: float) -> float:
            time.sleep(0)
            return float(self) / other

    budget = RetryBudget(0.5, 0.0, Slow(1000.0), over_operations=4000, clock=_Clock())
    assert 0.25 == budget.earned
    while budget.withdraw():
        pass
    granted: list[int] = []
    lowest: list[float] = []

    def work() -> None:
        mine, low = 0, 1.0
        for _ in range(1000):
            budget.deposit()
            mine += budget.withdraw()
            low = min(low, budget.balance)
        granted.append(mine)
        lowest.append(low)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (1000, 0.0) == (sum(granted), budget.balance)
    assert 0.0 == min(lowest)


def test_a_burst_that_costs_more_than_the_ratio_allows() -> None:
    """Would break the promise of the ratio, so it is refused, with the sum that does not come out."""
    with pytest.raises(ConfigurationError, match=r"150 \+ 1 \* 60 must be < ratio \* over_operations = 200"):
        RetryBudget(burst=150, min_per_second=1.0)


def test_the_burst_follows_the_ratio() -> None:
    """A smaller ratio alone is a budget that works; its description says what came of it."""
    assert "RetryBudget(ratio=0.2, min_per_second=0.2, burst=50)" == repr(RetryBudget())
    assert "RetryBudget(ratio=0.05, min_per_second=0.2, burst=12.5)" == repr(RetryBudget(0.05))
    assert 1.0 == RetryBudget(1.0, 0.0, over_operations=2).burst
