"""A sliding window of calls and failures, in a ring of buckets."""

from __future__ import annotations

_BUCKETS = 10  # the window moves by a tenth of its length


class FailureWindow:
    """Counts the calls and failures of the last seconds.

    Args:
        seconds: length of the window.
        now: seconds on the caller's clock.

    Attributes:
        calls: calls in the window.
        failures: failed calls in the window.
    """

    __slots__ = ("_calls", "_failures", "_index", "_width", "calls", "failures")

    def __init__(self, seconds: float, now: float) -> None:
        self._width = seconds / _BUCKETS
        self._index = int(now // self._width)
        self.clear()

    def clear(self) -> None:
        """Empties the window."""
        self._calls = [0] * _BUCKETS
        self._failures = [0] * _BUCKETS
        self.calls = 0
        self.failures = 0

    def add(self, now: float, failed: bool) -> None:
        """Counts a call that has ended."""
        if now // self._width != self._index:
            self.move(now)
        place = self._index % _BUCKETS
        self._calls[place] += 1
        self.calls += 1
        if failed:
            self._failures[place] += 1
            self.failures += 1

    def move(self, now: float) -> None:
        """Moves the window to `now`, and drops older buckets."""
        index = int(now // self._width)
        steps = index - self._index
        if steps == 0:
            return
        if steps < 0:
            # Two threads may report in the wrong order. A clock set back by more than the window is another clock.
            if steps <= -_BUCKETS:
                self.clear()
                self._index = index
            return
        if steps >= _BUCKETS:
            self.clear()
        else:
            for passed in range(self._index + 1, index + 1):
                place = passed % _BUCKETS
                self.calls -= self._calls[place]
                self.failures -= self._failures[place]
                self._calls[place] = self._failures[place] = 0
        self._index = index
