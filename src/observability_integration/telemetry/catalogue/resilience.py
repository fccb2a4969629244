"""Metrics of retry, fallback, circuit breaker, concurrency limit, rate limit, hedge, saga, malformed chunks."""

from __future__ import annotations

from observability_integration.telemetry.metrics.instruments import counter, gauge, histogram

from .common import LLM_SECONDS, OPERATION, WAIT_SECONDS

RETRY_OPERATIONS = counter(
    "retry.operations",
    ("operation", "outcome"),
    "Calls by how they ended: successful or failed, with or without a retry; cancelled.",
)
RETRY_ATTEMPTS = counter(
    "retry.attempts", OPERATION, "Attempts made, the first of each call included; an SDK's own retries are not."
)
RETRY_RETRIES = counter(
    "retry.retries", ("operation", "fault"), "Attempts beyond the first, by the fault that caused them."
)
RETRY_GAVE_UP = counter(
    "retry.gave_up",
    ("operation", "reason"),
    "Calls that failed for good, by why: attempts, budget, deadline, retry_after (too long to wait), not_retryable.",
)
RETRY_WAIT = histogram("retry.wait", OPERATION, "Time waited before a retry.", "s", WAIT_SECONDS)

FALLBACK_SERVED = counter("fallback.served", ("operation", "target"), "Answers, by who gave them.")
FALLBACK_FAILED = counter(
    "fallback.failed",
    ("operation", "reason"),
    "Calls without an answer: exhausted (all targets failed), fault (of a kind that no target can serve), deadline.",
)
FALLBACK_FAILOVERS = counter(
    "fallback.failovers", ("operation", "target", "fault"), "Turns away from a target, by its fault."
)
FALLBACK_RESTARTS = counter(
    "fallback.stream.restarts",
    OPERATION,
    "Streams that were begun anew on another target after their reader had seen part of the answer.",
)

BREAKER_STATE = gauge("circuit_breaker.state", ("target",), "0 closed, 1 half-open (a probe is out), 2 open.")
BREAKER_TRANSITIONS = counter(
    "circuit_breaker.transitions", ("target", "state", "reason"), "Changes of state, by the new one."
)
BREAKER_CALLS = counter(
    "circuit_breaker.calls",
    ("target", "outcome"),
    "Calls: success, failure, ignored (says nothing about the target, or nothing new), refused (never made).",
)

CONCURRENCY_LIMIT = gauge("concurrency.limit", OPERATION, "How many calls may run at once.")
CONCURRENCY_IN_FLIGHT = gauge("concurrency.in_flight", OPERATION, "How many run now.")
CONCURRENCY_QUEUED = gauge("concurrency.queued", ("operation", "priority"), "How many wait now, by priority.")
CONCURRENCY_QUEUE_WAIT = histogram(
    "concurrency.queue.wait",
    ("operation", "priority"),
    "Time that calls waited for their turn; those that need not wait are not counted.",
    "s",
    WAIT_SECONDS,
)
CONCURRENCY_REFUSALS = counter(
    "concurrency.refusals",
    ("operation", "priority", "reason"),
    "Calls that were never made: queue_full, queue_timeout, deadline, shed (made room for a higher priority).",
)

RATE_LIMIT_CALLS = counter("rate_limit.calls", ("operation", "outcome"), "Calls: admitted at once, waited, refused.")
RATE_LIMIT_WAIT = histogram(
    "rate_limit.wait", OPERATION, "Time that calls waited until they were allowed.", "s", WAIT_SECONDS
)
RATE_LIMIT_REMAINING = gauge(
    "rate_limit.remaining", ("operation", "limit"), "What is left now of a limit: requests, tokens."
)
RATE_LIMIT_TOKENS = counter(
    "rate_limit.tokens", OPERATION, "Tokens charged, as used where the answer says, else as estimated.", "{token}"
)
RATE_LIMIT_BACKEND_ERRORS = counter(
    "rate_limit.backend_errors",
    ("operation", "error_type"),
    "Failed or timed-out accesses to the shared limit; the call was limited in this process alone.",
)

HEDGE_OPERATIONS = counter(
    "hedge.operations", ("operation", "outcome"), "Calls: unhedged, primary_won, hedge_won, failed, cancelled."
)
HEDGE_LAUNCHED = counter("hedge.launched", OPERATION, "Second calls made because the first was slow.")
HEDGE_SUPPRESSED = counter(
    "hedge.suppressed",
    ("operation", "reason"),
    "Second calls not made: warmup (too few calls to know what slow is), budget, deadline.",
)
HEDGE_DELAY = histogram("hedge.delay", OPERATION, "Time after which a second call was made.", "s", LLM_SECONDS)
HEDGE_COST = counter(
    "hedge.cost_usd",
    ("operation", "role"),
    "Estimated USD of hedged calls, by role: winner, loser; a cancelled call is taken to cost as much as a whole one.",
)

SAGA_OPERATIONS = counter(
    "saga.operations", ("operation", "outcome"), "Sagas: completed, compensated, compensation_failed."
)
SAGA_COMPENSATIONS = counter(
    "saga.compensations", ("operation", "step", "outcome"), "Compensations: success, error, timeout."
)

STREAM_MALFORMED_CHUNKS = counter(
    "stream.malformed_chunks",
    ("operation", "outcome"),
    "Chunks of a streamed answer that could not be read: skipped (the rest completed), fatal (it did not).",
)
