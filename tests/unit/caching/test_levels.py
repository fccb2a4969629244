"""Memory and shared store together: what is read from one is kept in the other, for as long and no longer."""

from __future__ import annotations

import time
from typing import Any

import pytest

from observability_integration.caching.codec import Codec
from observability_integration.caching.keys import GLOBAL, KeySpace
from observability_integration.caching.levels import ABSENT, Levels
from observability_integration.caching.policy import CachePolicy

_KEYS = KeySpace("answers", GLOBAL)
_DIGEST = _KEYS.digest("key")
_WIRE = _KEYS.wire(_DIGEST)


class _Store:
    """A shared store in memory, with the life it was asked to give."""

    def __init__(self) -> None:
        self.entries: dict[str, Any] = {}
        self.lives: list[int] = []
        self.on_set: Any = None

    async def get(self, key: str) -> Any:
        return self.entries.get(key)

    async def set(self, key: str, value: bytes, ttl_milliseconds: int) -> None:
        self.entries[key] = value
        self.lives.append(ttl_milliseconds)
        if self.on_set is not None:
            self.on_set()

    async def delete(self, *keys: str) -> None:
        for key in keys:
            self.entries.pop(key, None)

    async def clear(self, prefix: str) -> None:
        self.entries.clear()

    async def aclose(self) -> None:
        pass


@pytest.fixture
def store() -> _Store:
    return _Store()


def _levels(store: _Store | None, ttl_seconds: float = 60.0, **policy: Any) -> Levels:
    return Levels("answers", _KEYS, ttl_seconds, store, CachePolicy(**policy), None)


def _current() -> bool:
    return True


def _outdated() -> bool:
    return False


async def test_a_value_is_kept_in_both_levels(store: _Store) -> None:
    """The second process finds it in the store, and from then on in its own memory."""
    await _levels(store).keep(_DIGEST, {"a": 1}, _current)
    other = _levels(store)
    assert other.recall(_DIGEST) is ABSENT
    found = await other.fetch(_DIGEST, _current)
    assert found is not None
    assert {"a": 1} == found[0] == other.recall(_DIGEST)
    store.entries.clear()
    assert {"a": 1} == other.recall(_DIGEST)


async def test_without_a_store_memory_does_it_alone() -> None:
    """No Redis is the common case in development."""
    levels = _levels(None)
    assert await levels.fetch(_DIGEST, _current) is None
    await levels.keep(_DIGEST, None, _current)
    assert levels.recall(_DIGEST) is None
    await levels.forget(_DIGEST)
    assert levels.recall(_DIGEST) is ABSENT
    await levels.keep(_DIGEST, 1, _current)
    await levels.clear()
    assert levels.recall(_DIGEST) is ABSENT
    await levels.aclose()


@pytest.mark.parametrize(("ttl_seconds", "milliseconds"), [(60.0, 60_000), (0.25, 250), (1e-9, 1), (1e300, 1 << 53)])
async def test_lives_are_given_in_milliseconds(store: _Store, ttl_seconds: float, milliseconds: int) -> None:
    """Whole seconds would make 0.25 s an error; Redis refuses 0 and what does not fit its clock."""
    await _levels(store, ttl_seconds).keep(_DIGEST, "value", _current)
    assert [milliseconds] == store.lives


@pytest.mark.promise("C6")
async def test_memory_does_not_outlive_the_entry_it_was_filled_from(
    store: _Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An entry found in the last second of its life is served for that second, and one beyond it not at all."""
    now = 1_000_000.0
    monkeypatch.setattr(time, "time", lambda: now)
    await _levels(store).keep(_DIGEST, "value", _current)
    lives: list[float] = []
    late = _levels(store)
    monkeypatch.setattr(late._memory, "set", lambda key, kept, ttl_seconds: lives.append(ttl_seconds))
    for passed in (0.0, 59.0, 60.0, 61.0, -3600.0):
        monkeypatch.setattr(time, "time", lambda passed=passed: now + passed)
        assert (passed < 60.0) is (await late.fetch(_DIGEST, _current) is not None)
    # Clocks apart: at most one TTL.
    assert pytest.approx([60.0, 1.0, 60.0]) == lives


async def test_what_json_cannot_hold_stays_in_memory(store: _Store) -> None:
    """The store would give other processes something else than the call does."""
    levels = _levels(store)
    await levels.keep(_DIGEST, (1, 2), _current)
    assert {} == store.entries
    assert (1, 2) == levels.recall(_DIGEST)


@pytest.mark.parametrize("value", ["x" * 2000, {"a": "x" * 2000}, ("x" * 2000,)])
async def test_what_is_too_large_is_kept_nowhere(store: _Store, value: Any) -> None:
    """It still goes to all who wait for it."""
    levels = _levels(store, max_value_bytes=1000)
    kept = await levels.keep(_DIGEST, value, _current)
    assert value == levels.hand_out(kept)
    assert levels.recall(_DIGEST) is ABSENT
    assert {} == store.entries


async def test_what_is_too_large_for_this_process_is_served_and_not_kept(store: _Store) -> None:
    """Another process, with more room, may have written it."""
    await _levels(store).keep(_DIGEST, "x" * 2000, _current)
    levels = _levels(store, max_value_bytes=1000)
    found = await levels.fetch(_DIGEST, _current)
    assert found is not None
    assert "x" * 2000 == found[0]
    assert levels.recall(_DIGEST) is ABSENT


@pytest.mark.parametrize("garbage", [b"", b"garbage", "garbage", b"\xff", b"[2,0,null]", 5])
async def test_garbage_is_a_miss_counted_and_deleted(store: _Store, garbage: Any, metrics: Any) -> None:
    """Left in place it would cost every process a failed reading at each lookup."""
    store.entries[_WIRE] = garbage
    assert await _levels(store).fetch(_DIGEST, _current) is None
    assert {} == store.entries
    assert 1 == metrics("telemetry.faults", site="cache.decode")


@pytest.mark.promise("C8")
async def test_what_was_invalidated_meanwhile_is_not_kept(store: _Store) -> None:
    """Neither what a call brings, nor what was read from the store."""
    levels = _levels(store)
    await levels.keep(_DIGEST, "value", _outdated)
    assert {} == store.entries
    assert levels.recall(_DIGEST) is ABSENT
    store.entries[_WIRE] = Codec.wrap(b'"value"', int(time.time() * 1000) + 60_000)
    assert await levels.fetch(_DIGEST, _outdated) is not None
    assert levels.recall(_DIGEST) is ABSENT


@pytest.mark.promise("C8")
async def test_what_is_invalidated_while_it_is_written_is_deleted_again(store: _Store) -> None:
    """The deletion may have arrived before the entry did."""
    current = True

    def invalidate() -> None:
        nonlocal current
        current = False

    store.on_set = invalidate
    await _levels(store).keep(_DIGEST, "value", lambda: current)
    assert {} == store.entries


async def test_what_can_be_had_only_once_is_counted_and_not_kept(store: _Store, metrics: Any) -> None:
    """A stream put into a cache is a mistake that shows in the metrics."""
    levels = _levels(store)
    assert await levels.keep(_DIGEST, (x for x in "ab"), _current) is None
    assert levels.hand_out(None) is ABSENT
    assert levels.recall(_DIGEST) is ABSENT
    assert 1 == metrics("telemetry.faults", site="cache.keep")


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
    levels = _levels(None)
    _Moody.left = 2
    kept = await levels.keep(_DIGEST, _Moody(), _current)
    assert isinstance(levels.recall(_DIGEST), _Moody)
    assert levels.hand_out(kept) is ABSENT
    assert levels.recall(_DIGEST) is ABSENT
    assert 2 == metrics("telemetry.faults", site="cache.restore")
    _Moody.left = 1
    assert levels.recall(_DIGEST) is ABSENT  # it was thrown away


async def test_forgetting_and_clearing_reach_both_levels(store: _Store) -> None:
    """What is gone here must not come back from there."""
    levels = _levels(store)
    assert levels.has_shared
    await levels.keep(_DIGEST, "value", _current)
    await levels.forget(_DIGEST)
    assert levels.recall(_DIGEST) is ABSENT
    assert await levels.fetch(_DIGEST, _current) is None
    await levels.keep(_DIGEST, "value", _current)
    await levels.clear()
    assert levels.recall(_DIGEST) is ABSENT
    assert await levels.fetch(_DIGEST, _current) is None
    await levels.aclose()
