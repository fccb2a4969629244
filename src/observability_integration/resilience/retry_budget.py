"""How many retries and hedges the calls of a service may cause, so that a fault is not answered with a storm."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from observability_integration.errors import ConfigurationError
from observability_integration.telemetry.guard import note_fault

from .backoff import check_at_least, check_count, check_positive

_STRETCH_SECONDS = 60.0  # over which the ratio is promised; long enough for the last retries of a storm to be made in
_BURST_SHARE = 0.25  # of what the ratio allows


class RetryBudget:
    """A token bucket: every operation deposits a fraction of a token, every retry or hedge withdraws a whole one.

    Share one between all retries and hedges that lead to the same target, in any thread and event loop. Where a budget
    is asked for, None stands for no limit.

    **The bound.** In any stretch of time of t seconds in which n operations began, whatever was before it::

        retries + hedges <= earned * n + burst + min_per_second * t
        earned = ratio - (burst + min_per_second * 60) / over_operations          # 0.138 with the defaults

    so ``attempts <= (1 + ratio) * operations`` holds in any stretch of up to a minute in which at least
    `over_operations` operations began. What lets a quiet service retry at all, which is the burst and the trickle of
    `min_per_second`, is paid for by what the operations earn; in Finagle (20 %, and 10 per second) and gRPC (A6: a
    tenth, and ten tokens) it comes on top.

    Args:
        ratio: retries and hedges for each operation, > 0. 0.2 as in Finagle and failsafe-go.
        min_per_second: tokens that time brings, >= 0. With 0.2, a service that makes one call every four seconds may
            still retry each of them about once when every call has failed for minutes.
        burst: tokens that can be saved up, >= 1, and what there is at first. It has to be as many as may be wanted in
            one instant: of 1,000 calls at once, a twentieth fails. By default a quarter of ``ratio * over_operations``,
            which is 50, but never below 1.
        over_operations: the number of operations in a minute from which on the ratio holds. At least 1.
        on_exhausted: called when a withdrawal was refused for the first time since the bucket was half full or fuller,
            in the thread of who asked; must return at once.
        clock: seconds that only go forward.

    Raises:
        ConfigurationError: a value out of range, or a burst and a trickle that use up all that the ratio allows.
    """

    def __init__(
        self,
        ratio: float = 0.2,
        min_per_second: float = 0.2,
        burst: float | None = None,
        *,
        over_operations: int = 1000,
        on_exhausted: Callable[[], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        check_positive("ratio", ratio)
        check_at_least("min_per_second", min_per_second, 0)
        check_count("over_operations", over_operations)
        if burst is None:
            burst = max(1.0, _BURST_SHARE * ratio * over_operations)
        check_at_least("burst", burst, 1)
        advance = burst + min_per_second * _STRETCH_SECONDS
        if advance >= ratio * over_operations:
            raise ConfigurationError(
                f"burst and min_per_second leave nothing of the ratio for operations to earn: {burst:g} + "
                f"{min_per_second:g} * {_STRETCH_SECONDS:g} must be < ratio * over_operations = "
                f"{ratio * over_operations:g}"
            )
        self.ratio = ratio
        self.min_per_second = min_per_second
        self.burst = burst
        self.earned = ratio - advance / over_operations
        self._on_exhausted = on_exhausted
        self._clock = clock
        self._lock = threading.Lock()
        self._balance = burst
        self._paid_until = clock()
        self._exhausted = False

    def __repr__(self) -> str:
        return f"RetryBudget(ratio={self.ratio:g}, min_per_second={self.min_per_second:g}, burst={self.burst:g})"

    @property
    def balance(self) -> float:
        """Tokens there are now, from 0 to `burst`."""
        with self._lock:
            self._trickle()
            return self._balance

    def deposit(self) -> None:
        """For an operation that begins, however many attempts it will take."""
        # The clock is not read here: what time has brought is added when somebody wants it.
        with self._lock:
            balance = self._balance + self.earned
            self._balance = balance if balance < self.burst else self.burst

    def withdraw(self) -> bool:
        """Asks for one retry or hedge; False when it must not be made."""
        with self._lock:
            self._trickle()
            granted = self._balance >= 1
            tell = not granted and not self._exhausted
            if granted:
                if self._balance >= self.burst / 2:
                    self._exhausted = False
                self._balance -= 1
            else:
                self._exhausted = True
        if tell and self._on_exhausted is not None:
            try:
                self._on_exhausted()
            except Exception as error:  # noqa: BLE001 - a hook's fault is not the caller's
                note_fault("retry_budget.on_exhausted", error)
        return granted

    def _trickle(self) -> None:
        now = self._clock()
        if now > self._paid_until:
            self._balance = min(self.burst, self._balance + self.min_per_second * (now - self._paid_until))
        self._paid_until = now  # also when the clock was set back: else nothing would come until it has caught up
