"""A tag names what an answer was made of; when that changes, all answers made of it are void, and no others."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from observability_integration.caching.entry_options import entry_options
from observability_integration.errors import ConfigurationError
from observability_integration.primitives import CachePrimitive
from observability_integration.testing.clock import FakeClockLoop
from tests.cache_doubles import Scripted, Server, at, raising, turns

pytestmark = pytest.mark.usefixtures("clocks")

LOOP_FACTORY = FakeClockLoop

Make = Callable[..., CachePrimitive[Any, Any]]


@pytest.mark.promise("C8")
@pytest.mark.parametrize("shared", [False, True])
async def test_a_tag_voids_what_has_it_and_nothing_else(make: Make, shared: bool) -> None:
    """Given as a list for all entries, or as a function of what is asked for."""
    work = Scripted("answer")
    cache = make(work, tags=lambda question: [f"about {question}", 7], backend=Server().store() if shared else None)
    for question in "ab":
        await cache.execute(question)
    await cache.invalidate(tag="about a")
    for question in "ab":
        await cache.execute(question)
    assert 3 == work.made
    await cache.invalidate(tag="7")
    for question in "ab":
        await cache.execute(question)
    assert 5 == work.made
    listed = make(work, tags=["all"], operation_name="listed")
    await listed.execute("a")
    await listed.invalidate(tag="all")
    await listed.execute("a")
    assert 7 == work.made


@pytest.mark.promise("C8")
@pytest.mark.parametrize("kind", ["key", "tag", "clear"])
async def test_another_process_hears_of_it(make: Make, kind: str) -> None:
    """Also one that has only read the entry: what is in its memory goes, and what is under way is not kept."""
    server = Server()
    work = Scripted("old", "under way", "new")
    first, second = (make(work, tags=["tag"], backend=server.store()) for _ in range(2))
    assert ["old", "old"] == [await cache.execute("q") for cache in (first, second)]
    work.seconds = 1.0
    asked = asyncio.create_task(second.execute("other"))
    await turns()
    await at(0.5)
    if kind == "clear":
        await first.clear()
    else:
        await first.invalidate(**({"tag": "tag"} if kind == "tag" else {"key": "q"}))
    await turns()
    if kind != "key":
        assert "under way" == await asked
        assert "new" == await second.execute("other")
    else:
        await asked
    work.script[:] = ["fresh"]
    assert "fresh" == await second.execute("q")


@pytest.mark.promise("C8")
async def test_who_comes_after_an_invalidation_does_not_get_a_call_from_before(make: Make) -> None:
    """It is under way with the tag, by what was asked for or by what the call says; those who came before get it."""

    async def tagged() -> str:
        entry_options().add_tags("late")
        await asyncio.sleep(1.0)
        return f"answer {work.made}"

    for tag in ("early", "late"):
        work = Scripted(tagged)
        cache = make(work, tags=["early"])
        before = asyncio.create_task(cache.execute("q"))
        await turns()
        await cache.invalidate(tag=tag)
        after = asyncio.create_task(cache.execute("q"))
        assert ["answer 1", "answer 2"] == [await before, await after]
        assert "answer 2" == await cache.execute("q")
        untouched = asyncio.create_task(cache.execute("another"))
        await turns()
        await cache.invalidate(tag="unrelated")
        assert await cache.execute("another") == await untouched
        assert 3 == work.made


@pytest.mark.promise("C8")
async def test_what_is_void_does_not_stand_in(make: Make) -> None:
    """Neither for a call that fails after the invalidation, nor for one that is late."""
    work = Scripted("old", ValueError("broken"), seconds=1.0)
    cache = make(
        work,
        ttl_seconds=5.0,
        tags=["tag"],
        stale_if_error_seconds=100.0,
        soft_timeout_seconds=0.8,
        hard_timeout_seconds=5.0,
    )
    await cache.execute("q")
    await at(7.0)
    asked = asyncio.create_task(cache.execute("q"))
    await turns()
    await cache.invalidate(tag="tag")
    with pytest.raises(ValueError, match="broken"):
        await cache.execute("q")
    with pytest.raises(ValueError, match="broken"):
        await asked


@pytest.mark.promise("C8")
async def test_a_refresh_that_fails_does_not_bring_back_what_is_void(make: Make) -> None:
    """It would have the old answer put off, which keeps it."""
    work = Scripted("old", ValueError("broken"), "new", seconds=1.0)
    cache = make(work, ttl_seconds=5.0, tags=["tag"], stale_while_revalidate_seconds=100.0)
    for invalidate in (lambda: cache.invalidate(tag="tag"), lambda: cache.invalidate("q"), cache.clear):
        work.made = 0
        await cache.execute("q")
        await asyncio.sleep(5.5)
        assert "old" == await cache.execute("q")
        await turns()
        await invalidate()
        await asyncio.sleep(1.5)
        assert "new" == await cache.execute("q")
        await cache.clear()


@pytest.mark.promise("C8")
async def test_tags_reach_all_scopes_and_no_other_namespace(make: Make) -> None:
    """A document changes for every tenant; another application's documents are its own."""
    server = Server()
    work = Scripted("answer")
    scoped = make(work, tags=["tag"], scope=lambda question: question[0], backend=server.store())
    other = make(work, tags=["tag"], namespace="other", backend=server.store())
    for cache, question in ((scoped, "a1"), (scoped, "b1"), (other, "a1")):
        await cache.execute(question)
    await scoped.invalidate(tag="tag")
    await turns()
    await other.execute("a1")
    assert 3 == work.made
    await scoped.execute("a1")
    await scoped.execute("b1")
    assert 5 == work.made


@pytest.mark.promise("C8")
async def test_what_is_invalidated_is_not_served_while_the_store_is_told(make: Make) -> None:
    """The store still has it for a moment; neither a read nor a request for the lease may bring it back."""
    server = Server()
    store = server.store()

    async def slow(name: str) -> None:
        if name in ("delete", "mark"):
            await asyncio.sleep(0.03)

    for arguments in ({"key": "q"}, {"tag": "tag"}, None):
        work = Scripted("old", "new")
        cache = make(work, tags=["tag"], backend=store)
        await cache.clear()
        assert "old" == await cache.execute("q")
        store.behave = slow
        invalidation = asyncio.create_task(cache.clear() if arguments is None else cache.invalidate(**arguments))
        await turns(2)
        assert "new" == await cache.execute("q")
        await invalidation
        store.behave = None


@pytest.mark.promise("C11")
async def test_a_tag_survives_a_store_that_is_away(make: Make, caplog: pytest.LogCaptureFixture) -> None:
    """It is voided there when it is back, and until then nothing is read that it may touch."""
    server = Server()
    store = server.store()
    work = Scripted("old", "new")
    cache = make(work, tags=["tag"], backend=store, backend_retry_seconds=1.0)
    await cache.execute("q")
    store.behave = raising(ConnectionResetError())
    await cache.invalidate(tag="tag")
    store.behave = None
    await asyncio.sleep(1.1)
    await cache.execute("other")
    await turns()
    fresh = make(work, tags=["tag"], backend=server.store())
    assert "new" == await fresh.execute("q")


@pytest.mark.parametrize("arguments", [{}, {"key": "q", "tag": "tag"}])
async def test_either_a_key_or_a_tag_is_invalidated(make: Make, arguments: dict[str, Any]) -> None:
    """Neither would do nothing, and both would be a guess."""
    with pytest.raises(ConfigurationError, match="either a key or a tag"):
        await make(Scripted("answer")).invalidate(**arguments)


async def test_none_is_no_key() -> None:
    """A key that is missing would be one key for all; of `get_or_compute`, the key is the caller's own."""
    work = Scripted("answer")
    cache: CachePrimitive[Any, Any] = CachePrimitive()
    with pytest.raises(TypeError, match="must not be None"):
        await cache.get_or_compute(None, work)
    with pytest.raises(ConfigurationError, match="either a key or a tag"):
        await cache.invalidate(None)
    assert 0 == work.made


class _Backend:
    """A store of a user's own."""

    def __init__(self) -> None:
        self.entries: dict[str, bytes] = {}

    async def get(self, key: str) -> bytes | None:
        return self.entries.get(key)

    async def set(self, key: str, value: bytes, ttl_milliseconds: int) -> None:
        self.entries[key] = value

    async def delete(self, *keys: str) -> None:
        for key in keys:
            self.entries.pop(key, None)

    async def clear(self, prefix: str) -> None:
        self.entries.clear()

    async def aclose(self) -> None:
        pass


async def test_a_backend_without_tags_says_so(make: Make) -> None:
    """To the caller, who asked for what cannot be had; the backend stays in use, and clearing works."""
    backend = _Backend()
    work = Scripted("answer")
    cache = make(work, tags=["tag"], backend=backend)
    await cache.execute("q")
    with pytest.raises(ConfigurationError, match="needs Redis"):
        await cache.invalidate(tag="tag")
    assert 1 == len(backend.entries)
    await cache.execute("q")
    assert 1 == work.made
    await cache.clear()
    assert {} == backend.entries


@pytest.mark.parametrize("tag", [5, b"tag", ["tag"]])
async def test_a_tag_is_text(make: Make, tag: Any) -> None:
    """What stands for a tag is the hash of a text."""
    cache = make(Scripted("answer"))
    with pytest.raises(TypeError, match="a tag must be text"):
        await cache.invalidate(tag=tag)


@pytest.mark.parametrize(
    ("tags", "error", "message"),
    [
        ("tenant-7", ConfigurationError, "one text"),
        ("", ConfigurationError, "one text"),
        (b"tag", ConfigurationError, "one text"),
        (7, ConfigurationError, "got int"),
        (None, ConfigurationError, "got NoneType"),
        ([7], TypeError, "a tag must be text, not int"),
        (["tag", ["tag"]], TypeError, "a tag must be text, not list"),
    ],
)
async def test_tags_that_are_none_are_refused_before_the_call(tags: Any, error: Any, message: str) -> None:
    """One text would void what has any of its letters; and a call that was paid for must not fail of its tags."""
    work = Scripted("answer")
    cache: CachePrimitive[Any, Any] = CachePrimitive()
    with pytest.raises(error, match=message):
        await cache.get_or_compute("key", work, tags=tags)
    assert (0, 0) == (work.made, cache.get_stats()["total"])
    await cache.get_or_compute("key", work)
    with pytest.raises(error, match=message):
        await cache.get_or_compute("key", work, tags=tags)


async def test_tags_of_a_key_come_from_anything_that_holds_several() -> None:
    """A set, or what can be gone through only once."""
    for tags in ({"tag"}, iter(["tag", "other"]), {"tag": "because"}):
        work = Scripted("answer")
        cache: CachePrimitive[Any, Any] = CachePrimitive()
        given: Any = tags
        await cache.get_or_compute("key", work, tags=given)
        await cache.invalidate(tag="tag")
        await cache.get_or_compute("key", work)
        assert 2 == work.made


@pytest.mark.parametrize("tags", ["tenant-7", b"tag", 7])
def test_tags_of_a_cache_are_several(tags: Any) -> None:
    """The same, at construction."""
    with pytest.raises(ConfigurationError, match="tags must be a list of texts"):
        CachePrimitive(Scripted("answer"), lambda question: question, tags=tags)


def _no_tags(question: Any) -> list[str]:
    raise RuntimeError("no tags")


@pytest.mark.parametrize("tags", [_no_tags, lambda question: question, lambda question: b"tag", lambda question: None])
async def test_tags_that_cannot_be_had_are_as_keys_that_cannot(make: Make, metrics: Any, tags: Any) -> None:
    """The call is made without the cache: an entry that could not be invalidated must not be kept."""
    work = Scripted("answer")
    cache = make(work, tags=tags)
    for _ in range(2):
        assert "answer" == await cache.execute("q")
    assert 2 == work.made
    assert 2 == metrics("cache.bypasses", operation="answers", reason="key_error")
    assert 2 == metrics("telemetry.faults", site="cache.key_fn")


async def test_a_bypassed_call_decides_nothing_about_the_entry_further_out() -> None:
    """A cached call inside another one has its own entry, or none: never the outer one's."""
    made: list[str] = []

    async def inner_call(prompt: str) -> str:
        entry_options().do_not_store()
        return prompt

    def no_key(_: str) -> str:
        raise KeyError("no key")

    inner = CachePrimitive(inner_call, no_key, operation_name="inner")

    async def outer_call(prompt: str) -> str:
        made.append(prompt)
        return await inner.execute(prompt)

    outer = CachePrimitive(outer_call, lambda prompt: prompt, operation_name="outer")
    for _ in range(3):
        assert "a" == await outer.execute("a")
    assert ["a"] == made
