"""Metrics of TimeoutPrimitive."""

from __future__ import annotations

from .spec import LLM_SECONDS, OPERATION, UTILIZATION, Kind, MetricSpec

TIMEOUT_SUCCESSES = MetricSpec("timeout.successes", Kind.COUNTER, OPERATION, "Calls that finished in time.")
TIMEOUT_FAILURES = MetricSpec(
    "timeout.failures", Kind.COUNTER, ("operation", "kind"), "Calls that ran out of time, by the clock that fired."
)
TIMEOUT_ERRORS = MetricSpec(
    "timeout.errors",
    Kind.COUNTER,
    ("operation", "error_type"),
    "Calls that failed in time, with an error of their own.",
)
TIMEOUT_CANCELLATIONS = MetricSpec("timeout.cancellations", Kind.COUNTER, OPERATION, "Calls cancelled by their caller.")
TIMEOUT_EXECUTION = MetricSpec(
    "timeout.execution",
    Kind.HISTOGRAM,
    OPERATION,
    "Time until the caller had control back, whatever the outcome.",
    "s",
    LLM_SECONDS,
)
TIMEOUT_RATE = MetricSpec(
    "timeout.rate",
    Kind.GAUGE,
    OPERATION,
    "Failures / (successes + failures) since start, 0 to 1; absent before the first call.",
    ratio=("timeout.failures", "timeout.successes", "timeout.failures"),
)
TIMEOUT_UTILIZATION = MetricSpec(
    "timeout.utilization",
    Kind.HISTOGRAM,
    OPERATION,
    "Elapsed time as a share of the limit: shows limits that are set too tight or too loose.",
    buckets=UTILIZATION,
)
TIMEOUT_CLEANUP = MetricSpec(
    "timeout.cleanup",
    Kind.HISTOGRAM,
    ("operation", "cleanup"),
    "Time between the cancel and the end of the work's clean-up, by how it ended.",
    "s",
    LLM_SECONDS,
)
TIMEOUT_LATE_RESULTS = MetricSpec(
    "timeout.late_results", Kind.COUNTER, OPERATION, "Values that arrived after the limit."
)
TIMEOUT_ABANDONED = MetricSpec(
    "timeout.abandoned", Kind.COUNTER, OPERATION, "Calls whose work ignored its cancellation and was left behind."
)
TIMEOUT_ABANDONED_ACTIVE = MetricSpec(
    "timeout.abandoned_active", Kind.GAUGE, OPERATION, "Abandoned work that is still running."
)
