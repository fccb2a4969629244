"""Metrics of the primitives that repeat, replace, refuse and limit calls, and of broken streams."""

from __future__ import annotations

from .spec import LLM_SECONDS, OPERATION, WAIT_SECONDS, Kind, MetricSpec

RETRY_OPERATIONS = MetricSpec(
    "retry.operations",
    Kind.COUNTER,
    ("operation", "outcome"),
    "Calls by how they ended: successful or failed, with or without a retry; cancelled.",
)
RETRY_ATTEMPTS = MetricSpec(
    "retry.attempts", Kind.COUNTER, OPERATION, "Attempts made, the first of each call included."
)
RETRY_RETRIES = MetricSpec(
    "retry.retries", Kind.COUNTER, ("operation", "fault"), "Attempts beyond the first, by the fault that caused them."
)
RETRY_GAVE_UP = MetricSpec(
    "retry.gave_up",
    Kind.COUNTER,
    ("operation", "reason"),
    "Calls that failed for good, by why: attempts, budget, deadline, retry_after (too long to wait), not_retryable.",
)
RETRY_WAIT = MetricSpec("retry.wait", Kind.HISTOGRAM, OPERATION, "Time waited before a retry.", "s", WAIT_SECONDS)

FALLBACK_SERVED = MetricSpec("fallback.served", Kind.COUNTER, ("operation", "target"), "Answers, by who gave them.")
FALLBACK_FAILED = MetricSpec(
    "fallback.failed",
    Kind.COUNTER,
    ("operation", "reason"),
    "Calls without an answer: exhausted (all targets failed), fault (of a kind that no target can serve), deadline.",
)
FALLBACK_FAILOVERS = MetricSpec(
    "fallback.failovers", Kind.COUNTER, ("operation", "target", "fault"), "Turns away from a target, by its fault."
)
FALLBACK_RESTARTS = MetricSpec(
    "fallback.stream.restarts",
    Kind.COUNTER,
    OPERATION,
    "Streams that were begun anew on another target after their reader had seen part of the answer.",
)

BREAKER_STATE = MetricSpec(
    "circuit_breaker.state", Kind.GAUGE, ("target",), "0 closed, 1 half-open (a probe is out), 2 open."
)
BREAKER_TRANSITIONS = MetricSpec(
    "circuit_breaker.transitions", Kind.COUNTER, ("target", "state", "reason"), "Changes of state, by the new one."
)
BREAKER_CALLS = MetricSpec(
    "circuit_breaker.calls",
    Kind.COUNTER,
    ("target", "outcome"),
    "Calls: success, failure, ignored (says nothing about the target), refused (never made).",
)

CONCURRENCY_LIMIT = MetricSpec("concurrency.limit", Kind.GAUGE, OPERATION, "How many calls may run at once.")
CONCURRENCY_IN_FLIGHT = MetricSpec("concurrency.in_flight", Kind.GAUGE, OPERATION, "How many run now.")
CONCURRENCY_QUEUED = MetricSpec(
    "concurrency.queued", Kind.GAUGE, ("operation", "priority"), "How many wait now, by priority."
)
CONCURRENCY_QUEUE_WAIT = MetricSpec(
    "concurrency.queue.wait",
    Kind.HISTOGRAM,
    ("operation", "priority"),
    "Time that calls waited for their turn; those that need not wait are not counted.",
    "s",
    WAIT_SECONDS,
)
CONCURRENCY_REFUSALS = MetricSpec(
    "concurrency.refusals",
    Kind.COUNTER,
    ("operation", "priority", "reason"),
    "Calls that were never made: queue_full, queue_timeout, deadline, shed (made room for a higher priority).",
)

RATE_LIMIT_CALLS = MetricSpec(
    "rate_limit.calls", Kind.COUNTER, ("operation", "outcome"), "Calls: admitted at once, waited, refused."
)
RATE_LIMIT_WAIT = MetricSpec(
    "rate_limit.wait", Kind.HISTOGRAM, OPERATION, "Time that calls waited until they were allowed.", "s", WAIT_SECONDS
)
RATE_LIMIT_REMAINING = MetricSpec(
    "rate_limit.remaining", Kind.GAUGE, ("operation", "limit"), "What is left now of a limit: requests, tokens."
)
RATE_LIMIT_TOKENS = MetricSpec(
    "rate_limit.tokens", Kind.COUNTER, OPERATION, "Tokens charged, as used where the answer says, else as estimated.",
    "{token}",
)  # fmt: skip
RATE_LIMIT_BACKEND_ERRORS = MetricSpec(
    "rate_limit.backend_errors",
    Kind.COUNTER,
    ("operation", "error_type"),
    "Failed or timed-out accesses to the shared limit; the call was limited in this process alone.",
)

HEDGE_OPERATIONS = MetricSpec(
    "hedge.operations",
    Kind.COUNTER,
    ("operation", "outcome"),
    "Calls: unhedged, primary_won, hedge_won, failed, cancelled.",
)
HEDGE_LAUNCHED = MetricSpec("hedge.launched", Kind.COUNTER, OPERATION, "Second calls made because the first was slow.")
HEDGE_SUPPRESSED = MetricSpec(
    "hedge.suppressed",
    Kind.COUNTER,
    ("operation", "reason"),
    "Second calls not made: warmup (too few calls to know what slow is), budget, deadline.",
)
HEDGE_DELAY = MetricSpec(
    "hedge.delay", Kind.HISTOGRAM, OPERATION, "Time after which a second call was made.", "s", LLM_SECONDS
)
HEDGE_COST = MetricSpec(
    "hedge.cost_usd",
    Kind.COUNTER,
    ("operation", "role"),
    "Estimated USD of hedged calls, by role: winner, loser; a cancelled call is taken to cost as much as a whole one.",
)

SAGA_OPERATIONS = MetricSpec(
    "saga.operations",
    Kind.COUNTER,
    ("operation", "outcome"),
    "Sagas: completed, compensated, compensation_failed.",
)
SAGA_COMPENSATIONS = MetricSpec(
    "saga.compensations", Kind.COUNTER, ("operation", "step", "outcome"), "Compensations: success, error, timeout."
)

STREAM_MALFORMED_CHUNKS = MetricSpec(
    "stream.malformed_chunks",
    Kind.COUNTER,
    ("operation", "outcome"),
    "Chunks of a streamed answer that could not be read: skipped (the rest completed), fatal (it did not).",
)
