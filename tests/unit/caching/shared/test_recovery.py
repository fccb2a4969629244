"""What the store has yet to do is done when it is back: in the right order, nothing twice, and all of it bounded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest

from observability_integration.caching.shared.channel import Note
from observability_integration.caching.shared.recovery import PendingWrites
from observability_integration.caching.stores.shared import Generation, Place, SharedStore, Write

pytestmark = pytest.mark.once

_BASIS = Generation(b"0" * 16, 1)


def _write(data: bytes, ttl_ms: int) -> Write:
    return Write(data, ttl_ms, _BASIS)


class _Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class _Store:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.did: list[tuple[Any, ...]] = []
        self.origins: dict[str, str] = {}
        self.meanwhile: Callable[[str], None] = lambda name: None

    async def put_late(self, place: Place, write: Write, note: str, origin: str) -> bool:
        self.meanwhile("put_late")
        assert _BASIS == write.basis
        self.origins[place.name] = origin
        self.did.append(("put_late", place.name, write.data, write.ttl_ms, note))
        return True

    async def delete(self, prefix: str, names: list[str], notes: list[str], origin: str) -> None:
        assert "me" == origin
        self.meanwhile("delete")
        self.did.append(("delete", *zip(names, notes, strict=True)))

    async def void(self, prefix: str, tag: str | None, note: str, origin: str) -> None:
        self.meanwhile("void")
        assert "me" == origin
        self.did.append(("void", tag, note))

    async def flush(self, pending: PendingWrites) -> list[tuple[Any, ...]]:
        """Lets it be paid once, and says what was done."""
        self.did = []
        await pending.flush(cast("SharedStore", self))
        return self.did


@pytest.fixture
def clock() -> _Clock:
    return _Clock()


@pytest.fixture
def pending(clock: _Clock) -> PendingWrites:
    return PendingWrites("cache:", "me", clock)


async def test_nothing_is_due_at_first(pending: PendingWrites) -> None:
    """And then nothing is done."""
    assert not pending
    assert [] == await _Store().flush(pending)


async def test_voiding_goes_before_writing(pending: PendingWrites, clock: _Clock) -> None:
    """What is written after it is not void; the other way round it would be."""
    pending.put("new", _write(b"1", 5000), "written")
    pending.void("tag", "voided")
    pending.delete("old", "deleted")
    assert pending
    clock.now = 2.0
    assert [
        ("void", "tag", "voided"),
        ("delete", ("old", "deleted")),
        ("put_late", "new", b"1", 3000, "written"),
    ] == await _Store().flush(pending)
    assert not pending


async def test_the_last_wish_wins(pending: PendingWrites) -> None:
    """For each entry: the last value, or that there be none."""
    pending.put("twice", _write(b"1", 1000), "first")
    pending.put("twice", _write(b"22", 1000), "second")
    pending.put("deleted", _write(b"3", 1000), "written")
    pending.delete("deleted", "first")
    pending.delete("deleted", "second")
    pending.delete("anew", "deleted")
    pending.put("anew", _write(b"4", 1000), "written")
    assert [
        ("delete", ("deleted", "second"), ("anew", "deleted")),
        ("put_late", "twice", b"22", 1000, "second"),
        ("put_late", "anew", b"4", 1000, "written"),
    ] == await _Store().flush(pending)


async def test_what_has_expired_is_dropped(pending: PendingWrites, clock: _Clock) -> None:
    """Nobody could use it any more."""
    pending.put("brief", _write(b"1", 1000), "note")
    clock.now = 1.0
    assert [] == await _Store().flush(pending)
    assert not pending


async def test_clearing_drops_what_was_to_be_written(pending: PendingWrites) -> None:
    """It is void; what comes after it is not."""
    pending.put("old", _write(b"1", 1000), "note")
    pending.void(None, "cleared")
    assert pending.clears
    pending.put("new", _write(b"2", 1000), "note")
    assert [("void", None, "cleared"), ("put_late", "new", b"2", 1000, "note")] == await _Store().flush(pending)
    assert not pending.clears


def test_what_may_not_be_read_is_known(pending: PendingWrites) -> None:
    """An entry that is to be deleted; and any, while it is not known which a mark will touch."""
    pending.delete("a", "note")
    assert (True, False) == (pending.forgets("a"), pending.forgets("b"))
    pending.void("tag", "note")
    assert pending.forgets("b")


async def test_too_many_deletions_become_one_clearing(pending: PendingWrites) -> None:
    """Memory is bounded; rather too much is forgotten than too little, and the others are told so."""
    for number in range(1001):
        pending.delete(str(number), Note("delete", str(number), origin="me").encode())
    assert [("void", None, Note("clear", origin="me").encode())] == await _Store().flush(pending)
    assert not pending


async def test_too_many_tags_become_one_clearing(pending: PendingWrites) -> None:
    """The same; a tag that is marked again takes no more room."""
    for number in range(1001):
        pending.void(str(number % 1000), "note")
    assert not pending.clears
    pending.void("one more", Note("tag", tag="one more", origin="me").encode())
    assert [("void", None, Note("clear", origin="me").encode())] == await _Store().flush(pending)
    assert not pending


async def test_too_many_writes_lose_the_oldest(pending: PendingWrites) -> None:
    """Which costs a call, should somebody ask for it."""
    megabyte = b"x" * 1024 * 1024
    for number in range(9):
        pending.put(str(number), _write(megabyte, 1000), "note")
    assert [str(number) for number in range(1, 9)] == [did[1] for did in await _Store().flush(pending)]
    for number in range(8):
        pending.put(str(number), _write(megabyte, 1000), "note")
    assert [str(number) for number in range(8)] == [did[1] for did in await _Store().flush(pending)]


async def test_one_payment_is_short(pending: PendingWrites) -> None:
    """It has the budget of one access; the rest follows, and nothing is written before all that is void is."""
    for number in range(12):
        pending.void(str(number), "note")
        pending.put(str(number), _write(b"1", 1000), "note")
    store = _Store()
    assert [("void", 10), ("void", 2, "put_late", 10), ("put_late", 2)] == [
        _summary(await store.flush(pending)) for _ in range(3)
    ]
    assert not pending


def _summary(did: list[tuple[Any, ...]]) -> tuple[Any, ...]:
    kinds = [kind for kind, *_ in did]
    return tuple(part for kind in dict.fromkeys(kinds) for part in (kind, kinds.count(kind)))


@pytest.mark.parametrize("failing", ["void", "delete", "put_late"])
async def test_what_fails_stays_due(pending: PendingWrites, failing: str) -> None:
    """Until the store does it; what it has done is not asked of it again."""

    def fail(name: str) -> None:
        if name == failing:
            raise ConnectionResetError

    pending.void("tag", "note")
    pending.delete("old", "note")
    pending.put("new", _write(b"1", 1000), "note")
    store = _Store()
    store.meanwhile = fail
    with pytest.raises(ConnectionResetError):
        await store.flush(pending)
    done = [kind for kind, *_ in store.did]
    store.meanwhile = lambda name: None
    assert ["void", "delete", "put_late"] == done + [kind for kind, *_ in await store.flush(pending)]
    assert not pending


async def test_what_becomes_due_again_while_it_is_done_is_done_again(pending: PendingWrites) -> None:
    """What was made in between is what the second wish is about."""
    again: dict[str, Callable[[], None]] = {
        "void": lambda: pending.void("tag", "void again"),
        "delete": lambda: pending.delete("old", "delete again"),
        "put_late": lambda: pending.put("new", _write(b"2", 1000), "put again"),
    }
    pending.void("tag", "note")
    pending.delete("old", "note")
    pending.put("new", _write(b"1", 1000), "note")
    store = _Store()
    store.meanwhile = lambda name: again.pop(name)() if name in again else None
    did = [did for _ in range(4) for did in await store.flush(pending)]
    assert not pending
    assert {"void again", "put again"} <= {did[-1] for did in did}
    assert ("old", "delete again") in next(parts for what, *parts in reversed(did) if what == "delete")


async def test_what_is_voided_while_it_waits_to_be_written_is_not_written(pending: PendingWrites) -> None:
    """It was begun before."""
    pending.put("a", _write(b"1", 1000), "note")
    pending.put("b", _write(b"2", 1000), "note")
    store = _Store()
    store.meanwhile = lambda name: pending.void("tag", "note") if name == "put_late" else None
    await store.flush(pending)
    assert ["a"] == [did[1] for did in store.did]
    store.meanwhile = lambda name: None
    assert ["void"] == [kind for kind, *_ in await store.flush(pending)]
    assert not pending


async def test_a_deletion_of_our_own_does_not_void_what_was_made_after_it(pending: PendingWrites) -> None:
    """The store may have done it twice, after the value was made. Any other deletion may be the later one."""
    pending.put("before", _write(b"1", 1000), "note")
    pending.delete("before", "deleted")
    pending.delete("anew", "deleted")
    pending.put("anew", _write(b"2", 1000), "note")
    pending.put("other", _write(b"3", 1000), "note")
    store = _Store()
    await store.flush(pending)
    assert {"anew": "me", "other": ""} == store.origins


@pytest.mark.parametrize("replaced", [False, True])
async def test_a_write_that_a_deletion_overtakes_is_deleted_again(pending: PendingWrites, replaced: bool) -> None:
    """They go over two connections, and either may be first."""

    def meanwhile(name: str) -> None:
        if name == "put_late" and not store.did:
            pending.delete("a", "deleted")
            if replaced:
                pending.put("a", _write(b"2", 1000), "written")
            pending._deletions.clear()  # another flush has made it

    pending.put("a", _write(b"1", 1000), "written")
    store = _Store()
    store.meanwhile = meanwhile
    await store.flush(pending)
    note = Note("delete", "a", origin="me").encode()
    again = [("put_late", "a", b"2", 1000, "written")] if replaced else []
    assert [("delete", ("a", note)), *again] == await store.flush(pending)
    assert not pending


def test_what_is_lost_is_told_once(pending: PendingWrites) -> None:
    """Until there is more; writes do not count."""
    pending.put("new", _write(b"1", 1000), "note")
    assert (0, 0) == (pending.invalidations, pending.unreported())
    pending.delete("old", "note")
    pending.void("tag", "note")
    assert (2, 2, 0) == (pending.invalidations, pending.unreported(), pending.unreported())
    pending.void(None, "note")
    assert (3, 0) == (pending.unreported(), pending.unreported())


def test_what_has_yet_to_be_written_is_known(pending: PendingWrites) -> None:
    """The store cannot have it."""
    pending.put("a", _write(b"1", 1000), "note")
    assert (True, False) == (pending.writes("a"), pending.writes("b"))
