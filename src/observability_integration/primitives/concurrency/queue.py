"""Who is next: four tiers that share what becomes free by weight, in the order of arrival within each.

While all tiers wait, of 85 turns 64 go to ``critical``, 16 to ``high``, 4 to ``low`` and 1 to ``best_effort``: four
times as many from tier to tier (our own choice; strict priority would leave the lowest waiting for ever). A tier that
nobody waits in gives its share to the others and saves nothing up. It is stride scheduling (Waldspurger and Weihl,
1995): each turn moves its tier on by a stride, and the tier that is least far on is next; of two that are equally far,
the higher one.

So the first of a tier waits for a bounded number of turns of others, whatever these do: `LONGEST_WAIT` says how many.
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

# Turns that others get at the most before the first of a tier: those that fit into one stride of it.
LONGEST_WAIT: dict[Priority, int] = {
    priority: sum(own // other + 1 for other in _STRIDES if other != own)
    for priority, own in zip(PRIORITIES, _STRIDES, strict=True)
}


def tier_of(priority: Priority) -> int:
    """The number of a priority's tier, 0 for the highest.

    Raises:
        ConfigurationError: there is no such priority.
    """
    tier = _TIERS.get(priority)
    if tier is None:
        raise ConfigurationError(f"priority must be one of {', '.join(PRIORITIES)}, got {priority!r}")
    return tier


class AdmissionQueue(Generic[Waiter]):
    """Those who wait, by tier. Each operation takes the same time however many wait, but for `drop`."""

    def __init__(self) -> None:
        self._tiers: list[OrderedDict[Waiter, None]] = [OrderedDict() for _ in PRIORITIES]
        self._reached = [0] * len(PRIORITIES)
        self._turn_at = 0
        self.size = 0
        """How many wait."""

    def depths(self) -> dict[Priority, int]:
        """How many wait in each tier."""
        return {priority: len(waiting) for priority, waiting in zip(PRIORITIES, self._tiers, strict=True)}

    def push(self, waiter: Waiter, tier: int) -> None:
        """Lets somebody wait, who does not yet, behind the others of the tier."""
        waiting = self._tiers[tier]
        if not waiting:
            self._reached[tier] = max(self._reached[tier], self._turn_at)
        waiting[waiter] = None
        self.size += 1

    def pop(self, still_waits: Callable[[Waiter], bool]) -> Waiter | None:
        """Takes out whose turn it is; who waits no longer is taken out on the way, which costs the tier no turn."""
        while self.size:
            tier = min((tier for tier, waiting in enumerate(self._tiers) if waiting), key=self._reached.__getitem__)
            waiter, _ = self._tiers[tier].popitem(last=False)
            self.size -= 1
            if still_waits(waiter):
                self._turn_at = self._reached[tier]
                self._reached[tier] += _STRIDES[tier]
                return waiter
        return None

    def shed_below(self, tier: int) -> Waiter | None:
        """Takes out the youngest of the lowest tier that somebody waits in, if that is lower than `tier`."""
        for waiting in reversed(self._tiers[tier + 1 :]):
            if waiting:
                waiter, _ = waiting.popitem(last=True)
                self.size -= 1
                return waiter
        return None

    def remove(self, waiter: Waiter, tier: int) -> None:
        """Takes somebody out who may be out already."""
        waiting = self._tiers[tier]
        if waiter in waiting:
            del waiting[waiter]
            self.size -= 1

    def drop(self, is_gone: Callable[[Waiter], bool]) -> None:
        """Takes out all who are gone."""
        for tier, waiting in enumerate(self._tiers):
            for waiter in [waiter for waiter in waiting if is_gone(waiter)]:
                self.remove(waiter, tier)
