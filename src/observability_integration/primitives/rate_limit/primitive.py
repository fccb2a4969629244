"""RateLimitPrimitive: no more requests and tokens a minute than a provider allows, in this process or in all."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any, Literal, TypedDict

from observability_integration.checks import check_at_least, check_callable, check_choice, check_positive
from observability_integration.context import WorkflowContext, remaining
from observability_integration.costs.usage import Usage, total_tokens_of, usage_of
from observability_integration.errors import CallRefusedError, ConfigurationError, RateLimitExceededError
from observability_integration.primitives.base import In, Out, Step
from observability_integration.primitives.guard import GuardPrimitive
from observability_integration.primitives.lifting import lift
from observability_integration.resilience.rate_limit_estimate import estimated
from observability_integration.telemetry.guard import note_fault
from observability_integration.telemetry.tracing.spans import OperationSpan

from .guard import GuardedLedger
from .headers import told_by_answer, told_by_error, told_by_headers
from .limiter import RateLimit
from .record import RateLimitRecord
from .redis import shared_ledger
from .wait_queue import Refused, Reservation

_WAIT_SECONDS = 60.0  # after a minute all that may be used in a minute has come back


class RateLimitStats(TypedDict):
    """What `RateLimitPrimitive.get_stats` returns: calls by outcome, and tokens that were charged."""

    operation: str
    admitted: int
    waited: int
    refused: int
    total: int
    tokens: int
    requests_per_minute: float | None
    tokens_per_minute: float | None


class RateLimitPrimitive(GuardPrimitive[In, Out, Reservation]):
    """Keeps calls within so many requests and tokens a minute.

    Before a call, one request and the tokens that it is expected to use are reserved; who finds too little waits, first
    come first served, or is refused. After it, what the answer reports as used is settled: the rest is put back, and
    more is charged. A call that fails or is cancelled stays charged with what was reserved, because the provider counts
    it too; one that a primitive further in refused was never made, and all is put back.

    Time fills the allowance continually, as it does at OpenAI and Anthropic. **In any minute, at most the limit and one
    full burst are used**, and in the long run the limit.

    Args:
        primitive: what to limit.
        requests_per_minute: > 0; None for no limit, until the provider states one.
        tokens_per_minute: input and output together, > 0; None for no limit, until the provider states one.
        estimate_tokens: what a call will use, given its input: a number >= 0, at once. By default a token for every
            four characters of text, and the most that the request lets the model answer with.
        max_wait_seconds: how long a call may wait, >= 0; None for as long as its deadline allows, and 60 s without one.
            A deadline always bounds it.
        operation_name: label of the metrics and, in Redis, name of the limit; by default the wrapped primitive's name.
        redis_url: a Redis in which all processes share the limit.
        redis_client: the same through a redis-py client of any kind, also of a cluster; the caller keeps it.
        without_redis: while Redis is away, ``local`` (the default) lets each process limit by itself, and ``refuse``
            refuses all calls.
        redis_budget_seconds: how long Redis may take to answer, > 0. It costs one budget to find out that it is away.
        burst_seconds: of how many seconds the allowance may be saved up, >= 0. 60 is what OpenAI and Anthropic allow.
            For a provider that counts by the minute, 6 keeps any minute within 1.1 times the limit.
        learn: let what the provider says (headers of its limits, a 429 with ``retry-after``) lower what is left, set
            limits that are not given, and keep everybody waiting.

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
        """The limit in force, whether given or learned; None for none."""
        return self._limit.limits[0]

    @property
    def tokens_per_minute(self) -> float | None:
        """The limit in force, whether given or learned; None for none."""
        return self._limit.limits[1]

    @property
    def waiting(self) -> int:
        """How many calls wait now, in this process."""
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
        """Takes in the headers of a response that was received just now.

        For clients whose answers do not carry them along, such as the plain calls of the OpenAI SDK: a response hook of
        the HTTP client hands them over. Needs a running event loop.

        Args:
            headers: a mapping, or pairs; what is not about limits is passed over.
        """
        told = told_by_headers(headers)
        if told is not None:
            self._limit.learn(told)

    async def aclose(self) -> None:
        """Closes the connections that were opened for the running loop; a `redis_client` stays open."""
        await self._limit.aclose()

    def enter(
        self, span: OperationSpan, input_data: Any, context: WorkflowContext | None
    ) -> Reservation | Coroutine[Any, Any, Reservation]:
        """Reserves a request and its estimated tokens, or waits for them.

        Raises:
            RateLimitExceededError: there is no room in time, or there can never be.
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
        """Settles the reservation by the tokens that were reported, and learns from what the provider said."""
        if isinstance(error, CallRefusedError):
            self._limit.cancel(ticket)
            return
        tokens, told = None, None
        try:
            if seen is not None:
                tokens = _reported(seen, ticket, whole=error is None)
            elif error is None:
                tokens = total_tokens_of(answer) or None
            if self._learns:
                if isinstance(error, Exception):
                    told = told_by_error(error)
                elif error is None:
                    told = told_by_answer(answer)
        except Exception as fault:  # noqa: BLE001 - reading an odd answer must not fail the call
            note_fault("rate_limit.usage", fault)
        self._limit.settle(ticket, tokens)
        self._record.settled(ticket.tokens if tokens is None else tokens)
        if told is not None:
            self._limit.learn(told, ticket)

    def see(self, seen: Usage | None, chunk: Any) -> Usage | None:
        """The usage that was reported so far."""
        if isinstance(chunk, str | bytes):
            return seen
        try:
            return (seen or Usage()).merged(usage_of(chunk))
        except Exception as error:  # noqa: BLE001 - reading an odd chunk must not fail the call
            note_fault("rate_limit.usage", error)
            return seen

    async def _wait(self, span: OperationSpan, tokens: float, context: WorkflowContext | None) -> Reservation:
        try:
            reservation = await self._limit.reserve(tokens, self._patience(context))
        except Refused as refusal:
            self._record.refused(span, refusal)
            raise RateLimitExceededError(self._operation, refusal.limit, refusal.retry_after_seconds) from None
        self._record.admitted(span, reservation)
        return reservation

    def _patience(self, context: WorkflowContext | None) -> float:
        left = remaining() if context is None else context.remaining()
        if self._max_wait_seconds is None:
            return _WAIT_SECONDS if left is None else left
        return self._max_wait_seconds if left is None else min(left, self._max_wait_seconds)


def _reported(usage: Usage, reservation: Reservation, *, whole: bool) -> int | None:
    # A report before the end is not yet all: a stream that was left keeps at least what was reserved.
    tokens = (usage.input_tokens or 0) + (usage.output_tokens or 0)
    return None if tokens == 0 or (not whole and tokens < reservation.tokens) else tokens


__all__ = ["RateLimitPrimitive", "RateLimitStats"]
