"""RateLimitPrimitive: limits requests and tokens per minute, in one process or across processes."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Literal, TypedDict

from observability_integration.checks import check_at_least, check_callable, check_choice, check_positive
from observability_integration.context import WorkflowContext, bounded_by
from observability_integration.costs.usage import Usage, total_tokens_of, usage_of
from observability_integration.errors import CallRefusedError, ConfigurationError, RateLimitExceededError
from observability_integration.primitives.base import In, Out, Step
from observability_integration.primitives.guard import GuardPrimitive
from observability_integration.primitives.lifting import lift
from observability_integration.resilience.rate_limit_estimate import estimated
from observability_integration.telemetry.guard import note_fault
from observability_integration.telemetry.tracing.spans import OperationSpan

from .guard import GuardedLedger
from .headers import limits_from_answer, limits_from_error, limits_from_headers
from .limiter import RateLimit
from .record import RateLimitRecord
from .redis import shared_ledger
from .wait_queue import Reservation, ReservationRefused

_WAIT_SECONDS = 60.0  # after a minute the whole allowance has come back


class RateLimitStats(TypedDict):
    """The result of `RateLimitPrimitive.get_stats`: calls by outcome, and charged tokens."""

    operation: str
    admitted: int
    waited: int
    refused: int
    total: int
    tokens: int
    requests_per_minute: float | None
    tokens_per_minute: float | None


class RateLimitPrimitive(GuardPrimitive[In, Out, Reservation]):
    """Limits calls to a number of requests and tokens per minute.

    Before a call, one request and the estimated tokens are reserved. If too little is left, the call waits, first come
    first served, or is refused. After the call, the reservation is settled by the usage that the answer reports: the
    rest is put back, and more is charged. A call that fails or is cancelled stays charged with its reservation, because
    the provider counts it too. A call that a primitive inside refused was never made: its reservation is put back.

    The allowance refills continually, as at OpenAI and Anthropic. **In any minute, at most the limit and one full burst
    are used**, and in the long run the limit.

    Args:
        primitive: the step to limit.
        requests_per_minute: > 0; None for no limit, until the provider states one.
        tokens_per_minute: input and output together, > 0; None for no limit, until the provider states one.
        estimate_tokens: synchronous function of the input that returns the tokens of a call, >= 0. By default a token
            for every four characters of text, plus the output limit of the request.
        max_wait_seconds: the longest wait, >= 0; None for as long as the call's deadline allows, or 60 s without a
            deadline. A deadline always bounds the wait.
        operation_name: label of the metrics and, in Redis, name of the limit; by default the wrapped primitive's name.
        redis_url: a Redis in which all processes share the limit.
        redis_client: the same through a redis-py client of any kind, also of a cluster; the caller keeps it open.
        without_redis: while Redis is out of use, ``local`` (the default) lets each process limit by itself, and
            ``refuse`` refuses all calls.
        redis_budget_seconds: how long Redis may take to answer, > 0. An outage costs one budget, once.
        burst_seconds: the seconds of allowance that may be saved up, >= 0. OpenAI and Anthropic allow 60. For a
            provider that counts by the minute, 6 keeps any minute within 1.1 times the limit.
        learn: whether the provider's headers about its limits, and a 429 with ``retry-after``, lower what is left, set
            limits that are not given, and pause all calls.

    Raises:
        ConfigurationError: a value out of range, or both a `redis_url` and a `redis_client`.
    """

    refused_outcome = "refused"

    def __init__(
        self,
        primitive: Step[In, Out],
        *,
        requests_per_minute: float | None = None,
        tokens_per_minute: float | None = None,
        estimate_tokens: Callable[[Any], float] | None = None,
        max_wait_seconds: float | None = None,
        operation_name: str | None = None,
        redis_url: str | None = None,
        redis_client: Any = None,
        without_redis: Literal["local", "refuse"] = "local",
        redis_budget_seconds: float = 0.05,
        burst_seconds: float = 60.0,
        learn: bool = True,
    ) -> None:
        for knob, value in (
            ("requests_per_minute", requests_per_minute),
            ("tokens_per_minute", tokens_per_minute),
        ):
            check_positive(knob, value, optional=True)
        check_at_least("max_wait_seconds", max_wait_seconds, 0, optional=True)
        check_at_least("burst_seconds", burst_seconds, 0)
        check_positive("redis_budget_seconds", redis_budget_seconds)
        check_callable("estimate_tokens", estimate_tokens, optional=True)
        check_choice("without_redis", without_redis, ("local", "refuse"))
        if requests_per_minute is None and tokens_per_minute is None and not learn:
            raise ConfigurationError("give requests_per_minute or tokens_per_minute, or let it learn")
        step = lift(primitive)
        self._operation = operation_name or step.name
        self._estimate = estimate_tokens
        self._max_wait_seconds = max_wait_seconds
        self._learns = learn
        self._record = RateLimitRecord(self, self._operation)
        ledger = shared_ledger(self._operation, redis_url, redis_client)
        guarded = None
        if ledger is not None:
            failed = self._record.backend_failed
            guarded = GuardedLedger(ledger, self._operation, redis_budget_seconds, on_error=failed)
        self._limit = RateLimit(
            requests_per_minute,
            tokens_per_minute,
            burst_seconds=burst_seconds,
            learn=learn,
            shared=guarded,
            without_backend=without_redis,
        )
        self._record.watch(self._limit)
        super().__init__(step, self._record.span_name)

    @property
    def name(self) -> str:
        """The operation's name."""
        return self._operation

    @property
    def requests_per_minute(self) -> float | None:
        """The current limit, configured or stated by the provider; None for no limit."""
        return self._limit.limits[0]

    @property
    def tokens_per_minute(self) -> float | None:
        """The current limit, configured or stated by the provider; None for no limit."""
        return self._limit.limits[1]

    @property
    def waiting(self) -> int:
        """The number of calls that wait now, in this process."""
        return self._limit.waiting

    def _label(self) -> str:
        requests, tokens = self._limit.limits
        known = [
            f"{limit:g} {what}" for limit, what in ((requests, "requests"), (tokens, "tokens")) if limit is not None
        ]
        return f"rate limit {self._operation} ({' and '.join(known) or 'as the provider says'} per minute)"

    def get_stats(self) -> RateLimitStats:
        """Counts since construction, in this process."""
        counts = self._record.counts
        return {
            "operation": self._operation,
            "admitted": counts["admitted"],
            "waited": counts["waited"],
            "refused": counts["refused"],
            "total": sum(counts.values()),
            "tokens": round(self._record.tokens),
            "requests_per_minute": self.requests_per_minute,
            "tokens_per_minute": self.tokens_per_minute,
        }

    def learn_from(self, headers: object) -> None:
        """Adapts to the headers of a response that was received just now.

        For clients whose answers do not carry the headers, such as the plain calls of the OpenAI SDK: call this from a
        response hook of the HTTP client. Needs a running event loop.

        Args:
            headers: a mapping, or pairs; headers that are not about limits are ignored.
        """
        stated = limits_from_headers(headers)
        if stated is not None:
            self._limit.adapt(stated)

    async def aclose(self) -> None:
        """Closes the Redis connections of the running loop; a `redis_client` stays open."""
        await self._limit.aclose()

    def enter(
        self, span: OperationSpan, input_data: Any, context: WorkflowContext | None
    ) -> Reservation | Coroutine[Any, Any, Reservation]:
        """Reserves a request and its estimated tokens, or waits for them.

        Raises:
            RateLimitExceededError: there is not enough in time, or the call needs more than the limit.
        """
        limit = self._limit
        tokens = estimated(self._estimate, input_data) if limit.counts_tokens else 0.0
        reservation = limit.try_reserve(tokens)
        if reservation is None:
            return self._wait(span, tokens, context)
        self._record.admitted(span, reservation)
        return reservation

    def leave(
        self,
        ticket: Reservation,
        span: OperationSpan,
        error: BaseException | None,
        began: float,
        answer: Any = None,
        seen: Any = None,
    ) -> None:
        """Settles the reservation by the reported tokens, and adapts to what the provider stated."""
        if isinstance(error, CallRefusedError):
            self._limit.cancel(ticket)
            return
        tokens, stated = None, None
        try:
            if seen is not None:
                tokens = _reported(seen, ticket, whole=error is None)
            elif error is None:
                tokens = total_tokens_of(answer) or None
            if self._learns:
                if isinstance(error, Exception):
                    stated = limits_from_error(error)
                elif error is None:
                    stated = limits_from_answer(answer)
        except Exception as fault:  # noqa: BLE001 - reading an odd answer must not fail the call
            note_fault("rate_limit.usage", fault)
        self._limit.settle(ticket, tokens)
        self._record.settled(ticket.tokens if tokens is None else tokens)
        if stated is not None:
            self._limit.adapt(stated, ticket)

    def see(self, seen: Usage | None, chunk: Any) -> Usage | None:
        """Returns the usage that was reported so far."""
        if isinstance(chunk, str | bytes):
            return seen
        try:
            return (seen or Usage()).merged(usage_of(chunk))
        except Exception as error:  # noqa: BLE001 - reading an odd chunk must not fail the call
            note_fault("rate_limit.usage", error)
            return seen

    async def _wait(self, span: OperationSpan, tokens: float, context: WorkflowContext | None) -> Reservation:
        try:
            reservation = await self._limit.reserve(tokens, self._max_wait(context))
        except ReservationRefused as refusal:
            self._record.refused(span, refusal)
            raise RateLimitExceededError(self._operation, refusal.limit, refusal.retry_after_seconds) from None
        self._record.admitted(span, reservation)
        return reservation

    def _max_wait(self, context: WorkflowContext | None) -> float:
        deadline = bounded_by(context)
        left = None if deadline is None else deadline.remaining()
        if self._max_wait_seconds is None:
            return _WAIT_SECONDS if left is None else left
        return self._max_wait_seconds if left is None else min(left, self._max_wait_seconds)


def _reported(usage: Usage, reservation: Reservation, *, whole: bool) -> int | None:
    # The usage may not be complete before the end: a stream that was closed early keeps at least its reservation.
    tokens = (usage.input_tokens or 0) + (usage.output_tokens or 0)
    return None if tokens == 0 or (not whole and tokens < reservation.tokens) else tokens


__all__ = ["RateLimitPrimitive", "RateLimitStats"]
