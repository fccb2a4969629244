"""Serving starts on this bound alone: it must hold, also for those who look at it after every observation."""

from __future__ import annotations

import random
from typing import Any

import pytest

from observability_integration.caching.semantic import Evidence
from observability_integration.errors import ConfigurationError

pytestmark = pytest.mark.once


def test_nothing_is_known_at_first() -> None:
    """Without observations, or with false ones only, any rate is possible."""
    evidence = Evidence()
    assert 1.0 == evidence.upper_bound
    evidence.add(false=True)
    assert 1.0 == evidence.upper_bound


@pytest.mark.parametrize(("false", "needed"), [(0, 409), (1, 705)])
def test_how_much_evidence_one_percent_takes(false: int, needed: int) -> None:
    """The documented figures, which tell users how long the shadow mode will last."""
    assert Evidence(needed - 1, false).upper_bound > 0.01 >= Evidence(needed, false).upper_bound


def test_the_bound_follows_the_counts() -> None:
    """Each observation moves it the right way, and it is never below what was seen."""
    evidence = Evidence(500, 5)
    before = evidence.upper_bound
    evidence.add(false=True)
    worse = evidence.upper_bound
    evidence.add(false=False)
    assert worse > before
    assert worse > evidence.upper_bound > 6 / 502
    assert (502, 6) == (evidence.observations, evidence.false)
    evidence.reset()
    assert (0, 0, 1.0) == (evidence.observations, evidence.false, evidence.upper_bound)


def test_more_confidence_asks_for_more() -> None:
    """The bound is wider the surer it must be; past what a float can tell from 1, it is 1."""
    assert Evidence(1000, 999, confidence=1 - 1e-15).upper_bound == 1.0
    assert Evidence(500, 1, confidence=0.99).upper_bound > Evidence(500, 1, confidence=0.9).upper_bound


def test_the_bound_holds_for_those_who_keep_looking() -> None:
    """Looked at again and again, it falls below the truth in 5 % of the runs at most, not ever more often."""
    chance = random.Random(7)
    wrong = 0
    for _ in range(60):
        evidence = Evidence()
        for number in range(1, 1501):
            evidence.add(false=chance.random() < 0.02)
            if not number % 10 and evidence.upper_bound < 0.02:
                wrong += 1
                break
    assert wrong <= 3


@pytest.mark.parametrize(
    "wrong",
    [
        {"observations": -1},
        {"observations": 1.5},
        {"observations": 1, "false": 2},
        {"observations": 1, "false": True},
        {"confidence": 0.0},
        {"confidence": 1.0},
    ],
)
def test_wrong_numbers_are_refused(wrong: dict[str, Any]) -> None:
    """Evidence that cannot be must not open the door."""
    with pytest.raises(ConfigurationError):
        Evidence(**wrong)
