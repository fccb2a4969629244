"""Memory is the level that is always there: it must stay within its bounds, and never serve what has expired."""

from __future__ import annotations

import threading
from collections import OrderedDict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from observability_integration.caching.codec import Kept
from observability_integration.caching.stores.memory import MemoryStore


class _Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def _kept(size: int = 1, payload: object = None) -> Kept:
    return Kept(payload, "value", size)


@pytest.fixture
def clock() -> _Clock:
    return _Clock()


def test_an_entry_is_found_until_it_expires(clock: _Clock) -> None:
    """The TTL is exact: at the moment of expiry the entry is gone, and takes no room any more."""
    store = MemoryStore(10, 100, clock)
    kept = _kept()
    store.set(b"key", kept, 5.0)
    clock.now += 4.999
    assert kept is store.get(b"key")
    clock.now += 0.001
    assert store.get(b"key") is None
    assert (0, 0) == (len(store), store.bytes)


def test_setting_again_renews_the_life_and_corrects_the_size(clock: _Clock) -> None:
    """Bytes that were counted twice would shrink the cache with every refresh."""
    store = MemoryStore(10, 100, clock)
    store.set(b"key", _kept(40), 5.0)
    clock.now += 4
    store.set(b"key", _kept(10), 5.0)
    clock.now += 4
    assert store.get(b"key") is not None
    assert (1, 10) == (len(store), store.bytes)


@pytest.mark.promise("C6")
def test_the_least_recently_used_goes_first(clock: _Clock) -> None:
    """What is asked for often stays; reading counts as use, and so does writing again."""
    store = MemoryStore(3, 100, clock)
    for key in (b"a", b"b", b"c"):
        store.set(key, _kept(), 5.0)
    store.get(b"a")
    store.set(b"b", _kept(), 5.0)
    store.set(b"d", _kept(), 5.0)
    store.set(b"e", _kept(), 5.0)
    assert [False, True, False, True, True] == [store.get(key) is not None for key in (b"a", b"b", b"c", b"d", b"e")]


@pytest.mark.promise("C6")
def test_bytes_are_bounded(clock: _Clock) -> None:
    """A few large answers must push out many small ones rather than grow the process."""
    store = MemoryStore(1000, 100, clock)
    for number in range(10):
        store.set(b"%d" % number, _kept(10), 5.0)
    store.set(b"large", _kept(95), 5.0)
    assert (1, 95) == (len(store), store.bytes)


def test_what_is_larger_than_everything_is_not_kept(clock: _Clock) -> None:
    """It would push out all else and then itself; what stood under its key before is outdated and must go."""
    store = MemoryStore(1000, 100, clock)
    store.set(b"small", _kept(10), 5.0)
    store.set(b"key", _kept(10), 5.0)
    store.set(b"key", _kept(101), 5.0)
    assert store.get(b"key") is None
    assert store.get(b"small") is not None
    assert 10 == store.bytes


def test_deleting_and_clearing_free_the_room(clock: _Clock) -> None:
    """Deleting what is not there is no error: two callers may invalidate the same key."""
    store = MemoryStore(10, 100, clock)
    store.set(b"a", _kept(10), 5.0)
    store.set(b"b", _kept(20), 5.0)
    store.delete(b"a")
    store.delete(b"a")
    assert (1, 20) == (len(store), store.bytes)
    store.clear()
    assert (0, 0) == (len(store), store.bytes)


def test_an_entry_evicted_while_it_is_read_is_still_read() -> None:
    """Another thread may throw it out between finding it and marking it as used; what was found is good."""
    kept = _kept()
    store = MemoryStore(10, 100, lambda: 0.0)
    store.set(b"key", kept, 5.0)

    def evicted_meanwhile() -> float:
        store.clear()
        return 0.0

    store._clock = evicted_meanwhile
    assert kept is store.get(b"key")
    assert store.get(b"key") is None


_keys = st.sampled_from([b"a", b"b", b"c", b"d", b"e"])
_steps = st.lists(
    st.one_of(
        st.tuples(st.just("set"), _keys, st.integers(1, 60), st.integers(1, 10)),
        st.tuples(st.just("get"), _keys),
        st.tuples(st.just("delete"), _keys),
        st.tuples(st.just("wait"), st.integers(1, 5)),
    ),
    max_size=40,
)


@pytest.mark.promise("C6")
@given(steps=_steps, max_entries=st.integers(1, 4), max_bytes=st.integers(1, 100))
def test_it_does_what_a_plain_model_does(steps: list[tuple[object, ...]], max_entries: int, max_bytes: int) -> None:
    """Any sequence of steps: the bounds hold after each, and what is found is what a simple list would give."""
    clock = _Clock()
    store = MemoryStore(max_entries, max_bytes, clock)
    model: OrderedDict[object, tuple[Kept, float]] = OrderedDict()
    for name, *arguments in steps:
        if name == "wait":
            clock.now += arguments[0]  # type: ignore[operator]
            continue
        key = arguments[0]
        if name == "set":
            kept = _kept(arguments[1])  # type: ignore[arg-type]
            store.set(key, kept, float(arguments[2]))  # type: ignore[arg-type]
            model.pop(key, None)
            if kept.size <= max_bytes:
                model[key] = (kept, clock.now + float(arguments[2]))  # type: ignore[arg-type]
            while len(model) > max_entries or sum(kept.size for kept, _ in model.values()) > max_bytes:
                model.popitem(last=False)
        elif name == "delete":
            store.delete(key)  # type: ignore[arg-type]
            model.pop(key, None)
        else:
            expected = model.get(key)
            if expected is not None and expected[1] <= clock.now:
                del model[key]
                expected = None
            if expected is not None:
                model.move_to_end(key)
            assert (None if expected is None else expected[0]) is store.get(key)  # type: ignore[arg-type]
        assert len(store) == len(model) <= max_entries
        assert store.bytes == sum(kept.size for kept, _ in model.values()) <= max_bytes


def test_threads_do_not_upset_the_accounts() -> None:
    """Several event loops may share one cache: no error, and the sums are right in the end."""
    clock = _Clock()
    store = MemoryStore(20, 200, clock)
    errors: list[Exception] = []
    begin = threading.Barrier(8)

    def work(seed: int) -> None:
        begin.wait()
        try:
            for step in range(2000):
                number = (step * 7 + seed * 13) % 40
                key = b"%d" % number
                store.set(key, _kept(number % 17 + 1, key), 5.0)
                found = store.get(b"%d" % ((number * 3) % 40))
                assert found is None or found.payload == b"%d" % ((number * 3) % 40)
                if step % 5 == 0:
                    store.delete(key)
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
    assert store.bytes == sum(kept.size for kept in left if kept is not None)
