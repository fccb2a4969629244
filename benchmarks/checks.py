"""Makes sure that what was timed was done: a contestant that cheats, or is broken, ends the benchmark."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .workload import Work


class NotDoneError(Exception):
    """A contestant did not do what it was timed for."""


def expect(condition: object, what: str) -> None:
    """Raise `NotDoneError` unless the condition holds.

    Raises:
        NotDoneError: it does not.
    """
    if not condition:
        raise NotDoneError(what)


def answered(name: str, expected: Any, got: Any) -> None:
    """The answer is the one the work gave."""
    expect(expected == got, f"{name} answered something else")


def worked(name: str, work: Work, calls: int) -> None:
    """The work was called so many times."""
    expect(work.calls == calls, f"{name} called the work {work.calls} times, not {calls}")


def counted(name: str, runnable: Any, expected: Mapping[str, int]) -> None:
    """The contestant's own statistics are right."""
    stats = runnable.get_stats()
    wrong = {key: stats[key] for key, count in expected.items() if stats[key] != count}
    expect(not wrong, f"{name} counted {wrong} where it should be {dict(expected)}")


def alike(what: str, ours: Mapping[Any, Any], by_hand: Mapping[Any, Any]) -> None:
    """Both sides reported the same, and something."""
    expect(ours, f"no {what} were reported")
    if ours != by_hand:
        differing = [key for key in {**ours, **by_hand} if ours.get(key) != by_hand.get(key)]
        key = differing[0]
        raise NotDoneError(
            f"{len(differing)} {what} differ, e.g. {key}: ours {ours.get(key)}, by hand {by_hand.get(key)}"
        )
