"""What a ledger takes over from what a provider says about its limits."""

from __future__ import annotations

from collections.abc import Callable

from .buckets import Bucket, Ledger
from .headers import Standing, Told
from .shared import LedgerUpdate as News
from .wait_queue import Reservation

#: The longest that the provider's word keeps everybody waiting; then one asks again.
LONGEST_GATE_SECONDS = 600.0


def learn(
    told: Told,
    ledger: Ledger,
    given: tuple[float | None, float | None],
    reservation: Reservation | None,
    now: float,
) -> News:
    """Changes the ledger, and says what others should know.

    Args:
        told: what the provider says.
        ledger: the ledger.
        given: the limits that the user gave, of requests and of tokens, which are never exceeded.
        reservation: of the call that it was said to, and true when that began; None for what is true now.
        now: seconds on the event loop's clock.
    """
    _learn_limit(told.requests, given[0], ledger.requests, ledger.set_requests)
    _learn_limit(told.tokens, given[1], ledger.tokens, ledger.set_tokens)
    passed, since = 0.0, (0.0, 0.0)
    if reservation is not None:
        taken = ledger.taken
        passed = now - reservation.began
        since = taken[0] - reservation.taken[0], taken[1] - reservation.taken[1]
    most_requests = _left(told.requests, ledger.requests, passed, since[0])
    most_tokens = _left(told.tokens, ledger.tokens, passed, since[1])
    pause = max(told.requests.pause_seconds, told.tokens.pause_seconds)
    if told.limited:
        # Whatever was saved up here, the provider has nothing of it.
        most_requests = 0.0 if told.requests.remaining is None else most_requests
        most_tokens = 0.0 if told.tokens.remaining is None else most_tokens
        pause = max(pause, told.retry_after_seconds or 0.0)
    pause = min(pause, LONGEST_GATE_SECONDS)
    ledger.lower(most_requests, most_tokens, now)
    if pause > 0:
        ledger.close_until(now + pause)
    return News(0.0, 0.0, most_requests, most_tokens, pause)


def _learn_limit(
    standing: Standing, given: float | None, bucket: Bucket | None, change: Callable[[float | None], None]
) -> None:
    if standing.limit is None:
        return
    limit = standing.limit if standing.is_per_minute else None
    if given is not None:
        limit = given if limit is None else min(given, limit)
    if limit != (None if bucket is None else bucket.per_minute):
        change(limit)


def _left(standing: Standing, bucket: Bucket | None, passed_seconds: float, taken: float) -> float | None:
    return None if bucket is None else standing.left_by_now(bucket.rate * passed_seconds - taken)
