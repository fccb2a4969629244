"""Reads over one connection: each gets its own answer, and nobody suffers from one who leaves or a server that does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest

from observability_integration.caching.stores import redis_reads
from observability_integration.caching.stores.redis import RedisStore
from observability_integration.caching.stores.shared import Place, Reading
from tests.processes import RedisProcess
from tests.redis_caches import ask_server, clients_of

pytestmark = [pytest.mark.needs_redis_package, pytest.mark.needs_redis_server]

_PREFIX = "cache:{reads}:"
_MORE_THAN_BUFFERS_HOLD = 16_000_000 * "k"


@pytest.fixture(params=["url", "client", "text client", "resp3 client"])
async def store(request: pytest.FixtureRequest, redis_process: RedisProcess) -> AsyncIterator[RedisStore]:
    """A store that has a connection for reads."""
    import redis.asyncio

    for number in range(9):
        ask_server(redis_process, "SET", f"{_PREFIX}{number}", f"entry {number}")
    if request.param == "url":
        store = RedisStore(url=redis_process.url, patience_seconds=0.5)
        await _up(store)
        yield store
        await store.aclose()
        return
    protocol = 3 if "resp3" in request.param else 2
    decode = "text" in request.param
    client = redis.asyncio.Redis(port=redis_process.port, protocol=protocol, decode_responses=decode)
    store = RedisStore(client)
    await _up(store)
    yield store
    await store.aclose()
    await client.aclose()


async def _up(store: RedisStore) -> None:
    while True:
        answer = store.read(_place(0))
        await answer
        if isinstance(answer, asyncio.Future):
            return
        await asyncio.sleep(0.01)


def _place(number: int) -> Place:
    return Place(_PREFIX, str(number))


def _entry(number: int) -> Reading:
    return Reading(b"entry %d" % number, None)


async def test_each_gets_its_own_answer(store: RedisStore, redis_process: RedisProcess) -> None:
    """Answers come back in order and bear no name; there is one connection for all reads."""
    connections = clients_of(redis_process)
    answers = [store.read(_place(number % 9)) for number in range(60)]
    assert {asyncio.Future} == {type(answer) for answer in answers}
    assert [_entry(number % 9) for number in range(60)] == await asyncio.gather(*answers)
    assert Reading(None, None) == await store.read(_place(99))
    assert connections == clients_of(redis_process)


async def test_one_who_leaves_takes_no_answer_along(store: RedisStore) -> None:
    """What he asked for still comes, and must not be given to the next."""
    answers = [store.read(_place(number)) for number in range(3)]
    answers[0].cancel()  # type: ignore[attr-defined]
    assert [_entry(1), _entry(2)] == await asyncio.gather(*answers[1:])


async def test_more_than_the_line_bears_goes_another_way(store: RedisStore) -> None:
    """Nobody waits for a buffer to be emptied."""
    answers = [store.read(_place(1)) for _ in range(70)]
    assert 64 == sum(isinstance(answer, asyncio.Future) for answer in answers)
    assert [_entry(1)] * 70 == await asyncio.gather(*answers)


async def test_an_error_of_the_server_is_that_of_one_read(store: RedisStore, redis_process: RedisProcess) -> None:
    """The connection is in order, and the next answer is not taken for this one's."""
    ask_server(redis_process, "ACL", "SETUSER", "default", "-mget")
    with pytest.raises(Exception, match="permissions"):
        await store.read(_place(1))
    ask_server(redis_process, "ACL", "SETUSER", "default", "+mget")
    answer = store.read(_place(2))
    assert isinstance(answer, asyncio.Future)
    assert _entry(2) == await answer


async def test_what_a_broken_connection_owes_is_read_again(store: RedisStore, redis_process: RedisProcess) -> None:
    """A server closes idle connections as it likes; that is no fault of the store."""
    redis_process.pause()
    answer = store.read(_place(3))
    line: Any = store._line()  # pyright: ignore[reportPrivateUsage]
    await line._connection.disconnect(nowait=True)
    redis_process.resume()
    assert _entry(3) == await answer
    await _up(store)


async def test_nobody_reads_again_for_one_who_leaves(store: RedisStore, redis_process: RedisProcess) -> None:
    """The client may wait for long; a task that does so would outlive the store."""
    redis_process.pause()
    answer = store.read(_place(3))
    line: Any = store._line()  # pyright: ignore[reportPrivateUsage]
    await line._connection.disconnect(nowait=True)
    while not (again := [task for task in asyncio.all_tasks() if "_fall_back" in repr(task)]):
        await asyncio.sleep(0)
    answer.cancel()  # type: ignore[attr-defined]
    await asyncio.wait(again, timeout=2.0)
    assert all(task.done() for task in again)
    redis_process.resume()


async def test_a_connection_that_is_silent_for_long_is_given_up(store: RedisStore, redis_process: RedisProcess) -> None:
    """Or every read would wait for the answers that a dead connection owes."""
    redis_process.pause()
    first = store.read(_place(1))
    await asyncio.sleep(0.6)
    second = asyncio.ensure_future(store.read(_place(2)))
    assert not isinstance(second, asyncio.Future) or isinstance(second, asyncio.Task)
    redis_process.resume()
    assert [_entry(1), _entry(2)] == await asyncio.gather(first, second)
    await _up(store)


async def test_a_command_that_is_half_sent_ends_the_connection(store: RedisStore, redis_process: RedisProcess) -> None:
    """Nothing can follow it; what is owed before it is asked for elsewhere at once, not when the server has read on."""
    line: Any = store._line()  # pyright: ignore[reportPrivateUsage]
    redis_process.pause()
    answer = store.read(_place(3))
    opened = line._task
    halfway: Any = store.read(Place(_PREFIX, _MORE_THAN_BUFFERS_HOLD))
    assert not isinstance(halfway, asyncio.Future)
    halfway.close()
    await asyncio.wait([opened], timeout=2.0)
    assert opened.done()
    redis_process.resume()
    assert _entry(3) == await answer
    await _up(store)


async def test_a_probe_leaves_the_connection_that_failed(store: RedisStore, redis_process: RedisProcess) -> None:
    """It may be dead, and the first read after the probe would find out."""
    line: Any = store._line()  # pyright: ignore[reportPrivateUsage]
    before = line._connection
    await store.probe(_PREFIX)
    await _up(store)
    assert before is not line._connection


async def test_a_server_that_comes_back_is_read_over_a_line_again(
    store: RedisStore, redis_process: RedisProcess
) -> None:
    """The line is opened anew by whoever reads next."""
    redis_process.restart()
    assert Reading(None, None) == await store.read(_place(1))
    await _up(store)


async def test_closing_fails_what_is_awaited(store: RedisStore, redis_process: RedisProcess) -> None:
    """At once, and without asking anybody else."""
    redis_process.pause()
    answer = store.read(_place(1))
    await store.aclose()
    with pytest.raises(ConnectionError):
        await answer


async def test_without_a_private_part_of_the_client_reads_go_through_the_pool(
    redis_process: RedisProcess, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A version of redis-py that has changed inside must cost speed and one line in the log, and no answer."""
    from redis.asyncio.connection import AbstractConnection

    read_response = AbstractConnection.read_response

    async def hidden(self: Any, *args: Any, **options: Any) -> Any:
        return await read_response(self, *args, **options)

    monkeypatch.setattr(AbstractConnection, "read_response", hidden)
    monkeypatch.setattr(redis_reads, "_reported", set())
    ask_server(redis_process, "SET", _PREFIX + "0", "entry 0")
    for _ in range(2):
        store = RedisStore(url=redis_process.url, patience_seconds=0.5)
        for _ in range(3):
            answer = store.read(_place(0))
            assert not isinstance(answer, asyncio.Future)
            assert _entry(0) == await answer
        await store.aclose()
    (record,) = caplog.records
    assert "read_response(disable_decoding)" in record.message


class _Pool:
    """Has what a line needs of a pool and its connections, but for one part."""

    def __init__(self, hidden: str) -> None:
        methods = {
            "disconnect": lambda nowait: None,
            "send_packed_command": lambda command, check_health: None,
            "read_response": lambda disable_decoding: None,
        }
        parts: dict[str, Any] = dict.fromkeys(redis_reads._CONNECTION_PARTS) | methods
        parts.pop(hidden, None)
        pool: dict[str, Any] = dict.fromkeys(redis_reads._POOL_PARTS, ())
        pool |= {"connection_class": lambda **options: SimpleNamespace(**parts), "connection_kwargs": {}}
        pool.pop(hidden, None)
        self.__dict__ |= pool


@pytest.mark.parametrize("part", [*redis_reads._POOL_PARTS, *redis_reads._CONNECTION_PARTS])
def test_each_private_part_is_looked_for(part: str) -> None:
    """Whichever a version of redis-py lacks; and none is missed that is there."""
    assert part == redis_reads.missing_part(_Pool(part))
    assert redis_reads.missing_part(_Pool("")) is None
