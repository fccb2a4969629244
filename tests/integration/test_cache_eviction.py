"""What was invalidated stays so, whichever keys Redis evicts: no key says that an entry is void, so none is missed."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from observability_integration.caching import entry_options
from observability_integration.primitives import CachePrimitive
from tests.processes import RedisProcess
from tests.redis_caches import PATIENT, Caches, Calls, ask_server, caches

redis = pytest.importorskip("redis")
pytest.importorskip("redis.asyncio")

pytestmark = [
    pytest.mark.once,
    pytest.mark.unmeasured,
    pytest.mark.needs_redis_package,
    pytest.mark.needs_redis_server,
    pytest.mark.promise("C8"),
]

__all__ = ["caches"]

_QUESTIONS = 30


def _fill(server: RedisProcess) -> None:
    """Others take more room than the server has."""
    with redis.Redis(port=server.port) as client:
        for start in range(0, 6000, 500):
            with client.pipeline(transaction=False) as many:
                for number in range(start, start + 500):
                    many.set(f"other:{number}", "x" * 2000, ex=3600)
                many.execute()
        assert client.info("stats")["evicted_keys"] > 0


def _read_often(server: RedisProcess) -> None:
    """Other processes have read all entries: whichever way keys are judged, these are the last to go."""
    with redis.Redis(port=server.port) as client, client.pipeline(transaction=False) as many:
        entries = [key for key in client.keys("cache:*") if len(key.rsplit(b":", 1)[-1]) == 64]
        for key in entries * 300:
            many.get(key)
        many.execute()


@pytest.mark.parametrize("invalidation", ["tag", "a shared tag", "key", "clear"])
@pytest.mark.parametrize("policy", ["allkeys-lru", "allkeys-lfu", "allkeys-random", "volatile-lru"])
async def test_what_redis_evicts_brings_nothing_back(
    redis_process: RedisProcess, caches: Caches, policy: str, invalidation: str
) -> None:
    """What an invalidation leaves in Redis no process has read, so it would be evicted before the entries."""
    ask_server(redis_process, "CONFIG", "SET", "maxmemory", "6mb")
    ask_server(redis_process, "CONFIG", "SET", "maxmemory-policy", policy)
    questions = [f"question {number}" for number in range(_QUESTIONS)]

    async def ask(cache: CachePrimitive[Any, Any], answer: str) -> list[str]:
        return [await cache.get_or_compute(question, Calls(answer), tags=[question, "all"]) for question in questions]

    first = caches("asyncio", redis_process, operation_name="evicted")
    assert ["old"] * _QUESTIONS == await ask(first, "old")
    await asyncio.to_thread(_read_often, redis_process)
    if invalidation == "clear":
        await first.clear()
    elif invalidation == "a shared tag":
        await first.invalidate(tag="all")
    else:
        for question in questions:
            await (first.invalidate(tag=question) if invalidation == "tag" else first.invalidate(question))
    await asyncio.to_thread(_fill, redis_process)
    later = caches("asyncio", redis_process, operation_name="evicted")
    assert ["new"] * _QUESTIONS == await ask(later, "new")


# In any order ---------------------------------------------------------------------------------------------------------

_KEYS = ["a", "b"]
_TAGS = ["t", "u"]
_processes, _keys, _tags = st.integers(0, 1), st.sampled_from(_KEYS), st.sets(st.sampled_from(_TAGS))
_begin = st.tuples(st.just("begin"), _processes, _keys, _tags, _tags)
_end = st.tuples(st.sampled_from(["end", "end", "end late"]), st.integers(0, 1))
_lose = st.tuples(st.just("lose"), st.integers(0, 9))
_change = st.one_of(
    st.tuples(st.just("key"), st.integers(0, 2), _keys),
    *[st.tuples(st.just("tag"), st.integers(0, 2), st.sampled_from(_TAGS))] * 3,
    st.tuples(st.just("clear"), st.integers(0, 2)),
    *[_lose] * 2,
    st.tuples(st.just("lose all")),
)
_read = st.tuples(st.just("read"), _keys)


def _episode(*steps: st.SearchStrategy[list[tuple[Any, ...]]]) -> st.SearchStrategy[list[tuple[Any, ...]]]:
    return st.tuples(*steps).map(lambda parts: list(itertools.chain(*parts)))


def _few(step: st.SearchStrategy[tuple[Any, ...]], least: int, most: int) -> st.SearchStrategy[list[tuple[Any, ...]]]:
    return st.lists(step, min_size=least, max_size=most)


# A call, what happens during it, and what is found after it; a second call may begin or end in between.
_episodes = _episode(
    _few(_begin, 1, 2),
    _few(_change, 0, 4),
    _few(_begin, 0, 1),
    _few(_change, 0, 1),
    _few(_end, 1, 1),
    _few(_change, 0, 3),
)


@dataclass
class _Call:
    """A call in progress, and what it answers: when it began, and under which tags."""

    key: str
    process: int
    go_on: asyncio.Event
    task: asyncio.Task[Any]


@dataclass
class _World:
    """Two processes that make calls, one that does not, and a Redis."""

    port: int
    moment: Iterator[int] = field(default_factory=itertools.count)
    calls: list[_Call] = field(default_factory=list)
    voided: dict[str, int] = field(default_factory=dict)  # a key or tag, or "": all; when it was last invalidated
    clients: list[Any] = field(default_factory=list)
    found: int = 0

    def process(self) -> CachePrimitive[Any, Any]:
        """One that has nothing in memory."""
        self.clients.append(redis.asyncio.Redis(port=self.port))
        cache = CachePrimitive[Any, Any](redis_client=self.clients[-1], operation_name="any order", policy=PATIENT)
        channel: Any = cache._engine._channel
        channel.start = lambda: True  # no message ever comes
        return cache

    def check(self, answer: list[Any]) -> None:
        """The answer must have begun after whatever voids it."""
        key, began, tags = answer
        for name in ("", key, *tags):
            assert self.voided.get(name, -1) < began, f"{name} was invalidated after the call began"

    async def read(self, key: str) -> None:
        """What a process finds that has just started."""
        cache = self.process()
        found = await cache._engine._tiers.fetch(cache._keys.digest(key))
        if found is not None:
            self.found += 1
            self.check(found.value)

    async def begin(self, cache: CachePrimitive[Any, Any], step: tuple[Any, ...]) -> None:
        _, process, key, before, during = step
        go_on, began = asyncio.Event(), asyncio.Event()

        async def call() -> list[Any]:
            began.set()
            answer = [key, next(self.moment), sorted(before | during)]
            await go_on.wait()
            entry_options().add_tags(*during)
            return answer

        task = asyncio.create_task(cache.get_or_compute(key, call, tags=sorted(before)))
        started = asyncio.create_task(began.wait())
        await asyncio.wait([task, started], return_when=asyncio.FIRST_COMPLETED)
        started.cancel()
        if task.done():
            self.check(task.result())
        else:
            self.calls.append(_Call(key, process, go_on, task))

    async def end(self, caches: list[CachePrimitive[Any, Any]], number: int, *, late: bool) -> None:
        if number >= len(self.calls):
            return
        call = self.calls.pop(number)
        store: Any = caches[call.process]._store

        async def busy(*_: Any) -> Any:
            from observability_integration.caching.stores.shared import StoreBusy

            raise StoreBusy

        if late:  # the entry is then written without a lease
            store.commit = busy
        call.go_on.set()
        await call.task
        if late:
            del store.commit
            while (flushing := _guard(caches[call.process])._flushing) is not None and not flushing.done():
                await asyncio.sleep(0)


def _guard(cache: CachePrimitive[Any, Any]) -> Any:
    guard = cache._engine._tiers.shared
    assert guard is not None
    return guard


async def _go(port: int, steps: list[tuple[Any, ...]]) -> None:
    world = _World(port)
    caches = [world.process() for _ in range(3)]
    plain = redis.asyncio.Redis(port=port)
    await plain.flushall()
    try:
        for step in steps:
            what, *more = step
            if what == "begin" and not any(call.key == step[2] for call in world.calls):
                # From Redis, not from memory, which a message clears a moment later.
                caches[step[1]]._engine._memory.clear()
                await world.begin(caches[step[1]], step)
            elif what in ("end", "end late"):
                await world.end(caches, more[0], late=what == "end late")
            elif what == "read":
                await world.read(more[0])
            elif what == "key":
                await caches[more[0]].invalidate(more[1])
                world.voided[more[1]] = next(world.moment)
            elif what == "tag":
                await caches[more[0]].invalidate(tag=more[1])
                world.voided[more[1]] = next(world.moment)
            elif what == "clear":
                await caches[more[0]].clear()
                world.voided[""] = next(world.moment)
            elif what == "lose":
                keys = sorted(await plain.keys("cache:*"))
                if keys:
                    await plain.delete(keys[more[0] % len(keys)])
            elif what == "lose all":
                await plain.flushall()
        for call in world.calls:
            call.go_on.set()
            await call.task
        for key in _KEYS:
            await world.read(key)
    finally:
        for cache in caches:
            await cache.aclose()
        for client in [plain, *world.clients]:
            await client.aclose()


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=_episode(_episodes, _few(_read, 1, 2), _episodes, _few(_end, 0, 1), _few(_read, 1, 2)))
def test_nothing_void_comes_back_in_any_order(redis_process: RedisProcess, steps: list[tuple[Any, ...]]) -> None:
    """Calls overlap invalidations, tags come before the call or by it, some entries are late, any key may vanish.

    Processes hear nothing of each other, so all depends on what stands in Redis.
    """
    asyncio.run(_go(redis_process.port, steps))


_T, _NO_TAGS = {"t"}, set[str]()
_ANSWERED_BEFORE = [("begin", 0, "b", _T, _NO_TAGS), ("end", 0)]


@pytest.mark.parametrize(
    "steps",
    [
        pytest.param([("begin", 0, "a", _NO_TAGS, _NO_TAGS), ("key", 2, "a"), ("end late", 0)], id="late"),
        pytest.param([("begin", 0, "a", _T, _NO_TAGS), ("tag", 2, "t"), ("end", 0)], id="known tag"),
        pytest.param([("begin", 0, "a", _T, _NO_TAGS), ("tag", 2, "t"), ("end late", 0)], id="known tag, late"),
        pytest.param([("begin", 0, "a", _NO_TAGS, _T), ("tag", 2, "t"), ("end", 0)], id="added tag"),
        pytest.param(
            [("begin", 0, "a", _NO_TAGS, _T), *[("tag", 2, "t")] * 2, *[("tag", 2, "u")] * 100, ("end", 0)], id="many"
        ),
        pytest.param([("begin", 0, "a", _NO_TAGS, _T), ("tag", 2, "t"), ("clear", 2), ("end", 0)], id="cleared"),
        pytest.param([("begin", 0, "a", _NO_TAGS, _T), ("tag", 2, "t"), ("lose all",), ("end", 0)], id="lost"),
        pytest.param(
            [*_ANSWERED_BEFORE, ("tag", 2, "t"), ("begin", 0, "a", _NO_TAGS, _T), ("end", 0)], id="vouched anew"
        ),
        pytest.param(
            [*_ANSWERED_BEFORE, ("tag", 2, "t"), ("begin", 0, "a", _T, _NO_TAGS), ("end", 0)], id="asked anew"
        ),
        pytest.param([*_ANSWERED_BEFORE, ("clear", 2), ("begin", 0, "a", _T, _NO_TAGS), ("end", 0)], id="begun anew"),
    ],
)
async def test_what_overlaps_an_invalidation_is_not_found_after_it(
    redis_process: RedisProcess, steps: list[tuple[Any, ...]]
) -> None:
    """Each way in which a void answer could come to stand in Redis, or an old one to be valid again."""
    await _go(redis_process.port, steps)


async def test_a_busy_operation_keeps_what_is_made_meanwhile(redis_process: RedisProcess, caches: Caches) -> None:
    """An invalidation of other keys and tags during a call says nothing about its answer, whichever tags it adds."""
    first, other = (caches("asyncio", redis_process, operation_name="busy") for _ in range(2))

    async def call() -> str:
        for number in range(20):
            await other.invalidate(f"another {number}")
            await other.invalidate(tag=f"another {number}")
        entry_options().add_tags("new")
        return "answer"

    assert "answer" == await first.get_or_compute("question", call, tags=["known"])
    assert "answer" == await caches("asyncio", redis_process, operation_name="busy").get_or_compute("question", Calls())
    await other.invalidate(tag="new")
    later = caches("asyncio", redis_process, operation_name="busy")
    assert "anew" == await later.get_or_compute("question", Calls("anew"))


async def test_what_vouches_lives_as_long_as_the_entries(redis_process: RedisProcess, caches: Caches) -> None:
    """Else entries would be void before their time; and without an end it would fill the server."""
    cache = caches("asyncio", redis_process, operation_name="lives", ttl_seconds=3 * 86_400.0)
    for question, ttl_seconds in (("long", 30 * 86_400.0), ("short", 60.0)):

        async def call(ttl_seconds: float = ttl_seconds) -> str:
            entry_options().set_ttl(ttl_seconds)
            return "answer"

        await cache.get_or_compute(question, call, tags=["t"])
        await cache.invalidate(tag="another")
    lives = {
        key.rsplit(b":", 2)[-2 if b":tag:" in key else -1]: ask_server(redis_process, "PTTL", key)
        for key in ask_server(redis_process, "KEYS", "cache:*")
    }
    month_ms = 30 * 86_400_000
    assert all(0 < life for life in lives.values())
    assert lives[b"tag"] > month_ms - 60_000
    assert lives[b"gen"] > month_ms


_OF_A_CONNECTION = {"cmdstat_hello", "cmdstat_client|setinfo", "cmdstat_config|resetstat", "cmdstat_info"}


async def test_a_hit_costs_no_more_commands_than_before(redis_process: RedisProcess, caches: Caches) -> None:
    """One for an entry without tags, or if nothing was invalidated since; one more for its tags otherwise."""
    first = caches("asyncio", redis_process, operation_name="commands")
    for question, tags in (("plain", []), ("tagged", ["a", "b"])):
        await first.get_or_compute(question, Calls("answer"), tags=tags)

    async def commands(question: str) -> int:
        reader = caches("asyncio", redis_process, operation_name="commands")
        channel: Any = reader._engine._channel
        channel.start = lambda: True  # nor does it ask, once it listens, what it has missed
        ask_server(redis_process, "CONFIG", "RESETSTAT")
        assert "answer" == await reader.get_or_compute(question, Calls())
        said = ask_server(redis_process, "INFO", "commandstats")
        return sum(fields["calls"] for name, fields in said.items() if name not in _OF_A_CONNECTION)

    assert (1, 1) == (await commands("plain"), await commands("tagged"))
    await first.invalidate("another")
    assert (1, 2) == (await commands("plain"), await commands("tagged"))
