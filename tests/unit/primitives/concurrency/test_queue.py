"""Who is next: shares by tier, order within a tier, and that nobody waits for ever."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from observability_integration.errors import ConfigurationError
from observability_integration.primitives.concurrency.queue import (
    LONGEST_WAIT,
    PRIORITIES,
    AdmissionQueue,
    Priority,
    tier_of,
)

pytestmark = pytest.mark.once


def waits(_: object) -> bool:
    return True


def test_tiers_share_the_turns_by_weight() -> None:
    """64 to 16 to 4 to 1, as documented, as long as all wait, and in the order of arrival within each."""
    queue: AdmissionQueue[tuple[int, int]] = AdmissionQueue()
    for number in range(200):
        for tier in range(4):
            queue.push((tier, number), tier)
    served = [queue.pop(waits) for _ in range(85)]
    counts = Counter(tier for tier, _ in filter(None, served))
    assert {0: 64, 1: 16, 2: 4, 3: 1} == counts
    for tier in range(4):
        assert list(range(counts[tier])) == [number for of, number in filter(None, served) if of == tier]


def test_of_those_who_come_at_once_the_higher_tier_is_first() -> None:
    """Weights decide how often, never against the order of the tiers at the start."""
    queue: AdmissionQueue[str] = AdmissionQueue()
    for priority in reversed(PRIORITIES):
        queue.push(priority, tier_of(priority))
    assert list(PRIORITIES) == [queue.pop(waits) for _ in range(4)]
    assert queue.pop(waits) is None


@pytest.mark.parametrize("priority", PRIORITIES)
def test_nobody_starves_beside_tiers_that_are_never_empty(priority: Priority) -> None:
    """The worst that others can do: they all wait all the time, and the tier has just had its turn."""
    queue: AdmissionQueue[str] = AdmissionQueue()
    for number in range(300):
        for other in PRIORITIES:
            queue.push(f"{other} {number}", tier_of(other))
    waited, longest = 0, 0
    for _ in range(300):
        served = queue.pop(waits)
        assert served is not None
        waited = 0 if served.split()[0] == priority else waited + 1
        longest = max(longest, waited)
    assert longest <= LONGEST_WAIT[priority]


def test_an_idle_tier_saves_nothing_up() -> None:
    """After a long time alone, one tier must not have to make up for what others never asked for."""
    queue: AdmissionQueue[str] = AdmissionQueue()
    for number in range(1000):
        queue.push(f"best_effort {number}", 3)
    for _ in range(990):
        queue.pop(waits)
    for number in range(100):
        queue.push(f"critical {number}", 0)
    served = [queue.pop(waits) for _ in range(100)]
    assert 1 == sum(waiter is not None and waiter.startswith("best_effort") for waiter in served)


def test_who_waits_no_longer_costs_the_tier_no_turn() -> None:
    """A crowd that was cancelled in one moment would otherwise hold its tier up for hundreds of turns."""
    queue: AdmissionQueue[int] = AdmissionQueue()
    for number in range(51):
        queue.push(number, 3)
    for number in range(100, 300):
        queue.push(number, 0)
    served = [queue.pop(lambda number: number >= 50) for _ in range(LONGEST_WAIT["best_effort"] + 1)]
    assert 50 in served


def test_sheds_the_youngest_of_the_lowest_tier_below() -> None:
    """Who has waited longest keeps the place, and nobody makes room for their own tier or a lower one."""
    queue: AdmissionQueue[str] = AdmissionQueue()
    for waiter, tier in (("low, first", 2), ("low, second", 2), ("high", 1)):
        queue.push(waiter, tier)
    assert queue.shed_below(3) is None
    assert queue.shed_below(2) is None
    assert "low, second" == queue.shed_below(0)
    assert "low, first" == queue.shed_below(1)
    assert queue.shed_below(1) is None
    assert "high" == queue.shed_below(0)
    assert 0 == queue.size


def test_counts_stay_true_whoever_is_taken_out() -> None:
    """Taken out twice, or all at once: the count and the depths say who is left."""
    queue: AdmissionQueue[int] = AdmissionQueue()
    for number in range(8):
        queue.push(number, number % 4)
    queue.remove(3, 3)
    queue.remove(3, 3)
    queue.drop(lambda number: number >= 5)
    assert {"critical": 2, "high": 1, "low": 1, "best_effort": 0} == queue.depths()
    assert 4 == queue.size


@settings(max_examples=80, deadline=None, derandomize=True)
@given(
    st.lists(st.one_of(st.integers(0, 3), st.sampled_from(["serve", "serve", "serve", "shed", "leave"])), max_size=200)
)
def test_the_first_of_a_tier_waits_for_a_bounded_number_of_turns(steps: list[int | str]) -> None:
    """Whoever comes, goes and is shed meanwhile; and within a tier nobody is overtaken."""
    queue: AdmissionQueue[tuple[int, int]] = AdmissionQueue()
    waiting: list[list[tuple[int, int]]] = [[], [], [], []]
    overtaken = [0, 0, 0, 0]
    bounds = [LONGEST_WAIT[priority] for priority in PRIORITIES]
    # In the end everybody is served, while the highest tier never ceases to come.
    for number, step in enumerate([*steps, *[0, "serve"] * 100, *["serve"] * 600]):
        if isinstance(step, int):
            queue.push((step, number), step)
            waiting[step].append((step, number))
        elif step == "serve":
            served = queue.pop(waits)
            assert (served is None) == (not any(waiting))
            if served is None:
                continue
            assert served == waiting[served[0]].pop(0)
            overtaken[served[0]] = 0
            for tier in range(4):
                overtaken[tier] = overtaken[tier] + 1 if waiting[tier] and tier != served[0] else 0
                assert overtaken[tier] <= bounds[tier]
        elif step == "shed":
            victim = queue.shed_below(0)
            assert victim == next((tier[-1] for tier in reversed(waiting[1:]) if tier), None)
            if victim is not None:
                waiting[victim[0]].pop()
        else:
            for tier, those in enumerate(waiting):
                if those:
                    queue.remove(those.pop(0), tier)
    assert 0 == queue.size


def test_an_unknown_priority_is_refused() -> None:
    """A misspelt tier would otherwise be noticed under load only."""
    with pytest.raises(ConfigurationError, match="critical, high, low, best_effort, got 'best-effort'"):
        tier_of("best-effort")  # type: ignore[arg-type]
