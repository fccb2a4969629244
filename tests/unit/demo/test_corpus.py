from __future__ import annotations

from collections import Counter

import pytest

from observability_integration.demo.corpus import corpus_answers, load_corpus, normalise_prompt

pytestmark = pytest.mark.once

TOPICS = {
    "everyday": 10, "math": 15, "code": 15, "extraction": 8, "summary": 8, "translation": 10, "languages": 20,
    "history": 10, "science": 10, "medicine": 6, "law": 6, "cooking": 8, "travel": 8, "writing": 8, "planning": 8,
    "logic": 8, "sql": 8, "shell": 8, "regex": 8, "support": 8, "short": 8, "long": 10,
}  # fmt: skip


def test_the_corpus_is_large_and_spread_over_the_topics() -> None:
    """A demonstration on a handful of prompts, or on one kind of them, would say nothing about real traffic."""
    corpus = load_corpus()
    per_topic = Counter(entry.topic for entry in corpus)

    assert len(corpus) >= 240
    assert set(TOPICS) == set(per_topic)
    assert [] == [topic for topic, least in TOPICS.items() if per_topic[topic] < least]


def test_ids_and_prompts_are_unique() -> None:
    """The provider finds an answer by its normalised prompt, so two entries with one prompt would hide each other."""
    corpus = load_corpus()

    assert len(corpus) == len({entry.id for entry in corpus})
    assert len(corpus) == len({normalise_prompt(entry.prompt).casefold() for entry in corpus})


def test_every_entry_is_complete_and_within_its_bounds() -> None:
    """A blank answer or a difficulty of 7 would only show up as a strange figure in the report."""
    for entry in load_corpus():
        assert entry.id.startswith(f"{entry.topic}-"), entry.id
        assert 0.0 <= entry.difficulty <= 1.0, entry.id
        assert entry.prompt.strip() == entry.prompt != "", entry.id
        assert entry.answer.strip() == entry.answer != "", entry.id
        assert 1 <= len(entry.answer.split()) <= 200, entry.id


def test_difficulty_separates_the_easy_from_the_hard() -> None:
    """A router is judged against these values; all of them in the middle would make every router look right."""
    values = [entry.difficulty for entry in load_corpus()]

    assert sum(value <= 0.3 for value in values) >= 60
    assert sum(value >= 0.7 for value in values) >= 30


def test_long_and_short_prompts_are_what_their_topic_says() -> None:
    """The length of the prompt is what these two topics are in the corpus for."""
    words = {entry.id: (entry.topic, len(entry.prompt.split())) for entry in load_corpus()}

    assert [] == [id_ for id_, (topic, count) in words.items() if topic == "long" and count < 300]
    assert [] == [id_ for id_, (topic, count) in words.items() if topic == "short" and count > 10]


def test_other_scripts_survive_the_file() -> None:
    """A corpus read with the platform's encoding would turn these into question marks without any error."""
    text = "".join(entry.answer for entry in load_corpus())

    assert [] == [sample for sample in ("富士山", "Дніпро", "यमुना", "آسيا", "서울", "é") if sample not in text]


def test_the_corpus_is_read_once_and_cannot_be_changed() -> None:
    """Every request asks for it: reading it each time would be slow, and a change would reach every later answer."""
    entry = load_corpus()[0]

    assert load_corpus() is load_corpus()
    with pytest.raises(AttributeError):
        entry.answer = "changed"  # type: ignore[misc]
    with pytest.raises(TypeError):
        corpus_answers()[entry.prompt] = "changed"  # type: ignore[index]


def test_answers_are_found_whatever_the_white_space() -> None:
    """Clients re-wrap prompts; the same question with other line breaks is the same question."""
    entry = next(entry for entry in load_corpus() if entry.id == "code-003")

    assert entry.answer == corpus_answers()[normalise_prompt("\n  " + entry.prompt.replace(" ", " \t ") + " ")]
