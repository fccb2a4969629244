"""Bounds the retries and hedges of a service, so that a fault does not cause a storm of calls.

Where a retry is around a hedge and both share a budget, each attempt of the retry is an operation to the hedge. If the
hedge deposited too, faults would earn tokens, and the bound would not hold. So an operation that shares its budget
opens a scope, and calls inside the scope deposit nothing.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable
from contextvars import ContextVar, Token
from types import MethodType

from observability_integration.checks import check_at_least, check_count, check_positive
from observability_integration.context import reset_variable
from observability_integration.errors import ConfigurationError
from observability_integration.telemetry.guard import note_fault

# The time over which the ratio is promised; long enough to hold the last retries of a storm.
_PERIOD_SECONDS = 60.0
_BURST_SHARE = 0.25  # of the retries that the ratio allows


class RetryBudget:
    """A token bucket: every operation deposits a fraction of a token, every retry or hedge withdraws a whole one.

    Share one between all retries and hedges that lead to the same target, in any thread and event loop. Where one is
    around another, the outer call is the operation, and the inner calls deposit nothing (see `open_scope`). As an
    argument of a primitive, None means no limit.

    **The bound.** In any period of t seconds in which n operations began, whatever happened before::

        retries + hedges <= earned * n + burst + min_per_second * t
        earned = ratio - (burst + min_per_second * 60) / over_operations          # 0.138 with the defaults

    so ``attempts <= (1 + ratio) * operations`` holds in any period of up to a minute in which at least
    `over_operations` operations began. The burst and `min_per_second` let a quiet service retry at all. They are taken
    off what the operations earn; in Finagle (20 %, and 10 per second) and gRPC (A6: a tenth, and ten tokens) they come
    on top.

    Args:
        ratio: retries and hedges for each operation, > 0. 0.2 as in Finagle and failsafe-go.
        min_per_second: tokens added per second, >= 0. With 0.2, a service that makes one call every four seconds may
            still retry each call about once when every call has failed for minutes.
        burst: the most tokens, >= 1, and the tokens at first. As many as may be needed in one instant: of 1,000
            concurrent calls, a twentieth fails. By default a quarter of ``ratio * over_operations``, which is 50, but
            never below 1.
        over_operations: the number of operations in a minute from which on the ratio holds. At least 1.
        on_exhausted: called once when the budget runs out, and not again until it is half full; in the thread of the
            caller that was refused; must return at once. Others that share the budget use `watch`.
        clock: monotonic seconds.

    Attributes:
        is_shared: whether two or more primitives have called `watch`.

    Raises:
        ConfigurationError: a value out of range, or `burst` and `min_per_second` use up all that the ratio allows.
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
        advance = burst + min_per_second * _PERIOD_SECONDS
        if advance >= ratio * over_operations:
            raise ConfigurationError(
                f"burst and min_per_second leave nothing of the ratio for operations to earn: {burst:g} + "
                f"{min_per_second:g} * {_PERIOD_SECONDS:g} must be < ratio * over_operations = "
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
        self._refilled_at = clock()
        self._exhausted = False
        self._watchers: tuple[Callable[[], Callable[[], None] | None], ...] = ()
        self.is_shared = False

    def __repr__(self) -> str:
        return f"RetryBudget(ratio={self.ratio:g}, min_per_second={self.min_per_second:g}, burst={self.burst:g})"

    @property
    def balance(self) -> float:
        """The tokens now, from 0 to `burst`."""
        with self._lock:
            self._refill()
            return self._balance

    def deposit(self) -> None:
        """Deposits for an operation that begins, however many attempts it will take."""
        # The clock is not read here: the tokens of `min_per_second` are added at the next withdrawal.
        with self._lock:
            balance = self._balance + self.earned
            self._balance = balance if balance < self.burst else self.burst

    def watch(self, exhausted: Callable[[], None]) -> None:
        """Registers another callback like `on_exhausted`; with the second one, the budget `is_shared`.

        Args:
            exhausted: must return at once. A method is referenced weakly: it is called as long as its object lives.
                Any other function is called as long as the budget lives.
        """
        watcher = weakref.WeakMethod(exhausted) if isinstance(exhausted, MethodType) else lambda: exhausted
        with self._lock:
            self._watchers = (*(known for known in self._watchers if known() is not None), watcher)
            self.is_shared = self.is_shared or len(self._watchers) > 1

    def withdraw(self) -> bool:
        """Takes the token of one retry or hedge; False when it must not be made."""
        with self._lock:
            self._refill()
            granted = self._balance >= 1
            notify = not granted and not self._exhausted
            if granted:
                if self._balance >= self.burst / 2:
                    self._exhausted = False
                self._balance -= 1
            else:
                self._exhausted = True
        if notify:
            for hook in (self._on_exhausted, *(watcher() for watcher in self._watchers)):
                try:
                    if hook is not None:
                        hook()
                except Exception as error:  # noqa: BLE001 - a hook's fault is not the caller's
                    note_fault("retry_budget.on_exhausted", error)
        return granted

    def charge(self, retries: int) -> None:
        """Takes the tokens of retries that have been made without asking, such as an SDK's own.

        Takes no more than there are: the balance never falls below 0. What is charged so does not keep to the bound,
        but leaves less for the retries and hedges to come. `on_exhausted` waits for the first of those that is refused.

        Args:
            retries: how many, >= 0.

        Raises:
            ConfigurationError: `retries` is not such a number.
        """
        check_count("retries", retries, 0)
        with self._lock:
            self._refill()
            self._balance = max(0.0, self._balance - retries)

    def _refill(self) -> None:
        now = self._clock()
        if now > self._refilled_at:
            self._balance = min(self.burst, self._balance + self.min_per_second * (now - self._refilled_at))
        self._refilled_at = now  # also when the clock was set back: else no token would come until it has caught up


class BudgetScope:
    """The deposit of one operation into a shared budget. Calls inside the ``with`` block deposit nothing.

    Attributes:
        budget: the shared budget.
        active: whether the operation still runs. Work that outlives the operation deposits for itself.
    """

    __slots__ = ("_token", "active", "budget")

    def __init__(self, budget: RetryBudget) -> None:
        self.budget = budget
        self.active = True
        self._token: Token[tuple[BudgetScope, ...]] | None = None

    def __enter__(self) -> None:
        around = _scopes.get()
        self._token = _scopes.set((*[scope for scope in around if scope.active], self) if around else (self,))

    def __exit__(self, *_: object) -> None:
        token, self._token = self._token, None
        if token is not None:
            reset_variable(_scopes, token)


_scopes: ContextVar[tuple[BudgetScope, ...]] = ContextVar("observability_integration_budget_scopes", default=())


def open_scope(budget: RetryBudget | None) -> BudgetScope | None:
    """Deposits for an operation that begins, unless an operation around it has done so.

    Returns:
        The scope, for a ``with`` block around the calls and for `leave_scope` at the end; None where the budget is not
        shared, or an operation around this one made the deposit.
    """
    if budget is None:
        return None
    if budget.is_shared:
        for scope in _scopes.get():
            if scope.active and scope.budget is budget:
                return None
        budget.deposit()
        return BudgetScope(budget)
    budget.deposit()
    return None


def enter_scope(budget: RetryBudget | None) -> BudgetScope | None:
    """Opens a scope and enters it, for all calls of this task until `leave_scope`."""
    scope = open_scope(budget)
    if scope is not None:
        scope.__enter__()
    return scope


def leave_scope(scope: BudgetScope | None) -> None:
    """Ends the scope of an operation, in the task of its `enter_scope`."""
    if scope is not None:
        scope.__exit__()
        scope.active = False
