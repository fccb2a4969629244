"""The policy of a cache: what its knobs come to, and that it stays as it is."""

from __future__ import annotations

import dataclasses

import pytest

from observability_integration.caching.policy import CachePolicy

pytestmark = pytest.mark.once


@pytest.mark.parametrize(
    "knob",
    [
        *("stale_while_revalidate_seconds", "stale_if_error_seconds", "stale_if_error_throttle_seconds", "ttl_jitter"),
        *("early_refresh_beta", "stream_replay_pace", "compress_above_bytes"),
    ],
)
def test_zero_switches_it_off(knob: str) -> None:
    """Where that means something: what is refused (tests/unit/test_knobs.py) begins below it."""
    assert 0 == getattr(CachePolicy(**{knob: 0}), knob)


def test_an_entry_is_kept_as_long_as_it_may_be_served() -> None:
    """The longer of the two windows; none by default."""
    assert 0.0 == CachePolicy().stale_seconds
    assert 5.0 == CachePolicy(stale_while_revalidate_seconds=5.0, stale_if_error_seconds=2.0).stale_seconds
    assert 7.0 == CachePolicy(stale_while_revalidate_seconds=5.0, stale_if_error_seconds=7.0).stale_seconds


def test_a_policy_cannot_be_changed() -> None:
    """It may be shared by many caches."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        CachePolicy().max_entries = 5  # type: ignore[misc]
