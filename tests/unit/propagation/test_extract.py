"""What another process sent along: read without ever failing the call, in force for a block and not a moment longer."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from observability_integration.context import Deadline, current_deadline, remaining, reset_deadline, set_deadline
from observability_integration.errors import PrimitiveTimeoutError
from observability_integration.primitives import TimeoutPrimitive
from observability_integration.propagation import Incoming, continue_from, incoming, outgoing_headers
from observability_integration.testing import FakeClockLoop

pytestmark = pytest.mark.promise("W1", "W3")

LOOP_FACTORY = FakeClockLoop

_PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
_ALL = {"X-Request-Deadline-Ms": "1500", "traceparent": _PARENT, "tracestate": "a=1", "baggage": "tenant=t%201"}


async def test_headers_are_found_in_whatever_holds_them() -> None:
    """A mapping of a client library, the pairs of ASGI, the bytes of a message broker; case does not matter."""
    upper = {name.upper(): value for name, value in _ALL.items()}
    pairs = [(name.encode(), value.encode()) for name, value in _ALL.items()]
    multiple = {name: [value] for name, value in _ALL.items()}
    for headers in (_ALL, upper, pairs, dict(pairs), multiple, (pair for pair in pairs)):
        arrived = incoming(headers)
        assert (1.5, {"tenant": "t 1"}) == (arrived.deadline_seconds, arrived.baggage)
        assert arrived.parent is not None
        assert {"traceparent": _PARENT, "tracestate": "a=1"} == arrived.parent.headers()
        assert arrived.deadline is not None
        assert (1.5, "request header") == (arrived.deadline.remaining(), arrived.deadline.operation)


async def test_nothing_arrives_from_nothing(metrics: Callable[..., Any]) -> None:
    """A request without our headers is the usual one, and no fault."""
    for headers in (None, {}, [], {"content-type": "x"}, [(b"accept", b"*/*")], {b"x": 1, 3: None}):
        assert Incoming() == incoming(headers)
    for site in ("deadline", "trace", "baggage", "headers"):
        assert metrics("telemetry.faults", site=f"propagation.{site}") is None


@pytest.mark.parametrize(
    "value",
    [
        "",
        "-1",
        "+5",
        "1.5",
        "1e9",
        "NaN",
        "inf",
        "0x10",
        "1_000",
        "１２",
        "12345678901",
        "5 s",
        "1,2",
        "\n5",
        "٣",
        7,
        None,
    ],
)
async def test_a_malformed_deadline_is_ignored_and_counted(value: Any, metrics: Callable[..., Any]) -> None:
    """A peer's mistake must not fail its request, and must be seen."""
    arrived = incoming({"x-request-deadline-ms": value, "baggage": "a=1"})
    assert (None, None, {"a": "1"}) == (arrived.deadline_seconds, arrived.deadline, arrived.baggage)
    assert 1 == metrics("telemetry.faults", site="propagation.deadline")


async def test_two_deadlines_are_none(metrics: Callable[..., Any]) -> None:
    """Nobody can tell which of them is meant."""
    pairs = [(b"x-request-deadline-ms", b"5"), (b"X-Request-Deadline-Ms", b"5")]
    assert incoming(pairs).deadline is None
    assert 1 == metrics("telemetry.faults", site="propagation.deadline")


@pytest.mark.parametrize("headers", [7, object(), [1, 2], [(b"a",)], ["ab", "abc"]])
async def test_what_holds_no_headers_brings_nothing(headers: Any, metrics: Callable[..., Any]) -> None:
    """A message of an odd kind is worked on without them."""
    assert Incoming() == incoming(headers)
    assert 1 == metrics("telemetry.faults", site="propagation.headers")


async def test_malformed_trace_and_baggage_are_counted(
    metrics: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    """One for each header, and not a word of what stood in them."""
    arrived = incoming({"traceparent": "secret", "tracestate": "secret", "baggage": "secret value=1,a=1"})
    assert (None, {"a": "1"}) == (arrived.parent, arrived.baggage)
    assert 1 == metrics("telemetry.faults", site="propagation.trace")
    assert 1 == metrics("telemetry.faults", site="propagation.baggage")
    assert "secret" not in caplog.text
    assert "t 1" not in repr(incoming(_ALL))


async def test_a_deadline_is_brought_forward_to_the_longest_allowed() -> None:
    """Else a peer could hold work here for a hundred days."""
    assert 0.5 == incoming(_ALL, max_seconds=0.5).deadline_seconds
    assert 1.5 == incoming(_ALL, max_seconds=2).deadline_seconds
    for headers in ({}, None, {"X-Request-Deadline-Ms": "-1"}, 5):
        arrived = incoming(headers, max_seconds=2)  # type: ignore[arg-type]
        assert arrived.deadline is not None
        assert (2.0, 2.0, "server default") == (
            arrived.deadline_seconds,
            arrived.deadline.remaining(),
            arrived.deadline.operation,
        )
    assert 9_999_999.999 == incoming({"X-Request-Deadline-Ms": "9999999999"}).deadline_seconds


async def test_the_deadline_bounds_what_runs_in_the_block(way: str) -> None:
    """A primitive within ends at the peer's deadline, and is not even begun once that has passed."""

    async def wait(_: str) -> None:
        await asyncio.Event().wait()

    hang = TimeoutPrimitive[str, None](wait, 30.0, 0.0)
    with continue_from(_ALL):
        with pytest.raises(PrimitiveTimeoutError, match=r"timeout of 1\.5s \(kind: deadline"):
            await hang.execute("x")
        with pytest.raises(PrimitiveTimeoutError, match="cleanup: refused"):
            await hang.execute("x")
    assert 1.5 == asyncio.get_running_loop().time()
    assert remaining() is None


async def test_the_clock_runs_from_the_arrival() -> None:
    """A request that waits in a queue here uses up its time."""
    arrived = incoming(_ALL)
    await asyncio.sleep(1.0)
    with continue_from(arrived):
        assert 0.5 == remaining()
    await asyncio.sleep(1.0)
    with continue_from(arrived):
        assert 0.0 == remaining()
        assert {"X-Request-Deadline-Ms": "0"}.items() <= outgoing_headers().items()


async def test_an_earlier_deadline_stays_in_force(way: str) -> None:
    """A peer can ask for less time than there is, never for more."""
    token = set_deadline(Deadline.after(1.0, "ours"))
    with continue_from(_ALL):
        assert 1.0 == remaining()
        with continue_from({"x-request-deadline-ms": "250"}):
            assert 0.25 == remaining()
        assert 1.0 == remaining()
    reset_deadline(token)


async def test_everything_is_undone_however_the_block_ends(way: str) -> None:
    """The next request on this connection belongs to somebody else."""

    async def work() -> None:
        with continue_from(_ALL):
            await asyncio.sleep(1.0)

    task = asyncio.create_task(work())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    for error in (ValueError("own"), KeyboardInterrupt(), asyncio.CancelledError()):
        with pytest.raises(type(error)) as caught, continue_from(_ALL):
            raise error
        assert error is caught.value
        assert {} == outgoing_headers()
        assert current_deadline() is None


async def test_nested_blocks_add_up_and_come_apart(way: str) -> None:
    """A job that works on messages of several peers is in the trace of one at a time."""
    other = "00-11111111111111111111111111111111-2222222222222222-00"
    with continue_from(_ALL):
        before = outgoing_headers()
        with continue_from({"baggage": "tenant=2,b=1", "traceparent": other}):
            headers = outgoing_headers()
            assert (other, "tenant=2,b=1") == (headers["traceparent"], headers["baggage"])
            assert "tracestate" not in headers
        with continue_from({}):
            assert before == outgoing_headers()
        assert before == outgoing_headers()
    assert {} == outgoing_headers()


async def test_concurrent_requests_do_not_see_each_other(way: str) -> None:
    """Each task works on a request of its own, in any order; those it starts belong to it."""

    async def serve(number: int) -> str:
        with continue_from({"baggage": f"n={number}", "x-request-deadline-ms": str(number * 1000)}):
            await asyncio.sleep(0.1 * (50 - number))
            return await asyncio.create_task(tell())

    async def tell() -> str:
        return outgoing_headers()["baggage"]

    answers = await asyncio.gather(*map(serve, range(50)))
    assert [f"n={number}" for number in range(50)] == answers
    assert {} == outgoing_headers()


async def test_a_block_that_is_left_elsewhere_undoes_nothing_there(way: str, caplog: pytest.LogCaptureFixture) -> None:
    """A generator that holds one may be closed by another task, which has a deadline and a trace of its own."""

    async def chunks() -> AsyncIterator[int]:
        with continue_from(_ALL):
            yield 1

    async def begin() -> AsyncIterator[int]:
        generator = chunks()
        assert 1 == await anext(generator)
        return generator

    generator: Any = await asyncio.create_task(begin())
    with continue_from({"baggage": "mine=1"}), caplog.at_level(logging.DEBUG):
        await generator.aclose()
        assert {"baggage": "mine=1"} == outgoing_headers()
        generator = await asyncio.create_task(begin())
        del generator
        gc.collect()
        await asyncio.sleep(0)
        assert {"baggage": "mine=1"} == outgoing_headers()
    assert [] == [record for record in caplog.records if record.name != "asyncio"]
