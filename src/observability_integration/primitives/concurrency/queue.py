"""Selects the next waiter: four tiers share the free permits by weight; each tier is first in, first out.

While all tiers have waiters, 64 of 85 permits go to ``critical``, 16 to ``high``, 4 to ``low`` and 1 to
``best_effort``: each tier gets four times as many as the next (our own choice; strict priority would starve the lowest
tier). An empty tier leaves its share to the others and saves nothing. This is stride scheduling (Waldspurger and Weihl,
1995): each permit advances the pass of its tier by a stride, and the tier with the lowest pass is next; of equal
passes, the higher tier.

So the first waiter of a tier waits for a bounded number of permits of other tiers: `LONGEST_WAIT`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, Literal, TypeVar, get_args

from observability_integration.errors import ConfigurationError

Waiter = TypeVar("Waiter")
Priority = Literal["critical", "high", "low", "best_effort"]

PRIORITIES: tuple[Priority, ...] = get_args(Priority)
_TIERS = {priority: tier for tier, priority in enumerate(PRIORITIES)}
_STRIDES = (1, 4, 16, 64)

# The most permits that other tiers get before the first waiter of a tier: those that fit into one stride of it.
LONGEST_WAIT: dict[Priority, int] = {
    priority: sum(own // other + 1 for other in _STRIDES if other != own)
    for priority, own in zip(PRIORITIES, _STRIDES, strict=True)
}


def tier_of(priority: Priority) -> int:
    """Returns the tier of a priority, 0 for the highest.

    Raises:
        ConfigurationError: an unknown priority.
    """
    tier = _TIERS.get(priority)
    if tier is None:
        raise ConfigurationError(f"priority must be one of {', '.join(PRIORITIES)}, got {priority!r}")
    return tier


class AdmissionQueue(Generic[Waiter]):
    """The waiters, by tier. Each operation but `drop` takes constant time."""

    def __init__(self) -> None:
        self._tiers: list[OrderedDict[Waiter, None]] = [OrderedDict() for _ in PRIORITIES]
        self._passes = [0] * len(PRIORITIES)
        self._current_pass = 0
        self.size = 0
        """The number of waiters."""

    def depths(self) -> dict[Priority, int]:
        """Returns the number of waiters by priority."""
        return {priority: len(waiting) for priority, waiting in zip(PRIORITIES, self._tiers, strict=True)}

    def push(self, waiter: Waiter, tier: int) -> None:
        """Adds a new waiter at the end of its tier."""
        waiting = self._tiers[tier]
        if not waiting:
            self._passes[tier] = max(self._passes[tier], self._current_pass)
        waiting[waiter] = None
        self.size += 1

    def pop(self, is_waiting: Callable[[Waiter], bool]) -> Waiter | None:
        """Removes and returns the next waiter. Waiters that no longer wait are removed at no cost to their tier."""
        while self.size:
            tier = min((tier for tier, waiting in enumerate(self._tiers) if waiting), key=self._passes.__getitem__)
            waiter, _ = self._tiers[tier].popitem(last=False)
            self.size -= 1
            if is_waiting(waiter):
                self._current_pass = self._passes[tier]
                self._passes[tier] += _STRIDES[tier]
                return waiter
        return None

    def shed_below(self, tier: int) -> Waiter | None:
        """Removes and returns the youngest waiter of the lowest tier in use, if that tier is lower than `tier`."""
        for waiting in reversed(self._tiers[tier + 1 :]):
            if waiting:
                waiter, _ = waiting.popitem(last=True)
                self.size -= 1
                return waiter
        return None

    def remove(self, waiter: Waiter, tier: int) -> None:
        """Removes a waiter, if it is in the queue."""
        waiting = self._tiers[tier]
        if waiter in waiting:
            del waiting[waiter]
            self.size -= 1

    def drop(self, is_gone: Callable[[Waiter], bool]) -> None:
        """Removes all waiters for which `is_gone` is true."""
        for tier, waiting in enumerate(self._tiers):
            for waiter in [waiter for waiter in waiting if is_gone(waiter)]:
                self.remove(waiter, tier)
