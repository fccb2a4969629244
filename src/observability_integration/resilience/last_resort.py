"""Whether the current call goes to the last target that is left.

A fallback sets this before it asks the last of its targets, when all others have failed or refused. A circuit breaker
inside then admits a probe ahead of time: a call that may fail is better than a call that must.
"""

from __future__ import annotations

from contextvars import ContextVar

# None where no fallback is around the call, so that nothing is known of other targets.
last_resort: ContextVar[bool | None] = ContextVar("observability_integration_last_resort", default=None)
