"""Metrics of the library itself."""

from __future__ import annotations

from observability_integration.telemetry.metrics.instruments import counter

TELEMETRY_FAULTS = counter(
    "telemetry.faults",
    ("site",),
    "Faults in telemetry or in a user's hook that were kept away from the caller, by place.",
)
