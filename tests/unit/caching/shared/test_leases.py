"""Leases: one call for all processes, whatever becomes of the one who makes it.

Each `Process` here has a channel and leases of its own; what they share is a server in memory, on a clock that jumps.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, cast

import pytest

from observability_integration.caching.shared.channel import Channel, Note
from observability_integration.caching.shared.leases import VERSION_BYTES, Lease, Leases
from observability_integration.caching.shared.store_guard import GuardedStore
from observability_integration.caching.stores.shared import Acquired, Committed, Generation, Place, SharedStore, Write
from observability_integration.context import Deadline, reset_deadline, set_deadline
from observability_integration.errors import PrimitiveTimeoutError, SharedCallError
from observability_integration.testing.clock import FakeClockLoop

LOOP_FACTORY = FakeClockLoop

_LEASE = 1.5
_AFTER_LEASE = 1.65  # with all of the jitter
_PLACE = Place("cache:{a}:", "name")
_GENERATION = Generation(b"0" * 16, 7)


def _now() -> float:
    return asyncio.get_running_loop().time()


class Server:
    """What Redis does, in memory."""

    def __init__(self) -> None:
        self.entries: dict[str, bytes] = {}
        self.leases: dict[str, tuple[str, float]] = {}
        self.ears: list[Callable[[str], None]] = []
        self.asked: list[str] = []
        self.deaf = False
        self.voids = False

    def holder(self, place: Place) -> str | None:
        token, until = self.leases.get(place.name, ("", 0.0))
        return token if until > _now() else None

    def say(self, note: str) -> None:
        for hear in list(self.ears):
            asyncio.get_running_loop().call_soon(hear, note)

    async def acquire(
        self, place: Place, token: str, lease_ms: int, known: bytes, tags: Sequence[str] = ()
    ) -> Acquired:
        self.asked.append("acquire")
        now_us = int(_now() * 1e6)
        data = self.entries.get(place.name)
        if data and (not known or not data.startswith(known)):
            return Acquired(data, _GENERATION, now_us, leading=False, lease_left_ms=0)
        if self.holder(place) not in (None, token):
            left_ms = round((self.leases[place.name][1] - _now()) * 1000)
            return Acquired(None, _GENERATION, now_us, leading=False, lease_left_ms=left_ms)
        self.leases[place.name] = token, _now() + lease_ms / 1000
        return Acquired(None, _GENERATION, now_us, leading=True, lease_left_ms=0)

    async def renew(self, place: Place, token: str, lease_ms: int) -> bool:
        self.asked.append("renew")
        if self.holder(place) != token:
            return False
        self.leases[place.name] = token, _now() + lease_ms / 1000
        return True

    async def commit(self, place: Place, token: str, write: Write, note: str) -> Committed:
        self.asked.append("commit")
        if self.holder(place) != token:
            return "lost"
        if self.voids:
            return "void"
        del self.leases[place.name]
        self.entries[place.name] = write.data
        self.say(note)
        return "written"

    async def release(self, place: Place, token: str, note: str) -> None:
        self.asked.append("release")
        if self.holder(place) == token:
            del self.leases[place.name]
            self.say(note)

    async def listen(self, prefix: str, hear: Callable[[str], None], resumed: Callable[[], None]) -> Ear:
        if self.deaf:
            raise PermissionError
        self.ears.append(hear)
        return Ear(self, hear)


class Ear:
    """A subscription."""

    def __init__(self, server: Server, hear: Callable[[str], None]) -> None:
        self._server = server
        self._hear = hear

    async def aclose(self) -> None:
        self._server.ears.remove(self._hear)


class Guard:
    """The guard of a store that works, or does not."""

    def __init__(self) -> None:
        self.works = True
        self.late = False

    async def ask(self, start: Callable[[], Awaitable[Any]]) -> Any:
        if not self.works:
            return None
        answer = await start()
        assert answer is not None
        return None if self.late else answer


class Process:
    """One of those that share a server, and the calls it has made."""

    def __init__(self, server: Server, work: float = 2.0) -> None:
        self.server = server
        self.work = work
        self.guard = Guard()
        store = cast(SharedStore, server)
        self.channel = Channel(store, _PLACE.prefix, lambda _: None, 0.05)
        self.lost = 0
        self.leases = Leases(store, cast(GuardedStore, self.guard), self.channel, "ask", _LEASE, self._lose)
        self.calls: list[Lease | None] = []
        self.written: list[bool | None] = []
        self.error: BaseException | None = None
        self.keeps = True

    def _lose(self) -> None:
        self.lost += 1

    async def judge(self, data: bytes, generation: Generation | None) -> bytes | None:
        assert generation is _GENERATION
        return None if data.startswith(b"void") else data[VERSION_BYTES:]

    async def compute(self, lease: Lease | None) -> bytes:
        self.calls.append(lease)
        await asyncio.sleep(self.work)
        if self.error is not None:
            raise self.error
        answer = b"answer %d" % id(self)
        if lease is not None and self.keeps:
            self.written.append(await lease.commit(Write(b"v" * VERSION_BYTES + answer, 60_000, _GENERATION)))
        return answer

    def run(self, known: bytes = b"", *, wait: bool = True) -> asyncio.Task[bytes | None]:
        return asyncio.create_task(self.leases.run(_PLACE, known, self.judge, self.compute, wait=wait))

    async def follow(self) -> asyncio.Task[bytes | None]:
        """A run that has been seen to follow."""
        running = self.run()
        await asyncio.sleep(0.1)
        assert not running.done()
        return running


Make = Callable[..., Process]


@pytest.fixture
async def process() -> AsyncIterator[Make]:
    """Makes processes that share a server; all of them stop listening at the end."""
    server, made = Server(), list[Process]()

    def make(work: float = 2.0) -> Process:
        made.append(Process(server, work))
        return made[-1]

    yield make
    for one in made:
        await one.channel.aclose()


async def test_one_calls_and_all_have_the_answer_at_once(process: Make) -> None:
    """Four processes, one call, and no time lost between its end and the answers."""
    processes = [process() for _ in range(4)]
    runs = [one.run() for one in processes]
    answers = await asyncio.gather(*runs)
    assert 1 == sum(len(one.calls) for one in processes)
    assert 1 == len(set(answers))
    assert pytest.approx(2.0) == _now()
    assert [[True], [], [], []] == [one.written for one in processes]
    asked = processes[0].server.asked
    assert 1 == asked.count("commit")
    assert 0 == asked.count("release")
    assert len(asked) < 25


async def test_the_lease_says_when_the_call_began(process: Make) -> None:
    """By the store's clock: what is invalidated after that voids the answer."""
    one = process()
    await asyncio.sleep(3.0)
    await one.run()
    lease = one.calls[0]
    assert lease is not None
    assert 3_000_000 == lease.now_us


async def test_an_entry_that_is_there_is_taken(process: Make) -> None:
    """Written between the reading and the asking."""
    one = process()
    one.server.entries["name"] = b"v" * VERSION_BYTES + b"found"
    assert b"found" == await one.run()
    assert [] == one.calls


async def test_a_known_entry_is_replaced(process: Make) -> None:
    """It is stale: only another one will do."""
    one = process()
    one.server.entries["name"] = b"o" * VERSION_BYTES + b"old"
    assert b"old" != await one.run(b"o" * VERSION_BYTES)
    assert one.server.entries["name"].startswith(b"v")


async def test_an_entry_that_is_of_no_use_is_replaced(process: Make) -> None:
    """Void or unreadable: it is known from then on, and asked about no more."""
    one = process()
    one.server.entries["name"] = b"void and old, and longer than that"
    assert b"answer" in (await one.run() or b"")
    assert ["acquire", "acquire"] == one.server.asked[:2]
    assert [True] == one.written


async def test_a_call_may_be_as_long_as_it_likes(process: Make) -> None:
    """The lease is kept up while the call goes on, so that nobody else begins."""
    leader, follower = process(100 * _LEASE), process()
    runs = [leader.run(), follower.run()]
    await asyncio.gather(*runs)
    assert [] == follower.calls
    assert 0 == leader.lost
    assert leader.server.asked.count("renew") >= 200


async def test_a_failure_is_shared(process: Make) -> None:
    """The call is not made again by each of those who waited for it."""
    leader, *followers = (process() for _ in range(3))
    leader.error = LookupError("the prompt may be in here")
    leading = leader.run()
    following = [await follower.follow() for follower in followers]
    with pytest.raises(LookupError):
        await leading
    for run in following:
        with pytest.raises(SharedCallError) as caught:
            await run
        assert ("ask", "LookupError") == (caught.value.operation, caught.value.error_type)
        assert "prompt" not in str(caught.value)
    assert pytest.approx(2.0) == _now()
    assert all(not follower.calls for follower in followers)


async def test_who_comes_after_a_failure_tries_again(process: Make) -> None:
    """It was the failure of one call, and is not kept."""
    first, second = process(), process()
    first.error = LookupError()
    with pytest.raises(LookupError):
        await first.run()
    assert await second.run()
    assert [True] == second.written


async def test_a_leader_that_is_cancelled_is_replaced_at_once(process: Make) -> None:
    """It says that it goes; and the cancellation is not held up by that."""
    leader, follower = process(), process()
    leading = leader.run()
    following = await follower.follow()
    leading.cancel()
    with pytest.raises(asyncio.CancelledError):
        await leading
    await asyncio.sleep(0)
    assert await following
    assert pytest.approx(0.1 + 2.0) == _now()
    assert 1 == len(follower.calls)


async def test_a_leader_that_dies_is_replaced_within_its_lease(process: Make) -> None:
    """Nothing is heard of it any more; whoever asks first after the lease has run out leads, and only he."""
    followers = [process() for _ in range(5)]
    followers[0].server.leases["name"] = "the dead", _LEASE
    runs = [follower.run() for follower in followers]
    answers = await asyncio.gather(*runs)
    assert 1 == len(set(answers))
    assert 1 == sum(len(follower.calls) for follower in followers)
    assert _LEASE < _now() - 2.0 <= _AFTER_LEASE


async def test_a_leader_that_lost_its_lease_overwrites_nothing(process: Make) -> None:
    """It was asleep while another led: its own caller is answered, and the loss is told once."""
    sleeper = process()
    running = sleeper.run()
    await asyncio.sleep(0.1)
    sleeper.server.leases["name"] = "another", 1000.0
    await running
    assert [False] == sleeper.written
    assert 1 == sleeper.lost
    assert {} == sleeper.server.entries
    assert "another" == sleeper.server.holder(_PLACE)
    assert "commit" not in sleeper.server.asked  # the heartbeat had found out


async def test_a_loss_may_come_to_light_on_writing_only(process: Make) -> None:
    """Between two heartbeats."""
    sleeper = process(0.3)
    running = sleeper.run()
    await asyncio.sleep(0.1)
    sleeper.server.leases["name"] = "another", 1000.0
    await running
    assert [False] == sleeper.written
    assert 1 == sleeper.lost
    assert "release" not in sleeper.server.asked


@pytest.mark.parametrize("note", [Note("delete", "name"), Note("clear")])
async def test_a_lease_that_was_taken_away_is_no_duplicate(process: Make, note: Note) -> None:
    """The entry was invalidated under the call, which says nothing about the lease being too short."""
    leader = process()
    leading = leader.run()
    await asyncio.sleep(0.1)
    del leader.server.leases["name"]
    leader.server.say(note.encode())
    await leading
    assert [False] == leader.written
    assert 0 == leader.lost


@pytest.mark.parametrize("note", [Note("delete", "name"), Note("clear")])
async def test_followers_start_anew_when_the_entry_is_invalidated(process: Make, note: Note) -> None:
    """What the leader will bring is void for those who wait."""
    leader, follower = process(), process()
    leading = leader.run()
    following = await follower.follow()
    del leader.server.leases["name"]
    leader.server.say(note.encode())
    await asyncio.gather(leading, following)
    assert 1 == len(follower.calls)
    assert [True] == follower.written


async def test_what_is_not_kept_is_not_waited_for_in_turn(process: Make) -> None:
    """One call after the other would make the last wait for all of them."""
    leader, *followers = (process() for _ in range(3))
    leader.keeps = False
    leading = leader.run()
    following = [await follower.follow() for follower in followers]
    await asyncio.gather(leading, *following)
    assert [[None], [None]] == [follower.calls for follower in followers]
    assert pytest.approx(4.0) == _now()


async def test_without_a_store_the_call_is_made_at_once(process: Make) -> None:
    """Once, and with nothing to write by."""
    one = process()
    one.guard.works = False
    assert await one.run()
    assert [None] == one.calls
    assert pytest.approx(2.0) == _now()


async def test_a_follower_is_not_held_up_by_a_store_that_dies(process: Make) -> None:
    """It looks when the lease should have run out, finds nobody to ask, and makes the call itself."""
    leader, follower = process(100.0), process()
    leading = leader.run()
    following = await follower.follow()
    follower.guard.works = False
    await following
    assert [None] == follower.calls
    assert _now() <= 0.1 + _AFTER_LEASE + 2.0
    leading.cancel()
    await asyncio.wait([leading])


async def test_a_leader_is_not_held_up_by_a_store_that_dies(process: Make) -> None:
    """The answer goes to the caller, and what could not be written is told apart from what may not be."""
    leader = process()
    running = leader.run()
    await asyncio.sleep(0.1)
    leader.guard.works = False
    assert await running
    assert [None] == leader.written
    assert 0 == leader.lost
    assert pytest.approx(2.0) == _now()


async def test_a_lease_that_was_given_too_late_is_given_back(process: Make) -> None:
    """Nobody would renew it, and the others would wait until it has run out."""
    one, other = process(), process()
    one.guard.late = True
    running = one.run()
    await asyncio.sleep(0.1)
    assert [None] == one.calls
    assert one.server.holder(_PLACE) is None
    await other.run()
    assert [True] == other.written
    await running


async def test_who_could_not_give_a_lease_back_does_not_wait_for_himself(process: Make) -> None:
    """The store went silent after giving it, and is back before it has run out."""
    one = process(0.5)

    async def silent(place: Place, token: str, note: str) -> None:
        await asyncio.sleep(0)

    one.server.release = silent  # type: ignore[method-assign]
    one.guard.late = True
    await one.run()
    assert [None] == one.calls
    assert one.server.holder(_PLACE) is not None
    one.guard.late = False
    await one.run()
    assert [True] == one.written
    assert pytest.approx(2 * 0.5) == _now()


async def test_not_every_lease_that_was_not_given_back_is_remembered(process: Make) -> None:
    """The store may be away for long, and the entries that are asked for meanwhile are many."""
    one = process()
    for number in range(3000):
        one.leases.keep(Place("cache:{a}:", str(number)), "token")
    assert len(one.leases._kept) <= 1000


async def test_a_lease_is_given_back_by_who_is_cancelled_while_asking(process: Make) -> None:
    """The answer may be on its way."""
    one = process()
    begun = asyncio.Event()

    async def hang(place: Place, token: str, lease_ms: int, known: bytes, tags: Sequence[str]) -> Acquired:
        begun.set()
        await Server.acquire(one.server, place, token, lease_ms, known)
        await asyncio.sleep(1000.0)
        raise AssertionError

    one.server.acquire = hang  # type: ignore[method-assign]
    running = one.run()
    await begun.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await asyncio.sleep(0.1)
    assert one.server.holder(_PLACE) is None


async def test_who_does_not_wait_leads_or_leaves(process: Make) -> None:
    """A refresh ahead of time is needed once, and nobody depends on it."""
    leader, other = process(), process()
    leading = leader.run(wait=False)
    await asyncio.sleep(0.1)
    assert await other.run(wait=False) is None
    assert pytest.approx(0.1) == _now()
    assert await leading
    assert [] == other.calls
    assert [] == other.server.ears


async def test_a_follower_gives_up_at_its_deadline(process: Make) -> None:
    """Nobody waits for its answer any more; the call of the leader is none of its business."""
    leader, follower = process(100.0), process()
    leading = leader.run()
    await asyncio.sleep(0.1)
    deadline = Deadline.after(5.0)
    token = set_deadline(deadline)
    following = follower.run()
    reset_deadline(token)
    with pytest.raises(PrimitiveTimeoutError) as caught:
        await following
    error = caught.value
    assert pytest.approx(5.1) == _now()
    assert ("ask", "deadline", "inherited") == (error.operation, error.kind, error.deadline_source)
    assert (5.0, 5.0) == (pytest.approx(error.timeout_seconds), pytest.approx(error.elapsed_seconds))
    assert deadline is error.deadline
    leading.cancel()
    await asyncio.wait([leading])


async def test_the_hurry_of_a_leader_is_its_own(process: Make) -> None:
    """Its caller's deadline has passed, and those who waited may have all the time in the world."""
    leader, follower = process(1.0), process()
    leader.error = PrimitiveTimeoutError("ask", 1.0, 1.0, kind="deadline", deadline_source="inherited")
    leading = leader.run()
    following = await follower.follow()
    with pytest.raises(PrimitiveTimeoutError):
        await leading
    assert await following
    assert [True] == follower.written


async def test_a_heartbeat_outlives_the_deadline_of_the_call(process: Make) -> None:
    """The call goes on in the background; that its caller has left is no reason to make it twice."""
    from observability_integration.context import remaining

    leader = process(10.0)
    seen: list[float | None] = []

    async def renew(place: Place, token: str, lease_ms: int) -> bool:
        seen.append(remaining())
        return await Server.renew(leader.server, place, token, lease_ms)

    leader.server.renew = renew  # type: ignore[method-assign]
    token = set_deadline(Deadline.after(1.0))
    leading = leader.run()
    reset_deadline(token)
    await leading
    assert seen
    assert {None} == set(seen)


async def test_without_a_channel_the_lease_tells_when_to_look(process: Make) -> None:
    """Somebody may be allowed to keep entries and not to subscribe."""
    leader, follower = process(), process()
    leader.server.deaf = True
    leading = leader.run()
    following = follower.run()
    assert await leading == await following
    assert 2.0 <= _now() <= 2.0 + _AFTER_LEASE
    assert [] == follower.calls


async def test_what_was_said_before_anybody_listened_is_found(process: Make) -> None:
    """The leader may write between a follower's question and its subscription."""
    follower = process()
    follower.server.leases["name"] = "another", 1.0

    async def listen(prefix: str, hear: Callable[[str], None], resumed: Callable[[], None]) -> Ear:
        await asyncio.sleep(0.02)
        follower.server.entries["name"] = b"v" * VERSION_BYTES + b"meanwhile"
        return await Server.listen(follower.server, prefix, hear, resumed)

    follower.server.listen = listen  # type: ignore[method-assign]
    assert b"meanwhile" == await follower.run()
    assert pytest.approx(0.02) == _now()


async def test_news_of_other_entries_wake_nobody(process: Make) -> None:
    """The channel is shared by all entries of the operation."""
    leader, follower = process(1.0), process()
    leading = leader.run()
    following = await follower.follow()
    asked = len(leader.server.asked)
    leader.server.say(Note("failed", "other", "ValueError").encode())
    await asyncio.sleep(0.1)
    assert asked == len(leader.server.asked)
    assert await leading == await following


async def test_an_answer_to_a_heartbeat_may_come_after_the_end(process: Make) -> None:
    """The lease is gone because its holder has ended it, and not because it was lost."""
    leader = process(0.6)

    async def renew(place: Place, token: str, lease_ms: int) -> bool:
        await asyncio.sleep(0.2)
        return await Server.renew(leader.server, place, token, lease_ms)

    leader.server.renew = renew  # type: ignore[method-assign]
    await leader.run()
    await asyncio.sleep(0.3)
    assert [True] == leader.written
    assert 0 == leader.lost


async def test_a_follower_that_was_woken_for_nothing_sleeps_on(process: Make) -> None:
    """The connection was lost for a moment, and the leader is still at work."""
    leader, follower = process(), process()
    leading = leader.run()
    following = await follower.follow()
    follower.server.say(Note("free", "name").encode())
    await asyncio.sleep(0.1)
    asked = len(leader.server.asked)
    await asyncio.sleep(0.2)
    assert asked == len(leader.server.asked)
    assert await leading == await following


async def test_nothing_is_left_running(process: Make) -> None:
    """No heartbeat outlives its call."""
    one = process()
    await one.run()
    await one.channel.aclose()
    await asyncio.sleep(0)
    assert {asyncio.current_task()} == asyncio.all_tasks()


async def test_what_became_void_is_not_written_and_the_lease_is_free_at_once(process: Make) -> None:
    """A tag was invalidated during the call: those who wait need not wait for the end of the lease."""
    leader, other = process(), process()
    leader.server.voids = True
    leading = leader.run()
    await asyncio.sleep(0.1)
    following = await other.follow()
    await asyncio.sleep(2.0)
    leader.server.voids = False
    assert await leading is not None
    assert [False] == leader.written
    await following
    assert 1 == len(other.calls)
    assert other.calls[0] is not None
    assert (0, 0) == (leader.lost, other.lost)
