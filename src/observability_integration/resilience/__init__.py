"""Faults, backoff, retry budgets, adaptive limits and bounded work, shared by several primitives.

Breaker, BreakerPolicy, ConcurrencyLimit and Priority live beside their primitives. Callers of earlier versions import
them from here, so these names stay.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from observability_integration.primitives.circuit_breaker import Breaker, BreakerPolicy
    from observability_integration.primitives.concurrency import ConcurrencyLimit, Priority

    from .aimd import Aimd
    from .backoff import Backoff
    from .faults import Fault, FaultKind, classify
    from .retry_budget import RetryBudget

__all__ = [
    "Aimd",
    "Backoff",
    "Breaker",
    "BreakerPolicy",
    "ConcurrencyLimit",
    "Fault",
    "FaultKind",
    "Priority",
    "RetryBudget",
    "classify",
]

_MODULES = {
    "Aimd": "resilience.aimd",
    "Backoff": "resilience.backoff",
    "Breaker": "primitives.circuit_breaker",
    "BreakerPolicy": "primitives.circuit_breaker",
    "ConcurrencyLimit": "primitives.concurrency",
    "Fault": "resilience.faults",
    "FaultKind": "resilience.faults",
    "Priority": "primitives.concurrency",
    "RetryBudget": "resilience.retry_budget",
    "classify": "resilience.faults",
}


def __getattr__(name: str) -> Any:
    # Lazily: a retry does not load the breaker.
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"observability_integration.{_MODULES[name]}"), name)
    globals()[name] = value
    return value
