"""A circuit breaker for one target: refuses calls while the target fails, and probes for its recovery.

::

    closed     too many failures                          open
    open       the pause is over, or a probe is forced    half_open, with one probe out
    half_open  the probe succeeded                        closed
    half_open  the probe failed                           open, for longer
    half_open  a forced probe failed, or was cancelled    open, with the same pause
    any        `Breaker.force_open`                       open
    any        `Breaker.reset`                            closed
    any        the verdict of another process             open or closed (see `shared`)

The breaker only decides and counts: the caller asks `Breaker.admit` before the call, and reports the outcome to the
`Permit` afterwards. Outcomes of calls that began before the last change of state are ignored.
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

_PROBE_RETRY_AFTER_SECONDS = 1.0  # told to callers while a probe is out: its end is unknown


@dataclass(frozen=True, slots=True)
class Refusal:
    """The breaker refuses the call.

    Attributes:
        retry_after_seconds: the time after which a call may be admitted, > 0.
    """

    retry_after_seconds: float


class Counts(NamedTuple):
    """The counts of a breaker since its last change of state.

    Attributes:
        calls: calls in the window that succeeded or failed; 0 unless closed.
        failures: calls in the window that failed.
        consecutive_failures: failures since the last success, in the window or before it.
        probing: whether a probe is out.
    """

    calls: int
    failures: int
    consecutive_failures: int
    probing: bool


class Permit:
    """Admits one call of the target; the caller reports the outcome.

    Only the first of `success`, `failure` and `ignore` counts, in any thread.

    Attributes:
        probe: whether the call decides on the state.
        generation: how often the state had changed when it was given.
    """

    __slots__ = ("_breaker", "_ticket", "generation", "probe")

    def __init__(self, breaker: Breaker, ticket: int) -> None:
        self._breaker = breaker
        self._ticket = [ticket]  # removed by the first outcome: `pop` is atomic
        self.probe = ticket < 0
        self.generation = breaker.generation

    @property
    def settled(self) -> bool:
        """Whether an outcome was reported."""
        return not self._ticket

    def success(self) -> None:
        """Reports that the target served the call."""
        self._report(False)

    def failure(self) -> None:
        """Reports that the target failed, or did not answer in time."""
        self._report(True)

    def ignore(self) -> None:
        """Reports a call that was cancelled, or whose end says nothing about the target."""
        self._report(None)

    def _report(self, failed: bool | None) -> None:
        with suppress(IndexError):
            self._breaker.leave(self._ticket.pop(), failed)


class Breaker:
    """The breaker of one target, shared by all its callers, in any thread and event loop.

    Args:
        policy: when it opens, and for how long.
        on_transition: called with (old state, new state, why) at each change, in order and without a lock, in the
            thread of a caller; must return at once. An error that it raises is counted and logged.
        clock: monotonic seconds. A clock that is set back lengthens a pause once at most.
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
        self._consecutive_failures = 0
        self._full_pause_seconds = self.policy.open_seconds
        self._paused_at = 0.0
        self._pause_seconds = 0.0
        self._probe: int | None = None
        self._probe_count = 0
        self._probe_began = 0.0
        self._early = False
        self._successes = 0
        self._pending_transitions: deque[tuple[State, State, Why]] = deque()
        self._notifying = False
        self._pending_outcomes: deque[tuple[int, bool | None, float]] = deque()

    @property
    def state(self) -> State:
        """``closed``, ``open`` or ``half_open``; an open breaker stays open until the first call after its pause."""
        return self._state

    @property
    def generation(self) -> int:
        """How often the state has changed."""
        return self._generation

    def watch(self, on_transition: OnTransition) -> None:
        """Registers another callback like `on_transition` of the constructor."""
        with self._lock:
            self._watchers = (*self._watchers, on_transition)
        self._catch_up()

    def counts(self, now: float | None = None) -> Counts:
        """Returns the counts.

        Args:
            now: the clock's time, for a caller that has just read it.
        """
        with self._lock:
            window = self._window
            window.move(self._clock() if now is None else now)
            counts = Counts(window.calls, window.failures, self._consecutive_failures, self._probe is not None)
        self._catch_up()
        return counts

    def admit(self, now: float | None = None) -> Permit | Refusal:
        """Asks for admission of one call.

        Args:
            now: the clock's time, for a caller that has just read it.
        """
        answer = self.enter(now)
        return answer if isinstance(answer, Refusal) else Permit(self, answer)

    def force_probe(self, now: float | None = None) -> Permit | Refusal:
        """Asks for admission of a call to the last target that is left: an open breaker admits a probe ahead of time.

        A forced probe that fails neither lengthens nor restarts the pause. Still only one probe is out at a time.
        """
        answer = self.enter(now, forced=True)
        return answer if isinstance(answer, Refusal) else Permit(self, answer)

    def enter(self, now: float | None = None, *, forced: bool = False) -> int | Refusal:
        """As `admit`, or `force_probe` if `forced`, for a guard that reports the outcome by `leave`, exactly once.

        Returns:
            A ticket: the number of changes of state so far, or a negative number for a probe. Else the refusal.
        """
        # Without the lock: if the state changes meanwhile, the outcome of this ticket is ignored.
        if self._state == "closed" and not forced:
            return self._generation
        return self._enter_locked(now, forced=forced)

    def force_open(self, seconds: float | None = None) -> None:
        """Opens the breaker by hand. Calls under way go on; their outcomes are ignored.

        Args:
            seconds: the pause, finite and > 0; by default that of the policy.

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
        """Closes the breaker by hand, and clears its counts."""
        with self._lock:
            self._close("by_hand")
        self._catch_up()

    def _enter_locked(self, now: float | None, *, forced: bool) -> int | Refusal:
        if now is None:
            now = self._clock()
        with self._lock:
            answer = self._admit_or_refuse(now, forced)
        if self._pending_transitions or self._pending_outcomes:
            self._catch_up()
        return answer

    def _admit_or_refuse(self, now: float, forced: bool) -> int | Refusal:
        if self._state == "closed":
            return self._generation
        if self._state == "open":
            left = self._pause_left(now)
            if left > 0 and not forced:
                return Refusal(left)
            if left <= 0 and not forced and not self._may_probe(now):
                return Refusal(_PROBE_RETRY_AFTER_SECONDS)
            self._early = left > 0
            self._successes = 0
            self._change_state("half_open", "forced" if left > 0 else "due")
        elif self._probe is not None:
            self._probe_began = min(self._probe_began, now)
            left = self._probe_began + self.policy.probe_seconds - now
            if left > 0:
                return Refusal(min(left, _PROBE_RETRY_AFTER_SECONDS))
        elif not forced and not self._may_probe(now):
            return Refusal(_PROBE_RETRY_AFTER_SECONDS)
        self._probe_began = now
        self._probe_count += 1
        self._probe = -self._probe_count
        return self._probe

    def _pause_left(self, now: float) -> float:
        # A clock that was set back restarts the pause at most: the pause must not last until the clock has caught up.
        self._paused_at = min(self._paused_at, now)
        return self._paused_at + self._pause_seconds - now

    def _may_probe(self, now: float) -> bool:
        """Whether a probe that is due may be admitted; the caller holds the lock."""
        return True

    def leave(self, ticket: int, failed: bool | None) -> None:
        """Reports the outcome of an admitted call.

        Args:
            ticket: from `enter`.
            failed: whether the target failed; None for an outcome that says nothing about it.
        """
        now = self._clock()
        # The garbage collector may close a stream, which reports here, in a thread that holds the lock.
        if not self._lock.acquire(False):
            self._pending_outcomes.append((ticket, failed, now))
            self._catch_up()
            return
        try:
            # The common case, a success while closed, costs no further calls.
            if failed is False and ticket == self._generation and self._state == "closed":
                self._window.add(now, False)
                self._consecutive_failures = 0
            else:
                self._count_outcome(ticket, failed, now)
        finally:
            self._lock.release()
        if self._pending_transitions or self._pending_outcomes:
            self._catch_up()

    def _count_outcome(self, ticket: int, failed: bool | None, now: float) -> None:
        if ticket == self._probe:
            self._probe = None
            self._settle_probe(failed, now)
        elif failed is not None and ticket == self._generation and self._state == "closed":
            self._count(failed, now)

    def _count(self, failed: bool, now: float) -> None:
        window = self._window
        window.add(now, failed)
        if not failed:
            self._consecutive_failures = 0
            return
        self._consecutive_failures += 1
        policy = self.policy
        if window.calls >= policy.minimum_calls and window.failures / window.calls >= policy.failure_ratio:
            self._full_pause_seconds = policy.first_open_seconds(window.calls)
            self._open("failure_ratio", now, now)
        elif self._consecutive_failures >= policy.consecutive_failures and (
            window.calls - self._consecutive_failures < policy.minimum_calls
            or self._consecutive_failures >= policy.minimum_calls
        ):
            self._full_pause_seconds = policy.first_open_seconds(window.calls)
            self._open("consecutive_failures", now, now)

    def _settle_probe(self, failed: bool | None, now: float) -> None:
        policy = self.policy
        if self._early and failed is not False and self._pause_left(now) > 0:
            self._change_state("open", "probe_ignored" if failed is None else "probe_failed")
        elif failed:
            self._full_pause_seconds = min(policy.max_open_seconds, self._full_pause_seconds * policy.growth)
            self._open("probe_failed", self._probe_began, now)
        elif failed is not None:
            self._early = False
            self._successes += 1
            if self._successes >= policy.successes_to_close:
                self._close("probe_succeeded")

    def _open(self, why: Why, since: float, now: float) -> None:
        self._pause_seconds = self._full_pause_seconds * (1 - self.policy.jitter * self._random())
        # The pause counts from the start of the probe: a target that hung is found again as soon as one that refused.
        # At least half of the pause follows the probe, else one caller after the other would wait for a hanging target.
        self._paused_at = max(since, now - self._pause_seconds / 2)
        self._early = False
        self._change_state("open", why)

    def _close(self, why: Why) -> None:
        self._full_pause_seconds = self.policy.open_seconds
        self._early = False
        self._change_state("closed", why)

    def _change_state(self, state: State, why: Why) -> None:
        old, self._state = self._state, state
        self._generation += 1
        self._window.clear()
        self._consecutive_failures = 0
        self._probe = None
        if state != old:
            self._pending_transitions.append((old, state, why))

    def _catch_up(self) -> None:
        """Does what was deferred while the lock was held. Each holder of the lock calls this afterwards.

        One thread at a time notifies, also of transitions that come meanwhile: so they are in order, without the lock.
        """
        while self._pending_outcomes or (self._pending_transitions and not self._notifying):
            if not self._lock.acquire(blocking=False):
                return
            transition = None
            try:
                while self._pending_outcomes:
                    self._count_outcome(*self._pending_outcomes.popleft())
                if self._pending_transitions and not self._notifying:
                    self._notifying = True
                    transition = self._pending_transitions.popleft()
            finally:
                self._lock.release()
            if transition is not None:
                self._notify(*transition)

    def _notify(self, old: State, new: State, why: Why) -> None:
        try:
            for watcher in self._watchers:
                try:
                    watcher(old, new, why)
                except Exception as error:  # noqa: BLE001 - a hook's fault is not the caller's
                    note_fault("breaker.on_transition", error)
        finally:
            self._notifying = False


__all__ = ["Breaker", "BreakerPolicy", "Counts", "OnTransition", "Permit", "Refusal", "State", "Why"]
