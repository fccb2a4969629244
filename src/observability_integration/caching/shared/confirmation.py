"""What may be served from memory although it may have been invalidated without this process knowing.

============================ =========================================================================================
entry in memory              what counts
============================ =========================================================================================
fresh                        the channel: each invalidation that it brings takes effect at once
fresh, from before a gap in  the shared store, asked by the next lookup: the entry is void unless the store has it. One
the channel in which an      that was never in the store is valid for the rest of its TTL, as nothing can be known of it
invalidation was missed
stale                        the shared store, asked in the same lookup: the entry is void unless the store has it, or
                             it was never there and each invalidation since it was computed is known
any, and the store does not  memory: this is an outage
answer
============================ =========================================================================================
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any

from observability_integration.caching.entry import Answer, Entry, StoreHit
from observability_integration.caching.keys import KeySpace
from observability_integration.caching.stores.memory import MemoryStore
from observability_integration.caching.stores.shared import Place
from observability_integration.tasks import spawn, wait_done

from .channel import Channel
from .store_guard import GuardedStore


class Confirmation:
    """Compares entries in memory with the shared store.

    Args:
        keys: the key space.
        memory: the first tier.
        shared: the second tier; None without one.
        channel: the notes of other processes; None without a shared store.
        ask: see `Tiers.ask`.
        put: see `Tiers.put_in_memory`.
    """

    def __init__(
        self,
        keys: KeySpace,
        memory: MemoryStore,
        shared: GuardedStore | None,
        channel: Channel | None,
        ask: Callable[..., Coroutine[Any, Any, Answer]],
        put: Callable[[bytes, Entry], None],
    ) -> None:
        self._keys = keys
        self._memory = memory
        self._shared = shared
        self._channel = channel
        self._ask = ask
        self._put = put
        self._catching_up: set[asyncio.Task[None]] = set()

    async def stand_in(self, digest: bytes, entry: Entry) -> Entry | None:
        """The entry to serve where a stale one would be: that one, a newer one, or None if it is void."""
        answer = await self._ask(digest, in_any_case=True)
        if not answer.answered or self._is_confirmed(digest, entry, answer):
            return entry
        held = self._memory.get(digest)
        if held is not None and held.original is entry:
            self._memory.delete(digest)
        return None if answer.hit is None else answer.hit.entry

    def settle(self, digest: bytes, held: Entry | None, answer: Answer) -> StoreHit | None:
        """Compares what memory held before a read, stale or in doubt, with the answer.

        Returns:
            The entry of the answer, unless memory goes on holding its own.
        """
        hit = answer.hit
        if held is None or not answer.answered or self._memory.get(digest) is not held:
            return hit
        now, original = time.monotonic(), held.original
        if not self._is_confirmed(digest, original, answer) and (
            hit is not None or now >= original.expired_at or self._was_shared(digest, original)
        ):
            self._memory.delete(digest)
            return hit
        if hit is not None and now < hit.entry.fresh_until:
            return hit
        self._memory.set(digest, original)
        return None

    def _is_confirmed(self, digest: bytes, entry: Entry, answer: Answer) -> bool:
        if answer.version:
            return answer.version == entry.version
        if self._was_shared(digest, entry) or self._channel is None:
            return False
        basis, now = entry.basis, answer.generation
        return basis is not None and now is not None and self._channel.heard_all(basis, now)

    def _was_shared(self, digest: bytes, entry: Entry) -> bool:
        name = self._keys.place(digest).name
        return bool(entry.version) and not (self._shared is not None and self._shared.writes(name))

    def after_gap(self) -> None:
        """Puts what memory holds in doubt if an invalidation may have been missed in a gap of the channel."""
        if len(self._memory):
            task = spawn(self._catch_up(), name="cache channel")
            self._catching_up.add(task)
            task.add_done_callback(self._catching_up.discard)

    async def aclose(self) -> None:
        """Ends what goes on in the running event loop."""
        loop = asyncio.get_running_loop()
        for running in [task for task in list(self._catching_up) if task.get_loop() is loop]:
            running.cancel()
            await wait_done(running, None)

    async def _catch_up(self) -> None:
        shared, channel = self._shared, self._channel
        if shared is None or channel is None:
            return
        reading = await shared.read(Place(self._keys.prefix, ""))
        caught_up = channel.catch_up(None if reading is None else reading.generation)
        if reading is None or not caught_up:
            self._memory.doubt()

    def keep(self, digest: bytes, entry: Entry) -> None:
        """Keeps an entry that stands in for a call in memory, unless memory holds one."""
        if self._memory.get(digest) is None:
            self._put(digest, entry)

    def put_back(self, digest: bytes, entry: Entry, changed: Entry) -> None:
        """Changes the times of an entry, if memory still holds it."""
        held = self._memory.get(digest)
        if held is not None and held.original is entry:
            self._put(digest, changed if held.doubted is None else changed.in_doubt())
