"""Whether the call under way is asked of the last target that is left.

A fallback says so before it asks the last of its targets, when all others have failed or refused. A circuit breaker
further in then lets a probe through though it is not time: better one call that may fail than one that must.
"""

from __future__ import annotations

from contextvars import ContextVar

# None where no fallback is around the call, and nothing is known of other targets.
last_resort: ContextVar[bool | None] = ContextVar("observability_integration_last_resort", default=None)
