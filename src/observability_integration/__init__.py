"""Small async primitives that make every LLM call bounded, cached, routed, priced and visible.

Importing this package imports neither OpenTelemetry nor redis. Each name is loaded at its first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from observability_integration._version import __version__
    from observability_integration.apm_setup import (
        ObservabilityStatus,
        get_meter,
        get_tracer,
        initialize_observability,
        is_observability_enabled,
        observability_status,
        shutdown_observability,
    )
    from observability_integration.context import WorkflowContext

__all__ = [
    "ObservabilityStatus",
    "WorkflowContext",
    "__version__",
    "get_meter",
    "get_tracer",
    "initialize_observability",
    "is_observability_enabled",
    "observability_status",
    "shutdown_observability",
]

_HOME = {
    "WorkflowContext": "context",
    "__version__": "_version",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME.get(name, 'apm_setup')}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
