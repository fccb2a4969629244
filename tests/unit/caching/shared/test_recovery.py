"""What the store has yet to do is done when it is back: in the right order, nothing twice, and all of it bounded."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import pytest

from observability_integration.caching.shared.recovery import FOR_EVER_MS, PendingWrites
from observability_integration.caching.stores.shared import Place, SharedStore

pytestmark = pytest.mark.once


class _Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class _Store:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.did: list[tuple[Any, ...]] = []
        self.meanwhile: Callable[[str], None] = lambda name: None

    async def put_late(self, place: Place, data: bytes, ttl_ms: int, note: str) -> bool:
        self.meanwhile("put_late")
        self.did.append(("put_late", place.name, data, ttl_ms, note))
        return True

    async def delete(self, prefix: str, names: list[str], notes: list[str]) -> None:
        self.meanwhile("delete")
        self.did.append(("delete", *zip(names, notes, strict=True)))

    async def mark(self, prefix: str, tag: str | None, life_ms: int, note: str) -> None:
        self.meanwhile("mark")
        self.did.append(("mark", tag, life_ms, note))

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
    return PendingWrites("cache:", clock)


async def test_nothing_is_due_at_first(pending: PendingWrites) -> None:
    """And then nothing is done."""
    assert not pending
    assert [] == await _Store().flush(pending)


async def test_voiding_goes_before_writing(pending: PendingWrites, clock: _Clock) -> None:
    """What is written after it is younger than the mark; the other way round it would be void at once."""
    pending.put("new", b"1", 5000, "written")
    pending.mark("tag", 100, "voided")
    pending.delete("old", "deleted")
    assert pending
    clock.now = 2.0
    assert [
        ("mark", "tag", 100, "voided"),
        ("delete", ("old", "deleted")),
        ("put_late", "new", b"1", 3000, "written"),
    ] == await _Store().flush(pending)
    assert not pending


async def test_the_last_wish_wins(pending: PendingWrites) -> None:
    """For each entry: the last value, or that there be none."""
    pending.put("twice", b"1", 1000, "first")
    pending.put("twice", b"22", 1000, "second")
    pending.put("deleted", b"3", 1000, "written")
    pending.delete("deleted", "first")
    pending.delete("deleted", "second")
    pending.delete("anew", "deleted")
    pending.put("anew", b"4", 1000, "written")
    assert [
        ("delete", ("deleted", "second"), ("anew", "deleted")),
        ("put_late", "twice", b"22", 1000, "second"),
        ("put_late", "anew", b"4", 1000, "written"),
    ] == await _Store().flush(pending)


async def test_what_has_expired_is_dropped(pending: PendingWrites, clock: _Clock) -> None:
    """Nobody could use it any more."""
    pending.put("brief", b"1", 1000, "note")
    clock.now = 1.0
    assert [] == await _Store().flush(pending)
    assert not pending


async def test_clearing_drops_what_was_to_be_written(pending: PendingWrites) -> None:
    """It is void; what comes after it is not."""
    pending.put("old", b"1", 1000, "note")
    pending.mark(None, 100, "cleared")
    assert pending.clears
    pending.put("new", b"2", 1000, "note")
    assert [("mark", None, 100, "cleared"), ("put_late", "new", b"2", 1000, "note")] == await _Store().flush(pending)
    assert not pending.clears


def test_what_may_not_be_read_is_known(pending: PendingWrites) -> None:
    """An entry that is to be deleted; and any, while it is not known which a mark will touch."""
    pending.delete("a", "note")
    assert (True, False) == (pending.forgets("a"), pending.forgets("b"))
    pending.mark("tag", 100, "note")
    assert pending.forgets("b")


async def test_too_many_deletions_become_one_clearing(pending: PendingWrites) -> None:
    """Memory is bounded; rather too much is forgotten than too little."""
    for number in range(1001):
        pending.delete(str(number), f"note {number}")
    assert [("mark", None, FOR_EVER_MS, "note 1000")] == await _Store().flush(pending)
    assert not pending


async def test_too_many_tags_become_one_clearing(pending: PendingWrites) -> None:
    """The same; a tag that is marked again takes no more room."""
    for number in range(1001):
        pending.mark(str(number % 1000), 100, "note")
    assert not pending.clears
    pending.mark("one more", 100, "last")
    assert [("mark", None, FOR_EVER_MS, "last")] == await _Store().flush(pending)
    assert not pending


async def test_too_many_writes_lose_the_oldest(pending: PendingWrites) -> None:
    """Which costs a call, should somebody ask for it."""
    megabyte = b"x" * 1024 * 1024
    for number in range(9):
        pending.put(str(number), megabyte, 1000, "note")
    assert [str(number) for number in range(1, 9)] == [did[1] for did in await _Store().flush(pending)]
    for number in range(8):
        pending.put(str(number), megabyte, 1000, "note")
    assert [str(number) for number in range(8)] == [did[1] for did in await _Store().flush(pending)]


async def test_one_payment_is_short(pending: PendingWrites) -> None:
    """It has the budget of one access; the rest follows, and nothing is written before all that is void is."""
    for number in range(12):
        pending.mark(str(number), 100, "note")
        pending.put(str(number), b"1", 1000, "note")
    store = _Store()
    assert [("mark", 10), ("mark", 2, "put_late", 10), ("put_late", 2)] == [
        _summary(await store.flush(pending)) for _ in range(3)
    ]
    assert not pending


def _summary(did: list[tuple[Any, ...]]) -> tuple[Any, ...]:
    kinds = [kind for kind, *_ in did]
    return tuple(part for kind in dict.fromkeys(kinds) for part in (kind, kinds.count(kind)))


@pytest.mark.parametrize("failing", ["mark", "delete", "put_late"])
async def test_what_fails_stays_due(pending: PendingWrites, failing: str) -> None:
    """Until the store does it; what it has done is not asked of it again."""

    def fail(name: str) -> None:
        if name == failing:
            raise ConnectionResetError

    pending.mark("tag", 100, "note")
    pending.delete("old", "note")
    pending.put("new", b"1", 1000, "note")
    store = _Store()
    store.meanwhile = fail
    with pytest.raises(ConnectionResetError):
        await store.flush(pending)
    done = [kind for kind, *_ in store.did]
    store.meanwhile = lambda name: None
    assert ["mark", "delete", "put_late"] == done + [kind for kind, *_ in await store.flush(pending)]
    assert not pending


async def test_what_becomes_due_again_while_it_is_done_is_done_again(pending: PendingWrites) -> None:
    """What was made in between is what the second wish is about."""
    again: dict[str, Callable[[], None]] = {
        "mark": lambda: pending.mark("tag", 100, "mark again"),
        "delete": lambda: pending.delete("old", "delete again"),
        "put_late": lambda: pending.put("new", b"2", 1000, "put again"),
    }
    pending.mark("tag", 100, "note")
    pending.delete("old", "note")
    pending.put("new", b"1", 1000, "note")
    store = _Store()
    store.meanwhile = lambda name: again.pop(name)() if name in again else None
    did = [did for _ in range(4) for did in await store.flush(pending)]
    assert not pending
    assert {"mark again", "put again"} <= {did[-1] for did in did}
    assert ("delete", ("old", "delete again")) in did


async def test_what_is_voided_while_it_waits_to_be_written_is_not_written(pending: PendingWrites) -> None:
    """It was begun before."""
    pending.put("a", b"1", 1000, "note")
    pending.put("b", b"2", 1000, "note")
    store = _Store()
    store.meanwhile = lambda name: pending.mark("tag", 100, "note") if name == "put_late" else None
    await store.flush(pending)
    assert ["a"] == [did[1] for did in store.did]
    store.meanwhile = lambda name: None
    assert ["mark"] == [kind for kind, *_ in await store.flush(pending)]
    assert not pending
