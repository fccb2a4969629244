"""Memory is the level that is always there: it must stay within its bounds, and never serve what has expired."""

from __future__ import annotations

import gc
import math
import threading
import weakref

import pytest
from hypothesis import given
from hypothesis import strategies as st

from observability_integration.caching.codec import StoredValue
from observability_integration.caching.entry import Entry
from observability_integration.caching.stores import memory
from observability_integration.caching.stores.memory import MemoryStore

pytestmark = pytest.mark.once


class _Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def _entry(usable_until: float = 1005.0, size: int = 1, payload: object = None, tags: tuple[str, ...] = ()) -> Entry:
    stale_from = min(1001.0, usable_until)
    return Entry(
        kept=StoredValue(payload, "value", size),
        created=1000.0,
        fresh_until=stale_from,
        expired_at=stale_from,
        usable_until=usable_until,
        tags=tags,
    )


@pytest.fixture
def clock() -> _Clock:
    return _Clock()


def test_an_entry_is_found_fresh_and_stale_until_it_can_no_longer_be_used(clock: _Clock) -> None:
    """Whether a stale one is served is not decided here; at the moment its use ends it is gone and takes no room."""
    store = MemoryStore(10, 100, clock)
    entry = _entry(1005.0)
    store.set(b"key", entry)
    clock.now = 1004.999
    assert entry is store.get(b"key")
    clock.now = 1005.0
    assert store.get(b"key") is None
    assert (0, 0) == (len(store), store.bytes)


def test_an_entry_without_an_end_stays(clock: _Clock) -> None:
    """It must not be taken for expired, nor be waited for by what looks for expired ones."""
    store = MemoryStore(10, 100, clock)
    store.set(b"key", _entry(math.inf))
    clock.now = 1e300
    store.set(b"other", _entry(math.inf))
    assert store.get(b"key") is not None


def test_setting_again_replaces_the_entry_and_corrects_the_size(clock: _Clock) -> None:
    """Bytes that were counted twice would shrink the cache with every refresh."""
    store = MemoryStore(10, 100, clock)
    store.set(b"key", _entry(1005.0, 40))
    renewed = _entry(1009.0, 10)
    store.set(b"key", renewed)
    clock.now = 1008.0
    assert renewed is store.get(b"key")
    assert (1, 10) == (len(store), store.bytes)


@pytest.mark.promise("C6")
def test_what_is_in_doubt_is_not_fresh_and_is_what_it_was(clock: _Clock) -> None:
    """Its room, its tags and its end stay the same; the lookup that confirms it puts it back."""
    store = MemoryStore(10, 100, clock)
    entry, later = _entry(1005.0, size=7, tags=("t",)), _entry(1005.0)
    store.set(b"key", entry)
    assert entry is store.fresh(b"key")
    for _ in range(2):
        store.doubt()
        store.set(b"later", later)
        assert store.fresh(b"key") is None
        doubted = store.get(b"key")
        assert doubted is not None
        assert (entry, entry) == (doubted.original, doubted.in_doubt().original)
        assert 8 == store.bytes
    assert later is store.fresh(b"later")
    store.set(b"key", entry)
    assert entry is store.fresh(b"key")
    store.doubt()
    assert 1 == store.delete_tagged("t")
    clock.now = 1005.0
    assert store.get(b"later") is None
    assert (0, 0) == (len(store), store.bytes)


def test_what_nobody_asked_for_goes_first(clock: _Clock) -> None:
    """The oldest of those: one that was asked for has shown that it is worth its room."""
    store = MemoryStore(3, 100, clock)
    for key in (b"a", b"b", b"c"):
        store.set(key, _entry())
    store.get(b"a")
    store.set(b"d", _entry())
    assert {b"a", b"c", b"d"} == set(store._slots)
    store.set(b"e", _entry())
    assert {b"a", b"d", b"e"} == set(store._slots)


def test_a_flood_of_questions_that_nobody_repeats_leaves_the_others(clock: _Clock) -> None:
    """Most prompts of a chat never come again, and would otherwise push out the few that do."""
    store = MemoryStore(10, 100, clock)
    for key in (b"a", b"b", b"c"):
        store.set(key, _entry())
        store.get(key)
    for number in range(1000):
        store.set(b"%d" % number, _entry())
    assert {b"a", b"b", b"c"} < set(store._slots)
    assert (10, 10) == (len(store), store.bytes)


def test_a_flood_is_held_back_by_its_bytes_too(clock: _Clock) -> None:
    """Where answers are large it is the bytes that run out, long before the number of entries does."""
    store = MemoryStore(1000, 100, clock)
    store.set(b"a", _entry(size=20))
    store.get(b"a")
    for number in range(100):
        store.set(b"%d" % number, _entry(size=20))
    assert b"a" in store._slots
    assert (5, 100, 80) == (len(store), store.bytes, store._short_bytes)


def test_what_comes_back_soon_after_it_was_pushed_out_stays(clock: _Clock) -> None:
    """The room of new entries is short; one whose repetitions are further apart is known by its key."""
    store = MemoryStore(10, 100, clock)
    store.set(b"a", _entry())
    for number in range(10):
        store.set(b"%d" % number, _entry())
    assert b"a" not in store._slots
    store.set(b"a", _entry())
    for number in range(100):
        store.set(b"other %d" % number, _entry())
    assert b"a" in store._slots


def test_what_was_asked_for_long_ago_goes(clock: _Clock) -> None:
    """Nothing stays for ever on the ground of what it once was; each round without a use costs it one."""
    store = MemoryStore(10, 100, clock)
    store.set(b"a", _entry())
    store.get(b"a")
    for number in range(10):
        store.set(b"%d" % number, _entry())
    assert [b"a"] == list(store._long)
    for _ in range(1000):
        store.get(b"a")
    for number in range(10, 60):
        store.set(b"%d" % number, _entry())
        store.get(b"%d" % number)
    assert b"a" not in store._slots
    assert 10 == len(store)


def test_not_all_are_looked_at_before_one_goes(clock: _Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """With ten thousand entries in use, the one call that finds the memory full would stop the event loop."""
    monkeypatch.setattr(memory, "_LOOKED_AT", 2)
    store = MemoryStore(10, 100, clock)
    keys = [b"%d" % number for number in range(10)]
    for key in keys:
        store.set(key, _entry())
        store.get(key)
    store.set(b"x", _entry())
    assert keys[1:8] == list(store._long)
    for key in keys[1:8]:
        store.get(key)
    store.set(b"y", _entry())
    assert [*keys[4:9], keys[1], keys[2]] == list(store._long)


def test_a_large_entry_in_place_of_a_small_one_makes_room_for_itself(clock: _Clock) -> None:
    """It must not be the one that is pushed out for it."""
    store = MemoryStore(10, 100, clock)
    for key in (b"a", b"b", b"c"):
        store.set(key, _entry(size=30))
    grown = _entry(size=70)
    store.set(b"a", grown)
    assert grown is store.get(b"a")
    assert (2, 100) == (len(store), store.bytes)


@pytest.mark.promise("C6")
def test_bytes_are_bounded(clock: _Clock) -> None:
    """A few large answers must push out many small ones rather than grow the process."""
    store = MemoryStore(1000, 100, clock)
    for number in range(10):
        store.set(b"%d" % number, _entry(size=10))
    store.set(b"large", _entry(size=95))
    assert (1, 95) == (len(store), store.bytes)


def test_what_is_larger_than_everything_is_not_kept(clock: _Clock) -> None:
    """It would push out all else and then itself; what stood under its key before is outdated and must go."""
    store = MemoryStore(1000, 100, clock)
    store.set(b"small", _entry(size=10))
    store.set(b"key", _entry(size=10))
    store.set(b"key", _entry(size=101))
    assert store.get(b"key") is None
    assert store.get(b"small") is not None
    assert 10 == store.bytes


def test_what_has_expired_already_is_not_kept(clock: _Clock) -> None:
    """It would take the room of one that can be served; what stood under its key before is outdated and must go."""
    store = MemoryStore(1, 100, clock)
    store.set(b"key", _entry(1005.0))
    store.set(b"other", _entry(1000.0))
    assert store.get(b"key") is not None
    store.set(b"key", _entry(1000.0))
    assert 0 == len(store)


def test_what_has_expired_goes_before_what_can_be_served(clock: _Clock) -> None:
    """Nobody asks for it again, and yet it may have been used after an entry that somebody will ask for."""
    store = MemoryStore(3, 100, clock)
    store.set(b"live", _entry(2000.0, 40))
    store.set(b"first", _entry(1001.0, 30))
    store.set(b"second", _entry(1002.0, 30))
    clock.now = 1002.0
    store.set(b"large", _entry(2000.0, 60))
    assert store.get(b"live") is not None
    assert (2, 100) == (len(store), store.bytes)


def test_many_expired_entries_are_pushed_out_by_half_as_many_new_ones(clock: _Clock) -> None:
    """They would fill the memory for as long as there is room; yet no single call may wait until all are gone."""
    store = MemoryStore(1000, 1000, clock)
    for number in range(100):
        store.set(b"old %d" % number, _entry(1005.0))
    clock.now = 1005.0
    store.set(b"new 0", _entry(2000.0))
    assert 99 == len(store)
    for number in range(1, 50):
        store.set(b"new %d" % number, _entry(2000.0))
    assert (50, 50) == (len(store), store.bytes)


def test_room_is_made_by_as_many_expired_entries_as_it_takes(clock: _Clock) -> None:
    """The bit that each new entry sweeps may not suffice for a large one, and live ones must not pay for that."""
    store = MemoryStore(1000, 100, clock)
    store.set(b"live", _entry(2000.0, 10))
    for number in range(9):
        store.set(b"old %d" % number, _entry(1005.0, 10))
    clock.now = 1005.0
    store.set(b"large", _entry(2000.0, 90))
    assert store.get(b"live") is not None
    assert (2, 100) == (len(store), store.bytes)


def test_a_renewed_entry_does_not_go_when_its_old_life_ends(clock: _Clock) -> None:
    """What was noted of the entry it replaced must not be taken for its own."""
    store = MemoryStore(10, 100, clock)
    store.set(b"key", _entry(1005.0))
    store.set(b"key", _entry(2000.0))
    clock.now = 1006.0
    store.set(b"other", _entry(2000.0))
    assert store.get(b"key") is not None


def test_what_is_noted_of_entries_does_not_outlive_them(clock: _Clock) -> None:
    """A key that is refreshed or deleted over and over must not make the process grow."""
    store = MemoryStore(10, 100, clock)
    store.set(b"endless", _entry(math.inf))
    for number in range(5000):
        store.set(b"refreshed", _entry(2000.0 + number, tags=("same", str(number))))
        store.set(b"same moment", _entry(1e6))
        store.set(b"deleted", _entry(1e6 + number, tags=("gone",)))
        store.delete(b"deleted")
    assert sum(map(len, store._expiring.values())) + len(store._due) == store._listed < 200
    assert {b"endless", b"refreshed", b"same moment"} == set(store._short)
    assert {"same": {b"refreshed"}, "4999": {b"refreshed"}} == store._tagged
    clock.now = 2e6
    store.set(b"last", _entry(3e6))
    assert {b"endless", b"last"} == set(store._short)


@pytest.mark.parametrize("order", [(b"early", b"late"), (b"late", b"early")])
def test_within_one_second_only_what_has_expired_goes(clock: _Clock, order: tuple[bytes, bytes]) -> None:
    """Expiries are noted by the second, and what can still be served must not go with what cannot."""
    store = MemoryStore(10, 100, clock)
    lives = {b"early": 1005.2, b"late": 1005.8}
    for key in order:
        store.set(key, _entry(lives[key]))
    clock.now = 1005.5
    store.set(b"other", _entry(2000.0))
    assert store.get(b"late") is not None
    assert store.get(b"early") is None
    clock.now = 1006.0
    store.set(b"one more", _entry(2000.0))
    assert 2 == len(store)


@pytest.mark.parametrize("order", [(b"early", b"late"), (b"late", b"early")])
def test_room_is_made_by_what_has_expired_within_the_second_too(clock: _Clock, order: tuple[bytes, bytes]) -> None:
    """Nothing that can be served goes while something is there that cannot."""
    store = MemoryStore(3, 100, clock)
    store.set(b"long", _entry(2000.0))
    lives = {b"early": 1005.2, b"late": 1005.8}
    for key in order:
        store.set(key, _entry(lives[key]))
    clock.now = 1005.1
    store.set(b"early", _entry(1005.3))  # in the second that has come already
    clock.now = 1005.5
    store.set(b"other", _entry(2000.0))
    assert [True, False, True, True] == [store.get(key) is not None for key in (b"long", b"early", b"late", b"other")]


def test_no_more_keys_are_remembered_than_entries_kept(clock: _Clock) -> None:
    """What was pushed out is remembered for a while, not for ever, and not beyond a clearing."""
    store = MemoryStore(10, 100, clock)
    for number in range(1000):
        store.set(b"%d" % number, _entry())
    assert 9 == len(store._pushed_out)
    store.clear()
    assert not store._pushed_out


def test_deleting_and_clearing_free_the_room(clock: _Clock) -> None:
    """Deleting what is not there is no error: two callers may invalidate the same key."""
    store = MemoryStore(10, 100, clock)
    store.set(b"a", _entry(size=10, tags=("tag",)))
    store.set(b"b", _entry(size=20, tags=("tag",)))
    assert store.delete(b"a")
    assert not store.delete(b"a")
    assert (1, 20) == (len(store), store.bytes)
    store.clear()
    assert (0, 0) == (len(store), store.bytes)
    assert 0 == store.delete_tagged("tag")
    store.set(b"b", _entry(1009.0, 20))
    clock.now = 1006.0
    assert store.get(b"b") is not None


def test_all_with_a_tag_go_at_once_and_no_others(clock: _Clock) -> None:
    """An entry may have several tags, or name one twice; one that was replaced no longer has its old tags."""
    store = MemoryStore(10, 100, clock)
    store.set(b"a", _entry(tags=("red", "round", "red")))
    store.set(b"b", _entry(tags=("red",)))
    store.set(b"c", _entry(tags=("round",)))
    store.set(b"d", _entry(tags=("red",)))
    store.set(b"d", _entry(tags=("blue",)))
    store.set(b"e", _entry())
    store.set(b"f", _entry(tags=("own", "own")))
    assert 1 == store.delete_tagged("own")
    assert 2 == store.delete_tagged("red")
    assert 0 == store.delete_tagged("red")
    assert [False, False, True, True, True] == [store.get(key) is not None for key in (b"a", b"b", b"c", b"d", b"e")]
    assert {"round": {b"c"}, "blue": {b"d"}} == store._tagged


def test_tags_are_forgotten_with_the_last_entry_that_has_them(clock: _Clock) -> None:
    """However an entry goes: read too late, swept, evicted, refused or deleted, its tags must not stay behind."""
    store = MemoryStore(2, 100, clock)
    store.set(b"late", _entry(1001.0, tags=("late",)))
    clock.now = 1001.0
    assert store.get(b"late") is None
    assert {} == store._tagged
    store.set(b"swept", _entry(1002.0, tags=("swept",)))
    clock.now = 1002.0
    store.set(b"evicted", _entry(2000.0, tags=("evicted",)))
    assert {"evicted": {b"evicted"}} == store._tagged
    store.set(b"a", _entry(2000.0, tags=("a",)))
    store.set(b"b", _entry(2000.0, tags=("b",)))
    store.set(b"a", _entry(2000.0, 101, tags=("large",)))
    assert {"b": {b"b"}} == store._tagged
    store.delete(b"b")
    assert {} == store._tagged


def test_what_is_gone_is_not_held_on_to(clock: _Clock) -> None:
    """Answers are large: an entry that was replaced, evicted or deleted must be free to go."""

    class Answer:
        pass

    store = MemoryStore(2, 100, clock)
    answers = [Answer() for _ in range(5)]
    for key, answer in zip((b"replaced", b"replaced", b"deleted", b"a", b"b"), answers, strict=True):
        store.set(key, _entry(payload=answer, tags=("tag",)))
        store.delete(b"deleted")
    gone = [weakref.ref(answer) for answer in answers]
    del answers, answer
    gc.collect()
    assert [True, True, True, False, False] == [ref() is None for ref in gone]


def test_an_entry_that_goes_while_it_is_read_is_still_read() -> None:
    """Another thread may throw it out between finding it and counting the use; what was found is good."""
    entry = _entry()
    store = MemoryStore(10, 100, lambda: 0.0)
    store.set(b"key", entry)

    def gone_meanwhile() -> float:
        store.clear()
        return 0.0

    store._clock = gone_meanwhile
    assert entry is store.get(b"key")
    assert store.get(b"key") is None


def test_an_expired_entry_may_be_dropped_by_two_at_once() -> None:
    """The second finds nothing left to drop, which is no error."""
    store = MemoryStore(10, 100, lambda: 0.0)
    store.set(b"key", _entry(5.0))

    def gone_meanwhile() -> float:
        store.clear()
        return 5.0

    store._clock = gone_meanwhile
    assert store.get(b"key") is None
    assert 0 == store.bytes


def test_an_entry_replaced_while_its_predecessor_is_found_expired_stays() -> None:
    """A refresh by another thread at that moment must not be thrown away with what it replaced."""
    store = MemoryStore(10, 100, lambda: 0.0)
    store.set(b"key", _entry(5.0))
    renewed = _entry(9.0)

    def replaced_meanwhile() -> float:
        store._clock = lambda: 5.0
        store.set(b"key", renewed)
        return 5.0

    store._clock = replaced_meanwhile
    assert store.get(b"key") is None
    assert renewed is store.get(b"key")


_keys = st.sampled_from([b"a", b"b", b"c", b"d", b"e", b"f", b"g", b"h"])
_steps = st.lists(
    st.one_of(
        st.tuples(st.just("set"), _keys, st.integers(1, 12), st.integers(0, 30), st.sets(st.sampled_from("xyz"))),
        st.tuples(st.just("get"), _keys, st.integers(1, 5)),
        st.tuples(st.just("get"), _keys, st.just(1)),
        st.tuples(st.just("delete"), _keys),
        st.tuples(st.just("tag"), st.sampled_from("xyz")),
        st.tuples(st.just("wait"), st.integers(1, 5)),
    ),
    min_size=20,  # short ones push out nothing
    max_size=60,
)


class _Kept:
    def __init__(self, key: bytes, entry: Entry) -> None:
        self.key, self.entry, self.uses = key, entry, 0


class _Model:
    """The same rules over plain lists, without any thought of what they cost."""

    def __init__(self, max_entries: int, max_bytes: int) -> None:
        self.max_entries, self.max_bytes = max_entries, max_bytes
        self.short: list[_Kept] = []
        self.long: list[_Kept] = []
        self.pushed_out: list[bytes] = []

    @property
    def all(self) -> list[_Kept]:
        return self.short + self.long

    @property
    def size(self) -> int:
        return _bytes(self.all)

    def find(self, key: bytes) -> _Kept | None:
        return next((kept for kept in self.all if kept.key == key), None)

    def remove(self, gone: list[_Kept]) -> int:
        self.short = [kept for kept in self.short if kept not in gone]
        self.long = [kept for kept in self.long if kept not in gone]
        return len(gone)

    def expired(self, now: float) -> list[_Kept]:
        gone = [kept for kept in self.all if kept.entry.usable_until <= now]
        return sorted(gone, key=lambda kept: (kept.entry.usable_until, kept.key))

    def delete(self, key: bytes) -> bool:
        return self.remove([kept for kept in self.all if kept.key == key]) > 0

    def delete_tagged(self, tag: str) -> int:
        return self.remove([kept for kept in self.all if tag in kept.entry.tags])

    def get(self, key: bytes, now: float) -> Entry | None:
        self.remove([kept for kept in self.expired(now) if kept.key == key])
        kept = self.find(key)
        if kept is None:
            return None
        kept.uses = min(3, kept.uses + 1)
        return kept.entry

    def set(self, key: bytes, entry: Entry, now: float) -> None:
        self.remove(self.expired(now)[:2])
        if entry.kept.size > self.max_bytes or entry.usable_until <= now:
            self.delete(key)
            return
        kept = self.find(key)
        if kept is not None and self.size - kept.entry.kept.size + entry.kept.size <= self.max_bytes:
            kept.entry = entry
            return
        self.delete(key)
        while len(self.all) + 1 > self.max_entries or self.size + entry.kept.size > self.max_bytes:
            self.remove(self.expired(now)[:1] or [self.pushed()])
        (self.long if key in self.pushed_out else self.short).append(_Kept(key, entry))
        self.pushed_out = [other for other in self.pushed_out if other != key]

    def pushed(self) -> _Kept:
        while True:
            full = len(self.short) >= 0.3 * self.max_entries or _bytes(self.short) >= 0.3 * self.max_bytes
            if self.short and (full or not self.long):
                kept = self.short.pop(0)
                if not kept.uses:
                    left = len(self.all)
                    self.pushed_out = [*self.pushed_out, kept.key][-left:] if left else []
                    return kept
                kept.uses = 0
                self.long.append(kept)
            else:
                kept = self.long.pop(0)
                if not kept.uses:
                    return kept
                kept.uses -= 1
                self.long.append(kept)


def _bytes(kept: list[_Kept]) -> int:
    return sum(each.entry.kept.size for each in kept)


@pytest.mark.promise("C6")
@given(steps=_steps, max_entries=st.integers(1, 5), max_bytes=st.integers(10, 60))
def test_it_does_what_a_plain_model_does(steps: list[tuple[object, ...]], max_entries: int, max_bytes: int) -> None:
    """Any sequence of steps: the bounds hold after each, and what is found is what a simple list would give."""
    clock = _Clock()
    store = MemoryStore(max_entries, max_bytes, clock)
    model = _Model(max_entries, max_bytes)
    for step in steps:
        match step:
            case ("wait", int(seconds)):
                clock.now += seconds
            case ("set", bytes(key), int(size), int(life), set(tags)):
                entry = _entry(clock.now + life, size, tags=tuple(tags))
                store.set(key, entry)
                model.set(key, entry, clock.now)
            case ("get", bytes(key), int(times)):
                for _ in range(times):
                    assert model.get(key, clock.now) is store.get(key)
            case ("delete", bytes(key)):
                assert model.delete(key) == store.delete(key)
            case ("tag", str(tag)):
                assert model.delete_tagged(tag) == store.delete_tagged(tag)
        assert [kept.key for kept in model.short] == list(store._short)
        assert [kept.key for kept in model.long] == list(store._long)
        assert model.pushed_out == list(store._pushed_out)
        assert {kept.key: kept.entry for kept in model.all} == {key: slot.entry for key, slot in store._slots.items()}
        assert model.size == store.bytes <= max_bytes
        assert _bytes(model.short) == store._short_bytes
        assert len(model.all) == len(store) <= max_entries
        assert {tag for kept in model.all for tag in kept.entry.tags} == set(store._tagged)


def test_threads_do_not_upset_the_accounts() -> None:
    """Several event loops may share one cache: no error, and the sums are right in the end."""
    clock = _Clock()
    store = MemoryStore(20, 200, clock)
    errors: list[Exception] = []
    begin = threading.Barrier(8)

    def work(seed: int) -> None:
        begin.wait()
        try:
            for step in range(1500):
                number = (step * 7 + seed * 13) % 40
                key = b"%d" % number
                life = 5.0 if step % 3 else 0.001
                store.set(key, _entry(clock.now + life, number % 17 + 1, key, (str(number % 5),)))
                clock.now += 0.0005
                found = store.get(b"%d" % ((number * 3) % 40))
                assert found is None or found.kept.payload == b"%d" % ((number * 3) % 40)
                if step % 5 == 0:
                    store.delete(key)
                if step % 50 == 0:
                    store.delete_tagged(str(seed % 5))
                if step % 501 == 0:
                    store.clear()
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [] == errors
    assert len(store) <= 20
    assert store.bytes <= 200
    left = [store.get(b"%d" % number) for number in range(40)]
    assert store.bytes == sum(entry.kept.size for entry in left if entry is not None)
    assert {tag for entry in left if entry is not None for tag in entry.tags} == set(store._tagged)
