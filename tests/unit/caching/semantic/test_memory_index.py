"""The reference index against the obvious way to do it, and at its bounds."""

from __future__ import annotations

import asyncio
import math
import sys
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from observability_integration.caching.semantic import Candidate, MemoryIndex
from observability_integration.errors import ConfigurationError, MissingDependencyError

pytest.importorskip("numpy")

pytestmark = pytest.mark.once


async def nearest(index: MemoryIndex, scope: str, vector: list[float]) -> str | None:
    found = await index.nearest(scope, vector)
    return None if found is None else found.name


async def names(index: MemoryIndex, scope: str, vector: list[float]) -> list[str]:
    """All of a scope, the nearest first; taken out one by one, and put back."""
    found: list[str] = []
    while name := await nearest(index, scope, vector):
        found.append(name)
        await index.remove(name)
    for name in reversed(found):
        await index.add(scope, name, vector, ())
    return found


async def test_the_nearest_with_its_traces() -> None:
    """By cosine, whatever the lengths of the vectors, with what the gates kept."""
    index = MemoryIndex()
    await index.add("s", "far", [0.0, 9.0], (b"1",))
    await index.add("s", "near", [1.0, 1.0], (b"",))
    assert Candidate("near", pytest.approx(math.sqrt(0.5)), (b"",)) == await index.nearest("s", [2.0, 0.0])
    await index.add("s", "same", [0.5, 0.0], (b"2", b"3"))
    assert Candidate("same", 1.0, (b"2", b"3")) == await index.nearest("s", [2.0, 0.0])
    assert await index.nearest("another", [2.0, 0.0]) is None
    assert ["same", "near", "far"] == await names(index, "s", [2.0, 0.0])


async def test_the_first_added_goes_first() -> None:
    """Bounded over all scopes; an entry that is added again counts as new."""
    index = MemoryIndex(max_entries=3)
    for name in ("a", "b", "c", "a"):
        await index.add("one", name, [1.0], ())
    await index.add("two", "d", [1.0], ())
    assert 3 == len(index)
    assert {"c", "a"} == set(await names(index, "one", [1.0]))
    assert ["d"] == await names(index, "two", [1.0])


async def test_a_name_stands_in_one_place() -> None:
    """Added again, it leaves the old scope and the old vector."""
    index = MemoryIndex()
    await index.add("one", "a", [1.0, 0.0], ())
    await index.add("two", "a", [0.0, 1.0], ())
    assert [] == await names(index, "one", [1.0, 0.0])
    assert Candidate("a", 0.0, ()) == await index.nearest("two", [1.0, 0.0])
    assert 1 == len(index)


async def test_clear_and_remove() -> None:
    """One entry, one scope, or all; what is not there does not matter; an empty index takes any length again."""
    index = MemoryIndex()
    await index.add("one", "a", [1.0], ())
    await index.add("one", "b", [1.0], ())
    await index.add("two", "c", [1.0], ())
    await index.remove("a")
    await index.remove("a")
    await index.clear("none")
    assert ["b"] == await names(index, "one", [1.0])
    await index.clear("one")
    assert [] == await names(index, "one", [1.0])
    assert ["c"] == await names(index, "two", [1.0])
    await index.clear()
    await index.add("one", "a", [1.0, 2.0], ())
    await index.remove("a")
    await index.add("one", "a", [1.0, 2.0, 3.0], ())
    assert 1 == len(index)


@pytest.mark.parametrize(
    "vector",
    [
        [0.0, 0.0],
        [math.nan, 1.0],
        [math.inf, 1.0],
        [-math.inf, 1.0],
        [1.0],
        [1.0, 2.0, 3.0],
        [],
        [[1.0, 2.0]],
        ["x", 1],
    ],
)
async def test_vectors_without_a_direction_are_refused(vector: Any) -> None:
    """Each would be near nothing or everything."""
    index = MemoryIndex()
    await index.add("s", "a", [3.0, 4.0], ())
    with pytest.raises(ValueError):
        await index.add("s", "b", vector, ())
    with pytest.raises(ValueError):
        await index.nearest("s", vector)
    assert ["a"] == await names(index, "s", [3.0, 4.0])


async def test_huge_and_tiny_vectors_have_a_direction() -> None:
    """Squares overflow or vanish where the vector itself does not."""
    index = MemoryIndex()
    for number in (1e300, 1e-300):
        await index.add("s", "a", [number, 0.0], ())
        assert Candidate("a", 1.0, ()) == await index.nearest("s", [number, 0.0])


async def test_memory_is_given_back() -> None:
    """The matrix grows by doubling, and shrinks again when entries go."""
    index = MemoryIndex()
    for number in range(1000):
        await index.add("s", str(number), [1.0, number], ())
    vectors: Any = index._scopes["s"]
    assert 1024 == len(vectors._matrix)
    for number in range(990):
        await index.remove(str(number))
    assert 32 >= len(vectors._matrix)
    assert {str(number) for number in range(990, 1000)} == set(await names(index, "s", [1.0, 0.0]))


def _cosine(first: list[float], second: list[float]) -> float:
    return sum(a * b for a, b in zip(first, second, strict=True)) / math.hypot(*first) / math.hypot(*second)


_steps = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.sampled_from("xyz"), st.integers(0, 40), st.integers(-5, 5)),
        st.tuples(st.just("remove"), st.none(), st.integers(0, 40), st.none()),
        st.tuples(st.just("clear"), st.sampled_from(["x", "y", "z", None]), st.none(), st.none()),
    ),
    max_size=120,
)


@settings(max_examples=60)
@given(_steps, st.integers(1, 30))
def test_as_a_plain_dictionary_would(steps: list[Any], max_entries: int) -> None:
    """Rows move and matrices are copied inside; from outside it is a dictionary, scope by scope."""

    async def run() -> None:
        index = MemoryIndex(max_entries)
        kept: dict[str, tuple[str, list[float]]] = {}
        for what, scope, name, value in steps:
            if what == "add":
                vector = [1.0, value]
                await index.add(scope, str(name), vector, (b"%d" % name,))
                kept.pop(str(name), None)
                kept[str(name)] = (scope, vector)
                while len(kept) > max_entries:
                    del kept[next(iter(kept))]
            elif what == "remove":
                await index.remove(str(name))
                kept.pop(str(name), None)
            else:
                await index.clear(scope)
                kept = {name: place for name, place in kept.items() if scope is not None and place[0] != scope}
            assert len(kept) == len(index)
        for scope in "xyz":
            here = {name: vector for name, (place, vector) in kept.items() if place == scope}
            for direction in ([1.0, 0.0], [0.0, 1.0], [0.0, -1.0]):
                found = await index.nearest(scope, direction)
                assert (found is None) == (not here)
                if found is not None:
                    assert (
                        pytest.approx(max(_cosine(direction, vector) for vector in here.values())) == found.similarity
                    )
                    assert pytest.approx(_cosine(direction, here[found.name])) == found.similarity
                    assert (found.name.encode(),) == found.traces
            for name in sorted(here):  # every one is still there
                await index.remove(name)
            assert await index.nearest(scope, [1.0, 0.0]) is None
        assert 0 == len(index)

    asyncio.run(run())


@pytest.mark.parametrize("wrong", [0, -1, 1.5, True, None])
def test_a_bound_is_an_integer(wrong: Any) -> None:
    """An index that keeps nothing is a mistake."""
    with pytest.raises(ConfigurationError, match="max_entries"):
        MemoryIndex(wrong)


def test_without_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is only needed by those who want this index, who are told how to get it."""
    monkeypatch.setitem(sys.modules, "numpy", None)
    with pytest.raises(MissingDependencyError, match="pip install 'numpy>=2'"):
        MemoryIndex()


def test_with_an_old_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    """To be told at once, and not by an attribute error at every lookup."""
    monkeypatch.setitem(sys.modules, "numpy", ModuleType("numpy"))
    with pytest.raises(MissingDependencyError, match="too old"):
        MemoryIndex()
