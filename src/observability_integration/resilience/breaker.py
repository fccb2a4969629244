"""A circuit breaker for one target: calls that would fail are refused, and one at a time finds out when they would not.

::

    closed     too many failures                          open
    open       the pause is over, or a probe is forced    half_open, with one probe out
    half_open  the probe succeeded                        closed
    half_open  the probe failed                           open, for longer
    half_open  a forced probe failed, or was cancelled    open, as if nothing had been

It decides and counts, and does nothing else: whoever calls the target asks `Breaker.admit` first and tells the `Permit`
afterwards how the call went. Of calls that began before the state last changed nothing is believed any more.
"""

from __future__ import annotations

import random as _random
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from observability_integration.errors import ConfigurationError
from observability_integration.telemetry.guard import note_fault

from .backoff import check_at_least, check_count, check_positive

State = Literal["closed", "open", "half_open"]
Why = Literal[
    "failure_ratio", "consecutive_failures", "due", "forced", "probe_succeeded", "probe_failed", "probe_ignored"
]
OnTransition = Callable[[State, State, Why], None]

_BUCKETS = 10  # the window moves on by a tenth of its length
_ASK_AGAIN_SECONDS = 1.0  # nobody knows when a probe will end


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerPolicy:
    """When a breaker opens, and for how long.

    The defaults are chosen together. A target that fails at once for 60 s, and is asked every 4 s with up to three
    attempts, sees at most five of them: three that open the breaker, then two probes, because the shortest pauses (18.9
    s, then 21.15 s twice) add up to more than 60 s. Down for longer, it sees one more every 21.15 s. And it is used
    again at most 23.5 + 4 s after it is back; with pauses shorter than six times those 4 s, the third probe, which
    finds it well, is never later than the nineteenth call. One that hangs sees also what was under way when it opened.

    Attributes:
        failure_ratio: share of the calls in the window at which it opens, above 0, at most 1. A half, as in
            resilience4j and Hystrix: a provider with fewer faults is still worth its retries.
        minimum_calls: calls in the window below which the ratio says nothing, >= 1. With ten calls, a target of which a
            tenth of the calls fails shows half of them failing once in 600 windows.
        window_seconds: how far back the ratio looks (it moves on in tenths), > 0. 30 as in Polly and Finagle.
        consecutive_failures: failures in a row at which it opens while the window holds fewer than `minimum_calls`
            others, so that a target with little traffic trips too; as many as one call with two retries makes. At least
            1. With more traffic, as many failures in a row as `minimum_calls` open it: three would come by chance, with
            a twentieth of faults once in 8,000 calls.
        open_seconds: the first pause, > 0.
        growth: by how much the pause grows each time a probe fails, >= 1.
        max_open_seconds: the longest pause, >= `open_seconds`. A higher one spares a target that is down for long and
            is paid for with the time until it is used again.
        jitter: up to which fraction a pause is cut at random, 0 to below 1, so that replicas do not probe together.
        probe_seconds: after which time a probe that was not heard of is given up for lost, and another one is let
            through, > 0. Longer than a call should take: twice the 30 s that are usual for a whole call.
        successes_to_close: probes in a row that must succeed, >= 1.

    Raises:
        ConfigurationError: a value out of range.
    """

    failure_ratio: float = 0.5
    minimum_calls: int = 10
    window_seconds: float = 30.0
    consecutive_failures: int = 3
    open_seconds: float = 21.0
    growth: float = 1.5
    max_open_seconds: float = 23.5
    jitter: float = 0.1
    probe_seconds: float = 60.0
    successes_to_close: int = 1

    def __post_init__(self) -> None:
        check_positive("failure_ratio", self.failure_ratio)
        if self.failure_ratio > 1:
            raise ConfigurationError(f"failure_ratio must be <= 1, got {self.failure_ratio!r}")
        for knob in ("minimum_calls", "consecutive_failures", "successes_to_close"):
            check_count(knob, getattr(self, knob))
        for knob in ("window_seconds", "open_seconds", "max_open_seconds", "probe_seconds"):
            check_positive(knob, getattr(self, knob))
        if self.max_open_seconds < self.open_seconds:
            raise ConfigurationError("open_seconds must not be greater than max_open_seconds; raise max_open_seconds")
        check_at_least("growth", self.growth, 1)
        check_at_least("jitter", self.jitter, 0)
        if self.jitter >= 1:
            raise ConfigurationError(f"jitter must be < 1, got {self.jitter!r}")


@dataclass(frozen=True, slots=True)
class Refusal:
    """The target must not be called.

    Attributes:
        retry_after_seconds: before which it is no use to ask again, > 0.
    """

    retry_after_seconds: float


class Counts(NamedTuple):
    """What a breaker has counted since its state last changed, and whether a probe is out.

    Attributes:
        calls: calls in the window that succeeded or failed; 0 unless closed.
        failures: those that failed.
        consecutive_failures: failures since the last success, in the window or before it.
        probing: whether a probe is out.
    """

    calls: int
    failures: int
    consecutive_failures: int
    probing: bool


class Permit:
    """Leave to call the target once; say how it went with `success`, `failure` or `ignore`. Only the first word counts.

    Attributes:
        generation: how often the state had changed when it was given.
        probe: whether the call decides on the state.
        settled: whether the word was said.
    """

    __slots__ = ("_settle", "generation", "probe", "settled")

    def __init__(self, settle: Callable[[Permit, bool | None], None], generation: int, probe: bool = False) -> None:
        self._settle = settle
        self.generation = generation
        self.probe = probe
        self.settled = False

    def success(self) -> None:
        """The target answered as it should."""
        self._settle(self, False)

    def failure(self) -> None:
        """The target failed, or did not answer in time."""
        self._settle(self, True)

    def ignore(self) -> None:
        """The call was cancelled, or ended in a way that says nothing about the target."""
        self._settle(self, None)


class Breaker:
    """The breaker of one target, shared by all who call it, in any thread and event loop.

    Args:
        policy: when it opens, and for how long.
        on_transition: told (old state, new state, why) of each change, in order and outside of every lock, in the
            thread of one of those who call; must return at once. What it raises is counted and logged.
        clock: seconds that only go forward. One that is set back lengthens a pause at the most once.
        random: numbers from 0 to below 1.
    """

    def __init__(
        self,
        policy: BreakerPolicy | None = None,
        *,
        on_transition: OnTransition | None = None,
        clock: Callable[[], float] = time.monotonic,
        random: Callable[[], float] = _random.random,
    ) -> None:
        self.policy = policy or BreakerPolicy()
        self._on_transition = on_transition or _tell_nobody
        self._clock = clock
        self._random = random
        self._lock = threading.Lock()
        self._state: State = "closed"
        self._generation = 0
        self._window = _Window(self.policy.window_seconds, clock())
        self._in_a_row = 0
        self._longest = self.policy.open_seconds
        self._paused_at = 0.0
        self._pause_seconds = 0.0
        self._probe: Permit | None = None
        self._probed_at = 0.0
        self._early = False
        self._successes = 0
        self._untold: deque[tuple[State, State, Why]] = deque()
        self._telling = False

    @property
    def state(self) -> State:
        """``closed``, ``open`` or ``half_open``; an open one stays open until somebody asks after its pause."""
        return self._state

    def counts(self, now: float | None = None) -> Counts:
        """What has been counted."""
        with self._lock:
            window = self._window
            window.move(self._clock() if now is None else now)
            return Counts(window.calls, window.failures, self._in_a_row, self._probe is not None)

    def admit(self, now: float | None = None) -> Permit | Refusal:
        """Asks for leave to call the target.

        Args:
            now: the clock's time, for who has just read it.
        """
        # Without the lock: at worst the state changes while we look, and then this permit's word is not heard.
        if self._state == "closed":
            return Permit(self._settle, self._generation)
        return self._ask(now, forced=False)

    def force_probe(self, now: float | None = None) -> Permit | Refusal:
        """Asks for leave for the last target that is left: when open, one probe is let through though it is not time.

        A forced probe that fails neither lengthens the pause nor begins it anew. Still only one probe is out at a time.
        """
        return self._ask(now, forced=True)

    def _ask(self, now: float | None, *, forced: bool) -> Permit | Refusal:
        if now is None:
            now = self._clock()
        with self._lock:
            answer = self._admit(now, forced)
        if self._untold:
            self._tell()
        return answer

    def _admit(self, now: float, forced: bool) -> Permit | Refusal:
        if self._state == "closed":
            return Permit(self._settle, self._generation)
        if self._state == "open":
            left = self._left(now)
            if left > 0 and not forced:
                return Refusal(left)
            self._early = left > 0
            self._successes = 0
            self._turn("half_open", "forced" if left > 0 else "due")
        elif self._probe is not None:
            self._probed_at = min(self._probed_at, now)
            left = self._probed_at + self.policy.probe_seconds - now
            if left > 0:
                return Refusal(min(left, _ASK_AGAIN_SECONDS))
        self._probed_at = now
        self._probe = Permit(self._settle, self._generation, probe=True)
        return self._probe

    def _left(self, now: float) -> float:
        # A clock that was set back has a pause begin anew, at the most: it must not last until the clock has caught up.
        self._paused_at = min(self._paused_at, now)
        return self._paused_at + self._pause_seconds - now

    def _settle(self, permit: Permit, failed: bool | None) -> None:
        now = self._clock()
        with self._lock:
            if permit.settled:
                return
            permit.settled = True
            if permit is self._probe:
                self._probe = None
                self._judge(failed, now)
            elif failed is not None and permit.generation == self._generation and self._state == "closed":
                self._count(failed, now)
        if self._untold:
            self._tell()

    def _count(self, failed: bool, now: float) -> None:
        window = self._window
        window.add(now, failed)
        if not failed:
            self._in_a_row = 0
            return
        self._in_a_row += 1
        policy = self.policy
        if window.calls >= policy.minimum_calls and window.failures / window.calls >= policy.failure_ratio:
            self._open("failure_ratio", now, now)
        elif self._in_a_row >= policy.consecutive_failures and (
            window.calls - self._in_a_row < policy.minimum_calls or self._in_a_row >= policy.minimum_calls
        ):
            self._open("consecutive_failures", now, now)

    def _judge(self, failed: bool | None, now: float) -> None:
        policy = self.policy
        if self._early and failed is not False and self._left(now) > 0:
            self._turn("open", "probe_ignored" if failed is None else "probe_failed")
        elif failed:
            self._longest = min(policy.max_open_seconds, self._longest * policy.growth)
            self._open("probe_failed", self._probed_at, now)
        elif failed is not None:
            self._early = False
            self._successes += 1
            if self._successes >= policy.successes_to_close:
                self._longest = policy.open_seconds
                self._turn("closed", "probe_succeeded")

    def _open(self, why: Why, since: float, now: float) -> None:
        self._pause_seconds = self._longest * (1 - self.policy.jitter * self._random())
        # From when the probe began: a target that hangs is found again as soon as one that refuses. But at least half
        # of the pause is one, or those who call would take turns in waiting for it.
        self._paused_at = max(since, now - self._pause_seconds / 2)
        self._turn("open", why)

    def _turn(self, state: State, why: Why) -> None:
        old, self._state = self._state, state
        self._generation += 1
        self._window.clear()
        self._in_a_row = 0
        self._untold.append((old, state, why))

    def _tell(self) -> None:
        # One tells at a time, and tells what comes up meanwhile: so it is in order, and the lock is free.
        while self._untold:
            with self._lock:
                if self._telling or not self._untold:
                    return
                self._telling = True
                turn = self._untold.popleft()
            try:
                self._on_transition(*turn)
            except Exception as error:  # noqa: BLE001 - a hook's fault is not the caller's
                note_fault("breaker.on_transition", error)
            finally:
                self._telling = False


def _tell_nobody(old: State, new: State, why: Why) -> None:
    pass


class _Window:
    """Counts over the last seconds, in a ring of buckets."""

    __slots__ = ("_calls", "_failures", "_index", "_width", "calls", "failures")

    def __init__(self, seconds: float, now: float) -> None:
        self._width = seconds / _BUCKETS
        self._index = int(now // self._width)
        self.clear()

    def clear(self) -> None:
        self._calls = [0] * _BUCKETS
        self._failures = [0] * _BUCKETS
        self.calls = 0
        self.failures = 0

    def add(self, now: float, failed: bool) -> None:
        if now // self._width != self._index:
            self.move(now)
        place = self._index % _BUCKETS
        self._calls[place] += 1
        self.calls += 1
        if failed:
            self._failures[place] += 1
            self.failures += 1

    def move(self, now: float) -> None:
        index = int(now // self._width)
        steps = index - self._index
        if steps == 0:
            return
        if steps < 0:
            # Two threads may come in the wrong order. A clock set back by more than the window is another clock.
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
