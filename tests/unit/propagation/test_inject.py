"""The headers for the next process."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable
from typing import Any

import pytest

from observability_integration import WorkflowContext
from observability_integration.context import Deadline, reset_deadline, set_deadline
from observability_integration.propagation import continue_from, outgoing_headers
from observability_integration.testing import FakeClockLoop

pytestmark = pytest.mark.promise("W1", "W2")

LOOP_FACTORY = FakeClockLoop

_PARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(2.0, "2000"), (0.0019, "1"), (0.0009, "0"), (0.0, "0"), (-5.0, "0"), (1e12, "9999999999")],
)
async def test_the_remaining_time_is_rounded_down(seconds: float, expected: str) -> None:
    """The next process may have a little less time than we, never more."""
    context = WorkflowContext(deadline=Deadline.after(seconds))
    assert {"X-Request-Deadline-Ms": expected} == outgoing_headers(context)


async def test_the_nearest_deadline_goes_out() -> None:
    """That of the context and the one in force both hold."""
    token = set_deadline(Deadline.after(3.0))
    assert {"X-Request-Deadline-Ms": "3000"} == outgoing_headers()
    assert {"X-Request-Deadline-Ms": "2000"} == outgoing_headers(WorkflowContext(deadline=Deadline.after(2.0)))
    assert {"X-Request-Deadline-Ms": "3000"} == outgoing_headers(WorkflowContext(deadline=Deadline.after(4.0)))
    await asyncio.sleep(1.0)
    assert {"X-Request-Deadline-Ms": "2000"} == outgoing_headers()
    reset_deadline(token)


async def test_without_anything_to_say_nothing_is_said(way: str) -> None:
    """No header beats a header that means nothing; a deadline that never comes is none."""
    assert {} == outgoing_headers()
    assert {} == outgoing_headers(WorkflowContext())
    assert {} == outgoing_headers(WorkflowContext(deadline=Deadline(math.inf)))


async def test_what_came_in_goes_out(way: str) -> None:
    """A process that records nothing is no gap in the trace of those around it."""
    came = {"X-Request-Deadline-Ms": "1500", "traceparent": _PARENT, "tracestate": "a=1,b=2", "baggage": "c=3"}
    with continue_from(came):
        assert came == outgoing_headers()


async def test_ours_take_the_place_of_given_ones() -> None:
    """A proxy forwards all headers of its request; those that stand for that hop must not go on to the next."""
    given = {
        "Accept": "*/*",
        "TraceParent": "00-11111111111111111111111111111111-2222222222222222-01",
        "TraceState": "theirs=1",
        "x-request-deadline-ms": "99999",
    }
    before = dict(given)
    context = WorkflowContext(deadline=Deadline.after(1.0))
    with continue_from({"traceparent": _PARENT}):
        sent = outgoing_headers(context, given)
    assert {"Accept": "*/*", "traceparent": _PARENT, "X-Request-Deadline-Ms": "1000"} == sent
    assert before == given
    assert given == outgoing_headers(headers=given)


async def test_whose_baggage_wins(way: str) -> None:
    """The nearer it was said, the more it counts; nothing that was said is lost."""
    context = WorkflowContext(baggage={"a": "context"})
    with continue_from({"baggage": "a=in-force,b=in-force,c=in-force"}):
        sent = outgoing_headers(context, {"Baggage": "a=given,b=given;p=1"})
    assert {"baggage": "a=context,b=given;p=1,c=in-force"} == sent
    assert {"a": "context"} == context.baggage


async def test_what_has_no_room_is_left_out_and_counted(metrics: Callable[..., Any]) -> None:
    """The caller's own come first, then what others sent along."""
    context = WorkflowContext(baggage={f"k{number}": "v" for number in range(63)})
    with continue_from({"baggage": "a=1,b=2"}):
        members = outgoing_headers(context)["baggage"].split(",")
    assert ["k0=v", "k62=v", "a=1"] == [members[0], members[62], *members[63:]]
    assert 1 == metrics("telemetry.faults", site="propagation.outgoing")


@pytest.mark.parametrize("value", [None, object(), 10**5000, b"x"], ids=["None", "object", "long number", "bytes"])
async def test_values_that_are_no_text_fail_no_call(value: Any, metrics: Callable[..., Any]) -> None:
    """A number that is too long for Python to write even raises there."""
    context = WorkflowContext(baggage={"a": value}, deadline=Deadline.after(1.0))
    assert {"X-Request-Deadline-Ms": "1000"} == outgoing_headers(context)
    assert 1 == metrics("telemetry.faults", site="propagation.outgoing")
