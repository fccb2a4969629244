"""Engines under the primitives that bound, repeat, refuse and limit calls; here is what users give to those."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from observability_integration.primitives.circuit_breaker.breaker import Breaker, BreakerPolicy
    from observability_integration.primitives.concurrency.limit import ConcurrencyLimit
    from observability_integration.primitives.concurrency.queue import Priority

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

_HOME = {
    "Aimd": "aimd",
    "Backoff": "backoff",
    "Breaker": "breaker",
    "BreakerPolicy": "breaker",
    "ConcurrencyLimit": "concurrency_limit",
    "Fault": "faults",
    "FaultKind": "faults",
    "Priority": "admission_queue",
    "RetryBudget": "retry_budget",
    "classify": "faults",
}


def __getattr__(name: str) -> Any:
    # Lazily: every primitive passes through here, whatever it needs of it.
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value
