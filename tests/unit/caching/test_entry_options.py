"""A call decides about the entry that it makes, and about no other."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from observability_integration.caching.entry_options import NOTHING, EntryOptions, begin_entry, entry_options
from observability_integration.primitives import CachePrimitive


def test_outside_of_a_cached_call_decisions_are_about_nothing() -> None:
    """A function may be called with a cache around it or without."""
    options = entry_options()
    options.add_tags("a")
    options.set_ttl(5.0)
    options.do_not_store()
    assert ([], None, True, NOTHING) == (
        entry_options().tags,
        entry_options().ttl_seconds,
        entry_options().store,
        entry_options().stale,
    )


async def test_decisions_are_about_the_entry_that_is_being_made() -> None:
    """Also from deep inside, and from tasks that the call starts; never about that of a task beside it."""

    async def make(number: int) -> Any:
        options = begin_entry([f"tag {number}"], NOTHING)
        await asyncio.sleep(0)
        await asyncio.create_task(_decide(number))
        return options

    async def _decide(number: int) -> None:
        await asyncio.sleep(0)
        entry_options().add_tags(f"more {number}")
        entry_options().set_ttl(float(number))

    made = await asyncio.gather(*(asyncio.create_task(make(number)) for number in (1, 2, 3)))
    assert [([f"tag {number}", f"more {number}"], float(number)) for number in (1, 2, 3)] == [
        (options.tags, options.ttl_seconds) for options in made
    ]


@pytest.mark.parametrize("tag", [5, None, b"tag", ["tag"]])
def test_a_tag_is_text(tag: Any) -> None:
    """The same; a call that was paid for must not fail when it is over."""
    options = EntryOptions()
    with pytest.raises(TypeError, match="a tag must be text"):
        options.add_tags("good", tag)
    assert [] == options.tags
    with pytest.raises(TypeError, match="a tag must be text"):
        begin_entry([tag], NOTHING)


def test_none_is_a_value_to_use_again() -> None:
    """And nothing is none."""
    assert begin_entry([], None).not_modified() is None
    with pytest.raises(LookupError):
        begin_entry([], NOTHING).not_modified()


async def test_a_cached_call_inside_of_another_decides_about_its_own() -> None:
    """The outer answer is kept although the inner one is not."""
    outer: CachePrimitive[Any, Any] = CachePrimitive(operation_name="outer")
    inner: CachePrimitive[Any, Any] = CachePrimitive(operation_name="inner")
    made: list[str] = []

    async def compute_inner() -> str:
        made.append("inner")
        entry_options().do_not_store()
        entry_options().add_tags("inner")
        return "inner"

    async def compute_outer() -> str:
        made.append("outer")
        answer = await inner.get_or_compute("key", compute_inner)
        entry_options().add_tags("outer")
        return f"outer of {answer}"

    for _ in range(2):
        assert "outer of inner" == await outer.get_or_compute("key", compute_outer)
    assert ["outer", "inner"] == made
    await outer.invalidate(tag="inner")
    await outer.get_or_compute("key", compute_outer)
    assert 2 == len(made)
    await outer.invalidate(tag="outer")
    await outer.get_or_compute("key", compute_outer)
    assert ["outer", "inner"] * 2 == made
