"""How long to wait for a first answer before a second call is made: a quantile of how long the recent ones took.

The quantile is taken over the last calls, by nearest rank, from a list that is kept sorted: an answer costs two binary
searches and two moves of a few kilobytes, a delay is looked up. The P² algorithm (Jain and Chlamtac, CACM 28(10), 1985)
does with five numbers, but forgets nothing, and a provider's times change within minutes.

**Calls that were cut short.** The slow calls are those that a hedge overtakes and cancels, so how long they would have
taken is never known. Left out, they would take their share of the slow end with them, the quantile of the rest would
sink, more calls would be hedged, and it would sink again. So each counts as having taken as long as it was waited for,
which is longer than the delay. Where the delay is right, this moves nothing: a call that is not answered by the delay
stays on its side of it, wherever beyond the delay it stands. Where the delay is too short, more calls than the quantile
allows stand beyond it, and it grows; where it is too long, the times around the quantile are all whole ones. It grows
more slowly than it shrinks, the less so the longer second calls take: in simulation, with a quantile of 0.95, 5.1 % of
the calls are hedged where those take as long as first ones, and 7 % where they answer at once.
"""

from __future__ import annotations

import math
import threading
from bisect import bisect_left, insort
from collections import deque

from observability_integration.checks import check_at_least, check_count, check_share

# Of a share of 5 % they show one percent more or less, and 20 kB is what they take.
WINDOW_CALLS = 512


class HedgeDelay:
    """The delay before a second call, measured or fixed. May be used from any thread.

    Args:
        quantile: of the times to the first answer, between 0 and 1: a call that takes longer is slow. About
            ``1 - quantile`` of the calls are.
        fixed_seconds: the delay, >= 0, if it is not to be measured.
        least_seconds: a measured delay is never shorter, >= 0.
        warmup_calls: how many answers it takes to know what slow is, from 1 to 512.

    Raises:
        ConfigurationError: a value out of range.
    """

    def __init__(
        self,
        quantile: float = 0.95,
        *,
        fixed_seconds: float | None = None,
        least_seconds: float = 0.0,
        warmup_calls: int = 100,
    ) -> None:
        check_share("quantile", quantile, above_zero=True, below_one=True)
        check_at_least("delay_seconds", fixed_seconds, 0, optional=True)
        check_at_least("min_delay_seconds", least_seconds, 0)
        check_count("warmup_calls", warmup_calls, maximum=WINDOW_CALLS)
        self.quantile = quantile
        self.fixed_seconds = fixed_seconds
        self._least = least_seconds
        self._warmup = warmup_calls
        self._recent: deque[float] = deque()
        self._sorted: list[float] = []
        self._lock = threading.Lock()

    @property
    def calls(self) -> int:
        """How many calls it goes by now, from 0 to 512."""
        return len(self._recent)

    def seconds(self) -> float | None:
        """The delay now, in seconds; None as long as too little is known."""
        if self.fixed_seconds is not None:
            return self.fixed_seconds
        with self._lock:
            known = len(self._sorted)
            if known < self._warmup:
                return None
            measured = self._sorted[math.ceil(self.quantile * known) - 1]
        return measured if measured > self._least else self._least

    def typical_seconds(self) -> float:
        """What half of the calls do not exceed, in seconds; 0 if nothing is known."""
        with self._lock:
            return self._sorted[(len(self._sorted) - 1) // 2] if self._sorted else 0.0

    def answered(self, seconds: float) -> None:
        """A first answer came after `seconds`; what is no finite number >= 0 is passed over."""
        if not 0 <= seconds < math.inf:
            return
        with self._lock:
            if len(self._recent) >= WINDOW_CALLS:
                del self._sorted[bisect_left(self._sorted, self._recent.popleft())]
            self._recent.append(seconds)
            insort(self._sorted, seconds)

    def unanswered(self, seconds: float, delay_seconds: float | None) -> None:
        """A call ended without an answer after `seconds`: overtaken, failed, or cancelled.

        Sooner than the delay it says nothing of how long answers take: an error comes when it likes. Later than that
        it was slow, and counts for as long as it was waited for.

        Args:
            seconds: how long it was waited for.
            delay_seconds: the delay of that call; None if there was none.
        """
        if delay_seconds is not None and seconds >= delay_seconds:
            self.answered(seconds)
