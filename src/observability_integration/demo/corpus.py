"""The questions of the demonstration, each with a correct answer.

The local provider answers from the corpus, so an answer that passed through cache and router can be checked word for
word.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from importlib import resources
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping


@dataclass(frozen=True, slots=True)
class CorpusEntry:
    """One question and its answer.

    Attributes:
        id: topic and number, e.g. ``math-001``.
        topic: kind of task, e.g. ``sql``.
        difficulty: difficulty for a small model, from 0.0 (any model gets it right) to 1.0 (most get it wrong);
            a judgement of the authors, not a measurement.
        prompt: the user message.
        answer: a correct answer.
    """

    id: str
    topic: str
    difficulty: float
    prompt: str
    answer: str


def normalise_prompt(prompt: str) -> str:
    """Returns the prompt with each run of white space replaced by one space, and none at either end."""
    return " ".join(prompt.split())


@functools.cache
def load_corpus() -> tuple[CorpusEntry, ...]:
    """Reads the corpus that ships with the package, once per process."""
    text = resources.files("observability_integration.demo").joinpath("corpus.json").read_text(encoding="utf-8")
    return tuple(CorpusEntry(**entry) for entry in json.loads(text))


@functools.cache
def corpus_answers() -> Mapping[str, str]:
    """Returns the answers by normalised prompt (see `normalise_prompt`)."""
    return MappingProxyType({normalise_prompt(entry.prompt): entry.answer for entry in load_corpus()})
