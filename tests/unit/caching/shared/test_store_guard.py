"""The guard's promise: whatever the shared store does, no call fails of it, and hardly any waits for it."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any, cast

import pytest

from observability_integration import events
from observability_integration.caching.policy import CachePolicy
from observability_integration.caching.shared.channel import Note
from observability_integration.caching.shared.store_guard import GuardedStore
from observability_integration.caching.stores.plain import PlainStore
from observability_integration.caching.stores.shared import Generation, Place, Reading, SharedStore, StoreBusy, Write
from observability_integration.context import Deadline, reset_deadline, set_deadline
from observability_integration.testing.clock import FakeClockLoop
from tests.cache_doubles import clocks_of_the_loop, raising, taking

LOOP_FACTORY = FakeClockLoop

_BUDGET = 0.05
_PREFIX = "cache:answers:"
_POLICY = CachePolicy(backend_budget_seconds=_BUDGET, backend_retry_seconds=1.0, backend_retry_max_seconds=8.0)

Behaviour = Callable[[str], Any]


class _Store:
    """A store in memory, by the names of its entries, that can be made to misbehave."""

    def __init__(self) -> None:
        self.entries: dict[str, bytes] = {}
        self.calls: list[str] = []
        self.notes: list[str] = []
        self.inside = self.most_inside = 0
        self.closed = False
        self.behave: Behaviour | None = None

    async def _do(self, name: str) -> None:
        self.calls.append(name)
        self.inside += 1
        self.most_inside = max(self.most_inside, self.inside)
        try:
            if self.behave is not None:
                await self.behave(name)
        finally:
            self.inside -= 1

    async def read(self, place: Place) -> Reading:
        await self._do("read")
        return Reading(self.entries.get(place.name), None)

    async def write(self, name: str, data: bytes) -> bool:
        await self._do("write")
        self.entries[name] = data
        return True

    async def put_late(self, place: Place, write: Write, note: str, origin: str) -> bool:
        await self._do("put_late")
        self.notes.append(note)
        return self.entries.setdefault(place.name, write.data) is write.data

    async def delete(self, prefix: str, names: Sequence[str], notes: Sequence[str], origin: str) -> None:
        await self._do("delete")
        self.notes += notes
        for name in names:
            self.entries.pop(name, None)

    async def void(self, prefix: str, tag: str | None, note: str, origin: str) -> None:
        await self._do("void")
        self.notes.append(note)
        self.entries = {name: data for name, data in self.entries.items() if tag is not None and tag not in name}

    async def probe(self, prefix: str) -> None:
        await self._do("probe")

    async def aclose(self) -> None:
        self.closed = True


_silent = taking(1e6)
_NOTE = Note("tag", tag="t").encode()


def _write(data: bytes, ttl_ms: int) -> Write:
    return Write(data, ttl_ms, Generation(b"0" * 16, 0))


@pytest.fixture
def store() -> _Store:
    return _Store()


@pytest.fixture
async def guard(store: _Store) -> AsyncIterator[GuardedStore]:
    guarded = GuardedStore(cast("SharedStore", store), "answers", _PREFIX, _POLICY)
    yield guarded
    await guarded.aclose()


@pytest.fixture
def turns() -> Iterator[list[tuple[str, dict[str, Any]]]]:
    """The events that the cache emits."""
    seen: list[tuple[str, dict[str, Any]]] = []
    unsubscribe = events.subscribe(lambda event: seen.append((event.name, dict(event.attributes))), "cache.backend.")
    yield seen
    unsubscribe()


@pytest.fixture(autouse=True)
def full_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without jitter a wait is as long as it can be."""
    monkeypatch.setattr(random, "uniform", lambda low, high: high)


async def _get(guard: GuardedStore, name: str) -> bytes | None:
    reading = await guard.read(Place(_PREFIX, name))
    return None if reading is None else reading.data


async def _put(guard: GuardedStore, store: _Store, name: str, data: bytes) -> bool | None:
    return await guard.ask(lambda: store.write(name, data))


def _now() -> float:
    return asyncio.get_running_loop().time()


async def _turn() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


async def _wait_and_probe(guard: GuardedStore, seconds: float) -> None:
    """Lets time pass, then lets an access find out that a probe is due, and the probe end."""
    await asyncio.sleep(seconds)
    await _get(guard, "any")
    await _turn()


async def test_a_store_in_order_is_used(guard: GuardedStore, store: _Store, metrics: Any) -> None:
    """Reading, writing, deleting, voiding and clearing arrive, each with its note, and the gauge says so."""
    assert guard.in_use
    assert await _put(guard, store, "a", b"1")
    await _put(guard, store, "tagged", b"2")
    assert b"1" == await _get(guard, "a")
    assert await _get(guard, "b") is None
    await guard.delete("a", "deleted")
    assert ["tagged"] == list(store.entries)
    guard.put_late(Place(_PREFIX, "a"), _write(b"3", 1000), "written")
    await _turn()
    await guard.void("tag", "voided")
    assert {"a": b"3"} == store.entries
    await guard.void(None, "cleared")
    assert {} == store.entries
    assert ["deleted", "written", "voided", "cleared"] == store.notes
    assert 1 == metrics("cache.backend_up", operation="answers")


@pytest.mark.promise("C5")
async def test_a_silent_store_costs_one_budget_once(
    guard: GuardedStore, store: _Store, turns: list[Any], metrics: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """The first access waits for the budget; nobody waits after it, nobody asks, and it is reported once."""
    store.behave = _silent
    assert await _get(guard, "key") is None
    assert pytest.approx(_BUDGET) == _now()
    for _ in range(100):
        assert await _get(guard, "key") is None
        await _put(guard, store, "key", b"")
    assert pytest.approx(_BUDGET) == _now()
    assert ["read"] == store.calls
    await _turn()
    assert 0 == store.inside
    assert [("cache.backend.degraded", {"operation": "answers", "error_type": "TimeoutError"})] == turns
    assert 0 == metrics("cache.backend_up", operation="answers")
    assert 1 == metrics("cache.backend_errors", operation="answers", error_type="TimeoutError")
    (record,) = caplog.records
    assert logging.WARNING == record.levelno
    assert "'answers'" in record.message
    assert "TimeoutError" in record.message


@pytest.mark.promise("C5")
@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (ConnectionRefusedError("refused"), "ConnectionRefusedError"),
        (RuntimeError("Event loop is closed"), "RuntimeError"),
        (asyncio.CancelledError(), "TimeoutError"),
    ],
)
async def test_a_broken_store_fails_no_access(
    guard: GuardedStore, store: _Store, metrics: Any, error: BaseException, kind: str
) -> None:
    """Whatever the store raises, also a cancellation of its own, is a miss; the breaker opens at the first failure."""
    store.behave = raising(error)
    assert await _get(guard, "key") is None
    await _put(guard, store, "key", b"")
    await guard.delete("key", "note")
    await guard.void(None, "note")
    assert ["read"] == store.calls
    assert 0.0 == _now()
    assert 1 == metrics("cache.backend_errors", operation="answers", error_type=kind)


async def test_logs_and_labels_never_quote_the_error(
    guard: GuardedStore, store: _Store, turns: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Clients quote keys, addresses and sometimes passwords in their errors."""
    store.behave = raising(ValueError("redis://:hunter2@host"))
    await _get(guard, "key")
    assert "hunter2" not in caplog.text + str(turns)


@pytest.mark.promise("C5")
async def test_many_at_once_pay_one_budget_together(guard: GuardedStore, store: _Store, turns: list[Any]) -> None:
    """A burst against a dead store: those under way pay a budget, those who queue are let go with them."""
    store.behave = _silent
    assert [None] * 200 == await asyncio.gather(*(_get(guard, f"key {number}") for number in range(200)))
    assert pytest.approx(_BUDGET) == _now()
    assert 1 == len(turns)


async def test_a_burst_is_let_through_a_few_at_a_time(guard: GuardedStore, store: _Store, turns: list[Any]) -> None:
    """Hundreds of connections opened at once take longer than the budget, and would put a healthy store out of use."""
    store.behave = taking(0.01)
    await asyncio.gather(*(_put(guard, store, f"key {number}", b"") for number in range(300)))
    assert 300 == len(store.entries)
    assert 16 == store.most_inside
    assert [] == turns


async def test_a_burst_at_the_start_does_not_put_a_healthy_store_out_of_use(
    guard: GuardedStore, store: _Store, turns: list[Any]
) -> None:
    """Opening a connection takes the longer the more are opened at once; on a busy machine, longer than the budget."""
    idle = 0

    async def behave(name: str) -> None:
        nonlocal idle
        if idle:
            idle -= 1
            await asyncio.sleep(0.001)
        else:
            await asyncio.sleep(0.005 * store.inside)
            await asyncio.sleep(0.005 * store.inside)
        idle += 1

    store.behave = behave
    await asyncio.gather(*(_put(guard, store, f"key {number}", b"") for number in range(100)))
    assert [] == turns
    await _put(guard, store, "afterwards", b"1")
    assert b"1" == await _get(guard, "afterwards")


async def test_a_queue_that_does_not_move_is_left(guard: GuardedStore, store: _Store, metrics: Any) -> None:
    """A store that is only just fast enough must not make the last of a burst wait for seconds."""
    await _get(guard, "first")
    store.behave = taking(0.04)
    await asyncio.gather(*(_put(guard, store, f"key {number}", b"") for number in range(500)))
    assert 0.6 >= _now()
    assert 200 < len(store.entries) < 300
    assert 1 == metrics("cache.backend_up", operation="answers")
    busy = "observability_integration.caching.stores.shared.StoreBusy"
    assert 500 - len(store.entries) == metrics("cache.backend_errors", operation="answers", error_type=busy)


async def test_a_client_out_of_connections_is_no_fault_of_the_store(
    guard: GuardedStore, store: _Store, turns: list[Any]
) -> None:
    """It would be put out of use just when it is needed most."""
    store.behave = raising(StoreBusy())
    assert await _get(guard, "key") is None
    store.behave = None
    await _put(guard, store, "key", b"1")
    assert b"1" == await _get(guard, "key")
    assert [] == turns


async def test_late_while_others_are_answered_is_no_fault_of_the_store(
    guard: GuardedStore, store: _Store, turns: list[Any], metrics: Any
) -> None:
    """One large value, or a busy process, says nothing about a store that answers everybody else."""
    await _get(guard, "first")
    slow = True

    async def behave(name: str) -> None:
        nonlocal slow
        if slow:
            slow = False
            await asyncio.sleep(3600)

    store.behave = behave
    late = asyncio.create_task(_get(guard, "slow"))
    await asyncio.sleep(0.01)
    await _get(guard, "fast")
    assert await late is None
    assert pytest.approx(_BUDGET) == _now()
    assert [] == turns
    assert 1 == metrics("cache.backend_errors", operation="answers", error_type="TimeoutError")


async def test_a_loop_that_was_held_up_gives_the_answer_a_second_chance(
    guard: GuardedStore, store: _Store, turns: list[Any]
) -> None:
    """Code that blocks the loop for longer than the budget must not put a healthy store out of use."""
    store.entries["key"] = b"1"
    store.behave = taking(0.02)
    loop = cast("FakeClockLoop", asyncio.get_running_loop())
    loop.call_later(0.01, loop.advance, 0.5)
    assert b"1" == await _get(guard, "key")
    assert [] == turns


async def test_a_held_up_loop_excuses_a_dead_store_for_one_more_budget_only(
    guard: GuardedStore, store: _Store, turns: list[Any]
) -> None:
    """At most 100 ms, even then."""
    store.behave = _silent
    loop = cast("FakeClockLoop", asyncio.get_running_loop())
    loop.call_later(0.01, loop.advance, 0.1)
    assert await _get(guard, "key") is None
    assert pytest.approx(0.11 + _BUDGET) == _now()
    assert 1 == len(turns)


async def test_a_client_that_ignores_its_cancellation_holds_nobody_up(guard: GuardedStore, store: _Store) -> None:
    """Clients have been seen to shield their reads; the caller leaves all the same."""
    ends = asyncio.Event()

    async def behave(name: str) -> None:
        while not ends.is_set():
            try:
                await ends.wait()
            except asyncio.CancelledError:
                continue

    store.behave = behave
    assert await _get(guard, "key") is None
    assert pytest.approx(_BUDGET) == _now()
    ends.set()
    await _turn()


async def test_a_cancelled_caller_is_cancelled_and_takes_its_access_along(guard: GuardedStore, store: _Store) -> None:
    """Cancellation is never swallowed, and a read that nobody wants keeps no connection busy."""
    store.behave = _silent
    caller = asyncio.create_task(_get(guard, "key"))
    await asyncio.sleep(0.01)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    await _turn()
    assert 0 == store.inside
    store.behave = None
    await _put(guard, store, "key", b"1")
    assert b"1" == await _get(guard, "key")


async def test_a_near_deadline_leaves_time_for_the_call(guard: GuardedStore, store: _Store, turns: list[Any]) -> None:
    """The caller goes on at half of what is left; the store is still judged by its own budget."""
    store.behave = _silent
    token = set_deadline(Deadline.after(0.04))
    try:
        assert await _get(guard, "key") is None
        assert pytest.approx(0.02) == _now()
    finally:
        reset_deadline(token)
    assert [] == turns
    await asyncio.sleep(0.04)
    assert 1 == len(turns)


async def test_a_read_in_any_case_has_two_budgets_whatever_the_deadline(guard: GuardedStore, store: _Store) -> None:
    """The call may have failed because its deadline passed; and a queue must not hold it up any longer."""
    store.entries = {"key": b"data"}
    store.behave = taking(0.03)
    await _get(guard, "any")
    began = _now()
    with_deadline = set_deadline(Deadline.after(0.0))
    try:
        reading = await guard.read(Place(_PREFIX, "key"), in_any_case=True)
        assert reading is not None
        assert b"data" == reading.data
        assert pytest.approx(0.03) == _now() - began
        crowd = [asyncio.create_task(guard.read(Place(_PREFIX, "key"), in_any_case=True)) for _ in range(100)]
        began = _now()
        readings = await asyncio.gather(*crowd)
    finally:
        reset_deadline(with_deadline)
    assert {True, False} == {reading is None for reading in readings}
    assert pytest.approx(2 * _BUDGET) == _now() - began
    assert guard.in_use


async def test_a_write_goes_on_when_the_deadline_is_near(guard: GuardedStore, store: _Store, turns: list[Any]) -> None:
    """What was paid for is stored, although nobody can wait for it."""
    store.behave = taking(0.03)
    token = set_deadline(Deadline.after(0.01))
    await _put(guard, store, "key", b"1")
    reset_deadline(token)
    assert {} == store.entries
    await asyncio.sleep(0.03)
    assert {"key": b"1"} == store.entries
    assert [] == turns


async def test_an_answer_in_time_is_taken_with_a_near_deadline(guard: GuardedStore, store: _Store) -> None:
    """A near deadline shortens the wait and changes nothing else."""
    store.entries["key"] = b"1"
    token = set_deadline(Deadline.after(0.2))
    assert b"1" == await _get(guard, "key")
    reset_deadline(token)


@pytest.mark.promise("C5")
async def test_the_store_comes_back_by_itself(
    guard: GuardedStore, store: _Store, turns: list[Any], metrics: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A probe in the background finds it; one line and one event; from then on it is used again."""
    store.behave = raising(ConnectionResetError())
    await _get(guard, "key")
    store.behave = None
    await _wait_and_probe(guard, 0.9)
    assert 0 == metrics("cache.backend_up", operation="answers")
    await _wait_and_probe(guard, 0.1)
    assert ["cache.backend.degraded", "cache.backend.recovered"] == [name for name, _ in turns]
    assert {"operation": "answers"} == turns[-1][1]
    assert 1 == metrics("cache.backend_up", operation="answers")
    assert 2 == len(caplog.records)
    await _put(guard, store, "key", b"1")
    assert b"1" == await _get(guard, "key")


@pytest.mark.promise("C5")
async def test_nobody_waits_for_a_probe(guard: GuardedStore, store: _Store) -> None:
    """The access that finds the probe due goes on at once, and only one probe runs."""
    store.behave = _silent
    await _get(guard, "key")
    await asyncio.sleep(1.0)
    before = _now()
    for _ in range(10):
        await _get(guard, "key")
    assert before == _now()
    await _turn()
    assert ["read", "probe"] == store.calls


async def test_pauses_between_probes_double_up_to_the_longest(
    guard: GuardedStore, store: _Store, turns: list[Any]
) -> None:
    """A store that is gone for an hour is not asked every second, and is found within the longest pause."""
    store.behave = raising(ConnectionRefusedError())
    await _get(guard, "key")
    probes: list[float] = []
    for _ in range(400):
        asked = len(store.calls)
        await _wait_and_probe(guard, 0.1)
        if len(store.calls) > asked:
            probes.append(_now())
    pauses = [second - first for first, second in zip([0.0, *probes], probes, strict=False)]
    assert pytest.approx([1, 2, 4, 8, 8, 8], abs=0.11) == pauses[:6]
    assert 1 == len(turns)


@pytest.mark.parametrize(("share", "first_probe"), [(0.0, 0.5), (1.0, 1.0)])
async def test_pauses_are_jittered(
    guard: GuardedStore, store: _Store, monkeypatch: pytest.MonkeyPatch, share: float, first_probe: float
) -> None:
    """Replicas that lost the store at the same moment must not all return to it at the same moment."""
    monkeypatch.setattr(random, "uniform", lambda low, high: low + share * (high - low))
    store.behave = raising(ConnectionRefusedError())
    await _get(guard, "key")
    await _wait_and_probe(guard, first_probe - 0.01)
    assert ["read"] == store.calls
    await _wait_and_probe(guard, 0.01)
    assert ["read", "probe"] == store.calls


async def test_a_store_that_takes_no_writes_is_not_back(guard: GuardedStore, store: _Store, turns: list[Any]) -> None:
    """Read-only or out of memory, it would go out of use at the next write, and its state would flap."""
    store.behave = raising(RuntimeError("OOM"), "write", "probe")
    await _put(guard, store, "key", b"")
    for _ in range(10):
        await _wait_and_probe(guard, 8.0)
    assert ["cache.backend.degraded"] == [name for name, _ in turns]
    store.behave = None
    await _wait_and_probe(guard, 8.0)
    assert "cache.backend.recovered" == turns[-1][0]


async def test_a_store_that_only_takes_is_not_back(guard: GuardedStore, store: _Store, turns: list[Any]) -> None:
    """Where reading is forbidden, a write that works proves nothing, and the next lookup would fail again."""
    store.behave = raising(RuntimeError("NOPERM"), "read", "probe")
    await _get(guard, "key")
    for _ in range(10):
        await _wait_and_probe(guard, 8.0)
    assert ["cache.backend.degraded"] == [name for name, _ in turns]


async def test_a_store_that_flaps_is_given_ever_more_time(guard: GuardedStore, store: _Store) -> None:
    """One that fails again right after each return costs a budget each time, and fills the log."""

    async def fail_and_return() -> float:
        store.behave = raising(ConnectionResetError())
        await _get(guard, "key")
        store.behave = None
        failed, asked = _now(), len(store.calls)
        while len(store.calls) == asked:
            await _wait_and_probe(guard, 0.1)
        return _now() - failed

    assert pytest.approx([1, 2, 4, 8, 8], abs=0.11) == [await fail_and_return() for _ in range(5)]
    await asyncio.sleep(8.1)  # in order for longer than the longest pause: the past is forgotten
    assert pytest.approx(1, abs=0.11) == await fail_and_return()


@pytest.mark.promise("C8")
async def test_what_was_invalidated_while_the_store_was_away_is_gone_when_it_is_back(
    guard: GuardedStore, store: _Store
) -> None:
    """A paused or unreachable store keeps its entries; an invalidation that was lost would bring old answers back."""
    store.entries = {"a": b"old", "b": b"good"}
    store.behave = raising(ConnectionResetError())
    await guard.delete("a", "note")
    assert "a" in store.entries
    store.behave = None
    await _wait_and_probe(guard, 1.0)
    assert await _get(guard, "a") is None
    assert b"good" == await _get(guard, "b")


@pytest.mark.promise("C8")
async def test_what_was_cleared_while_the_store_was_away_is_gone_when_it_is_back(
    guard: GuardedStore, store: _Store
) -> None:
    """The same for all entries of the operation; until that is done, nothing is read."""
    store.entries = {"a": b"old", "other": b"old"}
    store.behave = raising(ConnectionResetError())
    await _get(guard, "any")
    await guard.void(None, "note")
    store.behave = taking(0.04, "void")
    await _wait_and_probe(guard, 1.0)
    assert await _get(guard, "a") is None
    await asyncio.sleep(0.04)
    await _turn()
    assert guard.in_use
    assert {} == store.entries


async def test_more_deletions_than_can_be_remembered_become_one_clear(guard: GuardedStore, store: _Store) -> None:
    """Memory is bounded here too; rather too much is forgotten than too little."""
    store.entries = {str(number): b"old" for number in range(1500)}
    store.behave = raising(ConnectionResetError())
    await asyncio.gather(*(guard.delete(str(number), _NOTE) for number in range(1200)))
    store.behave = None
    await _wait_and_probe(guard, 1.0)
    assert {"cache:answers:probe"} >= set(store.entries)


@pytest.mark.promise("C8")
async def test_nothing_invalidated_is_served_while_it_is_being_deleted(guard: GuardedStore, store: _Store) -> None:
    """Else a lookup in that moment would bring the old answer back into memory, for a whole TTL."""
    store.entries = {"a": b"old", "b": b"old"}
    store.behave = taking(0.03, "delete")
    deletion = asyncio.create_task(guard.delete("a", "note"))
    await asyncio.sleep(0.01)
    assert await _get(guard, "a") is None
    assert b"old" == await _get(guard, "b")
    await deletion
    store.behave = taking(0.03, "void")
    clearing = asyncio.create_task(guard.void(None, "note"))
    await asyncio.sleep(0.01)
    assert await _get(guard, "b") is None
    await clearing
    assert {} == store.entries
    await _put(guard, store, "a", b"new")
    assert b"new" == await _get(guard, "a")


async def test_a_key_invalidated_again_while_it_is_being_deleted_is_deleted_again(
    guard: GuardedStore, store: _Store
) -> None:
    """The first deletion may have been before the entry that the second one is meant for."""
    deletes: list[asyncio.Future[None]] = []

    async def behave(name: str) -> None:
        if name == "delete":
            deletes.append(asyncio.get_running_loop().create_future())
            await deletes[-1]

    store.behave = behave
    first = asyncio.create_task(guard.delete("key", "first"))
    await _turn()
    second = asyncio.create_task(guard.delete("key", "second"))
    await _turn()
    deletes[0].set_result(None)
    await first
    store.entries["key"] = b"old"
    assert await _get(guard, "key") is None
    for delete in deletes[1:]:
        delete.set_result(None)
    await second
    await _turn()
    for delete in deletes[2:]:
        delete.set_result(None)
    await _turn()
    assert "key" not in store.entries


async def test_a_clear_that_comes_while_one_is_under_way_is_done_as_well(guard: GuardedStore, store: _Store) -> None:
    """What was written after the first one had passed by must go too."""
    store.behave = taking(0.03, "void")
    first = asyncio.create_task(guard.void(None, "first"))
    await asyncio.sleep(0.01)
    second = asyncio.create_task(guard.void(None, "second"))
    await first
    store.entries["a"] = b"old"
    assert await _get(guard, "a") is None
    await second
    assert {} == store.entries


async def test_a_deletion_survives_its_caller(guard: GuardedStore, store: _Store) -> None:
    """A request that is cancelled while it invalidates has said what it wanted."""
    store.entries = {"key": b"old"}
    store.behave = taking(0.02)
    caller = asyncio.create_task(guard.delete("key", "note"))
    await asyncio.sleep(0.01)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    await asyncio.sleep(0.02)
    assert {} == store.entries


async def test_a_deletion_that_found_no_connection_is_made_with_the_next_access(
    guard: GuardedStore, store: _Store, turns: list[Any]
) -> None:
    """Nothing is wrong with the store, so no probe will come to do it."""
    store.entries = {"key": b"old", "other": b"good"}
    store.behave = raising(StoreBusy(), "delete")
    await guard.delete("key", "note")
    store.behave = None
    assert await _get(guard, "key") is None
    assert b"good" == await _get(guard, "other")
    await _turn()
    assert {"other": b"good"} == store.entries
    assert [] == turns


class _Backend:
    """A store of a user's own, slow to clear."""

    async def get(self, key: str) -> bytes | None:
        return None

    async def set(self, key: str, value: bytes, ttl_milliseconds: int) -> None:
        pass

    async def delete(self, *keys: str) -> None:
        pass

    async def clear(self, prefix: str) -> None:
        await asyncio.sleep(120.0)

    async def aclose(self) -> None:
        pass


async def test_a_backend_without_generations_may_take_its_time_to_clear(turns: list[Any]) -> None:
    """Walking through millions of keys is no sign of a fault; a store that has generations needs no time for it."""
    guard = GuardedStore(PlainStore(_Backend()), "answers", _PREFIX, _POLICY)
    await guard.void(None, "note")
    assert 120.0 == _now()
    assert [] == turns
    await guard.aclose()


async def test_late_writes_wait_for_the_store(guard: GuardedStore, store: _Store) -> None:
    """The last one for each entry is made when it is back, for the rest of its life, and what has expired is not."""
    with clocks_of_the_loop():
        guard = GuardedStore(cast("SharedStore", store), "answers", _PREFIX, _POLICY)
        store.behave = raising(ConnectionResetError())
        await _get(guard, "any")
        for name, data, ttl_ms in (
            ("a", b"1", 60_000),
            ("a", b"2", 60_000),
            ("brief", b"3", 900),
            ("gone", b"4", 60_000),
        ):
            guard.put_late(Place(_PREFIX, name), _write(data, ttl_ms), "note")
        await guard.delete("gone", "note")
        store.behave = None
        await _wait_and_probe(guard, 1.0)
        assert {"a": b"2"} == store.entries
        assert guard.in_use
        await guard.aclose()


async def test_a_slow_network_does_not_keep_the_store_out_of_use(guard: GuardedStore, store: _Store) -> None:
    """A thousand late writes at 4 ms each are made at the first probe, a few in each budget."""
    store.behave = raising(ConnectionResetError())
    await _get(guard, "any")
    for number in range(1000):
        guard.put_late(Place(_PREFIX, str(number)), _write(b"data", 60_000), "note")
    store.behave = taking(0.004)
    await _wait_and_probe(guard, 1.0)
    await asyncio.sleep(5.0)
    assert guard.in_use
    assert 1000 == len(store.entries)


async def test_many_tags_invalidated_meanwhile_do_not_either(guard: GuardedStore, store: _Store) -> None:
    """Nor are they remembered without end: too many become one clearing."""
    for count, voided in ((500, 500), (1001, 1)):
        store.behave = raising(ConnectionResetError())
        await _get(guard, "any")
        store.notes.clear()
        for number in range(count):
            await guard.void(str(number), _NOTE)
        store.behave = taking(0.004)
        await _wait_and_probe(guard, 8.0)
        await asyncio.sleep(5.0)
        assert guard.in_use
        assert voided == len(store.notes)


async def test_closing_waits_for_what_is_being_written(guard: GuardedStore, store: _Store, turns: list[Any]) -> None:
    """A process that ends has paid for the call; and a connection closed under a write looks like a fault."""
    await _get(guard, "any")
    store.behave = taking(0.03)
    guard.put_late(Place(_PREFIX, "a"), _write(b"1", 1000), "note")
    await guard.aclose()
    assert {"a": b"1"} == store.entries
    assert 0.03 == _now()
    assert [] == turns


async def test_what_is_to_be_forgotten_is_known(guard: GuardedStore, store: _Store) -> None:
    """Whoever comes by an entry in another way than by reading it has to ask."""
    store.behave = taking(0.03)
    deletion = asyncio.create_task(guard.delete("a", "note"))
    await _turn()
    assert (True, False) == (guard.forgets("a"), guard.forgets("b"))
    await deletion
    assert not guard.forgets("a")
    voiding = asyncio.create_task(guard.void("tag", "note"))
    await _turn()
    assert guard.forgets("b")
    await voiding


async def test_closing_ends_the_probe_and_closes_the_store(store: _Store) -> None:
    """Nothing of a closed cache goes on in the background."""
    guard = GuardedStore(cast("SharedStore", store), "answers", _PREFIX, _POLICY)
    store.behave = _silent
    await _get(guard, "key")
    await asyncio.sleep(1.0)
    await _get(guard, "key")
    await _turn()
    assert 1 == store.inside
    await guard.aclose()
    await _turn()
    assert 0 == store.inside
    assert store.closed


def test_a_probe_of_a_loop_that_ended_does_not_stand_in_the_way(store: _Store) -> None:
    """A process that runs one loop after another gets its store back in a later one."""
    guard = GuardedStore(cast("SharedStore", store), "answers", _PREFIX, CachePolicy(backend_retry_seconds=0.001))

    async def lose() -> None:
        store.behave = raising(ConnectionResetError())
        await _get(guard, "key")
        store.behave = _silent
        await asyncio.sleep(0.01)
        await _get(guard, "key")
        await asyncio.sleep(0)

    async def find() -> bytes | str | None:
        store.behave = None
        store.entries["key"] = b"1"
        await asyncio.sleep(0.01)
        await _get(guard, "key")
        await _turn()
        return await _get(guard, "key")

    # A loop closed without ado leaves its tasks pending, as frameworks do at times.
    loop = FakeClockLoop()
    loop.run_until_complete(lose())
    left = asyncio.all_tasks(loop)
    other = FakeClockLoop(start_seconds=1.0)
    assert b"1" == other.run_until_complete(find())
    other.run_until_complete(guard.aclose())
    other.close()
    for task in left:
        task.cancel()
    loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
    loop.close()
