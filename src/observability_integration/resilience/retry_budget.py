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

from observability_integration.checks import check_at_least, check_count, check_positive
from observability_integration.errors import ConfigurationError
from observability_integration.telemetry.guard import note_fault

_STRETCH_SECONDS = 60.0  # over which the ratio is promised; long enough for the last retries of a storm to be made in
_BURST_SHARE = 0.25  # of what the ratio allows


class RetryBudget:
    """A token bucket: every operation deposits a fraction of a token, every retry or hedge withdraws a whole one.

    Share one between all retries and hedges that lead to the same target, in any thread and event loop. Where one is
    around another, the outer call is the operation, and those further in deposit nothing (see `open_scope`). Where a
    budget is asked for, None stands for no limit.

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


class BudgetScope:
    """One operation's deposit into a shared budget. Calls inside of the ``with`` block find it and deposit nothing.

    Attributes:
        lasts: whether the operation still runs. Work that outlives it deposits for itself.
    """

    __slots__ = ("_token", "budget", "lasts")

    def __init__(self, budget: RetryBudget) -> None:
        self.budget = budget
        self.lasts = True
        self._token: Token[tuple[BudgetScope, ...]] | None = None

    def __enter__(self) -> None:
        around = _scopes.get()
        self._token = _scopes.set((*[scope for scope in around if scope.lasts], self) if around else (self,))

    def __exit__(self, *_: object) -> None:
        token, self._token = self._token, None
        if token is not None:
            try:  # noqa: SIM105 - `suppress` would cost more than all of this
                _scopes.reset(token)
            except ValueError:  # a coroutine that was closed from elsewhere: nothing to undo there
                pass


_scopes: ContextVar[tuple[BudgetScope, ...]] = ContextVar("observability_integration_budget_scopes", default=())


def open_scope(budget: RetryBudget | None) -> BudgetScope | None:
    """Deposits for an operation that begins, unless an operation around it has.

    Returns:
        The scope, for a ``with`` block around the calls and for `leave_scope` at the end; None where the budget is not
        shared, or the deposit was made further out.
    """
    if budget is None:
        return None
    if budget.is_shared:
        for scope in _scopes.get():
            if scope.lasts and scope.budget is budget:
                return None
        budget.deposit()
        return BudgetScope(budget)
    budget.deposit()
    return None


def enter_scope(budget: RetryBudget | None) -> BudgetScope | None:
    """Opens a scope and enters it, for all that this task calls until `leave_scope`."""
    scope = open_scope(budget)
    if scope is not None:
        scope.__enter__()
    return scope


def leave_scope(scope: BudgetScope | None) -> None:
    """Ends the scope of an operation, in the task of its `enter_scope`."""
    if scope is not None:
        scope.__exit__()
        scope.lasts = False
