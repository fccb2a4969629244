"""The adaptive limit: what raises it, what lowers it, and what must leave it alone."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from observability_integration.errors import ConfigurationError
from observability_integration.resilience.aimd import Aimd

pytestmark = pytest.mark.once


class Clock:
    """Seconds that a test moves."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def succeed(limit: Aimd, times: int) -> None:
    for _ in range(times):
        limit.success(limit.limit, limit.round)


def test_grows_by_one_after_as_many_successes_as_the_limit() -> None:
    """Additive: one more a round, whatever the height, not one more for each success."""
    limit = Aimd(10)
    succeed(limit, 9)
    assert 10 == limit.limit
    succeed(limit, 1)
    assert 11 == limit.limit
    succeed(limit, 10)
    assert 11 == limit.limit
    succeed(limit, 1)
    assert 12 == limit.limit


def test_grows_by_more_when_asked_and_never_over_the_maximum() -> None:
    """A step that would go past the maximum ends at it."""
    limit = Aimd(10, increase=7, max_limit=20)
    succeed(limit, 10)
    assert 17 == limit.limit
    succeed(limit, 17)
    assert 20 == limit.limit
    succeed(limit, 100)
    assert 20 == limit.limit


def test_a_limit_that_is_not_used_does_not_grow() -> None:
    """Ten calls at a time say nothing about whether twenty-two would be borne; eleven of twenty-two are half."""
    limit = Aimd(22)
    for _ in range(1000):
        limit.success(10, limit.round)
    assert 22 == limit.limit
    for _ in range(22):
        limit.success(11, limit.round)
    assert 23 == limit.limit


def test_overload_lowers_by_a_tenth_and_by_one_at_least() -> None:
    """A tenth of less than ten is less than one call: it must go down all the same, to the minimum and no further."""
    clock = Clock()
    limit = Aimd(20, min_limit=2, clock=clock)
    heights = []
    for _ in range(20):
        limit.overload(limit.round)
        heights.append(limit.limit)
        clock.now += 1.0
    assert [18, 16, 14, 12, 10, 9, 8, 7, 6, 5, 4, 3, 2, 2, 2, 2, 2, 2, 2, 2] == heights


def test_one_burst_of_refusals_is_one_overload() -> None:
    """Twenty calls that are all told to come back later must not bring the limit to the floor."""
    clock = Clock()
    limit = Aimd(20, clock=clock)
    began = limit.round
    for _ in range(20):
        limit.overload(began)
    assert 18 == limit.limit
    clock.now += 60.0
    limit.overload(began)
    assert 18 == limit.limit, "a call from before the decrease, however late it fails"


def test_quick_failures_lower_it_once_in_a_window() -> None:
    """Calls that begin after the decrease and fail at once would otherwise lower it ten times a second."""
    clock = Clock()
    limit = Aimd(20, clock=clock, window_seconds=2.0)
    limit.overload(limit.round)
    clock.now += 1.75
    limit.overload(limit.round)
    assert 18 == limit.limit
    clock.now += 0.25
    limit.overload(limit.round)
    assert 16 == limit.limit


def test_success_of_a_call_from_before_a_decrease_is_no_news() -> None:
    """It was let in under a limit that is no longer in force; and the decrease starts the count anew."""
    limit = Aimd(10, clock=Clock())
    succeed(limit, 9)
    limit.overload(0)
    assert 9 == limit.limit
    for _ in range(100):
        limit.success(10, 0)
    succeed(limit, 8)
    assert 9 == limit.limit
    succeed(limit, 1)
    assert 10 == limit.limit


def test_moves_where_it_is_told_to_within_its_bounds() -> None:
    """An operator's word counts, and the search goes on from there."""
    limit = Aimd(10, min_limit=5, max_limit=50)
    succeed(limit, 9)
    limit.move_to(40)
    succeed(limit, 39)
    assert 40 == limit.limit
    for wrong in (4, 51, 10.0):
        with pytest.raises(ConfigurationError, match="limit"):
            limit.move_to(wrong)  # type: ignore[arg-type]


@settings(max_examples=50, deadline=None, derandomize=True)
@given(
    bounds=st.tuples(st.integers(1, 9), st.integers(0, 30)),
    ratio=st.floats(0.5, 0.99),
    turns=st.lists(st.tuples(st.booleans(), st.sampled_from([0.0, 0.4, 1.0])), max_size=60),
)
def test_stays_within_its_bounds_and_changes_in_whole_steps(
    bounds: tuple[int, int], ratio: float, turns: list[tuple[bool, float]]
) -> None:
    """Whatever happens: from minimum to maximum, up by one, down at most once a second."""
    clock = Clock()
    least, span = bounds
    limit = Aimd(least, min_limit=least, max_limit=least + span, decrease_ratio=ratio, clock=clock)
    lowered_at = -math.inf
    for good, seconds in turns:
        clock.now += seconds
        before = limit.limit
        if good:
            succeed(limit, before)
            assert limit.limit in {before + 1, least + span}
        else:
            limit.overload(limit.round)
            if limit.limit < before:
                assert clock.now - lowered_at >= 1.0
                lowered_at = clock.now
        assert least <= limit.limit <= least + span
