"""A wrong knob must be refused where it is set, by name; at the first lookup it is too late."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from observability_integration.caching.policy import AdaptiveTtl, CachePolicy, check_cost, check_positive
from observability_integration.errors import ConfigurationError

pytestmark = pytest.mark.once

_NOT_POSITIVE: list[Any] = [0, -1, -0.001, True, float("nan"), float("inf"), "1", None]


@pytest.mark.parametrize("knob", ["max_entries", "max_bytes", "max_value_bytes", "max_refreshes"])
@pytest.mark.parametrize("value", [*_NOT_POSITIVE, 1.5])
def test_bounds_are_integers_from_one(knob: str, value: Any) -> None:
    """A bound of 0 keeps nothing, and a fraction of an entry is a mistake."""
    with pytest.raises(ConfigurationError, match=knob):
        CachePolicy(**{knob: value})


@pytest.mark.parametrize(
    "knob",
    [
        *("backend_budget_seconds", "backend_retry_seconds", "backend_retry_max_seconds"),
        *("background_seconds", "lease_seconds"),
    ],
)
@pytest.mark.parametrize("value", _NOT_POSITIVE)
def test_times_are_finite_and_positive(knob: str, value: Any) -> None:
    """An endless budget is exactly what the guard is there to prevent."""
    with pytest.raises(ConfigurationError, match=knob):
        CachePolicy(**{knob: value})


@pytest.mark.parametrize("knob", ["soft_timeout_seconds", "hard_timeout_seconds"])
@pytest.mark.parametrize("value", [value for value in _NOT_POSITIVE if value is not None])
def test_limits_are_finite_and_positive_or_none(knob: str, value: Any) -> None:
    """A limit of 0 would let nobody wait for anything."""
    with pytest.raises(ConfigurationError, match=knob):
        CachePolicy(**{knob: value})


@pytest.mark.parametrize(
    "knob",
    [
        *("stale_while_revalidate_seconds", "stale_if_error_seconds", "stale_if_error_throttle_seconds"),
        *("early_refresh_beta", "stream_replay_pace", "compress_above_bytes"),
    ],
)
@pytest.mark.parametrize("value", [-1, True, float("nan"), float("inf"), "1"])
def test_windows_are_finite_and_not_negative(knob: str, value: Any) -> None:
    """Zero is off; for ever is not to be had by mistake."""
    CachePolicy(**{knob: 0})
    with pytest.raises(ConfigurationError, match=knob):
        CachePolicy(**{knob: value})


@pytest.mark.parametrize("knob", ["ttl_jitter", "eager_refresh"])
@pytest.mark.parametrize("value", [-0.1, 1, 1.5, 80, True, float("nan"), "0.8"])
def test_fractions_are_fractions(knob: str, value: Any) -> None:
    """80 is not 80 %; and a jitter of 1 would let entries expire at once."""
    with pytest.raises(ConfigurationError, match=knob):
        CachePolicy(**{knob: value})


def test_an_eager_refresh_is_never_at_once() -> None:
    """Each hit would make a call; None is off."""
    with pytest.raises(ConfigurationError, match="eager_refresh"):
        CachePolicy(eager_refresh=0.0)
    assert CachePolicy(ttl_jitter=0.0).eager_refresh is None


def test_the_soft_limit_is_not_beyond_the_hard_one() -> None:
    """It would never be reached."""
    with pytest.raises(ConfigurationError, match="soft_timeout_seconds must not be greater"):
        CachePolicy(soft_timeout_seconds=2.0, hard_timeout_seconds=1.0)
    CachePolicy(soft_timeout_seconds=1.0, hard_timeout_seconds=2.0)


def test_an_entry_is_kept_as_long_as_it_may_be_served() -> None:
    """The longer of the two windows; none by default."""
    assert 0.0 == CachePolicy().stale_seconds
    assert 5.0 == CachePolicy(stale_while_revalidate_seconds=5.0, stale_if_error_seconds=2.0).stale_seconds
    assert 7.0 == CachePolicy(stale_while_revalidate_seconds=5.0, stale_if_error_seconds=7.0).stale_seconds


@pytest.mark.parametrize("value", [0, -1, True, 1.5, "20"])
def test_an_adaptive_ttl_has_seen_something_first(value: Any) -> None:
    """And its bounds are times, in order."""
    with pytest.raises(ConfigurationError, match="min_lookups"):
        AdaptiveTtl(min_lookups=value)
    with pytest.raises(ConfigurationError, match="min_seconds must not be greater"):
        AdaptiveTtl(min_seconds=2.0, max_seconds=1.0)
    for knob in ("min_seconds", "max_seconds"):
        with pytest.raises(ConfigurationError, match=knob):
            AdaptiveTtl(**{knob: 0})


def test_the_longest_retry_is_not_the_shorter_one() -> None:
    """The two are easily confused, and the result would be one constant pause."""
    with pytest.raises(ConfigurationError, match="backend_retry_max_seconds"):
        CachePolicy(backend_retry_seconds=2.0, backend_retry_max_seconds=1.0)


def test_a_policy_cannot_be_changed() -> None:
    """It may be shared by many caches."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        CachePolicy().max_entries = 5  # type: ignore[misc]


def test_checks_let_right_values_pass() -> None:
    """A free call costs 0; a TTL of a fraction of a second is short, not wrong."""
    check_positive("knob", 0.001)
    check_cost("knob", 0)
    with pytest.raises(ConfigurationError, match=r"knob \(USD\) must be a finite number >= 0, got -1"):
        check_cost("knob", -1)
