"""A circuit breaker for one target: calls that would fail are refused, and one at a time finds out when they would not.

::

    closed     too many failures                          open
    open       the pause is over, or a probe is forced    half_open, with one probe out
    half_open  the probe succeeded                        closed
    half_open  the probe failed                           open, for longer
    half_open  a forced probe failed, or was cancelled    open, as if nothing had been
    any        `Breaker.force_open`                       open
    any        `Breaker.reset`                            closed
    any        another process says so                    open or closed (see `breaker_shared`)

It decides and counts, and does nothing else: whoever calls the target asks `Breaker.admit` first and tells the `Permit`
afterwards how the call went. Of calls that began before the state last changed nothing is believed any more.
"""

from __future__ import annotations

import random as _random
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal, NamedTuple

from observability_integration.checks import check_positive
from observability_integration.telemetry.guard import note_fault

from .policy import BreakerPolicy
from .window import FailureWindow

State = Literal["closed", "open", "half_open"]
Why = Literal[
    "failure_ratio",
    "consecutive_failures",
    "due",
    "forced",
    "probe_succeeded",
    "probe_failed",
    "probe_ignored",
    "by_hand",
    "shared",
]
OnTransition = Callable[[State, State, Why], None]

_ASK_AGAIN_SECONDS = 1.0  # nobody knows when a probe will end


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
    """Leave to call the target once, for callers without a primitive: they say how the call went.

    Only the first of `success`, `failure` and `ignore` counts, in whichever thread.

    Attributes:
        probe: whether the call decides on the state.
    """

    __slots__ = ("_breaker", "_ticket", "probe")

    def __init__(self, breaker: Breaker, ticket: int) -> None:
        self._breaker = breaker
        self._ticket = [ticket]  # taken out by the first word: `pop` is atomic
        self.probe = ticket < 0

    @property
    def settled(self) -> bool:
        """Whether the word was said."""
        return not self._ticket

    def success(self) -> None:
        """The target answered as it should."""
        self._say(False)

    def failure(self) -> None:
        """The target failed, or did not answer in time."""
        self._say(True)

    def ignore(self) -> None:
        """The call was cancelled, or ended in a way that says nothing about the target."""
        self._say(None)

    def _say(self, failed: bool | None) -> None:
        with suppress(IndexError):
            self._breaker.leave(self._ticket.pop(), failed)


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
        self._watchers: tuple[OnTransition, ...] = () if on_transition is None else (on_transition,)
        self._clock = clock
        self._random = random
        self._lock = threading.Lock()
        self._state: State = "closed"
        self._generation = 0
        self._window = FailureWindow(self.policy.window_seconds, clock())
        self._in_a_row = 0
        self._longest = self.policy.open_seconds
        self._paused_at = 0.0
        self._pause_seconds = 0.0
        self._probe: int | None = None
        self._probes = 0
        self._probed_at = 0.0
        self._early = False
        self._successes = 0
        self._untold: deque[tuple[State, State, Why]] = deque()
        self._telling = False
        self._unheard: deque[tuple[int, bool | None, float]] = deque()

    @property
    def state(self) -> State:
        """``closed``, ``open`` or ``half_open``; an open one stays open until somebody asks after its pause."""
        return self._state

    def watch(self, on_transition: OnTransition) -> None:
        """Has one more told of each change, as the constructor has."""
        with self._lock:
            self._watchers = (*self._watchers, on_transition)
        self._catch_up()

    def counts(self, now: float | None = None) -> Counts:
        """What has been counted."""
        with self._lock:
            window = self._window
            window.move(self._clock() if now is None else now)
            counts = Counts(window.calls, window.failures, self._in_a_row, self._probe is not None)
        self._catch_up()
        return counts

    def admit(self, now: float | None = None) -> Permit | Refusal:
        """Asks for leave to call the target.

        Args:
            now: the clock's time, for a caller that has just read it.
        """
        answer = self.enter(now)
        return answer if isinstance(answer, Refusal) else Permit(self, answer)

    def force_probe(self, now: float | None = None) -> Permit | Refusal:
        """Asks for leave for the last target that is left: when open, one probe is let through ahead of time.

        A forced probe that fails neither lengthens the pause nor begins it anew. Still only one probe is out at a time.
        """
        answer = self.enter(now, forced=True)
        return answer if isinstance(answer, Refusal) else Permit(self, answer)

    def enter(self, now: float | None = None, *, forced: bool = False) -> int | Refusal:
        """The same for a guard, which says how the call went by `leave`, exactly once.

        Returns:
            A ticket: the number of changes of state so far, or a negative number for a probe. Else the refusal.
        """
        # Without the lock: at worst the state changes meanwhile, and then what this ticket's holder says is ignored.
        if self._state == "closed" and not forced:
            return self._generation
        return self._ask(now, forced=forced)

    def force_open(self, seconds: float | None = None) -> None:
        """Opens it by hand, whatever was counted. What is under way goes on, and is not listened to.

        Args:
            seconds: the pause, finite and > 0; by default as long as if it had opened by itself.

        Raises:
            ConfigurationError: `seconds` is not such a number.
        """
        check_positive("seconds", seconds, optional=True)
        now = self._clock()
        with self._lock:
            self._open("by_hand", now, now)
            if seconds is not None:
                self._pause_seconds = seconds
        self._catch_up()

    def reset(self) -> None:
        """Closes it by hand, with a clean slate: the target is known to be well."""
        with self._lock:
            self._close("by_hand")
        self._catch_up()

    def _ask(self, now: float | None, *, forced: bool) -> int | Refusal:
        if now is None:
            now = self._clock()
        with self._lock:
            answer = self._admit(now, forced)
        if self._untold or self._unheard:
            self._catch_up()
        return answer

    def _admit(self, now: float, forced: bool) -> int | Refusal:
        if self._state == "closed":
            return self._generation
        if self._state == "open":
            left = self._left(now)
            if left > 0 and not forced:
                return Refusal(left)
            if left <= 0 and not forced and not self._may_probe(now):
                return Refusal(_ASK_AGAIN_SECONDS)
            self._early = left > 0
            self._successes = 0
            self._turn("half_open", "forced" if left > 0 else "due")
        elif self._probe is not None:
            self._probed_at = min(self._probed_at, now)
            left = self._probed_at + self.policy.probe_seconds - now
            if left > 0:
                return Refusal(min(left, _ASK_AGAIN_SECONDS))
        elif not forced and not self._may_probe(now):
            return Refusal(_ASK_AGAIN_SECONDS)
        self._probed_at = now
        self._probes += 1
        self._probe = -self._probes
        return self._probe

    def _left(self, now: float) -> float:
        # A clock that was set back has a pause begin anew, at the most: it must not last until the clock has caught up.
        self._paused_at = min(self._paused_at, now)
        return self._paused_at + self._pause_seconds - now

    def _may_probe(self, now: float) -> bool:
        """Whether a probe that is due may be let through; asked under the lock."""
        return True

    def leave(self, ticket: int, failed: bool | None) -> None:
        """Says how the call of a ticket went.

        Args:
            ticket: from `enter`.
            failed: whether the target failed; None for an ending that says nothing about it.
        """
        now = self._clock()
        # A finaliser may speak for a stream that was dropped, in a thread that is in the middle of this class.
        if not self._lock.acquire(False):
            self._unheard.append((ticket, failed, now))
            self._catch_up()
            return
        try:
            # A success while it is closed is most of what there is to hear, so it costs no further calls.
            if failed is False and ticket == self._generation and self._state == "closed":
                self._window.add(now, False)
                self._in_a_row = 0
            else:
                self._hear(ticket, failed, now)
        finally:
            self._lock.release()
        if self._untold or self._unheard:
            self._catch_up()

    def _hear(self, ticket: int, failed: bool | None, now: float) -> None:
        if ticket == self._probe:
            self._probe = None
            self._judge(failed, now)
        elif failed is not None and ticket == self._generation and self._state == "closed":
            self._count(failed, now)

    def _count(self, failed: bool, now: float) -> None:
        window = self._window
        window.add(now, failed)
        if not failed:
            self._in_a_row = 0
            return
        self._in_a_row += 1
        policy = self.policy
        if window.calls >= policy.minimum_calls and window.failures / window.calls >= policy.failure_ratio:
            self._longest = policy.first_open_seconds(window.calls)
            self._open("failure_ratio", now, now)
        elif self._in_a_row >= policy.consecutive_failures and (
            window.calls - self._in_a_row < policy.minimum_calls or self._in_a_row >= policy.minimum_calls
        ):
            self._longest = policy.first_open_seconds(window.calls)
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
                self._close("probe_succeeded")

    def _open(self, why: Why, since: float, now: float) -> None:
        self._pause_seconds = self._longest * (1 - self.policy.jitter * self._random())
        # From when the probe began: a target that hangs is found again as soon as one that refuses. But at least half
        # of the pause is one, or those who call would take turns in waiting for it.
        self._paused_at = max(since, now - self._pause_seconds / 2)
        self._early = False
        self._turn("open", why)

    def _close(self, why: Why) -> None:
        self._longest = self.policy.open_seconds
        self._early = False
        self._turn("closed", why)

    def _turn(self, state: State, why: Why) -> None:
        old, self._state = self._state, state
        self._generation += 1
        self._window.clear()
        self._in_a_row = 0
        self._probe = None
        if state != old:
            self._untold.append((old, state, why))

    def _catch_up(self) -> None:
        """Does what came up while the lock was held: by whoever held it, as the first thing without it.

        One tells at a time, and tells what comes up meanwhile: so it is in order, and the lock is free.
        """
        while self._unheard or (self._untold and not self._telling):
            if not self._lock.acquire(blocking=False):
                return
            turn = None
            try:
                while self._unheard:
                    self._hear(*self._unheard.popleft())
                if self._untold and not self._telling:
                    self._telling = True
                    turn = self._untold.popleft()
            finally:
                self._lock.release()
            if turn is not None:
                self._tell(*turn)

    def _tell(self, old: State, new: State, why: Why) -> None:
        try:
            for watcher in self._watchers:
                try:
                    watcher(old, new, why)
                except Exception as error:  # noqa: BLE001 - a hook's fault is not the caller's
                    note_fault("breaker.on_transition", error)
        finally:
            self._telling = False


__all__ = ["Breaker", "BreakerPolicy", "Counts", "OnTransition", "Permit", "Refusal", "State", "Why"]
