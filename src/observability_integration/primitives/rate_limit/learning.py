"""Adapts a ledger to what a provider states about its limits."""

from __future__ import annotations

from collections.abc import Callable

from .buckets import Bucket, Ledger
from .headers import LimitState, ProviderLimits
from .shared import LedgerUpdate
from .wait_queue import Reservation

#: The longest pause that a provider can cause; then a call is tried again.
LONGEST_GATE_SECONDS = 600.0


def adapt(
    stated: ProviderLimits,
    ledger: Ledger,
    given: tuple[float | None, float | None],
    reservation: Reservation | None,
    now: float,
) -> LedgerUpdate:
    """Adapts the ledger, and returns the update for the shared ledger.

    Args:
        stated: what the provider states.
        ledger: the ledger.
        given: the configured limits of requests and of tokens, which are never exceeded.
        reservation: of the call with the response, whose numbers were true when the call began; None if they are true
            now.
        now: seconds on the event loop's clock.
    """
    _adapt_limit(stated.requests, given[0], ledger.requests, ledger.set_requests)
    _adapt_limit(stated.tokens, given[1], ledger.tokens, ledger.set_tokens)
    passed, since = 0.0, (0.0, 0.0)
    if reservation is not None:
        taken = ledger.taken
        passed = now - reservation.began
        since = taken[0] - reservation.taken[0], taken[1] - reservation.taken[1]
    most_requests = _left(stated.requests, ledger.requests, passed, since[0])
    most_tokens = _left(stated.tokens, ledger.tokens, passed, since[1])
    pause = max(stated.requests.pause_seconds, stated.tokens.pause_seconds)
    if stated.limited:
        # Nothing is left at the provider, whatever was saved up here.
        most_requests = 0.0 if stated.requests.remaining is None else most_requests
        most_tokens = 0.0 if stated.tokens.remaining is None else most_tokens
        pause = max(pause, stated.retry_after_seconds or 0.0)
    pause = min(pause, LONGEST_GATE_SECONDS)
    ledger.lower(most_requests, most_tokens, now)
    if pause > 0:
        ledger.close_until(now + pause)
    return LedgerUpdate(0.0, 0.0, most_requests, most_tokens, pause)


def _adapt_limit(
    state: LimitState, given: float | None, bucket: Bucket | None, change: Callable[[float | None], None]
) -> None:
    if state.limit is None:
        return
    limit = state.limit if state.is_per_minute else None
    if given is not None:
        limit = given if limit is None else min(given, limit)
    if limit != (None if bucket is None else bucket.per_minute):
        change(limit)


def _left(state: LimitState, bucket: Bucket | None, passed_seconds: float, taken: float) -> float | None:
    return None if bucket is None else state.left_by_now(bucket.rate * passed_seconds - taken)
