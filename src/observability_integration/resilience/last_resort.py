"""Whether the current call goes to the last target that is left, and whether there is another target at all.

A fallback sets this before it asks the last of its targets, when all others have failed or refused. A circuit breaker
inside then admits a probe ahead of time: a call that may fail is better than a call that must.
"""

from __future__ import annotations

from contextvars import ContextVar

# None where no fallback with several targets is around the call, so that nothing is known of other targets.
last_resort: ContextVar[bool | None] = ContextVar("observability_integration_last_resort", default=None)


def is_lone_target() -> bool:
    """Whether no fallback around the current call has another target."""
    return last_resort.get() is None
