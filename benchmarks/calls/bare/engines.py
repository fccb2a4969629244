"""Engines of the equivalents, in plain Python, for one process: error classes, budget, circuit, limits, hedge delay.

Like ours, each is thread-safe and may be shared by all calls to a target. Left out, though ours has them: deadlines,
priorities, adaptive limits, and state that processes share.
"""

from __future__ import annotations

import asyncio
import math
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Callable
from random import random
from threading import Lock
from time import monotonic

_BUDGET_RATIO, _BUDGET_BURST, _BUDGET_PER_SECOND = 0.1, 50.0, 0.2
_BASE_BACKOFF_SECONDS, _MAX_BACKOFF_SECONDS = 0.5, 8.0
_MOST_RETRY_AFTER_SECONDS = 60.0
_WINDOW_SECONDS, _PAUSE_SECONDS = 30, 21.0
_RATIO, _MINIMUM_CALLS, _CONSECUTIVE_FAILURES = 0.5, 10, 3
_MAX_QUEUED = 1000
_MAX_WAIT_SECONDS = 60.0
_TOO_MANY, _SERVER_ERROR, _NOT_IMPLEMENTED, _TIMED_OUT = 429, 500, 501, 504
_RETRYABLE = (408, 409, 425, _TOO_MANY)
_RECENT = 512


class RefusedError(Exception):
    """The call was not made."""


def status_of(error: BaseException) -> int | None:
    """Returns the HTTP status of a client's error, or None."""
    status = getattr(error, "status_code", None)
    return status if isinstance(status, int) else None


def retry_after(error: BaseException) -> float:
    """Returns the seconds of the Retry-After header, or 0."""
    headers = getattr(getattr(error, "response", None), "headers", None)
    try:
        return float(headers.get("retry-after", 0.0)) if headers is not None else 0.0
    except ValueError:
        return 0.0


def is_retryable(error: BaseException) -> bool:
    """Whether the same target may be retried."""
    status = status_of(error)
    if status is None:
        return isinstance(error, ConnectionError)
    return status in _RETRYABLE or (status >= _SERVER_ERROR and status not in (_NOT_IMPLEMENTED, _TIMED_OUT))


def may_fail_over(error: BaseException) -> bool:
    """Whether to fail over: a bad request fails at every target."""
    status = status_of(error)
    return status is None or status in _RETRYABLE or status >= _SERVER_ERROR


def is_target_failure(error: BaseException) -> bool:
    """Whether the circuit counts the error as a failure of the target."""
    return not isinstance(error, RefusedError) and may_fail_over(error) and status_of(error) != _TOO_MANY


def backoff_seconds(retry: int, error: BaseException) -> float:
    """Returns the seconds before a retry: exponential backoff with full jitter, at least the Retry-After."""
    return max(min(_MAX_BACKOFF_SECONDS, _BASE_BACKOFF_SECONDS * 2 ** (retry - 1)) * random(), retry_after(error))


class Budget:
    """A retry budget: a token bucket filled by a share of the calls and by time."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._balance = _BUDGET_BURST
        self._refilled_at = monotonic()

    def deposit(self) -> None:
        """Adds the share of a call that starts."""
        with self._lock:
            self._balance = min(_BUDGET_BURST, self._balance + _BUDGET_RATIO)

    def withdraw(self) -> bool:
        """Takes a token for a retry; returns False if there is none."""
        with self._lock:
            now = monotonic()
            earned = (now - self._refilled_at) * _BUDGET_PER_SECOND
            self._balance = min(_BUDGET_BURST, self._balance + earned)
            self._refilled_at = now
            if self._balance < 1:
                return False
            self._balance -= 1
            return True


class Circuit:
    """Opens at a failure ratio or after consecutive failures; then allows one probe at a time.

    Args:
        on_transition: called with the new state.
    """

    def __init__(self, on_transition: Callable[[str], None] = lambda _: None) -> None:
        self.state = "closed"
        self._on_transition = on_transition
        self._lock = Lock()
        self._generation = 0
        self._consecutive_failures = 0
        self._seconds: deque[list[int]] = deque()  # per second: its number, calls, failures
        self._open_until = 0.0

    def enter(self, last_target: bool) -> int:
        """Returns a permit to pass to `leave`; negative for a probe.

        Raises:
            RefusedError: the circuit is open, or a probe is running.
        """
        with self._lock:
            if self.state == "closed":
                return self._generation
            if self.state == "half_open" or (monotonic() < self._open_until and not last_target):
                raise RefusedError
            self._transition("half_open")
            return -self._generation

    def leave(self, permit: int, failed: bool | None) -> None:
        """Records the outcome of a call; None if the outcome does not count."""
        with self._lock:
            if abs(permit) != self._generation:
                return
            if permit < 0:
                if failed is False:
                    self._close()
                else:
                    self._open(monotonic())
            elif failed is not None:
                self._count(monotonic(), failed)

    def _count(self, now: float, failed: bool) -> None:
        seconds, second = self._seconds, int(now)
        if not seconds or seconds[-1][0] != second:
            while seconds and seconds[0][0] <= second - _WINDOW_SECONDS:
                seconds.popleft()
            seconds.append([second, 0, 0])
        seconds[-1][1] += 1
        if not failed:
            self._consecutive_failures = 0
            return
        seconds[-1][2] += 1
        self._consecutive_failures += 1
        calls, failures = sum(each[1] for each in seconds), sum(each[2] for each in seconds)
        few = calls - self._consecutive_failures < _MINIMUM_CALLS
        if (calls >= _MINIMUM_CALLS and failures / calls >= _RATIO) or (
            few and self._consecutive_failures >= _CONSECUTIVE_FAILURES
        ):
            self._open(now)

    def _open(self, now: float) -> None:
        self._open_until = now + _PAUSE_SECONDS * (1 - 0.1 * random())
        self._transition("open")

    def _close(self) -> None:
        self._seconds.clear()
        self._consecutive_failures = 0
        self._transition("closed")

    def _transition(self, state: str) -> None:
        self._generation += 1
        self.state = state
        self._on_transition(state)


class ConcurrencyLimit:
    """Limits concurrent calls over all event loops. Excess calls wait in a bounded FIFO queue."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.in_flight = 0
        self._lock = Lock()
        self._waiters: deque[asyncio.Future[None]] = deque()

    @property
    def waiting(self) -> int:
        """The number of waiting calls."""
        return len(self._waiters)

    def take(self) -> bool:
        """Takes a slot if one is free; returns whether it did."""
        with self._lock:
            if self.in_flight >= self.limit:
                return False
            self.in_flight += 1
            return True

    async def wait(self) -> None:
        """Waits for a slot.

        Raises:
            RefusedError: the queue is full.
        """
        with self._lock:
            if self.in_flight < self.limit:
                self.in_flight += 1
                return
            if len(self._waiters) >= _MAX_QUEUED:
                raise RefusedError
            waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
        try:
            await waiter
        except asyncio.CancelledError:
            with self._lock:
                waits = waiter in self._waiters
                if waits:
                    self._waiters.remove(waiter)
            if not waits:  # the slot was assigned to this waiter
                self.give_back()
            raise

    def give_back(self) -> None:
        """Assigns the slot to the first waiter, or frees it."""
        with self._lock:
            while self._waiters:
                waiter = self._waiters.popleft()
                try:
                    waiter.get_loop().call_soon_threadsafe(_wake, waiter)
                except RuntimeError:  # the waiter's loop is closed
                    continue
                return
            self.in_flight -= 1


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


class RateBuckets:
    """Two buckets, of requests and of tokens per minute, and a pause that the provider may ask for."""

    def __init__(self, requests_per_minute: float, tokens_per_minute: float) -> None:
        self._lock = Lock()
        self._most = (requests_per_minute, tokens_per_minute)
        self._per_second = (requests_per_minute / 60, tokens_per_minute / 60)
        self.requests, self.tokens = self._most
        self._at = monotonic()
        self._paused_until = 0.0
        self._waiting = 0
        self._queue = asyncio.Lock()

    def take(self, tokens: float) -> bool:
        """Takes a request and its tokens, if no call waits and both are available; returns whether it did."""
        return not self._waiting and self._take(tokens) <= 0

    def _take(self, tokens: float) -> float:
        with self._lock:
            now = monotonic()
            passed, self._at = now - self._at, now
            self.requests = min(self._most[0], self.requests + passed * self._per_second[0])
            self.tokens = min(self._most[1], self.tokens + passed * self._per_second[1])
            wait = max(
                self._paused_until - now,
                (1 - self.requests) / self._per_second[0],
                (tokens - self.tokens) / self._per_second[1],
            )
            if wait <= 0:
                self.requests -= 1
                self.tokens -= tokens
            return wait

    async def wait(self, tokens: float) -> None:
        """Waits for a request and its tokens.

        Raises:
            RefusedError: the wait would be too long.
        """
        until = monotonic() + _MAX_WAIT_SECONDS
        self._waiting += 1
        try:
            async with self._queue:
                while (wait := self._take(tokens)) > 0:
                    if monotonic() + wait > until:
                        raise RefusedError
                    await asyncio.sleep(wait)
        finally:
            self._waiting -= 1

    def give_back(self, tokens: float) -> None:
        """Returns unused tokens; a negative number charges more."""
        with self._lock:
            self.tokens += tokens

    def lower(self, requests: float, tokens: float) -> None:
        """Lowers both buckets to what the provider reports as remaining."""
        with self._lock:
            self.requests = min(self.requests, requests)
            self.tokens = min(self.tokens, tokens)

    def pause(self, seconds: float) -> None:
        """Pauses all calls."""
        with self._lock:
            self._paused_until = max(self._paused_until, monotonic() + seconds)


class HedgeDelay:
    """The delay of a hedge: a quantile of recent latencies."""

    def __init__(self, quantile: float, least_seconds: float, warmup: int) -> None:
        self._quantile = quantile
        self._least = least_seconds
        self._warmup = warmup
        self._lock = Lock()
        self._recent: deque[float] = deque()
        self._sorted: list[float] = []

    def seconds(self) -> float | None:
        """Returns the delay; None during warm-up."""
        with self._lock:
            known = len(self._sorted)
            if known < self._warmup:
                return None
            return max(self._least, self._sorted[math.ceil(self._quantile * known) - 1])

    def record_latency(self, seconds: float) -> None:
        """Records the latency of a call."""
        with self._lock:
            if len(self._recent) >= _RECENT:
                del self._sorted[bisect_left(self._sorted, self._recent.popleft())]
            self._recent.append(seconds)
            insort(self._sorted, seconds)
