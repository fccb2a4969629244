"""Memory and shared store together: what is read from one is kept in the other, for as long and no longer."""

from __future__ import annotations

import time
from typing import Any

import pytest

from observability_integration.caching.codec import Codec
from observability_integration.caching.entry import Entry
from observability_integration.caching.entry_options import EntryOptions
from observability_integration.caching.freshness import Freshness
from observability_integration.caching.keys import GLOBAL, KeySpace
from observability_integration.caching.policy import CachePolicy
from observability_integration.caching.stores.plain import PlainStore
from observability_integration.caching.stores.shared import FOR_EVER_MS, Write
from observability_integration.caching.tiers import ABSENT, Computed, StoreHit, Tiers
from observability_integration.caching.wire.frame import Stamp, Wire
from observability_integration.errors import ConfigurationError
from observability_integration.testing.clock import FakeClockLoop
from tests.cache_doubles import ServedStore, Server, at, raising, turns

pytestmark = pytest.mark.usefixtures("clocks")

LOOP_FACTORY = FakeClockLoop

_KEYS = KeySpace("answers", GLOBAL)
_DIGEST = _KEYS.digest("key")
_PLACE = _KEYS.place(_DIGEST)


@pytest.fixture
def server() -> Server:
    return Server()


def _tiers(store: Any, ttl_seconds: float = 60.0, **policy: Any) -> Tiers:
    knobs = CachePolicy(**{"ttl_jitter": 0.0, **policy})
    wire = Wire(compress_above_bytes=None, keyring=None, max_bytes=knobs.max_value_bytes)
    return Tiers("answers", _KEYS, Freshness(knobs, ttl_seconds), store, None, knobs, Codec(), wire)


class _Right:
    """The right to write, as a lease has it."""

    def __init__(self, store: ServedStore, written: bool | None = True) -> None:
        self.now_us = store.server.now_us()
        self._store, self._written = store, written

    async def commit(self, write: Write) -> bool | None:
        if self._written:
            self._store.server.put(_PLACE.key, write.data, write.ttl_ms)
        return self._written


def _made(
    value: Any, *, seconds: float = 0.0, refusal: str | None = None, basis: Any = None, **options: Any
) -> Computed:
    decided = EntryOptions()
    for name, option in options.items():
        setattr(decided, name, option)
    tags = tuple(sorted(set(map(_KEYS.tag, decided.tags))))
    return Computed(value, decided.ttl_seconds, tags, time.monotonic() - seconds, seconds, 5, refusal, basis)


async def _keep(tiers: Tiers, value: Any, store: ServedStore | None = None, **more: Any) -> Any:
    """Keeps a value, with a lease if a store is given."""
    written = more.pop("written", True)
    lease: Any = None if store is None else _Right(store, written)
    basis = tiers._store.server.generation if isinstance(tiers._store, ServedStore) else tiers.generation
    current = more.pop("current", lambda: True)
    kept, entry, encoded = tiers.prepare(_made(value, basis=basis, **more))
    if entry is not None and encoded is None:
        tiers.store_in_memory(_DIGEST, entry)
    elif entry is not None and encoded is not None:
        entry = await tiers.store_in_both(_DIGEST, entry, encoded, lease, current)
    return kept, entry


def _recall(tiers: Tiers) -> Any:
    entry = tiers.memory.get(_DIGEST)
    return ABSENT if entry is None else tiers.value_of(_DIGEST, entry)


async def test_a_value_is_kept_in_both_levels(server: Server) -> None:
    """The second process finds it in the store, with all that is known of it, and keeps it in its own memory."""
    store = server.store()
    _, entry = await _keep(_tiers(store), {"a": 1}, store, seconds=2.0)
    other = _tiers(server.store())
    assert _recall(other) is ABSENT
    found = await other.fetch(_DIGEST)
    assert found is not None
    assert ({"a": 1}, 5, 2.0) == (found.value, found.entry.tokens, found.entry.compute_seconds)
    assert (entry.version, entry.kept) == (found.entry.version, found.entry.kept)
    other.put_in_memory(_DIGEST, found.entry)
    server.entries.clear()
    assert {"a": 1} == _recall(other)


async def test_without_a_store_memory_does_it_alone() -> None:
    """No Redis is the common case in development."""
    tiers = _tiers(None)
    assert tiers.shared is None
    assert await tiers.fetch(_DIGEST) is None
    await _keep(tiers, None)
    assert _recall(tiers) is None
    await tiers.forget(_DIGEST)
    assert _recall(tiers) is ABSENT
    await _keep(tiers, 1, tags=["a"])
    await tiers.forget_tag(_KEYS.tag("b"))
    assert 1 == _recall(tiers)
    await tiers.forget_tag(_KEYS.tag("a"))
    assert _recall(tiers) is ABSENT
    await _keep(tiers, 1)
    await tiers.clear()
    assert _recall(tiers) is ABSENT
    await tiers.aclose()


@pytest.mark.parametrize(
    ("ttl_seconds", "milliseconds"), [(60.0, 60_000), (0.25, 250), (1e-9, 1), (1e300, FOR_EVER_MS)]
)
async def test_lives_are_given_in_milliseconds(server: Server, ttl_seconds: float, milliseconds: int) -> None:
    """Whole seconds would make 0.25 s an error; Redis refuses 0 and what does not fit its clock."""
    store = server.store()
    await _keep(_tiers(store, ttl_seconds), "value", store)
    await _keep(_tiers(store, ttl_seconds), "value")
    server.entries.clear()
    await turns()
    assert milliseconds == server.lives_ms[0]


async def test_what_may_be_served_stale_is_kept_for_as_long(server: Server) -> None:
    """In both tiers; fresh for a TTL, and usable beyond it."""
    store = server.store()
    tiers = _tiers(store, 10.0, stale_if_error_seconds=5.0, stale_while_revalidate_seconds=20.0)
    _, entry = await _keep(tiers, "value", store)
    assert [30_000] == server.lives_ms
    assert (10.0, 10.0, 30.0) == (entry.fresh_until, entry.expired_at, entry.usable_until)
    await at(29.9)
    assert (found := await tiers.fetch(_DIGEST)) is not None
    assert (10.0, 10.0, 30.0) == pytest.approx(
        (found.entry.fresh_until, found.entry.expired_at, found.entry.usable_until), abs=0.002
    )
    assert tiers.memory.get(_DIGEST) is not None
    await at(30.0)
    assert tiers.memory.get(_DIGEST) is None
    assert await tiers.fetch(_DIGEST) is None


async def test_age_counts_from_the_beginning_of_the_call_and_life_from_its_end(server: Server) -> None:
    """A call of 20 s does not cost its answer a third of a life; who reads it elsewhere sees the same."""
    store = server.store()
    await at(20.0)
    right: Any = _Right(store)
    right.now_us -= 20_000_000  # the lease was had when the call began
    tiers = _tiers(store)
    _, made, encoded = tiers.prepare(_made("value", seconds=20.0, basis=server.generation))
    assert made is not None
    assert encoded is not None
    entry = await tiers.store_in_both(_DIGEST, made, encoded, right, lambda: True)
    found = await _tiers(server.store(), eager_refresh=0.5).fetch(_DIGEST)
    assert entry is not None
    assert found is not None
    assert (0.0, 80.0) == (entry.created, entry.fresh_until)
    assert pytest.approx((0.0, 80.0)) == (found.entry.created, found.entry.fresh_until)
    assert pytest.approx(20.0 + 30.0) == found.entry.refresh_at


@pytest.mark.promise("C6")
async def test_memory_does_not_outlive_the_entry_it_was_filled_from(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An entry found in the last second of its life is served for that second, and one beyond it not at all."""
    store = server.store()
    await _keep(_tiers(store), "value", store)
    began, lives = time.time(), []
    late = _tiers(store)
    for passed in (0.0, 59.0, 60.01, 61.0, -3600.0):
        monkeypatch.setattr(time, "time", lambda passed=passed: began + passed)
        found = await late.fetch(_DIGEST)
        assert (passed < 60.0) is (found is not None)
        lives += [] if found is None else [found.entry.fresh_until]
    # Clocks apart: at most one TTL.
    assert pytest.approx([60.0, 1.0, 60.0], abs=0.01) == lives


async def test_what_msgpack_cannot_hold_stays_in_memory(server: Server) -> None:
    """The store would give other processes something else than the call does."""
    store = server.store()
    tiers = _tiers(store)
    _, entry = await _keep(tiers, (1, 2), store)
    assert {} == server.entries
    assert (1, 2) == _recall(tiers)
    assert b"" == entry.version


@pytest.mark.parametrize("value", ["x" * 2000, {"a": "x" * 2000}, ("x" * 2000,)])
async def test_what_is_too_large_is_kept_nowhere(server: Server, value: Any, metrics: Any) -> None:
    """It still goes to all who wait for it."""
    store = server.store()
    tiers = _tiers(store, max_value_bytes=1000)
    kept, entry = await _keep(tiers, value, store)
    assert value == tiers.restore(kept)
    assert entry is None
    assert _recall(tiers) is ABSENT
    assert {} == server.entries
    assert 1 == metrics("cache.refusals", operation="answers", reason="too_large")


async def test_what_is_too_large_for_this_process_is_not_kept(server: Server) -> None:
    """Another process, with more room, may have written it."""
    tiers = _tiers(None, max_value_bytes=1000)
    kept = Codec().keep("x" * 2000, None, 10_000)
    tiers.put_in_memory(_DIGEST, Entry(kept, 0.0, 60.0, 60.0, 60.0))
    assert _recall(tiers) is ABSENT


@pytest.mark.parametrize("reason", ["length", "not_stored"])
async def test_what_was_refused_is_handed_out_and_not_kept(server: Server, reason: str, metrics: Any) -> None:
    """An answer that was cut short is still an answer for those who wait."""
    store = server.store()
    tiers = _tiers(store)
    kept, entry = await _keep(tiers, "value", store, refusal=reason)
    assert ("value", None) == (tiers.restore(kept), entry)
    assert {} == server.entries
    assert 1 == metrics("cache.refusals", operation="answers", reason=reason)


@pytest.mark.parametrize("garbage", [b"garbage", b"\xff", b"\x02", b"[2,0,null]", b"\x02" * 100])
async def test_garbage_is_a_miss_counted_and_deleted(server: Server, garbage: bytes, metrics: Any) -> None:
    """Left in place it would cost every process a failed reading at each lookup."""
    server.put(_PLACE.key, garbage, 60_000)
    assert await _tiers(server.store()).fetch(_DIGEST) is None
    assert {} == server.entries
    assert 1 == metrics("telemetry.faults", site="cache.decode")


@pytest.mark.promise("C8")
async def test_what_is_invalidated_while_it_is_written_is_not_kept_in_memory(server: Server) -> None:
    """What was written there is void by its stamp or deleted; memory must not have it either."""
    store = server.store()
    tiers = _tiers(store)
    await _keep(tiers, "value", store, current=lambda: not server.entries)
    assert _recall(tiers) is ABSENT


@pytest.mark.promise("C9")
async def test_without_the_right_to_write_memory_keeps_nothing(server: Server) -> None:
    """The lease was lost to an invalidation, or to another who has made it anew: the answer is of yesterday."""
    store = server.store()
    tiers = _tiers(store)
    kept, entry = await _keep(tiers, "value", store, written=False)
    assert ("value", None) == (tiers.restore(kept), entry)
    assert _recall(tiers) is ABSENT
    await turns()
    assert {} == server.entries


@pytest.mark.promise("C11")
async def test_what_could_not_be_written_is_written_later(server: Server) -> None:
    """The store did not answer, or there was no lease: nobody waits for it, and memory has it at once."""
    store = server.store()
    tiers = _tiers(store)
    for written in (None, "no lease"):
        server.entries.clear()
        await _keep(tiers, str(written), store if written is None else None, written=None)
        assert str(written) == _recall(tiers)
        assert {} == server.entries
        await turns()
        found = await tiers.fetch(_DIGEST)
        assert found is not None
        assert str(written) == found.value
    await tiers.aclose()


async def test_an_entry_that_somebody_else_has_written_is_not_overwritten_late(server: Server) -> None:
    """His may be newer."""
    store = server.store()
    await _keep(_tiers(store), "theirs", store)
    await _keep(_tiers(store), "ours")
    await turns()
    found = await _tiers(store).fetch(_DIGEST)
    assert found is not None
    assert "theirs" == found.value


async def test_what_can_be_had_only_once_is_counted_and_not_kept(server: Server, metrics: Any) -> None:
    """A stream put into a cache is a mistake that shows in the metrics."""
    tiers = _tiers(server.store())
    assert (None, None) == await _keep(tiers, (x for x in "ab"), server.store())
    assert tiers.restore(None) is ABSENT
    assert _recall(tiers) is ABSENT
    assert 1 == metrics("telemetry.faults", site="cache.keep")
    assert 1 == metrics("cache.refusals", operation="answers", reason="uncopyable")


class _Moody:
    """Lets itself be copied so many times."""

    left = 0

    def __deepcopy__(self, memo: Any) -> _Moody:
        if _Moody.left == 0:
            raise RuntimeError("not again")
        _Moody.left -= 1
        return self


async def test_a_type_that_stops_cooperating_is_a_miss(metrics: Any) -> None:
    """What a user's type raises while it is copied must not reach the caller."""
    tiers = _tiers(None)
    _Moody.left = 2
    kept, _ = await _keep(tiers, _Moody())
    assert isinstance(_recall(tiers), _Moody)
    assert tiers.restore(kept) is ABSENT
    assert _recall(tiers) is ABSENT
    assert 2 == metrics("telemetry.faults", site="cache.restore")
    _Moody.left = 1
    assert _recall(tiers) is ABSENT  # it was thrown away


@pytest.mark.promise("C8")
async def test_what_was_created_before_an_invalidation_is_void(server: Server) -> None:
    """By tag, or all; what comes after it is not."""
    store = server.store()
    tiers = _tiers(store)
    for tag in ("a", None):
        await _keep(tiers, "old", store, tags=["a", "b"])
        await server.store().void(_KEYS.prefix, None if tag is None else _KEYS.tag(tag), "note", "another")
        assert await _tiers(server.store()).fetch(_DIGEST) is None
        await at(time.monotonic() + 1.0)
        await _keep(tiers, "new", store, tags=["a", "b"])
        found = await _tiers(server.store()).fetch(_DIGEST)
        assert found is not None
        assert "new" == found.value


async def test_entries_without_tags_cost_no_question(server: Server) -> None:
    """One round trip for a hit, whatever was invalidated."""
    store = server.store()
    await _keep(_tiers(store), "value", store)
    await _tiers(store).fetch(_DIGEST)
    assert ["read"] == store.calls


@pytest.mark.promise("C8")
async def test_tags_that_cannot_be_asked_about_are_void(server: Server) -> None:
    """The store fails between the entry and its tags: a miss costs a call, an answer that is void costs more."""
    store = server.store()
    tiers = _tiers(store)
    await _keep(tiers, "value", store, tags=["a"])
    await server.store().void(_KEYS.prefix, "another tag", "note", "another")
    store.behave = raising(ConnectionResetError(), "vouches")
    assert await tiers.fetch(_DIGEST) is None
    assert server.entries


@pytest.mark.promise("C8")
async def test_what_is_about_to_be_deleted_is_not_taken_from_another_hand(server: Server) -> None:
    """Asking for a lease brings an entry too; one that was invalidated here may not come back that way."""
    store = server.store()
    tiers = _tiers(store)
    await _keep(tiers, "value", store)
    data = server.entry(_PLACE.key)
    assert data is not None
    assert isinstance(await tiers.decode(_DIGEST, data, server.generation), StoreHit)
    assert tiers.shared is not None
    tiers.shared._pending.delete(_PLACE.name, "note")
    assert await tiers.decode(_DIGEST, data, server.generation) is None


async def test_forgetting_and_clearing_reach_both_levels(server: Server) -> None:
    """What is gone here must not come back from there."""
    store = server.store()
    tiers = _tiers(store)

    async def tag() -> None:
        await tiers.forget_tag(_KEYS.tag("a"))

    for forget in (lambda: tiers.forget(_DIGEST), tag, tiers.clear):
        await _keep(tiers, "value", store, tags=["a"])
        assert await tiers.fetch(_DIGEST) is not None
        await forget()
        assert _recall(tiers) is ABSENT
        assert await tiers.fetch(_DIGEST) is None
        await at(time.monotonic() + 1.0)
    await tiers.aclose()
    assert store.closed


class _Backend:
    """A store of a user's own."""

    async def get(self, key: str) -> bytes | None:
        return None

    async def set(self, key: str, value: bytes, ttl_milliseconds: int) -> None:
        pass

    async def delete(self, *keys: str) -> None:
        pass

    async def clear(self, prefix: str) -> None:
        pass

    async def aclose(self) -> None:
        pass


async def test_a_store_without_tags_refuses_them_and_stays_in_use() -> None:
    """It could not say which entries have the tag; that is the caller's mistake, and no fault of the store."""
    tiers = _tiers(PlainStore(_Backend()))
    await _keep(tiers, "value", tags=["a"])
    with pytest.raises(ConfigurationError, match="needs Redis"):
        await tiers.forget_tag(_KEYS.tag("a"))
    assert tiers.shared is not None
    assert tiers.shared.in_use
    assert not tiers.shared.forgets("any")
    await tiers.aclose()


async def test_an_entry_says_when_it_was_made_by_whom_it_was_asked() -> None:
    """With a lease by the store's clock, without one by our own."""
    server = Server()
    store = server.store()
    tiers = _tiers(store)
    wire = Wire(compress_above_bytes=None, keyring=None, max_bytes=1_000_000)
    lease: Any = _Right(store)
    lease.now_us = 1_234_567
    _, entry, encoded = tiers.prepare(_made("value", seconds=2.0, basis=server.generation))
    assert entry is not None
    assert encoded is not None
    await tiers.store_in_both(_DIGEST, entry, encoded, lease, lambda: True)
    stamp, _, _ = wire.open(_PLACE.key, server.entry(_PLACE.key))
    assert Stamp(1_234_567, 62_000, 62_000, 2_000, (), 5, server.generation) == stamp
    server.entries.clear()
    await _keep(tiers, "value", seconds=2.0)
    await turns()
    stamp, _, _ = wire.open(_PLACE.key, server.entry(_PLACE.key))
    assert server.now_us() - 2_000_000 == stamp.created_us


@pytest.mark.promise("C8")
async def test_what_is_invalidated_while_it_is_written_is_not_written_later(server: Server) -> None:
    """The store did not answer, and the invalidation came meanwhile."""
    store = server.store()
    tiers = _tiers(store)
    _, entry = await _keep(tiers, "value", store, written=None, current=lambda: False)
    await turns()
    assert entry is None
    assert [] == store.calls
    assert not server.entries


async def test_what_is_based_on_nothing_is_kept_in_memory_alone(server: Server) -> None:
    """The store was never asked: it cannot be told whether the value was invalidated during its call."""
    store = server.store()
    tiers = _tiers(store)
    _, entry, encoded = tiers.prepare(_made("value"))
    assert entry is not None
    assert encoded is not None
    kept = await tiers.store_in_both(_DIGEST, entry, encoded, None, lambda: True)
    await turns()
    assert kept is not None
    assert b"" == kept.version
    assert ("value", []) == (_recall(tiers), store.calls)


async def test_entries_of_a_higher_number_than_there_is_are_void(server: Server) -> None:
    """The server has gone back to an earlier state, and with it went the invalidations after that."""
    store = server.store()
    tiers = _tiers(store)
    await store.void(_KEYS.prefix, "tag", "note", "another")
    await _keep(tiers, "value", store)
    assert await tiers.fetch(_DIGEST) is not None
    server.generation = server.generation._replace(number=0)
    assert await tiers.fetch(_DIGEST) is None
