"""How many retries and hedges the calls of a service may cause, so that a fault is not answered with a storm.

Where a retry stands around a hedge and both go by one budget, each attempt of the retry is an operation to the hedge.
If that one deposited too, faults would bring tokens in, and the bound would not hold. So an operation that shares its
budget makes known further in that it has paid, and what it calls pays nothing.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable
from contextvars import ContextVar, Token
from types import MethodType

from observability_integration.errors import ConfigurationError
from observability_integration.telemetry.guard import note_fault

from .backoff import check_at_least, check_count, check_positive

_STRETCH_SECONDS = 60.0  # over which the ratio is promised; long enough for the last retries of a storm to be made in
_BURST_SHARE = 0.25  # of what the ratio allows


class RetryBudget:
    """A token bucket: every operation deposits a fraction of a token, every retry or hedge withdraws a whole one.

    Share one between all retries and hedges that lead to the same target, in any thread and event loop. Where one is
    around another, the outer call is the operation, and those further in deposit nothing (see `pay`). Where a budget is
    asked for, None stands for no limit.

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
            in the thread of who asked; must return at once. Whoever shares the budget hears of it through `watch`.
        clock: seconds that only go forward.

    Attributes:
        is_shared: whether two or more go by it, as far as `watch` tells.

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
        self._watchers: tuple[Callable[[], Callable[[], None] | None], ...] = ()
        self.is_shared = False

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

    def watch(self, exhausted: Callable[[], None]) -> None:
        """Has `exhausted` called as `on_exhausted` is, for one more that shares the budget.

        With the second one, the budget `is_shared` from then on.

        Args:
            exhausted: must return at once. A method is called as long as its object lives, which this does not prolong;
                anything else as long as the budget does.
        """
        watcher = weakref.WeakMethod(exhausted) if isinstance(exhausted, MethodType) else lambda: exhausted
        with self._lock:
            self._watchers = (*(known for known in self._watchers if known() is not None), watcher)
            self.is_shared = self.is_shared or len(self._watchers) > 1

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
        if tell:
            for hook in (self._on_exhausted, *(watcher() for watcher in self._watchers)):
                try:
                    if hook is not None:
                        hook()
                except Exception as error:  # noqa: BLE001 - a hook's fault is not the caller's
                    note_fault("retry_budget.on_exhausted", error)
        return granted

    def _trickle(self) -> None:
        now = self._clock()
        if now > self._paid_until:
            self._balance = min(self.burst, self._balance + self.min_per_second * (now - self._paid_until))
        self._paid_until = now  # also when the clock was set back: else nothing would come until it has caught up


class Payment:
    """What an operation has paid into a budget that it shares. Inside of a ``with``, calls find that it is paid for.

    Attributes:
        lasts: whether the operation does. Work that it began and that goes on without it pays for itself.
    """

    __slots__ = ("_token", "budget", "lasts")

    def __init__(self, budget: RetryBudget) -> None:
        self.budget = budget
        self.lasts = True
        self._token: Token[tuple[Payment, ...]] | None = None

    def __enter__(self) -> None:
        around = _paid.get()
        self._token = _paid.set((*[paid for paid in around if paid.lasts], self) if around else (self,))

    def __exit__(self, *_: object) -> None:
        token, self._token = self._token, None
        if token is not None:
            try:  # noqa: SIM105 - `suppress` would cost more than all of this
                _paid.reset(token)
            except ValueError:  # a coroutine that was closed from elsewhere: nothing to undo there
                pass


_paid: ContextVar[tuple[Payment, ...]] = ContextVar("observability_integration_paid", default=())


def pay(budget: RetryBudget | None) -> Payment | None:
    """Deposits for an operation that begins, unless one around it has.

    Returns:
        What is to be made known further in (see `Payment`), and given to `leave` when the operation ends; None if there
        is nothing to make known, because the budget is not shared, or is paid already.
    """
    if budget is None:
        return None
    if budget.is_shared:
        for paid in _paid.get():
            if paid.lasts and paid.budget is budget:
                return None
        budget.deposit()
        return Payment(budget)
    budget.deposit()
    return None


def enter(budget: RetryBudget | None) -> Payment | None:
    """Does what `pay` does, and makes it known to all that is called in this task until `leave`."""
    payment = pay(budget)
    if payment is not None:
        payment.__enter__()
    return payment


def leave(payment: Payment | None) -> None:
    """For an operation that ends, in the task of its `enter`."""
    if payment is not None:
        payment.__exit__()
        payment.lasts = False
