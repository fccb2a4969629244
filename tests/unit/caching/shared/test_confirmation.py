"""What memory holds is changed only where it is still what it was when the decision was made."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable
from typing import Any

import pytest

from observability_integration.caching.codec import Codec, StoredValue
from observability_integration.caching.entry import Answer, Entry, StoreHit
from observability_integration.caching.freshness import Freshness
from observability_integration.caching.keys import GLOBAL, KeySpace
from observability_integration.caching.policy import CachePolicy
from observability_integration.caching.shared.channel import Channel
from observability_integration.caching.stores.shared import Generation, Write
from observability_integration.caching.tiers import Tiers
from observability_integration.caching.wire.frame import Wire
from observability_integration.testing.clock import FakeClockLoop
from tests.cache_doubles import Server, raising, taking, turns

pytestmark = pytest.mark.usefixtures("clocks")

LOOP_FACTORY = FakeClockLoop

_KEYS = KeySpace("answers", GLOBAL)
_DIGEST = _KEYS.digest("key")
_PLACE = _KEYS.place(_DIGEST)
_BASIS = Generation(b"0" * 16, 0)


def _tiers(server: Server) -> Tiers:
    store, policy = server.store(), CachePolicy(ttl_jitter=0.0)
    wire = Wire(compress_above_bytes=None, keyring=None, max_bytes=policy.max_value_bytes)
    channel = Channel(store, _KEYS.prefix, lambda _: None, 0.05)
    return Tiers("answers", _KEYS, Freshness(policy, 60.0), store, channel, policy, Codec(), wire)


def _entry(*, fresh: bool = True, version: bytes = b"v", basis: Generation | None = _BASIS) -> Entry:
    now = time.monotonic()
    until = now + 60.0 if fresh else now - 1.0
    return Entry(StoredValue("old", "value", 1), now, until, until, now + 120.0, version=version, basis=basis)


_ABSENT = Answer(answered=True, generation=_BASIS)
_OTHER = Answer(answered=True, version=b"w", hit=None, generation=_BASIS)
_SAME = Answer(answered=True, version=b"v", hit=None, generation=_BASIS)
_CHANGED = Answer(answered=True, generation=_BASIS._replace(number=1))
_LOST = Answer(answered=True)


@pytest.mark.parametrize(
    ("answer", "shared", "never_shared"),
    [
        pytest.param(Answer(answered=False), True, True, id="no answer"),
        pytest.param(_ABSENT, False, True, id="absent"),
        pytest.param(_OTHER, False, False, id="another"),
        pytest.param(_SAME, True, False, id="the same"),
        pytest.param(_CHANGED, False, False, id="an invalidation that was not heard"),
        pytest.param(_LOST, False, False, id="no generation"),
    ],
)
async def test_a_stale_entry_stands_in_by_what_the_store_says(answer: Answer, shared: bool, never_shared: bool) -> None:
    """One that was never there by what is known of the invalidations since."""
    for version, stands_in in ((b"v", shared), (b"", never_shared)):
        tiers, entry = _tiers(Server()), _entry(fresh=False, version=version)

        async def ask(*_: Any, **__: Any) -> Answer:
            return answer

        tiers.confirmation._ask = ask
        tiers.memory.set(_DIGEST, entry)
        assert stands_in == (await tiers.confirmation.stand_in(_DIGEST, entry) is entry)
        assert stands_in == (tiers.memory.get(_DIGEST) is entry)
        other = _entry(fresh=False)
        tiers.memory.set(_DIGEST, other)
        assert stands_in == (await tiers.confirmation.stand_in(_DIGEST, entry) is entry)
        assert other is tiers.memory.get(_DIGEST)


@pytest.mark.parametrize(
    ("answer", "fresh", "version", "stays"),
    [
        (Answer(answered=False), True, b"v", True),
        (_SAME, True, b"v", True),
        (_ABSENT, True, b"v", False),
        (_OTHER, True, b"v", True),
        (_CHANGED, True, b"", True),
        (_CHANGED, False, b"", False),
        (_ABSENT, False, b"", True),
        (_LOST, True, b"", True),
        (_LOST, False, b"", False),
    ],
)
async def test_what_is_in_doubt_is_settled(answer: Answer, fresh: bool, version: bytes, stays: bool) -> None:
    """Fresh and never in the store: it keeps the rest of its TTL, whatever was invalidated."""
    tiers, entry = _tiers(Server()), _entry(fresh=fresh, version=version)
    doubted = entry.in_doubt()
    tiers.memory.set(_DIGEST, doubted)
    expected = answer is not _OTHER and stays
    assert tiers.confirmation.settle(_DIGEST, doubted, answer) is None
    held = tiers.memory.get(_DIGEST)
    assert expected == (held is not None)
    if held is not None:
        assert (held is doubted) == (not answer.answered)
        assert held.original is entry


async def test_what_has_yet_to_be_written_was_never_in_the_store() -> None:
    """Its absence says nothing."""
    server = Server()
    tiers, entry = _tiers(server), _entry(fresh=False)
    assert tiers.shared is not None
    tiers.shared._pending.put(_PLACE.name, Write(b"data", 1000, _BASIS), "note")
    assert tiers.confirmation._is_confirmed(_DIGEST, entry, _ABSENT)
    assert not tiers.confirmation._is_confirmed(_DIGEST, entry, _CHANGED)


async def test_another_entry_that_came_meanwhile_is_left_alone() -> None:
    """The answer is about the one that memory held before the read."""
    tiers, before, now = _tiers(Server()), _entry(fresh=False), _entry()
    tiers.memory.set(_DIGEST, now)
    hit = StoreHit("value", _entry())
    assert hit is tiers.confirmation.settle(_DIGEST, before, Answer(True, b"w", hit, _BASIS))
    assert now is tiers.memory.get(_DIGEST)


async def test_times_are_changed_of_the_entry_that_memory_holds() -> None:
    """One that was thrown out meanwhile may be void, and one in doubt stays so."""
    tiers, entry = _tiers(Server()), _entry(fresh=False)
    changed, put_back = _entry(), tiers.confirmation.put_back
    put_back(_DIGEST, entry, changed)
    assert tiers.memory.get(_DIGEST) is None
    tiers.memory.set(_DIGEST, _entry())
    put_back(_DIGEST, entry, changed)
    assert tiers.memory.get(_DIGEST) is not changed
    tiers.memory.set(_DIGEST, entry.in_doubt())
    put_back(_DIGEST, entry, changed)
    held = tiers.memory.get(_DIGEST)
    assert held is not None
    assert (changed, -math.inf) == (held.original, held.expired_at)
    tiers.memory.set(_DIGEST, entry)
    put_back(_DIGEST, entry, changed)
    assert changed is tiers.memory.get(_DIGEST)
    tiers.confirmation.keep(_DIGEST, entry)
    assert changed is tiers.memory.get(_DIGEST)
    tiers.memory.delete(_DIGEST)
    tiers.confirmation.keep(_DIGEST, entry)
    assert entry is tiers.memory.get(_DIGEST)


@pytest.mark.parametrize("behave", [raising(ConnectionResetError()), taking(1.0)])
async def test_a_gap_whose_extent_is_not_known_puts_all_in_doubt(behave: Callable[[str], Any]) -> None:
    """The store is away again before it could say."""
    server = Server()
    tiers, entry = _tiers(server), _entry()
    store: Any = tiers._store
    tiers.memory.set(_DIGEST, entry)
    await tiers.ask(_DIGEST)
    tiers.confirmation.after_gap()
    await turns()
    assert entry is tiers.memory.get(_DIGEST)
    store.behave = behave
    tiers.confirmation.after_gap()
    await asyncio.gather(*tiers.confirmation._catching_up)
    assert tiers.memory.fresh(_DIGEST) is None


async def test_nothing_goes_on_after_the_end() -> None:
    """A store that does not answer holds up nothing."""
    server = Server()
    tiers = _tiers(server)
    store: Any = tiers._store
    store.behave = taking(1e6)
    tiers.confirmation.after_gap()
    assert not tiers.confirmation._catching_up  # there is nothing in memory
    tiers.memory.set(_DIGEST, _entry())
    tiers.confirmation.after_gap()
    tiers.confirmation.after_gap()  # a second gap, while the store is asked about the first
    await turns()
    catching_up = list(tiers.confirmation._catching_up)
    await tiers.confirmation.aclose()
    assert [True, True] == [task.cancelled() for task in catching_up]
