from __future__ import annotations

import random

import pytest

from observability_integration.demo.chat_answer import Pace, answer_to
from observability_integration.demo.corpus import load_corpus
from observability_integration.demo.model_profiles import DEFAULT_PROFILES

pytestmark = pytest.mark.once

SMALL = DEFAULT_PROFILES[0]


async def test_the_same_seed_gives_the_same_latencies_and_another_seed_others() -> None:
    """A demonstration that is run again must show the same picture."""

    def latencies(seed: int) -> list[float]:
        dice = random.Random(seed)
        return [Pace(SMALL, 1.0, dice).first_token_seconds for _ in range(5)]

    assert latencies(7) == latencies(7)
    assert latencies(7) != latencies(8)
    assert 5 == len(set(latencies(7)))


async def test_jitter_stays_within_its_fraction_and_time_is_scaled() -> None:
    """Both latencies are the profile's, times the scale, give or take the jitter."""
    dice = random.Random(7)
    paces = [Pace(SMALL, 0.1, dice) for _ in range(200)]
    low, high = 0.1 * (1 - SMALL.jitter_fraction), 0.1 * (1 + SMALL.jitter_fraction)

    assert all(low <= pace.first_token_seconds / SMALL.first_token_seconds <= high for pace in paces)
    assert all(low <= pace.seconds_per_token / SMALL.seconds_per_token <= high for pace in paces)


def test_a_question_of_the_corpus_gets_its_answer_whatever_the_white_space() -> None:
    """What the corpus says is what callers compare with."""
    entry = load_corpus()[0]

    assert entry.answer == answer_to(f"  {entry.prompt}\n")


def test_any_other_question_gets_one_sentence_that_depends_on_it_alone() -> None:
    """The same question always has the same answer, and two questions can be told apart by theirs."""
    assert answer_to("What is  new?") == answer_to("What is new?")
    assert answer_to("What is new?") != answer_to("What is old?")
    assert "3 words" in answer_to("What is new?")
    assert "\ud800" not in answer_to("\ud800")
