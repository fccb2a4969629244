"""Single flight saves the calls that a stampede would make, without making its callers each other's fate."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from observability_integration.caching.flights.single_flight import Flight, SingleFlight


class _Call:
    """A call that lasts until it is told how to end."""

    def __init__(self) -> None:
        self.made = 0
        self.end: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    async def __call__(self) -> str:
        self.made += 1
        return await self.end


Work = Callable[[], Coroutine[Any, Any, Any]]


def _start(flights: SingleFlight, key: bytes, work: Work) -> Flight:
    flight = Flight(None, None)
    flights.start(key, flight, _work(flights, flight, work))
    return flight


async def _work(flights: SingleFlight, flight: Flight, work: Work) -> Any:
    try:
        return await work()
    finally:
        flights.finish(flight)


async def _ask(flights: SingleFlight, key: bytes, work: Work) -> Any:
    flight = flights.running(key) or _start(flights, key, work)
    waiter = flight.add_waiter()
    try:
        await waiter
        return flight.task.result()
    finally:
        if flight.remove_waiter(waiter):
            flights.cancel_after(flight, 60.0)


async def _settle() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.mark.promise("C2")
async def test_equal_calls_that_overlap_are_made_once() -> None:
    """Fifty callers, one call, fifty times the same value; afterwards nothing is left of it."""
    flights, call = SingleFlight(), _Call()
    callers = [asyncio.create_task(_ask(flights, b"key", call)) for _ in range(50)]
    await _settle()
    assert 1 == len(flights)
    call.end.set_result("value")
    assert ["value"] * 50 == await asyncio.gather(*callers)
    assert 1 == call.made
    assert flights.running(b"key") is None
    await _settle()
    assert 0 == len(flights)


async def test_different_keys_do_not_wait_for_each_other() -> None:
    """A slow call must hold up only those who ask the same."""
    flights, slow, fast = SingleFlight(), _Call(), _Call()
    waiting = asyncio.create_task(_ask(flights, b"slow", slow))
    await _settle()
    fast.end.set_result("fast")
    assert "fast" == await _ask(flights, b"fast", fast)
    slow.end.set_result("slow")
    assert "slow" == await waiting


@pytest.mark.promise("C2")
@pytest.mark.parametrize("cancelled", [[0], [3], [0, 1, 2, 3], [0, 1, 2, 3, 4]])
async def test_a_cancelled_caller_harms_no_other(cancelled: list[int]) -> None:
    """Whoever leaves, also the one who began it, leaves alone; the call goes on even if all leave: it is paid for."""
    flights, call = SingleFlight(), _Call()
    callers = [asyncio.create_task(_ask(flights, b"key", call)) for _ in range(5)]
    await _settle()
    for number in cancelled:
        callers[number].cancel()
    await _settle()
    flight = flights.running(b"key")
    assert flight is not None
    call.end.set_result("value")
    results = await asyncio.gather(*callers, return_exceptions=True)
    assert [number in cancelled for number in range(5)] == [isinstance(r, asyncio.CancelledError) for r in results]
    assert "value" == await flight.task


@pytest.mark.promise("C2")
async def test_a_failure_is_one_error_shared_by_all() -> None:
    """Each waiter calling again after a failure, one behind the other, is a second stampede in slow motion."""
    flights, call = SingleFlight(), _Call()
    callers = [asyncio.create_task(_ask(flights, b"key", call)) for _ in range(5)]
    await _settle()
    error = ValueError("broken")
    call.end.set_exception(error)
    results = await asyncio.gather(*callers, return_exceptions=True)
    assert all(result is error for result in results)
    assert 1 == call.made


async def test_a_failure_nobody_waits_for_is_silent() -> None:
    """asyncio would report an error that was never retrieved, for a caller that left long ago."""
    reported: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
    flights, call = SingleFlight(), _Call()
    caller = asyncio.create_task(_ask(flights, b"key", call))
    await _settle()
    caller.cancel()
    await _settle()
    call.end.set_exception(ValueError("broken"))
    await _settle()
    del call, caller
    gc.collect()
    assert [] == reported


async def test_a_failure_is_silent_for_one_who_leaves_as_it_comes() -> None:
    """A caller cancelled in the turn in which the call fails has seen nothing of the error, and nobody else will."""
    reported: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: reported.append(context))
    for turns in range(4):
        flights, call = SingleFlight(), _Call()
        caller = asyncio.create_task(_ask(flights, b"key", call))
        await _settle()
        call.end.set_exception(ValueError("broken"))
        for _ in range(turns):
            await asyncio.sleep(0)
        caller.cancel()
        await asyncio.wait({caller})
        await _settle()
        assert 0 == len(flights)
        assert caller.cancelled() or isinstance(caller.exception(), ValueError)
        del call, caller, flights
        gc.collect()
    assert [] == reported


def test_a_loop_that_ends_before_a_flight_begins_leaves_nothing() -> None:
    """A program that runs one loop after the other must not keep all of them."""
    flights = SingleFlight()

    async def leave() -> None:
        flights.cancel_after(_start(flights, b"background", lambda: asyncio.sleep(3600)), 60.0)

    with contextlib.closing(asyncio.new_event_loop()) as loop:
        loop.run_until_complete(leave())
        (task,) = asyncio.all_tasks(loop)
        task.cancel()
        loop.run_until_complete(asyncio.wait({task}))
    assert 0 == len(flights)
    assert not flights._in_flight


@pytest.mark.promise("C8")
@pytest.mark.parametrize("forget", [lambda flights: flights.forget(b"key"), lambda flights: flights.forget_all()])
async def test_a_forgotten_flight_is_not_joined_and_not_current(forget: Callable[[SingleFlight], None]) -> None:
    """After an invalidation, what an older call brings must not be kept, nor given to those who ask later."""
    flights = SingleFlight()
    current: list[bool] = []
    ends = [asyncio.get_running_loop().create_future() for _ in range(2)]

    made = [Flight(None, None), Flight(None, None)]

    def work(number: int) -> Work:
        async def run() -> int:
            await ends[number]
            current.append(flights.is_current(made[number]))
            return number

        return run

    flights.start(b"key", made[0], _work(flights, made[0], work(0)))
    await _settle()
    forget(flights)
    assert flights.running(b"key") is None
    flights.start(b"key", made[1], _work(flights, made[1], work(1)))
    await _settle()
    for end in ends:
        end.set_result(None)
    assert [0, 1] == await asyncio.gather(*(flight.task for flight in made))
    assert [False, True] == current
    await _settle()
    assert 0 == len(flights)


async def test_forgetting_another_key_changes_nothing() -> None:
    """An invalidation concerns its own key only."""
    flights, call = SingleFlight(), _Call()
    caller = asyncio.create_task(_ask(flights, b"key", call))
    await _settle()
    flights.forget(b"other")
    assert flights.running(b"key") is not None
    call.end.set_result("value")
    await caller


def test_each_event_loop_has_its_own_flights() -> None:
    """A task can be awaited in its own loop only; a second loop must neither join it nor make the first lose it."""
    flights = SingleFlight()
    departed, asked = threading.Event(), threading.Event()
    seen: dict[str, Any] = {}

    async def first() -> None:
        go_on = asyncio.Event()

        async def call() -> str:
            departed.set()
            await go_on.wait()
            return "first"

        flight = _start(flights, b"key", call)
        await asyncio.get_running_loop().run_in_executor(None, asked.wait)
        seen["still there"] = flights.running(b"key") is flight
        go_on.set()
        seen["first"] = await flight.task

    async def second() -> None:
        async def call() -> str:
            return "second"

        seen["joined"] = flights.running(b"key")
        seen["second"] = await _start(flights, b"key", call).task

    thread = threading.Thread(target=lambda: asyncio.run(first()))
    thread.start()
    departed.wait()
    asyncio.run(second())
    asked.set()
    thread.join()
    assert {"joined": None, "second": "second", "still there": True, "first": "first"} == seen
    assert 0 == len(flights)


def test_a_loop_that_ended_under_way_does_not_hold_up_the_next() -> None:
    """`asyncio.run` cancels what is left at its end; a second run must be able to make the call."""
    flights = SingleFlight()

    async def leave() -> None:
        _start(flights, b"key", lambda: asyncio.sleep(3600))
        await asyncio.sleep(0)

    async def ask() -> Any:
        return await _ask(flights, b"key", lambda: asyncio.sleep(0, "value"))

    asyncio.run(leave())
    assert 0 == len(flights)
    assert "value" == asyncio.run(ask())


@pytest.mark.promise("C8")
async def test_a_tag_is_void_for_all_flights_under_way() -> None:
    """Also for those that were forgotten, and for none that departs later."""
    flights, call = SingleFlight(), _Call()
    first = _start(flights, b"first", call)
    flights.forget(b"first")
    second = _start(flights, b"second", call)
    flights.void_tag("tag")
    third = _start(flights, b"third", call)
    assert [{"tag"}, {"tag"}, set()] == [flight.void_tags for flight in (first, second, third)]
    call.end.set_result("value")
    await asyncio.gather(first.task, second.task, third.task)


async def test_what_nobody_waits_for_is_known_and_can_be_given_up() -> None:
    """A cache that is closed ends it; the flight says that it was not the call that was cancelled."""
    flights, call = SingleFlight(), _Call()
    waited, left = _start(flights, b"waited", call), _start(flights, b"left", call)
    waiter = waited.add_waiter()
    flights.forget(b"left")
    assert [left] == flights.unwaited()
    flights.cancel_after(left, 60.0)
    left.cancel()  # before it began
    with pytest.raises(asyncio.CancelledError):
        await left.task
    assert (True, False) == (left.cancel_requested, waited.cancel_requested)
    assert [] == flights.unwaited()
    call.end.set_result("value")
    await waiter
    assert "value" == waited.task.result()
    assert waited.remove_waiter(waiter) is False
    await _settle()
    assert 0 == len(flights)
