"""What retries, breakers and limits decide by, in plain Python: without telemetry, for one process.

Each may be shared by everything that leads to the same target, in any thread, as ours may; a lock, held for a few
lines, sees to it. Left out, though ours has it: deadlines, priorities, limits that adapt, and other processes.
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
_BASE_SECONDS, _MOST_SECONDS = 0.5, 8.0
_MOST_RETRY_AFTER_SECONDS = 60.0
_WINDOW_SECONDS, _PAUSE_SECONDS = 30, 21.0
_RATIO, _MINIMUM_CALLS, _IN_A_ROW = 0.5, 10, 3
_MOST_WAITING = 1000
_MOST_PATIENCE_SECONDS = 60.0
_TOO_MANY, _SERVER_ERROR, _NOT_IMPLEMENTED, _TIMED_OUT = 429, 500, 501, 504
_PASSING = (408, 409, 425, _TOO_MANY)
_RECENT = 512


class RefusedError(Exception):
    """The call was not made."""


def status_of(error: BaseException) -> int | None:
    """The HTTP status that a client's error carries."""
    status = getattr(error, "status_code", None)
    return status if isinstance(status, int) else None


def retry_after(error: BaseException) -> float:
    """How long the provider asks to wait, in seconds."""
    headers = getattr(getattr(error, "response", None), "headers", None)
    try:
        return float(headers.get("retry-after", 0.0)) if headers is not None else 0.0
    except ValueError:
        return 0.0


def may_pass(error: BaseException) -> bool:
    """Whether the same target may be asked again."""
    status = status_of(error)
    if status is None:
        return isinstance(error, ConnectionError)
    return status in _PASSING or (status >= _SERVER_ERROR and status not in (_NOT_IMPLEMENTED, _TIMED_OUT))


def another_may_serve(error: BaseException) -> bool:
    """Whether another target may be asked: what is wrong with the request is wrong everywhere."""
    status = status_of(error)
    return status is None or status in _PASSING or status >= _SERVER_ERROR


def counts_against(error: BaseException) -> bool:
    """Whether it is the target's failure."""
    return not isinstance(error, RefusedError) and another_may_serve(error) and status_of(error) != _TOO_MANY


def pause_before(retry: int, error: BaseException) -> float:
    """Seconds until the retry of this number: exponential with full jitter, and what the provider asks for."""
    return max(min(_MOST_SECONDS, _BASE_SECONDS * 2 ** (retry - 1)) * random(), retry_after(error))


class Budget:
    """A token bucket for retries: a share of the calls, and a few a minute."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._balance = _BUDGET_BURST
        self._paid_until = monotonic()

    def deposit(self) -> None:
        """A call begins."""
        with self._lock:
            self._balance = min(_BUDGET_BURST, self._balance + _BUDGET_RATIO)

    def withdraw(self) -> bool:
        """Whether one more may be made."""
        with self._lock:
            now = monotonic()
            earned = (now - self._paid_until) * _BUDGET_PER_SECOND
            self._balance = min(_BUDGET_BURST, self._balance + earned)
            self._paid_until = now
            if self._balance < 1:
                return False
            self._balance -= 1
            return True


class Circuit:
    """Opens on a share of failures or on a few in a row, and then lets one probe through at a time.

    Args:
        turned: told the new state.
    """

    def __init__(self, turned: Callable[[str], None] = lambda _: None) -> None:
        self.state = "closed"
        self._turned = turned
        self._lock = Lock()
        self._generation = 0
        self._in_a_row = 0
        self._seconds: deque[list[int]] = deque()  # of each second: which one, calls, failures
        self._open_until = 0.0

    def enter(self, last_target: bool) -> int:
        """Leave for one call: a number to be given to `leave`, negative for a probe.

        Raises:
            RefusedError: there is none.
        """
        with self._lock:
            if self.state == "closed":
                return self._generation
            if self.state == "half_open" or (monotonic() < self._open_until and not last_target):
                raise RefusedError
            self._turn("half_open")
            return -self._generation

    def leave(self, ticket: int, failed: bool | None) -> None:
        """How the call went; None if that says nothing."""
        with self._lock:
            if abs(ticket) != self._generation:
                return
            if ticket < 0:
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
            self._in_a_row = 0
            return
        seconds[-1][2] += 1
        self._in_a_row += 1
        calls, failures = sum(each[1] for each in seconds), sum(each[2] for each in seconds)
        few = calls - self._in_a_row < _MINIMUM_CALLS
        if (calls >= _MINIMUM_CALLS and failures / calls >= _RATIO) or (few and self._in_a_row >= _IN_A_ROW):
            self._open(now)

    def _open(self, now: float) -> None:
        self._open_until = now + _PAUSE_SECONDS * (1 - 0.1 * random())
        self._turn("open")

    def _close(self) -> None:
        self._seconds.clear()
        self._in_a_row = 0
        self._turn("closed")

    def _turn(self, state: str) -> None:
        self._generation += 1
        self.state = state
        self._turned(state)


class Slots:
    """So many at once, over all event loops; a bounded number waits, first come first served."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.in_flight = 0
        self._lock = Lock()
        self._line: deque[asyncio.Future[None]] = deque()

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._line)

    def take(self) -> bool:
        """Takes a slot if one is free."""
        with self._lock:
            if self.in_flight >= self.limit:
                return False
            self.in_flight += 1
            return True

    async def wait(self) -> None:
        """Waits for a slot.

        Raises:
            RefusedError: too many wait already.
        """
        with self._lock:
            if self.in_flight < self.limit:
                self.in_flight += 1
                return
            if len(self._line) >= _MOST_WAITING:
                raise RefusedError
            turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._line.append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            with self._lock:
                waits = turn in self._line
                if waits:
                    self._line.remove(turn)
            if not waits:  # the slot had been handed over
                self.give_back()
            raise

    def give_back(self) -> None:
        """Hands the slot to the first who waits, or frees it."""
        with self._lock:
            while self._line:
                turn = self._line.popleft()
                try:
                    turn.get_loop().call_soon_threadsafe(_wake, turn)
                except RuntimeError:  # that loop is closed
                    continue
                return
            self.in_flight -= 1


def _wake(turn: asyncio.Future[None]) -> None:
    if not turn.done():
        turn.set_result(None)


class Allowance:
    """Requests and tokens a minute: two buckets that time fills, and a gate that a provider may close."""

    def __init__(self, requests_per_minute: float, tokens_per_minute: float) -> None:
        self._lock = Lock()
        self._most = (requests_per_minute, tokens_per_minute)
        self._per_second = (requests_per_minute / 60, tokens_per_minute / 60)
        self.requests, self.tokens = self._most
        self._at = monotonic()
        self._closed_until = 0.0
        self._waiting = 0
        self._turn = asyncio.Lock()

    def take(self, tokens: float) -> bool:
        """Takes a request and its tokens, if nobody waits and both are there."""
        return not self._waiting and self._take(tokens) <= 0

    def _take(self, tokens: float) -> float:
        with self._lock:
            now = monotonic()
            passed, self._at = now - self._at, now
            self.requests = min(self._most[0], self.requests + passed * self._per_second[0])
            self.tokens = min(self._most[1], self.tokens + passed * self._per_second[1])
            wait = max(
                self._closed_until - now,
                (1 - self.requests) / self._per_second[0],
                (tokens - self.tokens) / self._per_second[1],
            )
            if wait <= 0:
                self.requests -= 1
                self.tokens -= tokens
            return wait

    async def wait(self, tokens: float) -> None:
        """Waits until both are there.

        Raises:
            RefusedError: that would take too long.
        """
        until = monotonic() + _MOST_PATIENCE_SECONDS
        self._waiting += 1
        try:
            async with self._turn:
                while (wait := self._take(tokens)) > 0:
                    if monotonic() + wait > until:
                        raise RefusedError
                    await asyncio.sleep(wait)
        finally:
            self._waiting -= 1

    def give_back(self, tokens: float) -> None:
        """Puts back what was not used; negative for what was used beyond."""
        with self._lock:
            self.tokens += tokens

    def lower(self, requests: float, tokens: float) -> None:
        """Leaves no more than the provider says there is."""
        with self._lock:
            self.requests = min(self.requests, requests)
            self.tokens = min(self.tokens, tokens)

    def close_for(self, seconds: float) -> None:
        """Lets nobody through for a while."""
        with self._lock:
            self._closed_until = max(self._closed_until, monotonic() + seconds)


class Slow:
    """After how long a call is slow: a quantile of the recent ones."""

    def __init__(self, quantile: float, least_seconds: float, warmup: int) -> None:
        self._quantile = quantile
        self._least = least_seconds
        self._warmup = warmup
        self._lock = Lock()
        self._recent: deque[float] = deque()
        self._sorted: list[float] = []

    def seconds(self) -> float | None:
        """The time; None while too little is known."""
        with self._lock:
            known = len(self._sorted)
            if known < self._warmup:
                return None
            return max(self._least, self._sorted[math.ceil(self._quantile * known) - 1])

    def took(self, seconds: float) -> None:
        """A call was waited for so long."""
        with self._lock:
            if len(self._recent) >= _RECENT:
                del self._sorted[bisect_left(self._sorted, self._recent.popleft())]
            self._recent.append(seconds)
            insort(self._sorted, seconds)
