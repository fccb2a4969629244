"""Semantic lookup must be harmless first: off by default, never across scopes, never late, never a raised error."""

from __future__ import annotations

import asyncio
import contextlib
import math
import re
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from observability_integration.caching.semantic import (
    Candidate,
    Evidence,
    Gate,
    Match,
    MemoryIndex,
    SemanticLookup,
    same_text,
)
from observability_integration.context import Deadline, reset_deadline, set_deadline
from observability_integration.errors import ConfigurationError
from observability_integration.testing import FakeClockLoop

pytest.importorskip("numpy")
LOOP_FACTORY = FakeClockLoop

ASKED = "How do I reset my password?"
REWORDED = "How can I reset my password, please?"
NEGATED = "How do I not reset my password?"


async def same(text: str) -> list[float]:
    """An embedder to which everything is the same."""
    return [1.0, 0.0]


def serving(embed: Any = same, **knobs: Any) -> SemanticLookup:
    return SemanticLookup(embed, mode="serve", require_evidence=False, audit_every=0, **knobs)


class _Spy:
    """An index that notes what it is given."""

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self.candidate: Candidate | None = None

    async def nearest(self, scope: str, vector: Sequence[float]) -> Candidate | None:
        self.seen.append(("nearest", scope, vector))
        return self.candidate

    async def add(self, scope: str, name: str, vector: Sequence[float], traces: tuple[bytes, ...]) -> None:
        self.seen.append(("add", scope, name, vector, traces))

    async def remove(self, name: str) -> None:
        self.seen.append(("remove", name))

    async def clear(self, scope: str | None = None) -> None:
        self.seen.append(("clear", scope))


@contextlib.asynccontextmanager
async def deadline_in(seconds: float) -> AsyncIterator[None]:
    token = set_deadline(Deadline.after(seconds))
    try:
        yield
    finally:
        reset_deadline(token)


async def test_off_by_default() -> None:
    """It does nothing, keeps nothing, and needs no numpy, until asked for."""
    asked: list[str] = []
    lookup = SemanticLookup(lambda text: [float(not asked.append(text))])
    await lookup.learn("s", ASKED, "name")
    assert await lookup.find("s", ASKED) is None
    await lookup.forget("name")
    await lookup.clear()
    assert [] == asked
    assert "off" == lookup.mode
    assert not lookup.serving
    assert 0 == lookup.stats()["lookups"]


async def test_finds_what_was_learned() -> None:
    """The same question in other words is found, another question is not, however near its vector is."""
    lookup = serving()
    assert await lookup.find("s", ASKED) is None
    await lookup.learn("s", ASKED, "name")
    assert Match("name", 1.0, serve=True) == await lookup.find("s", REWORDED)
    assert await lookup.find("s", NEGATED) is None
    stats = lookup.stats()
    assert (3, 1, 1) == (stats["lookups"], stats["matches"], stats["served"])
    assert {"negation": 1} == stats["refused"]
    await lookup.forget("name")
    assert await lookup.find("s", REWORDED) is None
    await lookup.learn("s", ASKED, "name")
    await lookup.clear()
    assert await lookup.find("s", REWORDED) is None
    assert {} == lookup.stats()["lost"]


async def test_the_threshold_holds() -> None:
    """Cosine: the length of a vector says nothing, a hair below the threshold is below."""
    vectors = {ASKED: [3.0, 4.0], REWORDED: [0.6, 0.9], "How would I reset my password?": [4.0, 3.0]}

    async def embed(text: str) -> list[float]:
        return vectors[text]

    lookup = serving(embed, threshold=0.97)
    await lookup.learn("s", ASKED, "name")
    found = await lookup.find("s", REWORDED)
    assert found is not None
    assert pytest.approx((0.6 * 3 + 0.9 * 4) / 5 / math.hypot(0.6, 0.9)) == found.similarity
    assert await lookup.find("s", "How would I reset my password?") is None  # 0.96


async def test_only_the_nearest_is_asked() -> None:
    """What is behind a refused look-alike differs in more: it passes the gates more easily, and is right less often."""
    lookup = serving(_by_negation)
    await lookup.learn("s", NEGATED, "look-alike")
    await lookup.learn("s", ASKED, "behind")
    assert await lookup.find("s", REWORDED) is None
    assert {"negation": 1} == lookup.stats()["refused"]


async def _by_negation(text: str) -> list[float]:
    return [1.0, 0.0] if text in {NEGATED, REWORDED} else [1.0, 0.01]


async def test_a_similarity_that_is_no_number_matches_nothing() -> None:
    """An index of another make may compute one."""
    index = _Spy()
    gates = (Gate("none", lambda prompt: []),)
    lookup = serving(index=index, gates=gates)
    for similarity, found in ((math.nan, None), (1.0000002, 1.0), (0.95, 0.95), (-1.0, None)):
        index.candidate = Candidate("name", similarity, (b"",))
        match = await lookup.find("s", "a")
        assert found == (match.similarity if match else None)


async def test_the_index_sees_no_prompt() -> None:
    """Scopes are hashed with a key, traces are keyed hashes: nothing readable is kept, nor could be guessed."""
    index = _Spy()
    lookup = serving(index=index)
    await lookup.learn("tenant Smith", "Who is Smith, 35?", "name")
    await lookup.find("tenant Smith", "Who is Smith, 35?")
    seen = repr(index.seen).lower()
    assert not re.search(r"smith|who|\b35\b", seen)
    assert index.seen[0][1] == index.seen[1][1]
    other = serving(index=_Spy(), secret=b"another")
    await other.learn("tenant Smith", "Who is Smith, 35?", "name")
    spy: Any = other._index
    assert spy.seen[0][1] != index.seen[0][1]
    assert spy.seen[0][4] != index.seen[0][4]


async def test_processes_that_share_a_key_share_an_index() -> None:
    """Which is what the key is for; with other gates, or another key, they find nothing of each other."""
    index = MemoryIndex()
    await serving(index=index, secret=b"shared").learn("s", ASKED, "name")
    assert await serving(index=index, secret=b"shared").find("s", REWORDED)
    assert await serving(index=index, secret=b"other").find("s", REWORDED) is None
    ungated = serving(index=index, secret=b"shared", gates=())
    assert await ungated.find("s", REWORDED) is None
    assert {} == ungated.stats()["lost"]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.text(max_size=4), st.text(max_size=4)), min_size=1, max_size=6), st.text(max_size=4))
def test_no_two_scopes_ever_match(learned: list[tuple[str, str]], scope: str) -> None:
    """With an embedder and gates to which everything is the same, only the scope keeps tenants apart."""

    async def run() -> None:
        lookup = serving(gates=())
        for number, (where, text) in enumerate(learned):
            await lookup.learn(where, text, f"{where} {number}")
        found = await lookup.find(scope, "anything")
        if scope in {where for where, _ in learned}:
            assert found is not None
            assert found.name.startswith(f"{scope} ")
        else:
            assert found is None

    with asyncio.Runner(loop_factory=FakeClockLoop) as runner:
        runner.run(run())


async def test_late_is_no_candidate() -> None:
    """The call goes on when the budget is spent; what was asked for is cancelled."""
    cancelled: list[str] = []

    async def embed(text: str) -> list[float]:
        try:
            await asyncio.sleep(1.0)
        except asyncio.CancelledError:
            cancelled.append(text)
            raise
        return [1.0]

    lookup = serving(embed, budget_seconds=0.25)
    loop = asyncio.get_running_loop()
    assert await lookup.find("s", ASKED) is None
    assert 0.25 == loop.time()
    await lookup.learn("s", ASKED, "name")
    assert 0.5 == loop.time()
    await asyncio.sleep(0)
    assert [ASKED, ASKED] == cancelled
    assert {"late": 2} == lookup.stats()["lost"]


async def test_the_deadline_is_a_budget_too() -> None:
    """A caller in a hurry is not kept for a lookup."""

    async def embed(text: str) -> list[float]:
        await asyncio.sleep(1.0)
        return [1.0]

    lookup = serving(embed, budget_seconds=9.0)
    async with deadline_in(0.125):
        assert await lookup.find("s", ASKED) is None
    assert 0.125 == asyncio.get_running_loop().time()


async def test_a_cancelled_caller_leaves_nothing_behind() -> None:
    """The cancellation goes on, and takes the embedder along."""
    ended: list[str] = []

    async def embed(text: str) -> list[float]:
        try:
            await asyncio.sleep(1.0)
        finally:
            ended.append(text)
        return [1.0]

    lookup = serving(embed, budget_seconds=9.0)
    task = asyncio.ensure_future(lookup.find("s", ASKED))
    await asyncio.sleep(0.5)
    task.cancel()
    await asyncio.wait({task})
    assert task.cancelled()
    await asyncio.sleep(0)
    assert [ASKED] == ended
    assert {} == lookup.stats()["lost"]


async def test_a_crowded_embedder_is_no_candidate(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was not asked at all, which is told apart from an embedder that is slow."""
    monkeypatch.setattr("observability_integration.caching.semantic.embedding._MAX_UNDER_WAY", 0)
    lookup = serving(lambda text: [1.0])
    assert await lookup.find("s", ASKED) is None
    assert {"busy": 1} == lookup.stats()["lost"]


@pytest.mark.parametrize("error", [LookupError("secret"), asyncio.CancelledError()])
async def test_what_fails_is_no_candidate(error: BaseException) -> None:
    """Whatever the embedder raises, even a cancellation of its own, the call goes on."""

    async def embed(text: str) -> list[float]:
        raise error

    lookup = serving(embed)
    assert await lookup.find("s", ASKED) is None
    await lookup.learn("s", ASKED, "name")
    assert {"failed": 2} == lookup.stats()["lost"]


@pytest.mark.parametrize("vector", [[0.0, 0.0], [math.nan, 1.0], [1.0], [], "text", None])
async def test_a_bad_vector_is_no_candidate(vector: Any) -> None:
    """An embedder may fail without raising."""

    async def embed(text: str) -> Any:
        return vector if text == REWORDED else [1.0, 0.0]

    lookup = serving(embed)
    await lookup.learn("s", ASKED, "name")
    assert await lookup.find("s", REWORDED) is None
    assert {"failed": 1} == lookup.stats()["lost"]


async def test_a_broken_gate_or_index_is_no_candidate() -> None:
    """Gates and indexes may be the user's too."""

    def broken(prompt: Any) -> list[str]:
        raise LookupError

    lookup = serving(gates=(Gate("broken", broken),))
    assert await lookup.find("s", ASKED) is None
    index = _Spy()
    index.candidate = Candidate("name", 1.0, ())  # traces of other gates
    lookup = serving(index=index)
    assert await lookup.find("s", ASKED) is None
    index.candidate = Candidate("name", 1.0, (b"odd",) * 9)
    assert await lookup.find("s", ASKED) is None
    assert {"failed": 2} == lookup.stats()["lost"]


async def test_what_cannot_be_judged_is_not_looked_up() -> None:
    """Other languages and long prompts: neither found nor learned, and the embedder is not asked."""
    asked: list[str] = []

    async def embed(text: str) -> list[float]:
        asked.append(text)
        return [1.0]

    lookup = serving(embed, max_text_characters=40)
    for text in ("Wie setze ich mein Passwort zurück?", "a " * 21):
        await lookup.learn("s", text, "name")
        assert await lookup.find("s", text) is None
    assert [] == asked
    assert ({"language": 2}, {"too_long": 2}) == (lookup.stats()["refused"], lookup.stats()["lost"])


async def test_shadow_mode_serves_nothing_and_measures() -> None:
    """However good the evidence: the mode says that nothing is served."""
    lookup = SemanticLookup(same, mode="shadow", evidence=Evidence(10_000), max_false_rate=0.5)
    await lookup.learn("s", ASKED, "name")
    match = await lookup.find("s", REWORDED)
    assert Match("name", 1.0, serve=False) == match
    assert match is not None
    await lookup.observe(match, "the answer", " the\nanswer ")
    await lookup.observe(match, "the answer", "another answer")
    stats = lookup.stats()
    assert (10_002, 1, 1, 0) == (stats["observations"], stats["false"], stats["matches"], stats["served"])
    assert lookup.evidence.upper_bound == stats["false_rate_upper_bound"]
    assert not stats["serving"]


async def test_serves_once_the_evidence_suffices_and_no_longer() -> None:
    """Both the bound and the least number of observations; a false match too many stops it again."""
    lookup = SemanticLookup(same, mode="serve", max_false_rate=0.05, min_observations=80, audit_every=0)
    await lookup.learn("s", ASKED, "name")

    async def found() -> Match:
        match = await lookup.find("s", REWORDED)
        assert match is not None
        return match

    for _ in range(80):
        match = await found()
        assert not match.serve
        await lookup.observe(match, "answer", "answer")
    assert (await found()).serve
    assert lookup.evidence.upper_bound < 0.05
    await lookup.observe(match, "answer", "other")
    assert lookup.evidence.upper_bound > 0.05
    assert not (await found()).serve
    assert 1 == lookup.stats()["served"]


async def test_enough_observations_are_not_enough() -> None:
    """The bound counts, not the number alone."""
    lookup = SemanticLookup(same, mode="serve", evidence=Evidence(1000, 100), min_observations=0)
    assert not lookup.serving
    assert SemanticLookup(same, mode="serve", evidence=Evidence(1000, 0), min_observations=1000).serving
    assert not SemanticLookup(same, mode="serve", evidence=Evidence(1000, 0), min_observations=1001).serving
    assert SemanticLookup(same, mode="serve", require_evidence=False).serving


async def test_some_matches_are_still_checked_while_serving() -> None:
    """Else nobody would notice that the answers have gone bad."""
    lookup = SemanticLookup(same, mode="serve", require_evidence=False, audit_every=3)
    await lookup.learn("s", ASKED, "name")
    served = [match.serve for _ in range(8) if (match := await lookup.find("s", REWORDED))]
    assert [True, True, True, False] * 2 == served


async def test_comparing_may_wait_and_may_fail() -> None:
    """A judge may be another model; where it fails, nothing was observed."""

    async def judge(kept: Any, fresh: Any) -> bool:
        await asyncio.sleep(5.0)
        return bool(kept[0] == fresh[0])

    match = Match("name", 1.0, serve=False)
    lookup = SemanticLookup(same, mode="shadow", same_answer=judge)
    await lookup.observe(match, "ab", "ac")
    await lookup.observe(match, "ab", "bb")
    await lookup.observe(match, "", "")
    stats = lookup.stats()
    assert (2, 1, {"failed": 1}) == (stats["observations"], stats["false"], stats["lost"])


def test_same_text() -> None:
    """White space says nothing; all else does, and what is no text is compared as it is."""
    assert same_text("a b", " a\n b ")
    assert not same_text("a b", "ab")
    assert same_text({"a": 1}, {"a": 1})
    assert not same_text("1", 1)


@pytest.mark.parametrize(
    "wrong",
    [
        {"embed": "no function"},
        {"mode": "on"},
        {"threshold": 0},
        {"threshold": 1.01},
        {"threshold": math.nan},
        {"budget_seconds": 0},
        {"budget_seconds": math.inf},
        {"max_false_rate": 0},
        {"max_false_rate": 1},
        {"min_observations": -1},
        {"min_observations": True},
        {"max_text_characters": 0},
        {"audit_every": -1},
        {"audit_every": 0.5},
        {"secret": b""},
        {"secret": b"x" * 65},
    ],
)
def test_wrong_knobs_are_refused(wrong: dict[str, Any]) -> None:
    """At the first lookup it would be too late."""
    with pytest.raises(ConfigurationError):
        SemanticLookup(**{"embed": same, **wrong})
