"""A limit that finds its own height: a little up while calls succeed, a tenth down when the other side is overloaded.

Additive increase, multiplicative decrease, with the figures of Netflix's concurrency-limits (`AIMDLimit`: ratio 0.9,
half of the limit in use; `WindowedLimit`: one second) and two rules of TCP (RFC 5681, RFC 6582): the limit grows once a
round, which is as many successes as the limit, and what began before the last decrease is no news.

==============================  ========================================================================================
success, limit really used      one success nearer to the next increase
success, less than half used    nothing: it does not show that more would be borne
overload                        limit × ratio, rounded down: lower by 1 at least
overload in the same window     nothing: one burst of refusals is one overload
call from before a decrease     nothing: it was let in under a limit that is no longer in force
anything else                   not told: a cancelled call, or a wrong request, says nothing about the load
==============================  ========================================================================================
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from observability_integration.checks import check_at_least, check_count, check_share
from observability_integration.errors import ConfigurationError

# The faults that mean overload, as `classify` calls them.
OVERLOAD_FAULTS = frozenset({"rate_limited", "overloaded", "timeout"})


class Aimd:
    """An adaptive limit for one `ConcurrencyLimit`, which guards it: not safe to share between threads by itself.

    Args:
        initial: calls at once to begin with, from `min_limit` to `max_limit`.
        min_limit: never fewer than these, >= 1.
        max_limit: never more than these.
        increase: calls more after a round of successes, >= 1.
        decrease_ratio: what an overload leaves of the limit, from 0.5 to less than 1 (the range of `AIMDLimit`).
        window_seconds: time from one decrease to the next at the least, >= 0.
        clock: seconds that only go forward.

    Raises:
        ConfigurationError: a knob out of its range.
    """

    __slots__ = (
        "_clock",
        "_decreased_at",
        "_increase",
        "_max",
        "_min",
        "_ratio",
        "_successes",
        "_window_seconds",
        "limit",
        "round",
    )

    def __init__(
        self,
        initial: int = 20,
        *,
        min_limit: int = 1,
        max_limit: int = 200,
        increase: int = 1,
        decrease_ratio: float = 0.9,
        window_seconds: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        check_count("min_limit", min_limit)
        check_count("max_limit", max_limit, min_limit)
        check_count("increase", increase)
        check_share("decrease_ratio", decrease_ratio, minimum=0.5, below_one=True)
        check_at_least("window_seconds", window_seconds, 0)
        self._min = min_limit
        self._max = max_limit
        self._increase = increase
        self._ratio = decrease_ratio
        self._window_seconds = window_seconds
        self._clock = clock
        self._decreased_at = -math.inf
        self._successes = 0
        self.round = 0
        """How often the limit was lowered: a call tells which round it began in."""
        self.limit = 0
        """Calls at once."""
        self.move_to(initial, "initial")

    def move_to(self, limit: int, knob: str = "limit") -> None:
        """Goes on from another limit.

        Raises:
            ConfigurationError: it is not between the bounds.
        """
        check_count(knob, limit, self._min)
        if limit > self._max:
            raise ConfigurationError(f"{knob} must not be more than max_limit={self._max}, got {limit}")
        self._successes = 0
        self.limit = limit

    def success(self, in_flight: int, began: int) -> None:
        """A call succeeded.

        Args:
            in_flight: calls at once when it ended, itself among them.
            began: the `round` in which it began.
        """
        if began != self.round or in_flight * 2 < self.limit or self.limit == self._max:
            return
        self._successes += 1
        if self._successes >= self.limit:
            self._successes = 0
            self.limit = min(self._max, self.limit + self._increase)

    def overload(self, began: int) -> None:
        """A call showed that the other side has too much to do.

        Args:
            began: the `round` in which it began.
        """
        now = self._clock()
        if began != self.round or now - self._decreased_at < self._window_seconds:
            return
        self._decreased_at = now
        self._successes = 0
        self.round += 1
        self.limit = max(self._min, int(self.limit * self._ratio))
