"""Waits between attempts: too short, and a provider in trouble is hammered; too long, and the deadline has passed."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from observability_integration.resilience.backoff import Backoff, Jitter

pytestmark = pytest.mark.once

_MOST = math.nextafter(1.0, 0.0)


def _least() -> float:
    return 0.0


def _most() -> float:
    return _MOST


def test_the_ceiling_grows_to_its_highest() -> None:
    """Doubling from half a second to eight, which is what the waits lie below."""
    exactly = Backoff(jitter="none")
    assert [0.5, 1.0, 2.0, 4.0, 8.0, 8.0] == [exactly.delay(number) for number in range(1, 7)]


@pytest.mark.parametrize(("jitter", "least", "most"), [("full", 0.0, 2.0), ("equal", 1.0, 2.0), ("none", 2.0, 2.0)])
def test_kinds_of_jitter(jitter: Jitter, least: float, most: float) -> None:
    """Each has its range, and full jitter is the default."""
    backoff = Backoff(jitter=jitter)
    assert least == backoff.delay(3, _least)
    assert most == pytest.approx(backoff.delay(3, _most))
    assert "full" == Backoff().jitter


def test_full_jitter_spreads() -> None:
    """Seeded: a thousand waits lie evenly between nothing and the ceiling, so that a crowd does not return as one."""
    seeded = random.Random(5).random
    waits = [Backoff().delay(4, seeded) for _ in range(1000)]
    assert 2.0 == pytest.approx(sum(waits) / len(waits), abs=0.1)
    assert min(waits) < 0.1
    assert 3.9 < max(waits) <= 4.0


@pytest.mark.parametrize("number", [64, 1_100, 10**6, 10**400], ids=["64", "1100", "10**6", "10**400"])
@pytest.mark.parametrize("factor", [1.0, 2, 1e308])
def test_a_huge_retry_number_overflows_nothing(number: int, factor: float) -> None:
    """Who retries for ever gets there: the wait stays at its ceiling, at once, and no error is raised."""
    assert Backoff(jitter="none", factor=factor).delay(number) == (0.5 if factor == 1.0 else 8.0)


def test_before_the_first_retry_counts_as_the_first() -> None:
    """A number that does not exist gives no wait shorter than the first."""
    assert 0.5 == Backoff(jitter="none").delay(0) == Backoff(jitter="none").delay(-3)


def test_retry_after_is_the_least_that_is_waited() -> None:
    """And up to a tenth more, so that all who were told the same do not come back in the same instant."""
    backoff = Backoff()
    assert 2.0 == backoff.wait_for(1, 2.0, random=_least)
    assert 2.2 == pytest.approx(backoff.wait_for(1, 2.0, random=_most))
    assert 60.0 == backoff.wait_for(1, 60.0, random=_least)


def test_a_longer_backoff_is_kept() -> None:
    """A provider that says "0.2 s" for the fifth time is not asked every 0.2 s."""
    assert 8.0 == Backoff(jitter="none").wait_for(5, 0.2)


@pytest.mark.parametrize("no_wish", [None, 0.0, -1.0, math.nan])
def test_what_is_no_wish(no_wish: float | None) -> None:
    """A header that says nothing usable is as none."""
    assert 0.5 == Backoff(jitter="none").wait_for(1, no_wish)


@pytest.mark.parametrize("too_long", [60.1, 3600.0, math.inf])
def test_a_retry_after_that_is_too_long(too_long: float) -> None:
    """Another target, or an error, serves the caller better than to wait for an hour."""
    assert Backoff().wait_for(1, too_long) is None
    assert Backoff(max_retry_after_seconds=1.0).wait_for(1, 1.1) is None
    assert Backoff(max_retry_after_seconds=0).wait_for(1, 0.1) is None


def test_no_wait_reaches_the_deadline() -> None:
    """What is left must hold the wait and an attempt; if it does not, nobody waits for nothing."""
    backoff = Backoff(jitter="none")
    assert 0.5 == backoff.wait_for(1, None, 0.6)
    assert backoff.wait_for(1, None, 0.5) is None
    assert backoff.wait_for(1, 2.0, 2.0) is None
    assert backoff.wait_for(1, None, 0.0) is None
    assert backoff.wait_for(1, None, -1.0) is None


@settings(max_examples=100)
@given(
    number=st.integers(0, 10**6),
    retry_after=st.none() | st.floats(0.0, 100.0),
    remaining=st.none() | st.floats(-1.0, 100.0),
    seed=st.integers(0, 1000),
)
def test_a_wait_is_within_all_its_limits(
    number: int, retry_after: float | None, remaining: float | None, seed: int
) -> None:
    """Whatever is combined: never before the provider wants it, never at the deadline, never beyond both ceilings."""
    wait = Backoff().wait_for(number, retry_after, remaining, random.Random(seed).random)
    if wait is not None:
        assert (retry_after or 0.0) <= wait <= max(8.0, 1.1 * (retry_after or 0.0))
        assert remaining is None or wait < remaining
