"""Lookup by meaning through the cache: after the exact match, within a scope, and only once it has proved itself."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from observability_integration.caching.semantic import SemanticLookup
from observability_integration.errors import ConfigurationError
from observability_integration.primitives import CachePrimitive

pytestmark = pytest.mark.promise("C16")

Request = dict[str, str]


def by_vowels(text: str) -> list[float]:
    """A stand-in for an embedder: two texts mean the same if they have the same vowels."""
    return [1.0, *(float(text.count(vowel)) for vowel in "aeiou")]


class Answers:
    """A call that says which question it answered."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def __call__(self, request: Request) -> str:
        self.asked.append(request["text"])
        return f"to {request['about']}"


def made(answers: Answers, lookup: SemanticLookup) -> CachePrimitive[Any, Any]:
    return CachePrimitive(
        answers,
        lambda request: [request["about"], request["text"]],
        operation_name="meaning",
        scope=lambda request: request.get("tenant", "one"),
        semantic=lookup,
        meaning_of=lambda request: (request["about"], request["text"]),
    )


def looking(**options: Any) -> SemanticLookup:
    return SemanticLookup(by_vowels, gates=(), run_in_thread=False, budget_seconds=5.0, audit_every=0, **options)


async def settled() -> None:
    """Until what was begun in the background has ended."""
    while others := asyncio.all_tasks() - {cast("asyncio.Task[Any]", asyncio.current_task())}:
        await asyncio.wait(others)


async def test_serves_the_answer_to_the_same_question_in_other_words() -> None:
    """The point of it: one call, and the second is a hit of a tier of its own."""
    answers = Answers()
    cache = made(answers, looking(mode="serve", require_evidence=False))
    assert "to x" == await cache.execute({"about": "x", "text": "how are you"})
    await settled()
    assert "to x" == await cache.execute({"about": "x", "text": "you are how"})
    assert ["how are you"] == answers.asked
    assert (1, 1) == (cache.get_stats()["hits"], cache.get_stats()["misses"])


async def test_never_across_a_scope_nor_across_what_else_the_answer_depends_on() -> None:
    """Another tenant, or another model, must never be given it."""
    answers = Answers()
    cache = made(answers, looking(mode="serve", require_evidence=False))
    await cache.execute({"about": "x", "text": "how are you"})
    await settled()
    await cache.execute({"about": "x", "text": "you are how", "tenant": "two"})
    await settled()
    await cache.execute({"about": "y", "text": "you are how"})
    await settled()
    assert 3 == len(answers.asked)


async def test_shadow_mode_measures_and_never_serves() -> None:
    """What would have been served is compared with what the call brings."""
    answers = Answers()
    lookup = looking(mode="shadow")
    cache = made(answers, lookup)
    for text in ("how are you", "you are how"):
        assert "to x" == await cache.execute({"about": "x", "text": text})
        await settled()
    assert 2 == len(answers.asked)
    assert 0 == cache.get_stats()["hits"]
    assert (1, 0) == (lookup.evidence.observations, lookup.evidence.false)


async def test_what_is_forgotten_is_found_no_more() -> None:
    """An invalidated answer must not come back in other words."""
    for forget in (lambda cache: cache.invalidate(["x", "how are you"]), lambda cache: cache.clear()):
        answers = Answers()
        cache = CachePrimitive(
            answers,
            lambda request: [request["about"], request["text"]],
            semantic=looking(mode="serve", require_evidence=False),
            meaning_of=lambda request: (request["about"], request["text"]),
        )
        await cache.execute({"about": "x", "text": "how are you"})
        await settled()
        await forget(cache)
        await cache.execute({"about": "x", "text": "you are how"})
        assert 2 == len(answers.asked)
        await settled()


async def test_a_function_that_raises_or_declines_leaves_the_exact_match() -> None:
    """The user's function must not fail the user's call."""

    def broken(request: Request) -> tuple[Any, str] | None:
        if request["text"] == "raises":
            raise KeyError("about")
        return None

    answers = Answers()
    cache = CachePrimitive(answers, lambda request: request["text"], semantic=looking(mode="serve"), meaning_of=broken)
    for text in ("raises", "declines", "raises"):
        assert "to x" == await cache.execute({"about": "x", "text": text})
    assert ["raises", "declines"] == answers.asked


def test_both_or_neither() -> None:
    """One without the other could do nothing, and would say nothing."""
    with pytest.raises(ConfigurationError, match="meaning_of"):
        CachePrimitive(Answers(), lambda request: request["text"], semantic=looking())


@pytest.mark.parametrize("text", [None, "", " \n"], ids=repr)
async def test_inputs_without_a_text_have_no_meaning(text: str | None) -> None:
    """They would all have the same, and each caller would get the answer of the first."""
    answers = Answers()
    cache = CachePrimitive[Any, Any](
        answers,
        lambda request: request["about"],
        semantic=looking(mode="serve", require_evidence=False),
        meaning_of=lambda request: ("all else", text),
    )
    assert "to x" == await cache.execute({"about": "x", "text": "one"})
    await settled()
    assert "to y" == await cache.execute({"about": "y", "text": "another"})
