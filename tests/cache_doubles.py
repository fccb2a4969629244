"""What the tests of the cache share: the clocks of a fake loop, and a store that several caches have in common."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest

from observability_integration.caching.shared.recovery import PendingWrites
from observability_integration.caching.stores.memory import MemoryStore
from observability_integration.caching.stores.shared import Acquired, Committed, Generation, Place, Reading, Write

_EPOCH = 1_700_000_000.0  # wall time at the start of a fake clock

Behaviour = Callable[[str], Awaitable[None]]


@contextmanager
def clocks_of_the_loop() -> Iterator[None]:
    """Lets the monotonic clock and the wall clock show what the running event loop's clock shows."""
    really = time.monotonic

    def monotonic() -> float:
        try:
            return asyncio.get_running_loop().time()
        except RuntimeError:
            return really()

    def wall() -> float:
        return _EPOCH + monotonic()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "monotonic", monotonic)
        patch.setattr(time, "time", wall)
        patch.setattr(time, "time_ns", lambda: int(wall() * 1e9))
        for clocked in (MemoryStore, PendingWrites):
            patch.setattr(clocked.__init__, "__defaults__", (monotonic,))
        yield


class Server:
    """What is kept in one place for several stores, as Redis would keep it."""

    def __init__(self) -> None:
        self.entries: dict[str, tuple[bytes, float]] = {}
        self.leases: dict[str, tuple[str, float]] = {}
        self.generation = Generation(b"0" * 16, 0)
        self.voided: dict[str, int] = {}  # a tag's or entry's last invalidation
        self.listeners: list[Callable[[str], None]] = []
        self.lives_ms: list[int] = []
        self.commands: list[str] = []

    def store(self) -> ServedStore:
        """A connection of its own."""
        return ServedStore(self)

    def entry(self, key: str) -> bytes | None:
        """What is kept under a key."""
        data, expires = self.entries.get(key, (None, 0.0))
        return data if expires > time.monotonic() else None

    def holder(self, key: str) -> tuple[str | None, float]:
        """Who holds the lease, and for how many seconds more."""
        token, expires = self.leases.get(key, (None, 0.0))
        left = expires - time.monotonic()
        return (token, left) if left > 0 else (None, 0.0)

    def put(self, key: str, data: bytes, ttl_ms: int) -> None:
        """Keeps an entry."""
        self.lives_ms.append(ttl_ms)
        self.entries[key] = data, time.monotonic() + ttl_ms / 1000

    def tell(self, note: str) -> None:
        """Publishes a note: it arrives soon, and not at once."""
        for hear in self.listeners:
            asyncio.get_running_loop().call_soon(hear, note)

    def invalidate(self, name: str, note: str) -> None:
        """Counts an invalidation, and tells of it."""
        self.generation = self.generation._replace(number=self.generation.number + 1)
        self.voided[name] = self.generation.number
        self.tell(f"{note}\n{self.generation.id.decode()}:{self.generation.number}")

    def is_void(self, write: Write) -> bool:
        """Whether it was cleared, or one of its tags was invalidated, since the call began."""
        basis = write.basis
        return basis.id != self.generation.id or any(self.voided.get(tag, 0) > basis.number for tag in write.tags)

    def clear(self, note: str) -> None:
        """Begins another generation."""
        self.generation = Generation(f"{int(self.generation.id, 16) + 1:016x}".encode(), 0)
        self.tell(note)

    @staticmethod
    def now_us() -> int:
        """The clock."""
        return int(time.time() * 1e6)


class _Listening:
    def __init__(self, server: Server, hear: Callable[[str], None]) -> None:
        self._server, self._hear = server, hear
        server.listeners.append(hear)

    async def aclose(self) -> None:
        if self._hear in self._server.listeners:
            self._server.listeners.remove(self._hear)


class ServedStore:
    """One process's way to a server; it can be made to misbehave, which may be before or after the server acts."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.calls: list[str] = []
        self.behave: Behaviour | None = None
        self.answers_late_seconds = 0.0  # what is read is on its way for so long
        self.closed = False

    async def _do(self, name: str) -> None:
        self.calls.append(name)
        self.server.commands.append(name)
        await asyncio.sleep(0)
        if self.behave is not None:
            await self.behave(name)

    async def read(self, place: Place) -> Reading:
        await self._do("read")
        reading = Reading(self.server.entry(place.key), self.server.generation)
        await asyncio.sleep(self.answers_late_seconds)
        return reading

    async def vouches(self, prefix: str, tags: Sequence[str], basis: Generation) -> bool:
        await self._do("vouches")
        return not self.server.is_void(Write(b"", 1, basis, tags))

    async def acquire(
        self, place: Place, token: str, lease_ms: int, known: bytes, tags: Sequence[str] = ()
    ) -> Acquired:
        await self._do("acquire")
        server = self.server
        generation, data = server.generation, server.entry(place.key)
        if data is not None and not (known and data.startswith(known)):
            return Acquired(data, generation, server.now_us(), leading=False, lease_left_ms=0)
        holder, left = server.holder(place.key)
        if holder is not None:
            return Acquired(None, generation, server.now_us(), leading=False, lease_left_ms=int(1000 * left))
        server.leases[place.key] = token, time.monotonic() + lease_ms / 1000
        return Acquired(None, generation, server.now_us(), leading=True, lease_left_ms=0)

    async def renew(self, place: Place, token: str, lease_ms: int) -> bool:
        await self._do("renew")
        if self.server.holder(place.key)[0] != token:
            return False
        self.server.leases[place.key] = token, time.monotonic() + lease_ms / 1000
        return True

    async def commit(self, place: Place, token: str, write: Write, note: str) -> Committed:
        await self._do("commit")
        if self.server.holder(place.key)[0] != token:
            return "lost"
        if self.server.is_void(write):
            return "void"
        del self.server.leases[place.key]
        self.server.put(place.key, write.data, write.ttl_ms)
        self.server.tell(note)
        await asyncio.sleep(0)
        return "written"

    async def release(self, place: Place, token: str, note: str) -> None:
        await self._do("release")
        if self.server.holder(place.key)[0] == token:
            del self.server.leases[place.key]
            self.server.tell(note)

    async def put_late(self, place: Place, write: Write, note: str, origin: str) -> bool:
        await self._do("put_late")
        if self.server.entry(place.key) is not None or self.server.holder(place.key)[0] is not None:
            return False
        if self.server.is_void(write):
            return False
        self.server.put(place.key, write.data, write.ttl_ms)
        self.server.tell(note)
        return True

    async def delete(self, prefix: str, names: Sequence[str], notes: Sequence[str], origin: str) -> None:
        await self._do("delete")
        for name, note in zip(names, notes, strict=True):
            self.server.entries.pop(prefix + name, None)
            self.server.leases.pop(prefix + name, None)
            self.server.invalidate(name, note)

    async def void(self, prefix: str, tag: str | None, note: str, origin: str) -> None:
        await self._do("void")
        if tag is None:
            self.server.clear(note)
        else:
            self.server.invalidate(tag, note)

    async def probe(self, prefix: str) -> None:
        await self._do("probe")

    async def listen(self, prefix: str, hear: Callable[[str], None], resumed: Callable[[], None]) -> Any:
        await self._do("listen")
        return _Listening(self.server, hear)

    async def aclose(self) -> None:
        self.closed = True


def raising(error: BaseException, *names: str) -> Behaviour:
    """Raises in the accesses named, or in all."""

    async def behave(name: str) -> None:
        if not names or name in names:
            raise error

    return behave


def taking(seconds: float, *names: str) -> Behaviour:
    """Takes so long for the accesses named, or for all."""

    async def behave(name: str) -> None:
        if not names or name in names:
            await asyncio.sleep(seconds)

    return behave


async def turns(count: int = 30) -> None:
    """Lets the loop go round without letting time pass."""
    for _ in range(count):
        await asyncio.sleep(0)


async def at(seconds: float) -> None:
    """Waits until the loop's clock shows so much."""
    loop = asyncio.get_running_loop()
    await asyncio.sleep(seconds - loop.time())


class Scripted:
    """A call that does what it is told, one time after the other; the last thing for ever."""

    def __init__(self, *script: Any, seconds: float = 0.0) -> None:
        self.script = list(script)
        self.seconds = seconds
        self.made = 0
        self.inside = self.most_inside = 0

    async def __call__(self, *_: Any) -> Any:
        self.made += 1
        self.inside += 1
        self.most_inside = max(self.most_inside, self.inside)
        try:
            outcome = self.script[min(self.made, len(self.script)) - 1]
            await asyncio.sleep(self.seconds)
            if callable(outcome):
                outcome = outcome()
                if asyncio.iscoroutine(outcome):
                    outcome = await outcome
            if isinstance(outcome, BaseException):
                raise outcome
            return outcome
        finally:
            self.inside -= 1
