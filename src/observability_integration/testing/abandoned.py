"""Finds abandoned work: it timed out, did not end when it was cancelled, and is still running."""

from __future__ import annotations

from collections import Counter

from observability_integration.telemetry.catalogue.timeout import TIMEOUT_ABANDONED_ACTIVE


def abandoned_work() -> Counter[str]:
    """Returns the number of abandoned tasks and threads running in this process, by operation."""
    return Counter(
        {
            str(series.attributes.get("operation", "(others)")): int(series.value)
            for series in TIMEOUT_ABANDONED_ACTIVE
            if series.value > 0
        }
    )


def assert_no_abandoned(already: Counter[str] | None = None) -> None:
    """Fails if abandoned work of this library, a task or a thread, is running in this process.

    Works with telemetry on or off.

    Args:
        already: an earlier result of `abandoned_work`, which does not count.

    Raises:
        AssertionError: abandoned work is running; the message names the operations.
    """
    left = abandoned_work() - (already or Counter())
    if left:
        work = ", ".join(f"{operation} ({count})" for operation, count in sorted(left.items()))
        raise AssertionError(f"timed-out work is still running: {work}; it did not end when it was cancelled")
