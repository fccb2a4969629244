"""Token buckets for the requests and tokens of a minute, and a gate that a provider's pause closes.

Buckets rather than windows: OpenAI and Anthropic refill continually; a fixed window admits twice the limit around its
end; a sliding window has to remember every call. The same rules hold here and in Redis (see `redis_script`):

* A call takes one request and its tokens from both buckets, or nothing from either.
* In any minute no more is taken than the limit and one full bucket, which is `burst_seconds` of the limit.
* A call that needs more tokens than a bucket holds goes when the bucket is full, and leaves a debt that time pays.
* Several queues of waiting calls may draw on the same buckets. Each queue claims what its first call needs, with the
  time since when that call waits. No later call, in any queue, takes what an earlier claim needs.
"""

from __future__ import annotations

import math
import threading
from collections import deque
from collections.abc import Hashable, Iterable
from typing import Literal, NamedTuple

Limit = Literal["requests", "tokens", "provider"]

#: Shorter waits count as none: they are rounding errors of a wait that is over.
TOLERANCE_SECONDS = 1e-6
#: How long a claim lasts without a renewal: a waiting queue asks again once a second.
CLAIM_SECONDS = 2.0

# The clocks of two loops of a process may differ by some milliseconds; a clock this far back is another clock.
_OTHER_CLOCK_SECONDS = 60.0


class Verdict(NamedTuple):
    """The result of a request for a batch of calls.

    Attributes:
        granted: how many of the calls may go, from the first on.
        wait_seconds: the time after which the next call may go.
        limit: what the next call waits for: ``requests``, ``tokens``, or ``provider``, which has closed the gate.
    """

    granted: int
    wait_seconds: float = 0.0
    limit: Limit = "requests"


class Bucket:
    """One limit.

    Args:
        per_minute: the limit, > 0.
        burst_seconds: the seconds of allowance that may be saved up.
        least: the smallest capacity.
        level: the level at first; None for the capacity.

    Attributes:
        per_minute: the limit.
        rate: the limit per second.
        capacity: the highest level.
        most: the largest amount that may be taken at once.
        level: what is left; less than 0 is a debt.
        slack: the rounding error of the level.
        taken: the sum of all that was taken.
    """

    __slots__ = ("capacity", "level", "most", "per_minute", "rate", "slack", "taken")

    def __init__(self, per_minute: float, burst_seconds: float, least: float, level: float | None = None) -> None:
        self.per_minute = per_minute
        self.rate = per_minute / 60
        self.slack = self.rate * TOLERANCE_SECONDS
        self.capacity = max(least, per_minute * burst_seconds / 60)
        self.most = max(per_minute, self.capacity)
        self.level = self.capacity if level is None else min(level, self.capacity)
        self.taken = 0.0

    def wait_for(self, amount: float, held: float = 0.0) -> float:
        """Returns the seconds until `amount` is left besides what is `held` for others; 0 or less if it is now."""
        return (min(amount, self.capacity) + held - self.level) / self.rate

    def take(self, amount: float) -> None:
        """Takes the amount, even if less is left."""
        self.level -= amount
        self.taken += amount


class _Claim(NamedTuple):
    since: float
    tokens: float
    until: float


class Ledger:
    """The buckets of one process, for all its event loops and threads.

    A lock, held for some microseconds, guards the numbers. `give_back` does not take it: the garbage collector may
    close a coroutine, which gives back its reservation, while this very thread holds the lock.

    Args:
        requests_per_minute: > 0, or None for no limit.
        tokens_per_minute: > 0, or None for no limit.
        burst_seconds: the seconds of allowance that may be saved up, >= 0. The capacity is at least one request.
    """

    def __init__(
        self, requests_per_minute: float | None, tokens_per_minute: float | None, burst_seconds: float
    ) -> None:
        self._burst_seconds = burst_seconds
        self._lock = threading.Lock()
        self._returned: deque[tuple[float, float]] = deque()
        self._claims: dict[Hashable, _Claim] = {}
        self._refilled_at = -math.inf
        self._closed_until = -math.inf
        self.requests: Bucket | None = None
        self.tokens: Bucket | None = None
        self.set_requests(requests_per_minute)
        self.set_tokens(tokens_per_minute)

    @property
    def taken(self) -> tuple[float, float]:
        """The sums of the requests and tokens that were taken while they were limited."""
        requests, tokens = self.requests, self.tokens
        return 0.0 if requests is None else requests.taken, 0.0 if tokens is None else tokens.taken

    def set_requests(self, per_minute: float | None) -> None:
        """Changes the limit of requests; the level stays, up to the new capacity."""
        with self._lock:
            self.requests = self._changed(self.requests, per_minute, 1.0)

    def set_tokens(self, per_minute: float | None) -> None:
        """Changes the limit of tokens, as `set_requests`."""
        with self._lock:
            self.tokens = self._changed(self.tokens, per_minute, 0.0)

    def _changed(self, bucket: Bucket | None, per_minute: float | None, least: float) -> Bucket | None:
        if per_minute is None:
            return None
        if bucket is None:
            return Bucket(per_minute, self._burst_seconds, least)
        changed = Bucket(per_minute, self._burst_seconds, least, bucket.level)
        changed.taken = bucket.taken
        return changed

    def take_one(self, tokens: float, now: float) -> tuple[float, float] | None:
        """Takes one call if no other call waits and enough is left; else returns None.

        Args:
            tokens: what the call needs besides one request.
            now: seconds on the event loop's clock.

        Returns:
            The value of `taken` afterwards.
        """
        self._lock.acquire()  # at half the cost of a with statement
        try:
            if self._claims or now < self._closed_until:
                return None
            if now != self._refilled_at or self._returned:
                self._refill(now)
            needed, spent = self.requests, self.tokens
            if needed is not None and needed.level < 1.0 - needed.slack:
                return None
            taken_tokens = 0.0
            if spent is not None:
                if spent.level < (tokens if tokens < spent.capacity else spent.capacity) - spent.slack:
                    return None
                spent.level -= tokens
                spent.taken = taken_tokens = spent.taken + tokens
            if needed is None:
                return 0.0, taken_tokens
            needed.level -= 1.0
            needed.taken += 1.0
            return needed.taken, taken_tokens
        finally:
            self._lock.release()

    def take(self, queue: Hashable, calls: Iterable[tuple[float, float]], now: float) -> Verdict:
        """Takes as many calls of a queue as there is enough for, in their order, and claims what the next one needs.

        Args:
            queue: name of the queue.
            calls: of each the tokens and since when it waits, on the event loop's clock. No calls withdraw the claim.
            now: seconds on the event loop's clock.
        """
        with self._lock:
            self._refill(now)
            self._claims = {
                other: claim for other, claim in self._claims.items() if claim.until > now and other != queue
            }
            ahead = deque(sorted(self._claims.values()))
            held_requests = held_tokens = 0.0
            granted = 0
            for tokens, since in calls:
                while ahead and ahead[0].since < since:
                    held_requests += 1
                    held_tokens += ahead.popleft().tokens
                verdict = self._verdict(granted, held_requests, held_tokens, tokens, now)
                if verdict.wait_seconds > TOLERANCE_SECONDS:
                    self._claims[queue] = _Claim(since, tokens, now + CLAIM_SECONDS)
                    return verdict
                if self.requests is not None:
                    self.requests.take(1.0)
                if self.tokens is not None:
                    self.tokens.take(tokens)
                granted += 1
            return Verdict(granted)

    def estimate(self, requests_ahead: int, tokens_ahead: float, tokens: float, now: float) -> Verdict:
        """Returns how long a call has to wait at least behind the calls ahead of it, and for what."""
        with self._lock:
            self._refill(now)
            return self._verdict(0, requests_ahead, tokens_ahead, tokens, now)

    def give_back(self, requests: float, tokens: float) -> None:
        """Puts back what was not used, or charges what was used in excess (negative). Never waits, in any thread."""
        self._returned.append((requests, tokens))

    def lower(self, requests: float | None, tokens: float | None, now: float) -> None:
        """Lowers the levels to these at most; None leaves a level as it is."""
        with self._lock:
            self._refill(now)
            for bucket, most in ((self.requests, requests), (self.tokens, tokens)):
                if bucket is not None and most is not None:
                    bucket.level = min(bucket.level, most)

    def adopt(self, requests: float | None, tokens: float | None, closed_seconds: float, now: float) -> None:
        """Adopts the levels of a shared ledger, and for how long its gate is closed."""
        with self._lock:
            self._refill(now)
            for bucket, level in ((self.requests, requests), (self.tokens, tokens)):
                if bucket is not None and level is not None:
                    bucket.level = min(bucket.capacity, level)
            self._closed_until = now + closed_seconds

    def note_taken(self, tokens: float) -> None:
        """Adds a call that the shared ledger granted to `taken`; the levels stay."""
        with self._lock:
            if self.requests is not None:
                self.requests.taken += 1
            if self.tokens is not None:
                self.tokens.taken += tokens

    def close_until(self, when: float) -> None:
        """Closes the gate until `when`, on the event loop's clock; never earlier than before."""
        with self._lock:
            self._closed_until = max(self._closed_until, when)

    def closed_seconds(self, now: float) -> float:
        """Returns for how long the gate is still closed."""
        return max(0.0, self._closed_until - now)

    def left(self, now: float) -> tuple[float | None, float | None]:
        """Returns what is left of requests and tokens, 0 or more; None without a limit."""
        with self._lock:
            self._refill(now)
            requests, tokens = self.requests, self.tokens
            return (
                None if requests is None else max(0.0, requests.level),
                None if tokens is None else max(0.0, tokens.level),
            )

    # The caller of the following methods holds the lock.

    def _verdict(self, granted: int, held_requests: float, held_tokens: float, tokens: float, now: float) -> Verdict:
        wait, limit = self._closed_until - now, "provider"
        for bucket, amount, held, name in (
            (self.requests, 1.0, held_requests, "requests"),
            (self.tokens, tokens, held_tokens, "tokens"),
        ):
            if bucket is not None:
                needed = bucket.wait_for(amount, held)
                if needed > wait:
                    wait, limit = needed, name
        return Verdict(granted, max(0.0, wait), limit)  # type: ignore[arg-type]

    def _refill(self, now: float) -> None:
        passed = now - self._refilled_at
        if passed > 0:
            self._refilled_at = now
        elif passed < -_OTHER_CLOCK_SECONDS:  # another event loop, with a clock of its own
            self._refilled_at = now
            self._closed_until = -math.inf
        requests, tokens = self.requests, self.tokens
        if passed > 0:
            if requests is not None:
                level = requests.level + requests.rate * passed
                requests.level = level if level < requests.capacity else requests.capacity
            if tokens is not None:
                level = tokens.level + tokens.rate * passed
                tokens.level = level if level < tokens.capacity else tokens.capacity
        while self._returned:
            of_requests, of_tokens = self._returned.popleft()
            if requests is not None:
                requests.level = min(requests.capacity, requests.level + of_requests)
            if tokens is not None:
                tokens.level = min(tokens.capacity, tokens.level + of_tokens)
