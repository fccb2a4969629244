"""Metrics of TimeoutPrimitive."""

from __future__ import annotations

from observability_integration.telemetry.metrics.instruments import counter, gauge, histogram, ratio

from .common import LLM_SECONDS, OPERATION, UTILIZATION

TIMEOUT_SUCCESSES = counter("timeout.successes", OPERATION, "Calls that finished in time.")
TIMEOUT_FAILURES = counter(
    "timeout.failures", ("operation", "kind"), "Calls that ran out of time, by the clock that fired."
)
TIMEOUT_ERRORS = counter(
    "timeout.errors", ("operation", "error_type"), "Calls that failed in time, with an error of their own."
)
TIMEOUT_CANCELLATIONS = counter("timeout.cancellations", OPERATION, "Calls cancelled by their caller.")
TIMEOUT_EXECUTION = histogram(
    "timeout.execution", OPERATION, "Time until the caller had control back, whatever the outcome.", "s", LLM_SECONDS
)
TIMEOUT_RATE = ratio(
    "timeout.rate",
    OPERATION,
    "Failures / (successes + failures) since start, 0 to 1; absent before the first call.",
    TIMEOUT_FAILURES,
    (TIMEOUT_SUCCESSES, TIMEOUT_FAILURES),
)
TIMEOUT_UTILIZATION = histogram(
    "timeout.utilization",
    OPERATION,
    "Elapsed time as a share of the limit: shows limits that are set too tight or too loose.",
    "",
    UTILIZATION,
)
TIMEOUT_CLEANUP = histogram(
    "timeout.cleanup",
    ("operation", "cleanup"),
    "Time between the cancel and the end of the work's clean-up, by how it ended.",
    "s",
    LLM_SECONDS,
)
TIMEOUT_LATE_RESULTS = counter("timeout.late_results", OPERATION, "Values that arrived after the limit.")
TIMEOUT_ABANDONED = counter(
    "timeout.abandoned", OPERATION, "Calls whose work ignored its cancellation and was left behind."
)
TIMEOUT_ABANDONED_ACTIVE = gauge("timeout.abandoned_active", OPERATION, "Abandoned work that is still running.")
