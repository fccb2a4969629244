"""The knobs of a cache, with their defaults."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from observability_integration.errors import ConfigurationError


@dataclass(frozen=True, slots=True, kw_only=True)
class CachePolicy:
    """How a cache keeps what it keeps.

    Attributes:
        max_entries: entries kept in memory; the least recently used go first. At least 1.
        max_bytes: bytes kept in memory, an estimate for objects kept as they are. At least 1.
        max_value_bytes: a larger value is not kept at all. At least 1.
        backend_budget_seconds: how long one access to the shared store may take before the call goes on without it.
        backend_retry_seconds: after a failure of the shared store, how long until it is tried again in the background;
            doubled (with jitter) while it keeps failing, up to `backend_retry_max_seconds`.
        backend_retry_max_seconds: the longest time between two tries. A store that fails again within this time of
            having come back is taken to have been failing all along.

    Raises:
        ConfigurationError: a value out of range.
    """

    max_entries: int = 10_000
    max_bytes: int = 64 * 1024 * 1024
    max_value_bytes: int = 1024 * 1024
    backend_budget_seconds: float = 0.05
    backend_retry_seconds: float = 1.0
    backend_retry_max_seconds: float = 30.0

    def __post_init__(self) -> None:
        for knob in ("max_entries", "max_bytes", "max_value_bytes"):
            value = getattr(self, knob)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigurationError(f"{knob} must be an integer >= 1, got {value!r}")
        for knob in ("backend_budget_seconds", "backend_retry_seconds", "backend_retry_max_seconds"):
            check_positive(knob, getattr(self, knob))
        if self.backend_retry_seconds > self.backend_retry_max_seconds:
            raise ConfigurationError("backend_retry_seconds must not be greater than backend_retry_max_seconds")


def check_positive(knob: str, value: Any) -> None:
    """Refuses what is not a finite number > 0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise ConfigurationError(f"{knob} must be a finite number > 0, got {value!r}")


def check_cost(knob: str, value: Any) -> None:
    """Refuses what is not a finite number of USD >= 0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ConfigurationError(f"{knob} must be a finite number of USD >= 0, got {value!r}")
