"""Rare, important turns, told to whoever subscribed."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest

from observability_integration import events


@pytest.fixture
def heard() -> Any:
    """Subscribes, and ends the subscription after the test."""
    ends: list[Callable[[], None]] = []

    def hear(prefix: str = "") -> list[events.Event]:
        got: list[events.Event] = []
        ends.append(events.subscribe(got.append, prefix))
        return got

    yield hear
    for end in ends:
        end()


def test_events_reach_their_subscribers(heard: Any) -> None:
    """Each subscriber hears what begins with its prefix, with the facts and the time."""
    everything, caches, budgets = heard(), heard("cache."), heard("budget.")
    events.emit("cache.backend.degraded", operation="ask", attempts=3)
    (event,) = everything
    assert ("cache.backend.degraded", {"operation": "ask", "attempts": 3}) == (event.name, dict(event.attributes))
    assert abs(time.time() - event.time_seconds) < 60
    assert (everything, []) == (caches, budgets)
    with pytest.raises(TypeError):
        event.attributes["operation"] = "another"


def test_unsubscribing() -> None:
    """The function that `subscribe` returns ends that subscription, and no other of the same function."""
    got: list[events.Event] = []
    first, second = events.subscribe(got.append), events.subscribe(got.append)
    events.emit("a")
    first()
    first()
    events.emit("b")
    second()
    events.emit("c")
    assert ["a", "a", "b"] == [event.name for event in got]


@pytest.mark.promise("S9")
def test_subscriber_that_raises(heard: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A subscriber's fault is logged without its message, and keeps nobody else from hearing."""

    def fails(_: events.Event) -> None:
        raise ValueError("secret")

    end = events.subscribe(fails)
    after = heard()
    events.emit("a")
    end()
    assert 1 == len(after)
    assert ["A subscriber to event a raised ValueError"] == caplog.messages
