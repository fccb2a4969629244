"""What processes tell each other about the entries of an operation.

A note says what happened to which entry and never what is in it. Notes may be lost, so nothing depends on them but
speed: whoever waits for one also looks for himself in the end, and an entry that outlives its deletion somewhere does
so until its time is up at most.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Generator
from random import getrandbits
from typing import Literal, NamedTuple

import msgspec

from observability_integration.caching.stores.shared import SharedStore, Subscription
from observability_integration.tasks import begin_apart, cancel_until_done, own, wait_done
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
        origin: which cache of which process says so.
    """

    action: Action
    name: str = ""
    error_type: str = ""
    tag: str = ""
    origin: str = ""

    def encode(self) -> str:
        """As it is published: ASCII."""
        return json.dumps(self, separators=(",", ":"))

    @classmethod
    def decode(cls, text: str) -> Note:
        """What was encoded.

        Raises:
            msgspec.DecodeError: it is not a note that this version knows.
            ValueError: it is not even text that could be written.
        """
        return _decoder.decode(text)


_decoder = msgspec.json.Decoder(Note)


class Waiter:
    """One who waits for news of an entry."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """From here on; what was heard before is out of date."""
        self._came: asyncio.Future[Note | None] = asyncio.get_running_loop().create_future()

    def tell(self, note: Note | None) -> None:
        """Wakes the one who waits; with None, to go and look."""
        if not self._came.done():
            self._came.set_result(note)

    @property
    def note(self) -> Note | None:
        """The first that came, if any has."""
        return self._came.result() if self._came.done() else None

    async def wait(self, seconds: float) -> Note | None:
        """The first that comes, or None if none does in time or there is reason to go and look."""
        await wait_done(self._came, seconds)
        return self.note


class _Post:
    """The listening in one event loop."""

    def __init__(self) -> None:
        self.waiters: dict[str, list[Waiter]] = {}
        self.opening: asyncio.Task[Subscription] | None = None
        self.retry_at = 0.0

    def all(self) -> list[Waiter]:
        """Whoever waits, for whichever entry."""
        return [waiter for waiters in self.waiters.values() for waiter in waiters]


def _subscription(opening: asyncio.Task[Subscription]) -> Subscription | None:
    return None if not opening.done() or opening.cancelled() or opening.exception() is not None else opening.result()


class Channel:
    """The notes of one operation, as one cache hears them.

    Args:
        store: where they are published.
        prefix: of the operation.
        forget: called with each note of another cache, in the event loop that listens.
        patience_seconds: how long `ensure` waits.
        resumed: called when listening goes on after a gap: notes may have been missed.

    Attributes:
        origin: how other caches tell this one's notes from those of others.
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
        self._posts: dict[asyncio.AbstractEventLoop, _Post] = {}

    def note(self, action: Action, name: str = "", *, error_type: str = "", tag: str = "") -> str:
        """A note of this cache, encoded."""
        return Note(action, name, error_type, tag, self.origin).encode()

    def start(self) -> bool:
        """Begins to listen in the running event loop unless that was done before, and says whether it has succeeded.

        Nothing is waited for, and a failure is nobody's but this object's: it tries again when asked later.
        """
        return _subscription(self._opening()) is not None

    async def ensure(self) -> bool:
        """The same, and waits for it, but not longer than `patience_seconds`."""
        opening = self._opening()
        await wait_done(opening, self._patience)
        return _subscription(opening) is not None

    @contextlib.contextmanager
    def waiting(self, name: str) -> Generator[Waiter, None, None]:
        """One who waits for news of the entry `name`."""
        waiters = self._post(asyncio.get_running_loop()).waiters
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
        post = self._posts.get(asyncio.get_running_loop())
        if post is None or post.opening is None:
            return
        opening, post.opening = post.opening, None
        subscription = _subscription(opening)
        if subscription is None:
            cancel_until_done(opening)
        else:
            await subscription.aclose()

    def _opening(self) -> asyncio.Task[Subscription]:
        loop = asyncio.get_running_loop()
        post = self._post(loop)
        opening = post.opening
        if opening is None or (opening.done() and _subscription(opening) is None and loop.time() >= post.retry_at):
            post.retry_at = loop.time() + _RETRY_SECONDS
            opening = begin_apart(loop, self._listen(post), name="cache channel")
            post.opening = own(opening)
        return opening

    def _post(self, loop: asyncio.AbstractEventLoop) -> _Post:
        post = self._posts.get(loop)
        if post is None:
            for ended in [known for known in list(self._posts) if known.is_closed()]:
                self._posts.pop(ended, None)
            post = self._posts[loop] = _Post()
        return post

    async def _listen(self, post: _Post) -> Subscription:
        return await self._store.listen(self._prefix, lambda text: self._hear(post, text), lambda: self._look(post))

    def _hear(self, post: _Post, text: str) -> None:
        try:
            note = Note.decode(text)
        except (msgspec.DecodeError, ValueError) as error:  # whoever may publish may publish anything
            note_fault("cache.note", error)
            return
        if note.origin != self.origin:
            self._guarded(lambda: self._forget(note))
        for waiter in post.all() if note.action == "clear" else post.waiters.get(note.name, ()):
            waiter.tell(note)

    def _look(self, post: _Post) -> None:
        for waiter in post.all():
            waiter.tell(None)
        self._guarded(self._resumed)

    @staticmethod
    def _guarded(act: Callable[[], None]) -> None:
        try:
            act()
        except Exception as error:  # noqa: BLE001 - the connection must not suffer for it
            note_fault("cache.note", error)
