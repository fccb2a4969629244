"""Finds work that timed out, did not end when it was cancelled, and is still running."""

from __future__ import annotations

from collections import Counter

from observability_integration.telemetry.catalogue.timeout import TIMEOUT_ABANDONED_ACTIVE


def abandoned_work() -> Counter[str]:
    """How much abandoned work of each operation is running in this process at this moment."""
    return Counter(
        {
            str(series.attributes.get("operation", "(others)")): int(series.value)
            for series in TIMEOUT_ABANDONED_ACTIVE
            if series.value > 0
        }
    )


def assert_no_abandoned(already: Counter[str] | None = None) -> None:
    """Fails when timed-out work of this library is still running, be it a task or a thread.

    Holds whether telemetry is on or off, for the whole process.

    Args:
        already: work that is not to count, as `abandoned_work` has found it earlier.

    Raises:
        AssertionError: some is running; the message names the operations.
    """
    left = abandoned_work() - (already or Counter())
    if left:
        work = ", ".join(f"{operation} ({count})" for operation, count in sorted(left.items()))
        raise AssertionError(f"timed-out work is still running: {work}; it did not end when it was cancelled")
