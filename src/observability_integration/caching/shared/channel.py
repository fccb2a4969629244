"""Notes that processes publish about the entries of an operation.

A note says what happened to which entry and never what is in it. Notes may be lost, so only speed depends on them: a
waiter also asks the store in the end, and so does a lookup that finds a stale entry in memory, or any entry in it that
is from before a gap. The notes of invalidations are numbered (see `Generation`), so it is known when none was missed.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Generator
from random import getrandbits
from typing import Literal, NamedTuple

import msgspec

from observability_integration.caching.stores.plain import Silence
from observability_integration.caching.stores.shared import Generation, SharedStore, Subscription, parse_generation
from observability_integration.tasks import cancel_until_done, keep_alive, spawn_detached, wait_done
from observability_integration.telemetry.guard import note_fault

Action = Literal["set", "delete", "failed", "free", "unshared", "tag", "clear"]

_RETRY_SECONDS = 5.0  # between two attempts to listen in a store that refuses


class Note(NamedTuple):
    """One note.

    Attributes:
        action: ``set``, the entry was written; ``delete``, it was invalidated; ``failed``, the call that should have
            brought it has failed; ``free``, its lease was given up; ``unshared``, the call brought what is not to be
            kept; ``tag``, ``clear``, all entries with the tag, or all, are void.
        name: of the entry; empty for ``tag`` and ``clear``.
        error_type: for ``failed``, the type of the error.
        tag: for ``tag``, its hash.
        origin: the cache that published it.
    """

    action: Action
    name: str = ""
    error_type: str = ""
    tag: str = ""
    origin: str = ""

    def encode(self) -> str:
        """Returns the published form: ASCII."""
        return json.dumps(self, separators=(",", ":"))

    @classmethod
    def decode(cls, text: str) -> Note:
        """Parses the published form.

        Raises:
            msgspec.DecodeError: it is not a note that this version knows.
            ValueError: it is not even text that could be written.
        """
        return _decoder.decode(text)


_decoder = msgspec.json.Decoder(Note)


class Waiter:
    """A task that waits for a note about one entry."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forgets the note that came: it is out of date."""
        self._came: asyncio.Future[Note | None] = asyncio.get_running_loop().create_future()

    def tell(self, note: Note | None) -> None:
        """Wakes the task; None makes it ask the store."""
        if not self._came.done():
            self._came.set_result(note)

    @property
    def note(self) -> Note | None:
        """The first note that came, if any."""
        return self._came.result() if self._came.done() else None

    async def wait(self, seconds: float) -> Note | None:
        """Returns the first note, or None if none comes in time or the store has to be asked."""
        await wait_done(self._came, seconds)
        return self.note


class _Listening:
    """The subscription and the waiters of one event loop."""

    def __init__(self) -> None:
        self.waiters: dict[str, list[Waiter]] = {}
        self.opening: asyncio.Task[Subscription] | None = None
        self.retry_at = 0.0

    def all(self) -> list[Waiter]:
        """Returns the waiters for all entries."""
        return [waiter for waiters in self.waiters.values() for waiter in waiters]


def _subscription(opening: asyncio.Task[Subscription]) -> Subscription | None:
    return None if not opening.done() or opening.cancelled() or opening.exception() is not None else opening.result()


class Channel:
    """The notes of one operation, as one cache receives them.

    Args:
        store: where they are published.
        prefix: of the operation.
        forget: called with each note of another cache, in the event loop that listens.
        patience_seconds: how long `ensure` waits.
        resumed: called when listening begins, and goes on after a gap: notes may have been missed.

    Attributes:
        origin: identifies the notes of this cache.
    """

    def __init__(
        self,
        store: SharedStore,
        prefix: str,
        forget: Callable[[Note], None],
        patience_seconds: float,
        resumed: Callable[[], None] = lambda: None,
    ) -> None:
        self.origin = f"{getrandbits(64):016x}"
        self._store = store
        self._prefix = prefix
        self._forget = forget
        self._patience = patience_seconds
        self._resumed = resumed
        self._listening: dict[asyncio.AbstractEventLoop, _Listening] = {}
        self._heard: Generation | None = None  # up to which every note came since the number `_heard_since`
        self._heard_since = 0

    def note(self, action: Action, name: str = "", *, error_type: str = "", tag: str = "") -> str:
        """Returns a note of this cache, encoded."""
        return Note(action, name, error_type, tag, self.origin).encode()

    def heard_all(self, basis: Generation, now: Generation) -> bool:
        """Tells whether each invalidation from `basis` until `now` is known here."""
        if basis == now:
            return True
        heard = self._heard
        if heard is None or not basis.id == now.id == heard.id:
            return False
        return self._heard_since <= basis.number <= now.number <= heard.number

    def catch_up(self, now: Generation | None) -> bool:
        """Tells whether no invalidation was missed until `now`, the generation after a gap; counts on from there."""
        heard, self._heard = self._heard, now
        if heard == now:
            return True
        self._heard_since = 0 if now is None else now.number
        return False

    def begin(self, generation: Generation) -> None:
        """Counts from this generation on, if from none yet."""
        if self._heard is None:
            self._heard, self._heard_since = generation, generation.number

    def _count(self, generation: Generation | None) -> None:
        heard = self._heard
        if generation is None or (
            heard is not None and heard.id == generation.id and heard.number >= generation.number
        ):
            return  # a note of another kind, or one that another event loop has heard
        if heard is None or generation != (heard.id, heard.number + 1):
            self._heard_since = generation.number - 1
        self._heard = generation

    def start(self) -> bool:
        """Begins to listen in the running event loop, unless it does already, and tells whether it listens by now.

        Does not wait. After a failure, a later call tries again.
        """
        return _subscription(self._opening()) is not None

    async def ensure(self) -> bool:
        """Does the same, and waits for `patience_seconds` at the most."""
        opening = self._opening()
        await wait_done(opening, self._patience)
        return _subscription(opening) is not None

    @contextlib.contextmanager
    def waiting(self, name: str) -> Generator[Waiter, None, None]:
        """Registers a waiter for notes about the entry `name`."""
        waiters = self._state(asyncio.get_running_loop()).waiters
        waiter = Waiter()
        waiters.setdefault(name, []).append(waiter)
        try:
            yield waiter
        finally:
            waiters[name].remove(waiter)
            if not waiters[name]:
                del waiters[name]

    async def aclose(self) -> None:
        """Stops listening in the running event loop."""
        here = self._listening.get(asyncio.get_running_loop())
        if here is None or here.opening is None:
            return
        opening, here.opening = here.opening, None
        subscription = _subscription(opening)
        if subscription is None:
            cancel_until_done(opening)
        else:
            await subscription.aclose()

    def _opening(self) -> asyncio.Task[Subscription]:
        loop = asyncio.get_running_loop()
        here = self._state(loop)
        opening = here.opening
        if opening is None or (opening.done() and _subscription(opening) is None and loop.time() >= here.retry_at):
            here.retry_at = loop.time() + _RETRY_SECONDS
            opening = spawn_detached(loop, self._listen(here), name="cache channel")
            here.opening = keep_alive(opening)
        return opening

    def _state(self, loop: asyncio.AbstractEventLoop) -> _Listening:
        here = self._listening.get(loop)
        if here is None:
            for ended in [known for known in list(self._listening) if known.is_closed()]:
                self._listening.pop(ended, None)
            here = self._listening[loop] = _Listening()
        return here

    async def _listen(self, here: _Listening) -> Subscription:
        subscription = await self._store.listen(
            self._prefix, lambda text: self._hear(here, text), lambda: self._look(here)
        )
        if not isinstance(subscription, Silence):
            self._shielded(self._resumed)  # until now there was a gap
        return subscription

    def _hear(self, here: _Listening, text: str) -> None:
        text, _, generation = text.partition("\n")
        try:
            note = Note.decode(text)
        except (msgspec.DecodeError, ValueError) as error:  # every publisher may publish anything
            note_fault("cache.note", error)
            return
        if note.origin != self.origin:
            self._shielded(lambda: self._forget(note))
        if note.action == "clear":
            self._heard = None
        elif generation:
            self._count(parse_generation(generation.encode("utf-8", "replace")))
        for waiter in here.all() if note.action == "clear" else here.waiters.get(note.name, ()):
            waiter.tell(note)

    def _look(self, here: _Listening) -> None:
        for waiter in here.all():
            waiter.tell(None)
        self._shielded(self._resumed)

    @staticmethod
    def _shielded(act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:  # noqa: BLE001 - the connection must not suffer for it
            note_fault("cache.note", error)
