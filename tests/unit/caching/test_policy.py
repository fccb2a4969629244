"""A wrong knob must be refused where it is set, by name; at the first lookup it is too late."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from observability_integration.caching.policy import CachePolicy, check_cost, check_positive
from observability_integration.errors import ConfigurationError

_NOT_POSITIVE: list[Any] = [0, -1, -0.001, True, float("nan"), float("inf"), "1", None]


@pytest.mark.parametrize("knob", ["max_entries", "max_bytes", "max_value_bytes"])
@pytest.mark.parametrize("value", [*_NOT_POSITIVE, 1.5])
def test_bounds_are_integers_from_one(knob: str, value: Any) -> None:
    """A bound of 0 keeps nothing, and a fraction of an entry is a mistake."""
    with pytest.raises(ConfigurationError, match=knob):
        CachePolicy(**{knob: value})


@pytest.mark.parametrize("knob", ["backend_budget_seconds", "backend_retry_seconds", "backend_retry_max_seconds"])
@pytest.mark.parametrize("value", _NOT_POSITIVE)
def test_times_are_finite_and_positive(knob: str, value: Any) -> None:
    """An endless budget is exactly what the guard is there to prevent."""
    with pytest.raises(ConfigurationError, match=knob):
        CachePolicy(**{knob: value})


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
    with pytest.raises(ConfigurationError, match="knob must be a finite number of USD >= 0, got -1"):
        check_cost("knob", -1)
