"""How long an entry lives, and when it is to be replaced before its time."""

from __future__ import annotations

import math
import random

from .entry import Entry
from .policy import AdaptiveTtl, CachePolicy

# The rule of the adaptive TTL: thresholds are shares of the TTL in force.
_YOUNG, _OLD = 0.2, 0.6  # mean age of an entry when it is hit
_OFTEN, _SELDOM, _RARELY = 0.5, 0.7, 0.3  # share of lookups that hit
_WORTH_IT = 0.2  # a change by less is not made


class Freshness:
    """The rules of one cache.

    Args:
        policy: the knobs.
        ttl_seconds: the TTL, before jitter.
    """

    def __init__(self, policy: CachePolicy, ttl_seconds: float) -> None:
        self._jitter = policy.ttl_jitter
        self._eager = policy.eager_refresh
        self._beta = policy.early_refresh_beta
        self._stale_seconds = policy.stale_seconds
        self._swr_seconds = policy.stale_while_revalidate_seconds
        self._error_seconds = policy.stale_if_error_seconds
        self.ttl_seconds = ttl_seconds
        self.refreshes_early = self._eager is not None or self._beta > 0

    def life(self, ttl_seconds: float | None) -> tuple[float, float]:
        """How long a new entry is fresh, and how long it may be served at all; of the cache's TTL or one of its own."""
        ttl = self.ttl_seconds if ttl_seconds is None else ttl_seconds
        fresh = ttl * (1 - self._jitter * random.random())  # noqa: S311 - spreads expiry, guards nothing
        return fresh, fresh + self._stale_seconds

    @property
    def longest_seconds(self) -> float:
        """The longest life of an entry of the cache's own TTL."""
        return self.ttl_seconds + self._stale_seconds

    def refresh_after(self, fresh_seconds: float) -> float:
        """The age from which a hit starts a refresh; infinite for never."""
        return math.inf if self._eager is None else self._eager * fresh_seconds

    def is_due(self, entry: Entry, now: float) -> bool:
        """Whether a fresh entry should be replaced ahead of its expiry."""
        if now >= entry.refresh_at:
            return True
        if self._beta <= 0:
            return False
        # -log of a number in (0, 1] is 0 or more, and seldom large: the nearer the expiry, the likelier.
        ahead = -entry.compute_seconds * self._beta * math.log(1 - random.random())  # noqa: S311
        return now + ahead >= entry.fresh_until

    def may_revalidate(self, entry: Entry, now: float) -> bool:
        """Whether a stale entry may be served at once, while a call in the background replaces it."""
        return now < entry.expired_at + self._swr_seconds

    def may_stand_in(self, entry: Entry, now: float) -> bool:
        """Whether a stale entry may be served in place of a call that failed, or is late."""
        return now < entry.expired_at + self._error_seconds


class TtlAdapter:
    """Adapts a TTL to how old entries are when they are hit.

    Entries that are hit young and often live longer than they need; what is hit late and seldom lives too short; and
    what is hardly ever hit need not live long.

    Args:
        bounds: what the TTL stays within.
        freshness: whose TTL is adapted.
    """

    def __init__(self, bounds: AdaptiveTtl, freshness: Freshness) -> None:
        self._bounds = bounds
        self._freshness = freshness
        self._lookups = 0
        self._hits = 0
        self._age_seconds = 0.0
        self.reason = "configured"

    def hit(self, age_seconds: float) -> None:
        """An entry of that age was served."""
        self._hits += 1
        self._age_seconds += age_seconds
        self._looked_up()

    def miss(self) -> None:
        """There was none."""
        self._looked_up()

    def _looked_up(self) -> None:
        self._lookups += 1
        if self._lookups < self._bounds.min_lookups:
            return
        rate = self._hits / self._lookups
        age = self._age_seconds / self._hits if self._hits else 0.0
        self._lookups = self._hits = 0
        self._age_seconds = 0.0
        ttl = self._freshness.ttl_seconds
        if rate > _OFTEN and age < _YOUNG * ttl:
            wanted, reason = 3 * age, "hit young and often"
        elif _RARELY <= rate < _SELDOM and age > _OLD * ttl:
            wanted, reason = 2 * age, "hit late and seldom"
        elif rate < _RARELY:
            wanted, reason = ttl / 2, "hardly ever hit"
        else:
            return
        wanted = min(self._bounds.max_seconds, max(self._bounds.min_seconds, wanted))
        if abs(wanted - ttl) > _WORTH_IT * ttl:
            self._freshness.ttl_seconds = wanted
            self.reason = f"{reason}: hit rate {rate:.2f}, mean age at hit {age:.1f}s of {ttl:g}s"
