"""Freshness: how long an entry lives, and when it is refreshed before it expires."""

from __future__ import annotations

import math
import random

from .entry import Entry
from .policy import AdaptiveTtl, CachePolicy

# The rule of the adaptive TTL. Ages and changes are shares of the current TTL.
_YOUNG, _OLD = 0.2, 0.6  # mean age of an entry when it is hit
_OFTEN, _SELDOM, _RARELY = 0.5, 0.7, 0.3  # share of lookups that hit
_MIN_CHANGE = 0.2


class Freshness:
    """The freshness rules of one cache.

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

    def lifetime(self, ttl_seconds: float | None) -> tuple[float, float]:
        """How long a new entry is fresh, and how long it may be served at all, in seconds.

        Args:
            ttl_seconds: TTL of the entry; None for the TTL of the cache.
        """
        ttl = self.ttl_seconds if ttl_seconds is None else ttl_seconds
        fresh = ttl * (1 - self._jitter * random.random())  # noqa: S311 - spreads expiry, guards nothing
        return fresh, fresh + self._stale_seconds

    @property
    def max_lifetime_seconds(self) -> float:
        """The longest lifetime of an entry with the TTL of the cache."""
        return self.ttl_seconds + self._stale_seconds

    def refresh_after(self, fresh_seconds: float) -> float:
        """The age in seconds from which a hit starts a refresh; infinite for never."""
        return math.inf if self._eager is None else self._eager * fresh_seconds

    def is_due(self, entry: Entry, now: float) -> bool:
        """Whether a hit on a fresh entry should start a refresh."""
        if now >= entry.refresh_at:
            return True
        if self._beta <= 0:
            return False
        # -log of a number in (0, 1] is 0 or more, and seldom large: the nearer the expiry, the likelier a refresh.
        ahead = -entry.compute_seconds * self._beta * math.log(1 - random.random())  # noqa: S311
        return now + ahead >= entry.fresh_until

    def may_revalidate(self, entry: Entry, now: float) -> bool:
        """Whether a stale entry may be served at once, while a refresh replaces it (stale-while-revalidate)."""
        return now < entry.expired_at + self._swr_seconds

    def may_serve_if_error(self, entry: Entry, now: float) -> bool:
        """Whether a stale entry may be served in place of a call that failed or is late (stale-if-error)."""
        return now < entry.expired_at + self._error_seconds


class TtlAdapter:
    """Adapts the TTL to the hit rate and to the age of entries when they are hit.

    ==================================  ======================================
    in the last `min_lookups` lookups   new TTL
    ==================================  ======================================
    hit young and often                 shorter: 3 times the mean age at a hit
    hit late and seldom                 longer: 2 times the mean age at a hit
    hardly ever hit                     half
    ==================================  ======================================

    Args:
        bounds: bounds of the TTL.
        freshness: holds the TTL.

    Attributes:
        reason: why the TTL is what it is.
    """

    def __init__(self, bounds: AdaptiveTtl, freshness: Freshness) -> None:
        self._bounds = bounds
        self._freshness = freshness
        self._lookups = 0
        self._hits = 0
        self._age_seconds = 0.0
        self.reason = "configured"

    def hit(self, age_seconds: float) -> None:
        """Counts a hit on an entry of that age."""
        self._hits += 1
        self._age_seconds += age_seconds
        self._count_lookup()

    def miss(self) -> None:
        """Counts a miss."""
        self._count_lookup()

    def _count_lookup(self) -> None:
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
        if abs(wanted - ttl) > _MIN_CHANGE * ttl:
            self._freshness.ttl_seconds = wanted
            self.reason = f"{reason}: hit rate {rate:.2f}, mean age at hit {age:.1f}s of {ttl:g}s"
