"""RateLimitPrimitive: no more requests and tokens a minute than a provider allows, in this process or in all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, Literal, TypedDict, cast

from observability_integration.context import WorkflowContext, remaining
from observability_integration.costs.usage import total_tokens_of
from observability_integration.errors import CallRefusedError, ConfigurationError, RateLimitExceededError
from observability_integration.primitives.base import ChunkStream, In, Out, Step, WorkflowPrimitive
from observability_integration.primitives.lifting import call_of, lift
from observability_integration.resilience.backoff import check_at_least, check_positive
from observability_integration.resilience.rate_limit_estimate import estimated
from observability_integration.telemetry.guard import note_fault
from observability_integration.telemetry.tracing import spans
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


class RateLimitPrimitive(WorkflowPrimitive[In, Out], Generic[In, Out]):
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
            if value is not None:
                check_positive(knob, value)
        if max_wait_seconds is not None:
            check_at_least("max_wait_seconds", max_wait_seconds, 0)
        check_at_least("burst_seconds", burst_seconds, 0)
        check_positive("redis_budget_seconds", redis_budget_seconds)
        if estimate_tokens is not None and not callable(estimate_tokens):
            raise ConfigurationError(f"estimate_tokens must be callable, got {type(estimate_tokens).__name__}")
        if without_redis not in ("local", "refuse"):
            raise ConfigurationError(f"without_redis must be 'local' or 'refuse', got {without_redis!r}")
        if requests_per_minute is None and tokens_per_minute is None and not learn:
            raise ConfigurationError("give requests_per_minute or tokens_per_minute, or let it learn")
        self._step = lift(primitive)
        self._call = call_of(self._step)
        self._operation = operation_name or self._step.name
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

    def steps(self) -> Sequence[tuple[str, WorkflowPrimitive[Any, Any]]]:
        """What is limited."""
        return [("", self._step)]

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

    async def execute(self, input_data: In, context: WorkflowContext | None = None) -> Out:
        """Runs the wrapped primitive when there is room for it.

        Raises:
            RateLimitExceededError: there would be none in time, or there can never be.
        """
        span = self._begin(context)
        token = spans.tracing.activate(span)
        outcome = "cancelled"
        reservation = None
        try:
            reservation = await self._admit(input_data, context, span)
            try:
                answer = await self._call(input_data, context)
            except BaseException as error:
                self._ended(reservation, None, error)
                raise
            outcome = "success"
            self._answered(reservation, answer)
            return cast("Out", answer)
        except Exception as error:
            outcome = "refused" if reservation is None else "error"
            spans.tracing.mark_failed(span, error)
            raise
        finally:
            spans.tracing.deactivate(token)
            span.set_attribute("outcome", outcome)
            span.end()

    def stream(self, input_data: In, context: WorkflowContext | None = None) -> ChunkStream:
        """Streams from the wrapped primitive; the stream is one call, from its opening to its end."""
        from .stream import RateLimitStream

        return RateLimitStream(
            lambda: self._begin(context),
            lambda span: self._admit(input_data, context, span),
            lambda: self._step.stream(input_data, context),
            self._ended,
        )

    def _begin(self, context: WorkflowContext | None) -> OperationSpan:
        span = spans.tracing.begin(self._record.span_name, {})
        if context is not None:
            spans.identify(span, context)
        return span

    async def _admit(self, input_data: Any, context: WorkflowContext | None, span: OperationSpan) -> Reservation:
        limit = self._limit
        tokens = estimated(self._estimate, input_data) if limit.counts_tokens else 0.0
        reservation = limit.try_reserve(tokens)
        if reservation is None:
            try:
                reservation = await limit.reserve(tokens, self._patience(context))
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

    def _answered(self, reservation: Reservation, answer: Any) -> None:
        tokens, told = None, None
        try:
            tokens = total_tokens_of(answer) or None
            told = told_by_answer(answer) if self._learns else None
        except Exception as error:  # noqa: BLE001 - reading an odd answer must not fail the call
            note_fault("rate_limit.usage", error)
        self._settle(reservation, tokens)
        if told is not None:
            self._limit.learn(told, reservation)

    def _ended(self, reservation: Reservation, tokens: int | None, error: BaseException | None) -> None:
        if isinstance(error, CallRefusedError):
            self._limit.cancel(reservation)
            return
        self._settle(reservation, tokens)
        told = told_by_error(error) if self._learns and isinstance(error, Exception) else None
        if told is not None:
            self._limit.learn(told, reservation)

    def _settle(self, reservation: Reservation, tokens: int | None) -> None:
        self._limit.settle(reservation, tokens)
        self._record.settled(reservation.tokens if tokens is None else tokens)


__all__ = ["RateLimitPrimitive", "RateLimitStats"]
