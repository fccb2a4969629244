"""Checks that each contestant did the work it was timed for; a failed check ends the benchmark."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .workload import Work


class NotDoneError(Exception):
    """A contestant did not do what it was timed for."""


def expect(condition: object, what: str) -> None:
    """Checks a condition.

    Raises:
        NotDoneError: the condition is false.
    """
    if not condition:
        raise NotDoneError(what)


def expect_answer(name: str, expected: Any, got: Any) -> None:
    """Checks that the contestant returned the answer of the work."""
    expect(expected == got, f"{name} answered something else")


def expect_calls(name: str, work: Work, calls: int) -> None:
    """Checks how often the contestant called the work."""
    expect(work.calls == calls, f"{name} called the work {work.calls} times, not {calls}")


def expect_stats(name: str, runnable: Any, expected: Mapping[str, int]) -> None:
    """Checks the contestant's own statistics."""
    stats = runnable.get_stats()
    wrong = {key: stats[key] for key, count in expected.items() if stats[key] != count}
    expect(not wrong, f"{name} counted {wrong} where it should be {dict(expected)}")


def expect_equal(what: str, ours: Mapping[Any, Any], by_hand: Mapping[Any, Any]) -> None:
    """Checks that both sides reported the same, and not nothing."""
    expect(ours, f"no {what} were reported")
    if ours != by_hand:
        differing = [key for key in {**ours, **by_hand} if ours.get(key) != by_hand.get(key)]
        key = differing[0]
        raise NotDoneError(
            f"{len(differing)} {what} differ, e.g. {key}: ours {ours.get(key)}, by hand {by_hand.get(key)}"
        )
