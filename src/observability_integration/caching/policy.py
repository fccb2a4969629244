"""The policy of a cache: its knobs and their defaults."""

from __future__ import annotations

from dataclasses import dataclass

from observability_integration.checks import check_at_least, check_count, check_order, check_positive, check_share


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaptiveTtl:
    """Bounds within which a cache may adapt its TTL.

    Attributes:
        min_seconds: the shortest TTL.
        max_seconds: the longest.
        min_lookups: lookups between two changes. At least 1.

    Raises:
        ConfigurationError: a value is out of range.
    """

    min_seconds: float = 60.0
    max_seconds: float = 86_400.0
    min_lookups: int = 20

    def __post_init__(self) -> None:
        check_positive("min_seconds", self.min_seconds)
        check_positive("max_seconds", self.max_seconds)
        check_order("min_seconds", self.min_seconds, "max_seconds", self.max_seconds)
        check_count("min_lookups", self.min_lookups)


@dataclass(frozen=True, slots=True, kw_only=True)
class CachePolicy:
    """Bounds, staleness and timeouts of a cache.

    Attributes:
        max_entries: entries kept in memory; those used only once, long ago, are evicted first (S3-FIFO). At least 1.
        max_bytes: bytes kept in memory; an estimate for objects that are not encoded. At least 1.
        max_value_bytes: a larger value is not kept at all. At least 1.
        ttl_jitter: largest fraction by which a TTL is shortened at random, so that entries stored together do not
            expire together. 0 to below 1.
        stale_while_revalidate_seconds: how long after its TTL an entry is served at once while a call in the
            background replaces it (RFC 5861). 0 turns it off.
        stale_if_error_seconds: how long after its TTL an entry is served when the call fails or is late (RFC 5861). 0
            turns it off.
        stale_if_error_throttle_seconds: how long such an entry is then served before the call is tried again.
        soft_timeout_seconds: how long a caller waits for the call if there is a stale entry to serve instead; the call
            goes on in the background. None for no limit.
        hard_timeout_seconds: how long a caller waits for the call at all; the call goes on in the background. None for
            no limit.
        eager_refresh: fraction of the TTL from which a hit starts a call in the background that replaces the entry;
            among all processes, only the first such hit does. 0.8 is a good value; None for never.
        early_refresh_beta: refreshes ahead of expiry at random, the sooner the longer the call takes, without
            coordination (XFetch: Vattani, Chierichetti, Lowenstein, "Optimal Probabilistic Cache Stampede Prevention",
            VLDB 2015; 1 is its optimum). 0 for never.
        adaptive_ttl: adapts the TTL to the age of entries when they are hit; None for a fixed TTL.
        max_refreshes: refreshes in the background at once; further ones are skipped. At least 1.
        background_seconds: how long a call may go on without a caller that waits for it.
        lease_seconds: how soon another process takes over from one that died during a call. The lease is renewed while
            the call goes on, so it may be much shorter than a call.
        compress_above_bytes: larger entries are compressed in the shared store (needs zstandard); None for never.
        stream_replay_pace: factor for the pauses of a replayed stream: 0 replays at once, 1 with the pauses of the
            original, 0.5 with half of each.
        store_tool_calls: whether answers that call tools are kept (request form).
        store_sampled: whether answers drawn at a temperature above 0 are kept (request form).
        backend_budget_seconds: how long one access to the shared store may take before the call goes on without it.
        backend_retry_seconds: time from a failure of the shared store to the next probe in the background; doubled
            (with jitter) while it keeps failing, up to `backend_retry_max_seconds`.
        backend_retry_max_seconds: longest time between two probes. A store that fails again within this time of its
            recovery counts as having failed all along.

    Raises:
        ConfigurationError: a value is out of range.
    """

    max_entries: int = 10_000
    max_bytes: int = 64 * 1024 * 1024
    max_value_bytes: int = 1024 * 1024
    ttl_jitter: float = 0.1
    stale_while_revalidate_seconds: float = 0.0
    stale_if_error_seconds: float = 0.0
    stale_if_error_throttle_seconds: float = 30.0
    soft_timeout_seconds: float | None = None
    hard_timeout_seconds: float | None = None
    eager_refresh: float | None = None
    early_refresh_beta: float = 0.0
    adaptive_ttl: AdaptiveTtl | None = None
    max_refreshes: int = 16
    background_seconds: float = 60.0
    lease_seconds: float = 2.0
    compress_above_bytes: int | None = None
    stream_replay_pace: float = 0.0
    store_tool_calls: bool = False
    store_sampled: bool = False
    backend_budget_seconds: float = 0.05
    backend_retry_seconds: float = 1.0
    backend_retry_max_seconds: float = 30.0

    def __post_init__(self) -> None:
        for knob in ("max_entries", "max_bytes", "max_value_bytes", "max_refreshes"):
            check_count(knob, getattr(self, knob))
        check_at_least("compress_above_bytes", self.compress_above_bytes, 0, optional=True)
        for knob in (
            "stale_while_revalidate_seconds",
            "stale_if_error_seconds",
            "stale_if_error_throttle_seconds",
            "early_refresh_beta",
            "stream_replay_pace",
        ):
            check_at_least(knob, getattr(self, knob), 0)
        for knob in (
            *("background_seconds", "lease_seconds"),
            *("backend_budget_seconds", "backend_retry_seconds", "backend_retry_max_seconds"),
        ):
            check_positive(knob, getattr(self, knob))
        for knob in ("soft_timeout_seconds", "hard_timeout_seconds"):
            check_positive(knob, getattr(self, knob), optional=True)
        check_share("ttl_jitter", self.ttl_jitter, below_one=True)
        check_share("eager_refresh", self.eager_refresh, above_zero=True, below_one=True, optional=True)
        for knob, longest in (
            ("soft_timeout_seconds", "hard_timeout_seconds"),
            ("backend_retry_seconds", "backend_retry_max_seconds"),
        ):
            check_order(knob, getattr(self, knob), longest, getattr(self, longest))

    @property
    def stale_seconds(self) -> float:
        """How long after its TTL an entry is kept, because it may still be served stale."""
        return max(self.stale_while_revalidate_seconds, self.stale_if_error_seconds)
