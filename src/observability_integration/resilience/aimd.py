"""An adaptive limit: rises by a step while calls succeed, falls by a tenth when the provider is overloaded.

Additive increase, multiplicative decrease, with the figures of Netflix's concurrency-limits (`AIMDLimit`: ratio 0.9,
half of the limit in use; `WindowedLimit`: one second) and two rules of TCP (RFC 5681, RFC 6582): the limit grows once a
round, which is as many successes as the limit, and calls that began before the last decrease are ignored.

==============================  ========================================================================================
success, half of it in use      one success nearer to the next increase
success, less in use            nothing: it does not show that the provider can serve more
overload                        limit × ratio, rounded down: lower by 1 at least
overload in the same window     nothing: one burst of refusals is one overload
call from before a decrease     nothing: it was admitted under an earlier limit
anything else                   not reported: a cancelled call, or a wrong request, says nothing about the load
==============================  ========================================================================================
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from observability_integration.checks import check_at_least, check_count, check_share
from observability_integration.errors import ConfigurationError

#: The kinds of faults that mean overload, as `classify` calls them.
OVERLOAD_FAULTS = frozenset({"rate_limited", "overloaded", "timeout"})


class Aimd:
    """An adaptive limit for one `ConcurrencyLimit`, whose lock guards it: not thread-safe by itself.

    Args:
        initial: concurrent calls to begin with, from `min_limit` to `max_limit`.
        min_limit: the lowest limit, >= 1.
        max_limit: the highest limit, >= `min_limit`.
        increase: what a round of successes adds to the limit, >= 1.
        decrease_ratio: factor of the limit at an overload, from 0.5 to less than 1 (the range of `AIMDLimit`).
        window_seconds: the shortest time between two decreases, >= 0.
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
        """How often the limit was lowered; each call reports the round in which it began."""
        self.limit = 0
        """The current limit of concurrent calls."""
        self.move_to(initial, "initial")

    def move_to(self, limit: int, knob: str = "limit") -> None:
        """Sets the limit, which adapts from there.

        Raises:
            ConfigurationError: `limit` is not between the bounds.
        """
        check_count(knob, limit, self._min)
        if limit > self._max:
            raise ConfigurationError(f"{knob} must not be more than max_limit={self._max}, got {limit}")
        self._successes = 0
        self.limit = limit

    def success(self, in_flight: int, began: int) -> None:
        """Records a call that succeeded.

        Args:
            in_flight: concurrent calls when it ended, the call itself included.
            began: the `round` in which it began.
        """
        if began != self.round or in_flight * 2 < self.limit or self.limit == self._max:
            return
        self._successes += 1
        if self._successes >= self.limit:
            self._successes = 0
            self.limit = min(self._max, self.limit + self._increase)

    def overload(self, began: int) -> None:
        """Records a call that showed an overload of the provider.

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
