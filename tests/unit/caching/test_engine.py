"""The engine's own corners: what happens between the store, the flights and those who wait, when things go wrong."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest

from observability_integration.caching.entry_options import NOTHING, entry_options
from observability_integration.caching.shared.channel import Note
from observability_integration.caching.stores.shared import StoreBusy
from observability_integration.primitives import CachePrimitive
from observability_integration.testing.clock import FakeClockLoop
from tests.cache_doubles import Scripted, Server, at, raising, taking, turns

pytestmark = pytest.mark.usefixtures("clocks")

LOOP_FACTORY = FakeClockLoop

Make = Callable[..., CachePrimitive[Any, Any]]


async def test_equal_lookups_in_the_store_are_one(make: Make) -> None:
    """A hundred callers of a key that Redis has ask it once."""
    server = Server()
    await make(Scripted({"answer": 1}), server.store()).execute("q")
    store = server.store()
    cache = make(Scripted(), store)
    answers = await asyncio.gather(*(cache.execute("q") for _ in range(100)))
    assert [{"answer": 1}] * 100 == answers
    assert 100 == len({id(answer) for answer in answers})
    assert 1 == store.calls.count("read")
    assert (100, 0) == (cache.get_stats()["hits"], cache.get_stats()["misses"])


async def test_a_caller_who_is_cancelled_while_he_looks_leaves_the_others_looking(make: Make) -> None:
    """Whoever looks for all of them may go; one of the others goes on."""
    server = Server()
    await make(Scripted("answer"), server.store()).execute("q")
    store = server.store()
    store.behave = taking(0.01, "read")
    cache = make(Scripted(), store)
    callers = [asyncio.create_task(cache.execute("q")) for _ in range(3)]
    await turns()
    callers[0].cancel()
    with pytest.raises(asyncio.CancelledError):
        await callers[0]
    assert ["answer"] * 2 == await asyncio.gather(*callers[1:])


@pytest.mark.promise("C8")
async def test_what_was_read_while_it_was_invalidated_is_not_remembered(make: Make) -> None:
    """It goes to who came before, and not into memory for who comes after."""
    server = Server()
    await make(Scripted("old"), server.store()).execute("q")
    store = server.store()
    store.answers_late_seconds = 0.02
    work = Scripted("new")
    cache = make(work, store)
    asked = asyncio.create_task(cache.execute("q"))
    await turns()
    await cache.invalidate("q")
    assert "old" == await asked
    assert "new" == await cache.execute("q")
    assert 1 == work.made


@pytest.mark.promise("C8")
@pytest.mark.parametrize("window", ["stale_if_error_seconds", "stale_while_revalidate_seconds"])
async def test_a_stale_entry_that_was_read_while_it_was_invalidated_does_not_stand_in(make: Make, window: str) -> None:
    """The call that follows fails: then there is nothing to serve, neither now nor while it is put off."""
    server = Server()
    policy: dict[str, Any] = {window: 100.0}
    await make(Scripted("old"), server.store(), **policy).execute("q")
    await at(11.0)
    store = server.store()
    store.answers_late_seconds = 0.02
    cache = make(Scripted(ValueError("broken")), store, **policy)
    asked = asyncio.create_task(cache.execute("q"))
    await turns()
    await cache.invalidate("q")
    for lookup in (cache.execute("q"), asked, cache.execute("q")):
        with pytest.raises(ValueError, match="broken"):
            await lookup


@pytest.mark.parametrize("name", ["zz", "abc", "\u00e9"])
async def test_a_note_that_names_nothing_is_a_fault_and_no_more(make: Make, metrics: Any, name: str) -> None:
    """Whoever may publish may publish anything."""
    server = Server()
    cache = make(Scripted("answer"), server.store())
    await cache.execute("q")
    await turns()
    server.tell(Note("delete", name, origin="another").encode())
    await turns()
    assert "answer" == await cache.execute("q")
    assert 1 == metrics("telemetry.faults", site="cache.note")
    assert 1 == cache.get_stats()["hits"]


async def test_notes_about_calls_leave_memory_alone(make: Make) -> None:
    """That a call failed, or that a lease was given up, says nothing of the entry."""
    server = Server()
    cache = make(Scripted("answer"), server.store())
    await cache.execute("q")
    await turns()
    name = cache._keys.digest("q").hex()
    for action in ("failed", "free", "unshared"):
        server.tell(Note(action, name, origin="another").encode())  # type: ignore[arg-type]
    await turns()
    reads = server.commands.count("read")
    await cache.execute("q")
    assert reads == server.commands.count("read")


async def test_a_store_that_is_out_of_use_is_why_it_was_missed(make: Make, metrics: Any) -> None:
    """A drop of the hit rate has to be told from a change of what is asked."""
    store = Server().store()
    store.behave = raising(ConnectionResetError())
    cache = make(Scripted("answer"), store)
    await cache.execute("a")
    store.behave = None
    await cache.execute("b")
    assert 2 == metrics("cache.missed", operation="answers", reason="backend_down")
    memory = make(Scripted("answer", ValueError("broken")), stale_if_error_seconds=1.0)
    await memory.execute("a")
    assert 1 == metrics("cache.missed", operation="answers", reason="absent")
    await at(10.5)
    await memory.execute("a")
    assert (1, 1) == (memory.get_stats()["hits"], memory.get_stats()["misses"])
    await at(12.0)
    with pytest.raises(ValueError, match="broken"):
        await memory.execute("a")
    assert 2 == metrics("cache.missed", operation="answers", reason="absent")


async def test_an_answer_that_replaces_a_stale_one_is_a_miss(make: Make, metrics: Any) -> None:
    """It may become a hit until the call has answered; then it is counted, once."""
    cache = make(Scripted("old", "new"), stale_if_error_seconds=100.0)
    await cache.execute("q")
    await at(11.0)
    assert "new" == await cache.execute("q")
    assert 1 == metrics("cache.missed", operation="answers", reason="expired")
    assert (0, 2) == (cache.get_stats()["hits"], cache.get_stats()["misses"])


async def test_waiting_for_an_equal_call_is_measured_apart(make: Make, metrics: Any) -> None:
    """Here and in another process; the lookup's own time is without it."""
    server = Server()
    work = Scripted("answer", seconds=1.0)
    first, second = (make(work, server.store()) for _ in range(2))
    await asyncio.gather(first.execute("q"), first.execute("q"), second.execute("q"))
    assert 1 == work.made
    assert 1 == metrics("cache.lock.wait", operation="answers", reach="process")
    assert 1 == metrics("cache.lock.wait", operation="answers", reach="remote")
    assert 1 == metrics("cache.served", operation="answers", tier="flight", freshness="coalesced")
    assert 1 == metrics("cache.served", operation="answers", tier="backend", freshness="coalesced")


async def test_a_call_that_cancels_itself_is_made_once(make: Make) -> None:
    """Its caller is told so; making it again and again would never end."""
    work = Scripted(asyncio.CancelledError())
    cache = make(work)
    with pytest.raises(asyncio.CancelledError):
        await cache.execute("q")
    assert 1 == work.made


async def test_a_stale_entry_that_cannot_be_handed_out_is_none(make: Make) -> None:
    """A type of the user's refuses to be copied once more: then the error of the call is the answer."""

    class Once:
        copies = 0

        def __deepcopy__(self, memo: Any) -> Any:
            Once.copies += 1
            if Once.copies > 1:
                raise RuntimeError("not again")
            return self

    cache = make(Scripted(Once(), ValueError("broken")), stale_if_error_seconds=100.0)
    await cache.execute("q")
    await at(11.0)
    with pytest.raises(ValueError, match="broken"):
        await cache.execute("q")


class _Copies:
    """Lets itself be copied so many times."""

    def __init__(self, left: int) -> None:
        self.left = [left]

    def __deepcopy__(self, memo: Any) -> _Copies:
        if self.left[0] == 0:
            raise RuntimeError("not again")
        self.left[0] -= 1
        return self


async def test_a_late_call_is_waited_for_if_what_could_stand_in_cannot_be_handed_out(make: Make) -> None:
    """The limit is for those who can be served something else; waiting for it over and over would hold up the loop."""
    work = Scripted(_Copies(2), "new", seconds=1.0)  # when it is kept, and for the call that is to replace it
    cache = make(work, stale_if_error_seconds=100.0, soft_timeout_seconds=0.5)
    await cache.execute("q")
    await at(12.0)
    assert "new" == await cache.execute("q")
    assert asyncio.get_running_loop().time() == 13.0
    assert 2 == work.made


async def test_an_entry_of_memory_that_cannot_be_handed_out_is_none(make: Make) -> None:
    """The call is made anew."""
    work = Scripted(_Copies(1), "new")
    cache = make(work)
    await cache.execute("q")
    assert "new" == await cache.execute("q")


async def test_what_was_made_while_one_looked_is_taken(make: Make) -> None:
    """Another came and went meanwhile: its value is there, and the call is not made again."""
    store = Server().store()
    work = Scripted("answer")
    cache = make(work, store)
    reads = iter((taking(0.02), taking(0.04)))

    async def behave(name: str) -> None:
        if name == "read":
            slow = next(reads)
            await slow(name)
            if slow is second:
                raise StoreBusy

    first, second = reads
    reads = iter((first, second))
    store.behave = behave
    looking = asyncio.create_task(cache.execute("q"))
    await turns()
    await cache.invalidate("q")
    assert ["answer", "answer"] == await asyncio.gather(cache.execute("q"), looking)
    assert 1 == work.made


async def test_who_comes_back_to_a_call_keeps_it_going(make: Make) -> None:
    """Its time in the background ends when somebody waits for it again."""
    work = Scripted("answer", seconds=20.0)
    cache = make(work, background_seconds=5.0)
    first = asyncio.create_task(cache.execute("q"))
    await at(1.0)
    first.cancel()
    await at(3.0)
    assert "answer" == await cache.execute("q")
    assert asyncio.get_running_loop().time() == 20.0
    assert 1 == work.made


async def test_the_soft_limit_counts_from_when_the_caller_came(make: Make) -> None:
    """Also if the call that was joined is given up, and another begun."""
    hang = Scripted("unreachable", seconds=1e6)
    work = Scripted("old", lambda: hang())
    cache = make(work, stale_if_error_seconds=100.0, soft_timeout_seconds=0.5, background_seconds=1.0)
    await cache.execute("q")
    await at(11.0)
    assert "old" == await cache.execute("q")
    await at(12.2)
    assert "old" == await cache.execute("q")
    assert asyncio.get_running_loop().time() == pytest.approx(12.7)
    assert 3 == work.made


async def test_a_stale_value_that_cannot_be_handed_out_is_nothing_to_the_call(make: Make) -> None:
    """It would be given an object of ours instead, and might return it."""
    seen: list[Any] = []
    work = Scripted(_Copies(1), lambda: seen.append(entry_options().stale))
    cache = make(work, stale_if_error_seconds=100.0)
    await cache.execute("q")
    await at(11.0)
    await cache.execute("q")
    assert seen[0] is NOTHING


async def test_the_time_of_a_lookup_is_without_the_waiting(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wherever the call is made that was waited for: a hit that took seconds would hide what looking costs."""
    monkeypatch.setattr(time, "perf_counter", time.monotonic)
    server = Server()
    work = Scripted("answer", seconds=1.0)
    caches = [make(work, server.store()) for _ in range(2)]
    looked: list[float] = []
    for cache in caches:
        monkeypatch.setattr(
            cache._record, "hit", lambda span, started, *_: looked.append(time.perf_counter() - started)
        )
    await asyncio.gather(*(cache.execute("q") for cache in caches * 2))
    assert 1 == work.made
    assert pytest.approx([0.0] * 3) == looked
