"""The channel: what processes tell each other, and what becomes of things that nobody of ours can have said."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

import msgspec
import pytest

from observability_integration.caching.shared.channel import Channel, Note, Waiter
from observability_integration.caching.stores.shared import Generation, SharedStore
from observability_integration.testing.clock import FakeClockLoop

LOOP_FACTORY = FakeClockLoop

_PATIENCE = 0.05


class Radio:
    """A store that only listens; `tune` may be made to take long, or to fail."""

    def __init__(self) -> None:
        self.listening: list[tuple[str, Callable[[str], None], Callable[[], None]]] = []
        self.attempts = 0
        self.closed = 0
        self.tune: Callable[[], Any] | None = None

    async def listen(self, prefix: str, hear: Callable[[str], None], resumed: Callable[[], None]) -> Radio:
        self.attempts += 1
        if self.tune is not None:
            await self.tune()
        self.listening.append((prefix, hear, resumed))
        return self

    async def aclose(self) -> None:
        self.closed += 1

    def say(self, text: str) -> None:
        for _, hear, _ in self.listening:
            hear(text)


class Heard:
    """A channel and what it has heard of others."""

    def __init__(self) -> None:
        self.radio = Radio()
        self.notes: list[Note] = []
        self.resumed = 0
        self.channel = Channel(cast(SharedStore, self.radio), "a:", self.notes.append, _PATIENCE, self._resume)

    def _resume(self) -> None:
        self.resumed += 1


@pytest.fixture
async def heard() -> AsyncIterator[Heard]:
    """A channel, closed at the end."""
    heard = Heard()
    yield heard
    await heard.channel.aclose()


def test_a_note_is_ascii_and_comes_back_as_it_was() -> None:
    """Other processes, of other versions of Python perhaps, must read what is written here."""
    note = Note("failed", "ab12", "módulo.Error", "", "me")
    text = note.encode()
    assert text.isascii()
    assert note == Note.decode(text)
    assert '["set","ab12","","",""]' == Note("set", "ab12").encode()


@pytest.mark.parametrize(
    "text",
    ["", "{}", "null", "[]", '["explode"]', '["set",1]', '["set","n","","","o","more"]', "[" * 100_000, "\ud800"],
)
async def test_what_is_no_note_is_counted_and_ignored(heard: Heard, metrics: Callable[..., Any], text: str) -> None:
    """Whoever may publish may publish anything; it must neither be believed nor break the connection."""
    assert await heard.channel.ensure()
    with heard.channel.waiting("") as waiter:
        heard.radio.say(text)
    assert waiter.note is None
    assert [] == heard.notes
    assert 1 == metrics("telemetry.faults", site="cache.note")


async def test_notes_of_others_are_handed_on_and_its_own_are_not(heard: Heard) -> None:
    """Who has just written an entry must not throw it out of memory because of its own note."""
    await heard.channel.ensure()
    with heard.channel.waiting("n") as waiter:
        heard.radio.say(heard.channel.note("set", "n"))
        assert Note("set", "n", origin=heard.channel.origin) == waiter.note
    assert [] == heard.notes
    tagged = Note("tag", tag="t", origin="another")
    heard.radio.say(tagged.encode())
    assert [tagged] == heard.notes
    assert "a:" == heard.radio.listening[0][0]


async def test_two_caches_have_two_origins() -> None:
    """Else they would ignore each other."""
    assert Heard().channel.origin != Heard().channel.origin


async def test_only_those_are_woken_who_wait_for_the_entry(heard: Heard) -> None:
    """And no more once they have stopped waiting."""
    await heard.channel.ensure()
    with heard.channel.waiting("n") as first, heard.channel.waiting("n") as second, heard.channel.waiting("m") as other:
        heard.radio.say(Note("free", "n", origin="x").encode())
        assert "free" == (await first.wait(1.0) or Note("set")).action
        assert second.note is not None
        assert other.note is None
        first.clear()
        assert first.note is None
    heard.radio.say(Note("set", "n", origin="x").encode())
    assert first.note is None


async def test_a_waiter_waits_no_longer_than_it_is_told() -> None:
    """Notes may be lost; then time has to do."""
    loop = asyncio.get_running_loop()
    started = loop.time()
    assert await Waiter().wait(0.7) is None
    assert pytest.approx(0.7) == loop.time() - started


async def test_after_a_gap_everybody_goes_and_looks(heard: Heard) -> None:
    """What was said meanwhile is lost."""
    await heard.channel.ensure()
    with heard.channel.waiting("n") as waiter:
        asyncio.get_running_loop().call_later(0.1, heard.radio.listening[0][2])
        started = asyncio.get_running_loop().time()
        assert await waiter.wait(60.0) is None
        assert pytest.approx(0.1) == asyncio.get_running_loop().time() - started
        waiter.tell(Note("set", "n"))  # too late, and no harm
        assert waiter.note is None
    assert 2 == heard.resumed  # the first time was the beginning


async def test_what_the_cache_makes_of_a_note_cannot_break_the_channel(metrics: Callable[..., Any]) -> None:
    """It runs where the connection is read."""

    def fail(*_: Any) -> None:
        raise ValueError

    radio = Radio()
    channel = Channel(cast(SharedStore, radio), "a:", fail, _PATIENCE, fail)
    await channel.ensure()
    with channel.waiting("n") as waiter:
        radio.say(Note("set", "n", origin="x").encode())
        assert waiter.note is not None
    radio.listening[0][2]()
    assert 3 == metrics("telemetry.faults", site="cache.note")


async def test_listening_starts_once_and_keeps_nobody(heard: Heard) -> None:
    """A call must not wait for a connection that it may never need."""
    assert heard.channel.start() is False
    assert heard.channel.start() is False
    assert await heard.channel.ensure()
    assert heard.channel.start() is True
    assert await heard.channel.ensure()
    assert 1 == heard.radio.attempts


async def test_who_needs_it_waits_for_a_moment_only(heard: Heard) -> None:
    """The server may be silent; when it answers after all, it is heard."""
    loop = asyncio.get_running_loop()
    heard.radio.tune = lambda: asyncio.sleep(1.0)
    started = loop.time()
    assert not await heard.channel.ensure()
    assert pytest.approx(_PATIENCE) == loop.time() - started
    await asyncio.sleep(1.0)
    assert heard.channel.start()


async def test_a_store_that_refuses_is_asked_again_later(heard: Heard) -> None:
    """Not at every call, and not never."""

    async def refuse() -> None:
        raise PermissionError

    heard.radio.tune = refuse
    assert not await heard.channel.ensure()
    assert not await heard.channel.ensure()
    assert 1 == heard.radio.attempts
    await asyncio.sleep(5.0)
    heard.radio.tune = None
    assert await heard.channel.ensure()
    assert 2 == heard.radio.attempts


async def test_closing_ends_what_listens_and_what_tries_to() -> None:
    """Nothing may be left behind, whether it has begun or not; and it may begin again."""
    opened, opening, unused = Heard(), Heard(), Heard()
    await opened.channel.ensure()
    await opened.channel.aclose()
    await opened.channel.aclose()
    assert 1 == opened.radio.closed
    opening.radio.tune = lambda: asyncio.sleep(1000.0)
    opening.channel.start()
    await asyncio.sleep(0)
    await opening.channel.aclose()
    await asyncio.sleep(0)
    assert not [task for task in asyncio.all_tasks() if task.get_name() == "cache channel"]
    await unused.channel.aclose()
    assert await opened.channel.ensure()
    await opened.channel.aclose()


def test_each_event_loop_listens_for_itself() -> None:
    """A connection belongs to its loop; those of loops that have ended are forgotten."""
    heard = Heard()
    for _ in range(3):
        asyncio.run(heard.channel.ensure())
    assert 3 == heard.radio.attempts
    assert 1 == len(heard.channel._listening)


def test_a_note_that_is_not_one_says_so() -> None:
    """The one error that reading a note may raise."""
    with pytest.raises(msgspec.DecodeError):
        Note.decode("[]")


# Counting the notes of invalidations ----------------------------------------------------------------------------------


def _generation(number: int, name: str = "a" * 16) -> Generation:
    return Generation(name.encode(), number)


def _tell(radio: Radio, number: int, name: str = "a" * 16, *, origin: str = "another", action: str = "delete") -> None:
    note = ["clear", "", "", "", origin] if action == "clear" else [action, "n", "", "", origin]
    radio.say(json.dumps(note) + ("" if action == "clear" else f"\n{name}:{number}"))


async def test_nothing_was_missed_where_each_number_came(heard: Heard) -> None:
    """From any number on that was heard or read, to any other; its own count too."""
    await heard.channel.ensure()
    heard.channel.begin(_generation(3))
    heard.channel.begin(_generation(9))  # it has begun
    for number in (4, 5, 5, 6):
        _tell(heard.radio, number, origin=heard.channel.origin if number == 5 else "another")
    assert heard.channel.heard_all(_generation(3), _generation(6))
    assert heard.channel.heard_all(_generation(5), _generation(6))
    assert heard.channel.heard_all(_generation(9), _generation(9))  # nothing to hear
    for basis, now in ((2, 6), (6, 7), (3, 7), (6, 5)):
        assert not heard.channel.heard_all(_generation(basis), _generation(now))
    assert not heard.channel.heard_all(_generation(3, "b" * 16), _generation(6, "b" * 16))
    assert not heard.channel.heard_all(_generation(3, "b" * 16), _generation(6))


async def test_a_number_that_is_left_out_begins_the_count_anew(heard: Heard) -> None:
    """What was based on a number before it may be void."""
    await heard.channel.ensure()
    heard.channel.begin(_generation(3))
    for number in (4, 6, 7):
        _tell(heard.radio, number)
    assert not heard.channel.heard_all(_generation(3), _generation(7))
    assert not heard.channel.heard_all(_generation(4), _generation(7))
    assert heard.channel.heard_all(_generation(5), _generation(7))


async def test_after_a_clearing_all_is_new(heard: Heard) -> None:
    """The next note tells of which generation it is."""
    await heard.channel.ensure()
    assert not heard.channel.heard_all(_generation(0), _generation(1))
    heard.channel.begin(_generation(3))
    _tell(heard.radio, 0, action="clear")
    assert not heard.channel.heard_all(_generation(3), _generation(4))
    _tell(heard.radio, 1, "b" * 16)
    assert heard.channel.heard_all(_generation(0, "b" * 16), _generation(1, "b" * 16))


@pytest.mark.parametrize("generation", ["", "x", ":", "a:1", "a" * 16 + ":", "a" * 16 + ":" + "9" * 5000, "\ud800"])
async def test_a_generation_that_is_none_is_not_counted(heard: Heard, generation: str) -> None:
    """A publisher may publish anything; the note itself may be in order."""
    await heard.channel.ensure()
    heard.channel.begin(_generation(3))
    heard.radio.say('["delete","n","","","another"]\n' + generation)
    assert [Note("delete", "n", origin="another")] == heard.notes
    assert heard.channel._heard == _generation(3)


async def test_a_gap_is_judged_by_the_number_after_it(heard: Heard) -> None:
    """The same number: nothing was missed; another one, or none: something may have been."""
    await heard.channel.ensure()
    assert heard.channel.catch_up(None)
    heard.channel.begin(_generation(3))
    _tell(heard.radio, 4)
    assert heard.channel.catch_up(_generation(4))
    assert heard.channel.heard_all(_generation(3), _generation(4))
    for now in (_generation(6), _generation(6, "b" * 16), None, _generation(2)):
        assert not heard.channel.catch_up(now)
        assert now is None or not heard.channel.heard_all(_generation(0, now.id.decode()), now)
    _tell(heard.radio, 3)
    assert heard.channel.heard_all(_generation(2), _generation(3))
