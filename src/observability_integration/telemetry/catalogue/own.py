"""What the library counts about itself."""

from __future__ import annotations

from .spec import Kind, MetricSpec

TELEMETRY_FAULTS = MetricSpec(
    "telemetry.faults",
    Kind.COUNTER,
    ("site",),
    "Faults in telemetry or in a user's hook that were kept away from the caller, by place.",
)
