"""Blocks of one task that do not end in the reverse order of their beginning: each takes away its own part."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import ExitStack, aclosing
from contextvars import Token, copy_context
from typing import Any

import pytest

from observability_integration.context import (
    Deadline,
    current_deadline,
    deadline_var,
    remaining,
    reset_deadline,
    set_deadline,
)
from observability_integration.propagation import ambient, continue_from, outgoing_headers, scope
from observability_integration.testing import FakeClockLoop

pytestmark = pytest.mark.promise("W1", "W3")

LOOP_FACTORY = FakeClockLoop

_PARENTS = {name: f"00-{name * 32}-{name * 16}-01" for name in "abc"}


def _headers(name: str, seconds: float) -> dict[str, str]:
    return {
        "X-Request-Deadline-Ms": str(int(seconds * 1000)),
        "traceparent": _PARENTS[name],
        "baggage": f"{name}=1,who={name}",
    }


async def _reader(name: str, seconds: float) -> AsyncIterator[None]:
    with continue_from(_headers(name, seconds)):
        yield
        yield


async def test_the_first_ends_first(way: str) -> None:
    """A task that reads two streams by turns: the end of one takes nothing from the other and leaves nothing behind."""
    a, b = _reader("a", 0.01), _reader("b", 5.0)
    async with aclosing(a), aclosing(b):  # type: ignore[type-var]
        await anext(a)
        await anext(b)
        assert 0.01 == remaining()
        await a.aclose()  # type: ignore[attr-defined]
        assert 5.0 == remaining()
        headers = outgoing_headers()
        assert (_PARENTS["b"], "5000") == (headers["traceparent"], headers["X-Request-Deadline-Ms"])
        assert {"b=1", "who=b"} <= set(headers["baggage"].split(","))
        assert ("a=1" in headers["baggage"]) == (way == "opentelemetry")  # its context goes back when `b` does
    assert (None, {}) == (current_deadline(), outgoing_headers())


@pytest.mark.parametrize("order", ["abc", "acb", "bac", "bca", "cab", "cba"])
async def test_any_order(order: str, way: str) -> None:
    """Of three, whichever ends first: the nearest deadline of those that go on holds, and the last one's trace."""
    seconds = {"a": 3.0, "b": 1.0, "c": 2.0}
    stacks = {name: ExitStack() for name in "abc"}
    with continue_from({"baggage": "outer=1"}):
        for name, stack in stacks.items():
            stack.enter_context(continue_from(_headers(name, seconds[name])))
        for name in order:
            stacks.pop(name).close()
            assert min((seconds[name] for name in stacks), default=None) == remaining()
            if way == "plain":
                assert (_PARENTS[max(stacks)] if stacks else None) == outgoing_headers().get("traceparent")
        assert {"baggage": "outer=1"} == outgoing_headers()
    assert (None, {}) == (current_deadline(), outgoing_headers())


async def test_overlapping_without_an_end(way: str) -> None:
    """Each begins before the one before it ends, as in a worker that always has two messages: nothing adds up."""
    before = ExitStack()
    for number in range(100):
        following = ExitStack()
        following.enter_context(continue_from({"x-request-deadline-ms": "1000", "baggage": f"n={number}"}))
        before.close()
        before = following
        await asyncio.sleep(0.75)
        assert 0.25 == remaining()
        assert f"n={number}" == outgoing_headers()["baggage"]
    before.close()
    assert (None, {}) == (current_deadline(), outgoing_headers())
    assert scope._stack.get() == ()


async def test_what_somebody_else_put_between_them_stays() -> None:
    """A deadline set by hand has its own way back, which is not ours to change."""
    a, b = ExitStack(), ExitStack()
    a.enter_context(continue_from(_headers("a", 3.0)))
    token = set_deadline(Deadline.after(0.5, "ours"))
    b.enter_context(continue_from(_headers("b", 5.0)))
    a.close()
    assert 0.5 == remaining()
    b.close()
    assert 0.5 == remaining()
    reset_deadline(token)

    set_deadline(None)
    a.enter_context(continue_from(_headers("a", 3.0)))
    b.enter_context(continue_from(_headers("b", 5.0)))
    token = set_deadline(Deadline.after(0.5, "ours"))
    a.close()
    assert 0.5 == remaining()
    b.close()
    assert current_deadline() is None


async def test_one_that_was_left_elsewhere_goes_with_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream dropped half-way is closed by a task of the loop's; its deadline must not fail all that comes later."""
    # OpenTelemetry's context would stay as it is until a block around all this ends.
    monkeypatch.setattr(ambient, "opentelemetry_in_use", lambda: False)

    async def drop() -> None:
        generator: Any = _reader("a", 0.01)
        await anext(generator)
        del generator
        gc.collect()
        await asyncio.sleep(0.5)

    for _ in range(3):
        await drop()
        with continue_from(_headers("b", 5.0)):
            assert 5.0 == remaining()
        assert (None, {}) == (current_deadline(), outgoing_headers())
    with ExitStack() as outer, ExitStack() as later:
        outer.enter_context(continue_from(_headers("c", 9.0)))
        await drop()
        later.enter_context(continue_from(_headers("b", 5.0)))
        await drop()
        outer.close()
        assert 4.5 == remaining()
    assert (None, {}) == (current_deadline(), outgoing_headers())
    assert scope._stack.get() == ()


async def test_what_was_put_in_force_since_stays() -> None:
    """By the time that it is noticed, the deadline and the span in force may be somebody's who still needs them."""
    ways_back: list[str] = []
    left = scope.ContextScope()
    left.change(deadline_var, lambda _: Deadline.after(0.1))
    left.undo_with(lambda: ways_back.append("taken"))
    assert not copy_context().run(left.end)
    token = set_deadline(Deadline.after(2.0, "ours"))
    with continue_from(_headers("b", 5.0)):
        assert 2.0 == remaining()
    assert (2.0, []) == (remaining(), ways_back)
    reset_deadline(token)


async def test_tasks_that_begin_each_other_keep_no_blocks() -> None:
    """A job that begins the next from within its block, for days: what has ended is let go."""
    tasks: list[asyncio.Task[None]] = []

    async def work(number: int) -> None:
        with continue_from(_headers("a", 5.0)):
            if number:
                tasks.append(asyncio.create_task(work(number - 1)))
            else:
                seen.extend(_reachable(scope._stack.get()))

    seen: list[object] = []
    await work(20)
    while tasks:
        await tasks.pop()
    assert 2 == len(seen)  # its own, and the one that it was begun in


def _reachable(root: object) -> list[object]:
    found, left = list[object](), [root]
    while left:
        each = left.pop()
        if isinstance(each, scope.ContextScope) and not any(each is known for known in found):
            found.append(each)
        if isinstance(each, scope.ContextScope | Token | tuple):
            left += gc.get_referents(each)
    return found
