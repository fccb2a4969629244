"""How long an entry lives, and how a TTL adapts, is arithmetic that users must be able to follow."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from observability_integration.caching.codec import Codec
from observability_integration.caching.entry import Entry
from observability_integration.caching.freshness import Freshness, TtlAdapter
from observability_integration.caching.policy import AdaptiveTtl, CachePolicy

pytestmark = pytest.mark.once

_KEPT = Codec().keep("value", None, 1000)


def _freshness(ttl_seconds: float = 10.0, **policy: Any) -> Freshness:
    return Freshness(CachePolicy(**{"ttl_jitter": 0.0, **policy}), ttl_seconds)


def _entry(**times: Any) -> Entry:
    return Entry(
        **{"kept": _KEPT, "created": 0.0, "fresh_until": 10.0, "expired_at": 10.0, "usable_until": 30.0, **times}
    )


def test_an_entry_is_kept_for_the_longer_window() -> None:
    """Beyond its TTL, or beyond the one that the call chose."""
    freshness = _freshness(stale_if_error_seconds=5.0, stale_while_revalidate_seconds=20.0)
    assert freshness.lifetime(None) == (10.0, 30.0)
    assert freshness.lifetime(2.0) == (2.0, 22.0)
    assert 30.0 == freshness.max_lifetime_seconds
    assert _freshness().lifetime(None) == (10.0, 10.0)


@given(
    ttl_seconds=st.floats(0.001, 1e9),
    jitter=st.floats(0.0, 0.999),
    stale_seconds=st.floats(0.0, 1e6),
    seed=st.integers(),
)
def test_jitter_never_lengthens_a_life(ttl_seconds: float, jitter: float, stale_seconds: float, seed: int) -> None:
    """Nor takes more than its fraction; the time to serve it stale begins when it has expired."""
    random.seed(seed)
    fresh, usable = _freshness(ttl_seconds, ttl_jitter=jitter, stale_if_error_seconds=stale_seconds).lifetime(None)
    assert ttl_seconds * (1 - jitter) <= fresh <= ttl_seconds
    assert fresh + stale_seconds == usable


def test_jitter_spreads() -> None:
    """Seeded: a thousand lives lie evenly in the fraction that they may be cut by."""
    random.seed(3)
    freshness = _freshness(100.0, ttl_jitter=0.2)
    lives = [freshness.lifetime(None)[0] for _ in range(1000)]
    assert 90.0 == pytest.approx(sum(lives) / len(lives), abs=0.5)
    assert 80.0 < min(lives) < 80.5
    assert 99.5 < max(lives) <= 100.0


def test_windows_begin_where_the_ttl_ended() -> None:
    """Not where a throttle did, which may have had the entry served for longer."""
    freshness = _freshness(stale_if_error_seconds=5.0, stale_while_revalidate_seconds=20.0)
    entry = _entry(fresh_until=14.0)
    assert [True, True, False] == [freshness.may_serve_if_error(entry, now) for now in (10.0, 14.9, 15.0)]
    assert [True, True, False] == [freshness.may_revalidate(entry, now) for now in (10.0, 29.9, 30.0)]


def test_refreshes_are_due_when_they_are_said_to_be() -> None:
    """At a fraction of the lifetime, or never."""
    assert (math.inf, False) == (_freshness().refresh_after(10.0), _freshness().refreshes_early)
    freshness = _freshness(eager_refresh=0.8)
    assert (8.0, True) == (freshness.refresh_after(10.0), freshness.refreshes_early)
    entry = _entry(refresh_at=8.0)
    assert [False, True] == [freshness.is_due(entry, now) for now in (7.9, 8.0)]
    assert not freshness.is_due(_entry(), 9.9)


@pytest.mark.parametrize(
    ("drawn", "now", "due"),
    [
        (0.0, 9.999, False),
        (1 - math.exp(-1), 7.99, False),
        (1 - math.exp(-1), 8.01, True),
        (1 - math.exp(-3), 4.01, True),
        (1 - 2**-53, 0.0, True),
    ],
)
def test_an_early_refresh_goes_by_the_length_of_the_call(
    monkeypatch: pytest.MonkeyPatch, drawn: float, now: float, due: bool
) -> None:
    """Now - delta * beta * ln(u) >= expiry: with delta = 1 s and beta = 2, u = 1/e is 2 s ahead; no draw fails."""
    monkeypatch.setattr(random, "random", lambda: drawn)
    freshness = _freshness(early_refresh_beta=2.0)
    assert freshness.refreshes_early
    long_call = _entry(compute_seconds=50.0) if drawn == 1 - 2**-53 else _entry(compute_seconds=1.0)
    assert due is freshness.is_due(long_call, now)


class _Traffic:
    """Lookups as an adapter hears of them."""

    def __init__(self, ttl_seconds: float, **bounds: Any) -> None:
        self.freshness = _freshness(ttl_seconds)
        self.adapter = TtlAdapter(AdaptiveTtl(**bounds), self.freshness)

    def see(self, hits: int, misses: int, age_seconds: float) -> tuple[float, str]:
        """The TTL after so many lookups, and why it is what it is."""
        for _ in range(hits):
            self.adapter.hit(age_seconds)
        for _ in range(misses):
            self.adapter.miss()
        return self.freshness.ttl_seconds, self.adapter.reason


@pytest.mark.parametrize(
    ("ttl_seconds", "hits", "age_seconds", "adapted", "reason"),
    [
        (1000.0, 11, 100.0, 300.0, "hit young and often: hit rate 0.55, mean age at hit 100.0s of 1000s"),
        (1000.0, 10, 100.0, 1000.0, "configured"),  # not often
        (1000.0, 15, 200.0, 1000.0, "configured"),  # not young
        (1000.0, 12, 700.0, 1400.0, "hit late and seldom: hit rate 0.60, mean age at hit 700.0s of 1000s"),
        (1000.0, 14, 700.0, 1000.0, "configured"),  # not seldom
        (1000.0, 10, 600.0, 1000.0, "configured"),  # not late
        (1000.0, 5, 900.0, 500.0, "hardly ever hit: hit rate 0.25, mean age at hit 900.0s of 1000s"),
        (1000.0, 0, 0.0, 500.0, "hardly ever hit: hit rate 0.00, mean age at hit 0.0s of 1000s"),
        (1000.0, 12, 605.0, 1210.0, "hit late and seldom: hit rate 0.60, mean age at hit 605.0s of 1000s"),
        (70.0, 20, 1.0, 70.0, "configured"),  # to 60 s, which is less than a fifth away
        (90.0, 20, 1.0, 60.0, "hit young and often: hit rate 1.00, mean age at hit 1.0s of 90s"),
        (60_000.0, 12, 50_000.0, 86_400.0, "hit late and seldom: hit rate 0.60, mean age at hit 50000.0s of 60000s"),
    ],
)
def test_the_rule_of_the_adaptive_ttl(
    ttl_seconds: float, hits: int, age_seconds: float, adapted: float, reason: str
) -> None:
    """Every twenty lookups: three mean ages, two, or half; within the bounds; never by a fifth or less."""
    assert (adapted, reason) == _Traffic(ttl_seconds).see(hits, 20 - hits, age_seconds)


def test_nothing_changes_before_enough_was_seen() -> None:
    """And each change is followed by as many lookups before the next."""
    traffic = _Traffic(1000.0, min_lookups=5)
    assert 1000.0 == traffic.see(0, 4, 0.0)[0]
    assert 500.0 == traffic.see(0, 1, 0.0)[0]
    assert 500.0 == traffic.see(0, 4, 0.0)[0]
    assert 250.0 == traffic.see(0, 1, 0.0)[0]


@given(
    lookups=st.lists(st.one_of(st.none(), st.floats(0.0, 1e7)), max_size=300),
    ttl_seconds=st.floats(1.0, 1e6),
    low=st.floats(1.0, 1000.0),
    factor=st.floats(1.0, 1000.0),
)
def test_an_adapted_ttl_stays_within_its_bounds(
    lookups: list[float | None], ttl_seconds: float, low: float, factor: float
) -> None:
    """Whatever comes: it is either the one configured, or within them."""
    traffic = _Traffic(ttl_seconds, min_seconds=low, max_seconds=low * factor, min_lookups=10)
    for age in lookups:
        if age is None:
            traffic.adapter.miss()
        else:
            traffic.adapter.hit(age)
        ttl = traffic.freshness.ttl_seconds
        assert ttl == ttl_seconds or low <= ttl <= low * factor
        assert (ttl == ttl_seconds) == (traffic.adapter.reason == "configured") or traffic.adapter.reason
