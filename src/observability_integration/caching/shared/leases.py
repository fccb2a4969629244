"""One call for all processes: a lease on the entry, with a heartbeat.

The process that holds the lease (the leader) makes the call; all others (followers) wait for its entry. A lease is
short and renewed for as long as the call goes on, so a process that dies is replaced within one lease, however long
calls take. An entry is written only while the lease is held: a process that was suspended and comes back with an old
answer is refused.

Leases save calls and guarantee nothing: whenever the store is at fault, each follower makes the call itself.
"""

from __future__ import annotations

import asyncio
import math
import os
import random
from collections.abc import Awaitable, Callable, Coroutine, Generator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from observability_integration.caching.flights.waiting import (
    CallNode,
    begin_wait,
    end_wait,
    holds_up_a_leader,
    waits_for_itself,
)
from observability_integration.caching.stores.plain import PlainStore
from observability_integration.caching.stores.shared import Acquired, Generation, Place, SharedStore, Write
from observability_integration.context import current_deadline, remaining
from observability_integration.errors import PrimitiveTimeoutError, SharedCallError
from observability_integration.tasks import keep_alive, spawn_detached, wait_done
from observability_integration.telemetry.tracing.spans import error_type

from .channel import Action, Channel, Waiter
from .store_guard import GuardedStore

T = TypeVar("T")

VERSION_BYTES = 16  # so many bytes of an entry distinguish it from every other under the same name

_MAX_KEPT = 1000  # tokens of leases that may still be held in the store
_BEATS = 3  # heartbeats in the life of a lease: two may be lost
_RENEWED = 0.2  # of a lease, by which the end of one that is renewed moves, and not for a reply that comes late
_JITTER = 0.1  # of a lease, at most, that followers wait after it has run out, so that they do not all ask at once


class Lease:
    """The right to make the call and to write its result.

    Attributes:
        now_us: the store's time when the lease was acquired: the call begins no earlier.
        generation: that of the operation at that time.
        lost: whether it is known that the lease ran out or was taken away.
    """

    def __init__(self, leases: Leases, place: Place, token: str, acquired: Acquired | None, waiter: Waiter) -> None:
        self.now_us = 0 if acquired is None else acquired.now_us
        self.generation = None if acquired is None else acquired.generation
        self.lost = False
        self._leases = leases
        self._place = place
        self._token = token
        self._waiter = waiter
        self._settled = False  # the store has been told how it ended
        self._over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def commit(self, write: Write) -> bool | None:
        """Writes the entry and ends the lease.

        Returns:
            False if the lease was lost or the entry is void, and nothing was written; None if the store could not be
            asked, or has not said.
        """
        if self.lost:
            return False
        leases, self._settled = self._leases, True
        note = leases.channel.note("set", self._place.name)
        committed = await leases.ask(lambda: leases.store.commit(self._place, self._token, write, note))
        if committed is None or committed == "void":
            self._settled = False
        elif committed == "lost":
            self._lose()
        if committed == "void":
            await self.release("free")
        return None if committed is None else committed == "written"

    async def release(self, action: Action, error_type: str = "") -> None:
        """Ends the lease without an entry, and publishes why; does nothing if it has ended already.

        If the store does not confirm it, the next caller of this process that asks for the lease has it at once.
        """
        if self.lost or self._settled:
            return
        leases, self._settled = self._leases, True
        note = leases.channel.note(action, self._place.name, error_type=error_type)

        async def release() -> bool:
            await leases.store.release(self._place, self._token, note)
            return True

        if await leases.ask(release) is None:
            leases.keep(self._place, self._token)

    async def beat(self) -> None:
        """Renews the lease until it is over."""
        leases = self._leases
        while not await wait_done(self._over, leases.seconds / _BEATS):
            renewed = await leases.ask(lambda: leases.store.renew(self._place, self._token, leases.milliseconds))
            if renewed is False and not self._settled:
                self._lose()
                return

    def end(self) -> None:
        """Ends the heartbeat."""
        self._over.set_result(None)

    def _lose(self) -> None:
        self.lost = True
        note = self._waiter.note
        if note is None or note.action not in ("delete", "clear"):  # else it was taken away on purpose
            self._leases.lost()


class Leases:
    """The leases of one operation.

    Args:
        store: where they are kept.
        guarded: the guard of the store.
        channel: the notes of the operation.
        operation: its name, for errors.
        lease_seconds: how long a lease lasts without a heartbeat; a process that dies is replaced within it.
        on_lost: called when a lease ran out under a call, which may therefore be made twice.
    """

    def __init__(
        self,
        store: SharedStore,
        guarded: GuardedStore,
        channel: Channel,
        operation: str,
        lease_seconds: float,
        on_lost: Callable[[], None] = lambda: None,
    ) -> None:
        self.store = store
        self.ask = guarded.ask
        self.channel = channel
        self.seconds = lease_seconds
        self.milliseconds = max(1, round(lease_seconds * 1000))
        self.lost = on_lost
        self._operation = operation
        self._kept: dict[str, str] = {}

    def keep(self, place: Place, token: str) -> None:
        """Keeps the token of a lease that the store may hold although no call here does: else all would wait for it."""
        if len(self._kept) >= _MAX_KEPT:
            self._kept.clear()
        self._kept[place.name] = token

    async def run(
        self,
        place: Place,
        known: bytes,
        judge: Callable[[bytes, Generation | None], Awaitable[T | None]],
        compute: Callable[[Lease | None], Awaitable[T]],
        *,
        node: CallNode | None = None,
        wait: bool = True,
        tags: Sequence[str] = (),
    ) -> T | None:
        """Returns the entry, computing it here or waiting for the process that holds the lease.

        Args:
            place: where the entry stands.
            known: how an entry begins that is there and is to be replaced; empty if none is.
            judge: makes a result of an entry that is found and of the generation of the operation; None if it is of no
                use and has to be replaced.
            compute: makes the call: with a lease to commit by, or None when there is none, either because the store is
                at fault or because the result of this call cannot be shared.
            node: this call, if others may wait for it. It never follows a call that waits for it. While a call that
                holds a lease waits for it, it follows a leader in another process for the length of a lease at most,
                because that leader may wait for the lease.
            wait: whether to follow another leader.
            tags: hashes of those tags of the entry that are known before the call.

        Returns:
            The result; None if another call leads that is not followed: because `wait` is false, or because it waits
            for this one.

        Raises:
            SharedCallError: the leader's call has failed.
            PrimitiveTimeoutError: the deadline passed while following.
        """
        node = node or CallNode()
        endless = _Endless(self.seconds)
        ended = False
        holding_up_since: float | None = None
        loop = asyncio.get_running_loop()
        allowed, started = remaining(), loop.time()
        with self.channel.waiting(place.name) as waiter:
            while True:
                heard = wait and self.channel.start()
                waiter.clear()
                token = self._kept.pop(place.name, None) or f"{random.getrandbits(128):032x}"
                acquired = await self._acquire(place, token, known, tags, waiter)
                if acquired is None:
                    return await compute(None)
                if acquired.data is not None:
                    result = await judge(acquired.data, acquired.generation)
                    if result is not None:
                        return result
                    known = acquired.data[:VERSION_BYTES]
                    continue
                if acquired.leading:
                    with _leading(place, node):
                        return await self._lead(Lease(self, place, token, acquired, waiter), compute)
                if not wait:
                    return None
                if not heard and await self.channel.ensure():
                    continue  # what was published before this process listened shows in the store
                if endless.is_over(acquired.lease_left_ms, loop.time()):
                    if ended:
                        return await compute(None)
                    await self._end_lease(place)
                    ended = True
                    continue
                leader = _leaders.get(place.key)
                if waits_for_itself(leader, node):
                    return None
                if leader is None and holds_up_a_leader(node):  # asked each time: a leader may join later
                    holding_up_since = loop.time() if holding_up_since is None else holding_up_since
                    if loop.time() - holding_up_since >= self.seconds:
                        self.lost()
                        return await compute(None)
                with _following(leader, node):
                    note = await waiter.wait(self._patience(acquired))
                if note is not None and note.action == "failed":
                    raise SharedCallError(self._operation, note.error_type)
                if note is not None and note.action == "unshared":
                    return await compute(None)
                if allowed is not None and remaining() == 0.0:
                    raise self._too_late(allowed, started)

    async def _acquire(
        self, place: Place, token: str, known: bytes, tags: Sequence[str], waiter: Waiter
    ) -> Acquired | None:
        acquired = None
        try:
            acquired = await self.ask(lambda: self.store.acquire(place, token, self.milliseconds, known, tags))
        finally:
            if acquired is None:  # the lease may have been given all the same, and no process would renew it
                _in_background(Lease(self, place, token, None, waiter).release("free"))
        return acquired

    async def _end_lease(self, place: Place) -> None:
        """Ends a lease that lasts longer than any: the next process that asks for it leads."""

        async def end() -> bool:
            await self.store.end_lease(place, self.milliseconds)
            return True

        await self.ask(end)

    async def _lead(self, lease: Lease, compute: Callable[[Lease | None], Awaitable[T]]) -> T:
        if not isinstance(self.store, PlainStore):  # whose leases never end
            _in_background(lease.beat())
        try:
            result = await compute(lease)
        except Exception as error:
            if isinstance(error, PrimitiveTimeoutError) and error.deadline_source == "inherited":
                await lease.release("free")  # the deadline was this caller's; others may have the time
            else:
                await lease.release("failed", error_type(error))
            raise
        except BaseException:
            _in_background(lease.release("free"))
            raise
        finally:
            lease.end()
        await lease.release("unshared")
        return result

    def _patience(self, acquired: Acquired) -> float:
        left_ms = acquired.lease_left_ms
        patience = self.seconds if left_ms < 0 else min(left_ms / 1000, self.seconds)
        patience += self.seconds * random.uniform(_JITTER / 10, _JITTER)  # noqa: S311
        left = remaining()
        return patience if left is None else min(patience, left)

    def _too_late(self, allowed_seconds: float, started: float) -> PrimitiveTimeoutError:
        return PrimitiveTimeoutError(
            self._operation,
            allowed_seconds,
            asyncio.get_running_loop().time() - started,
            kind="deadline",
            deadline_source="inherited",
            deadline=current_deadline(),
        )


class _Endless:
    """Finds out whether a lease lasts longer than a leader of this cache would ask for, and no leader renews it.

    Args:
        lease_seconds: how long to look for a renewal.
    """

    def __init__(self, lease_seconds: float) -> None:
        self._lease_seconds = lease_seconds
        self._since = math.inf
        self._ends = -math.inf

    def is_over(self, left_ms: int, now: float) -> bool:
        """Takes note of how long the lease still lasts, below 0 without end; returns whether to end it."""
        left = math.inf if left_ms < 0 else left_ms / 1000
        if left <= self._lease_seconds + 0.001:  # rounded to milliseconds
            self._since, self._ends = math.inf, -math.inf
            return False
        # A renewed lease ends later than before: a leader with a longer lease is at work.
        if now + left > self._ends + _RENEWED * self._lease_seconds:
            self._since = now
            self._ends = now + left
        return now - self._since >= self._lease_seconds


# The calls of this process that hold a lease, by the key of the entry: all caches of one operation share it.
_leaders: dict[str, CallNode] = {}
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leaders.clear)  # the calls go on in the parent


@contextmanager
def _leading(place: Place, node: CallNode) -> Generator[None, None, None]:
    _leaders[place.key] = node
    node.leads = True
    try:
        yield
    finally:
        node.leads = False
        if _leaders.get(place.key) is node:
            del _leaders[place.key]


@contextmanager
def _following(leader: CallNode | None, node: CallNode) -> Generator[None, None, None]:
    if leader is None:
        yield
        return
    begin_wait(leader, node)
    try:
        yield
    finally:
        end_wait(node, leader)


def _in_background(work: Coroutine[Any, Any, None]) -> None:
    # In an empty context: the deadline of the call is not for what must be done after it.
    keep_alive(spawn_detached(asyncio.get_running_loop(), work, name="cache lease"))
