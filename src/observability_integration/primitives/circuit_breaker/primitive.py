"""CircuitBreakerPrimitive: refuses calls to a target that fails, and probes for its recovery."""

from __future__ import annotations

import logging
import math
from asyncio import CancelledError, get_running_loop
from typing import Any, cast

from observability_integration.checks import check_callable, check_positive
from observability_integration.context import WorkflowContext, bounded_by, current_deadline
from observability_integration.errors import (
    CircuitOpenError,
    ConfigurationError,
    MissingDependencyError,
    PrimitiveTimeoutError,
)
from observability_integration.primitives.base import In, Out, Step
from observability_integration.primitives.chunks import is_content
from observability_integration.primitives.guard import GuardPrimitive
from observability_integration.primitives.lifting import lift
from observability_integration.resilience.faults import Classifier, classify
from observability_integration.resilience.faults.caller import mark_begun
from observability_integration.resilience.last_resort import is_lone_target, last_resort
from observability_integration.resilience.question import counts
from observability_integration.telemetry.tracing.spans import OperationSpan

from .breaker import Breaker, BreakerPolicy, Refusal, State
from .record import BreakerRecord

logger = logging.getLogger("observability_integration")


class CircuitBreakerPrimitive(GuardPrimitive[In, Out, int]):
    """Refuses calls to a target that fails, and lets one probe through after a pause.

    ===============================  ===================================================================================
    moment                           what happens
    ===============================  ===================================================================================
    closed                           calls pass, and their outcomes are counted
    too many have failed             the breaker opens (see `BreakerPolicy`)
    open                             calls raise `CircuitOpenError` at once, with the time until the next probe
    the pause is over                half-open: one call is the probe, all others are refused
    the probe succeeds, or fails     closed again; or open, for longer
    open, and no other target left   the last target of a fallback is asked all the same, one call at a time
    ===============================  ===================================================================================

    The table of `resilience.faults` says what counts against the target: a wrong key, a content filter, a rate limit, a
    mistake of the calling program and a call that its caller cancelled do not. A deadline from outside counts only
    against a target that had `hang_seconds` to answer: a caller with a short deadline must not open the breaker of a
    healthy target. So put the timeout of an attempt *inside*, and retries outside, so that every attempt is counted, or
    refused. Where no fallback around it has another target, all attempts of one caller at one question count as one
    failure (see `BreakerPolicy`).

    Args:
        primitive: the calls of one target.
        policy: when the breaker opens, and for how long.
        classifier: classifies an exception before the rules do (see `resilience.faults.classify`).
        target: name of the target, a label; by default the wrapped primitive's name. Processes that share a Redis share
            the breaker of this name.
        hang_seconds: the time that a target must have had to answer before a deadline from outside counts against it,
            > 0.
        breaker: the breaker of another primitive that leads to the same target, to share it; excludes `policy`.
        redis_url: of a Redis over which processes share the verdict: when one opens, the others follow within a second
            or so, and one of them probes for all. No call waits for Redis; without Redis each process decides alone.
        redis_client: the same, through a client of the caller, asynchronous or not.

    Raises:
        ConfigurationError: arguments that exclude each other, or a Redis without a `target`.
    """

    timed = True

    def __init__(
        self,
        primitive: Step[In, Out],
        policy: BreakerPolicy | None = None,
        *,
        classifier: Classifier | None = None,
        target: str | None = None,
        hang_seconds: float = 10.0,
        breaker: Breaker | None = None,
        redis_url: str | None = None,
        redis_client: Any = None,
    ) -> None:
        check_callable("classifier", classifier, optional=True)
        given: Any = policy
        if given is not None and not isinstance(given, BreakerPolicy):
            raise ConfigurationError(f"policy must be a BreakerPolicy, got {type(given).__name__}")
        check_positive("hang_seconds", hang_seconds)
        self.hang_seconds = hang_seconds
        step = lift(primitive)
        self._classifier = classifier
        self._target = target or step.name
        self._shared = False
        if breaker is not None:
            if policy is not None or redis_url is not None or redis_client is not None:
                raise ConfigurationError("breaker comes with its policy and its Redis; give it alone")
            self.breaker = breaker
        else:
            self.breaker = self._make(policy, target, redis_url, redis_client)
        self._record = BreakerRecord.of(self.breaker, self._target)
        super().__init__(step, self._record.span_name)

    def _make(
        self, policy: BreakerPolicy | None, target: str | None, redis_url: str | None, redis_client: Any
    ) -> Breaker:
        if redis_url is None and redis_client is None:
            return Breaker(policy)
        from .redis import RedisBreakerStore
        from .shared import SharedBreaker

        if not target:
            raise ConfigurationError(
                "target is required with redis_url or redis_client: by it processes find each other"
            )
        try:
            store = RedisBreakerStore(redis_url, redis_client)
        except MissingDependencyError as error:
            logger.warning("Circuit of '%s': %s; each process goes by its own verdict", target, error)
            return Breaker(policy)
        self._shared = True
        return SharedBreaker(target, store, policy)

    @property
    def name(self) -> str:
        """The target's name."""
        return self._target

    @property
    def state(self) -> State:
        """``closed``, ``open`` or ``half_open``; an open breaker stays open until the first call after its pause."""
        return self.breaker.state

    def _label(self) -> str:
        return f"circuit breaker {self._target}{' (shared)' if self._shared else ''}"

    def force_open(self, seconds: float | None = None) -> None:
        """Opens the breaker by hand, for this many seconds; by default for its first pause. Then it probes as usual.

        Raises:
            ConfigurationError: `seconds` is not a finite number > 0.
        """
        self.breaker.force_open(seconds)

    def reset(self) -> None:
        """Closes the breaker by hand, and clears its counts."""
        self.breaker.reset()

    async def aclose(self) -> None:
        """Ends the exchange over Redis, if this primitive began it; the breaker goes on in this process alone."""
        if self._shared:
            from .shared import SharedBreaker

            await cast("SharedBreaker", self.breaker).aclose()

    def began(self, context: WorkflowContext | None) -> float:
        """Returns the time of the event loop if a deadline may end the call; else infinity."""
        return math.inf if bounded_by(context) is None else get_running_loop().time()

    def enter(self, span: OperationSpan, input_data: Any, context: WorkflowContext | None) -> int:
        """Asks the breaker for admission. Allows a probe ahead of time if this is the last target.

        Raises:
            CircuitOpenError: the call is refused.
        """
        ticket = self.breaker.enter()
        if isinstance(ticket, Refusal) and last_resort.get():
            ticket = self.breaker.enter(forced=True)
        if isinstance(ticket, Refusal):
            self._record.refused(span)
            raise CircuitOpenError(self._target, ticket.retry_after_seconds)
        if ticket < 0:
            span.set_attribute("circuit_breaker.probe", True)
        return ticket

    def leave(
        self,
        ticket: int,
        span: OperationSpan,
        error: BaseException | None,
        began: float,
        answer: Any = None,
        seen: Any = None,
    ) -> None:
        """Counts the call; a stream that its reader closed after content is a success."""
        if seen is not None and isinstance(error, Exception):
            mark_begun(error)
        if error is None or (seen and isinstance(error, GeneratorExit)):
            self.breaker.leave(ticket, False)
            self._record.succeeded()
        elif self._counts_against_target(error, began) and (
            # A probe that fails keeps the circuit open, however the question was asked before.
            ticket < 0 or not is_lone_target() or counts(self.breaker, error)
        ):
            self.breaker.leave(ticket, True)
            self._record.failed(span)
        else:
            self.breaker.leave(ticket, None)
            self._record.ignored()

    def see(self, seen: Any, chunk: Any) -> bool:
        """Returns whether content was seen."""
        return seen or is_content(chunk)

    def _counts_against_target(self, error: BaseException, began: float) -> bool:
        if isinstance(error, CancelledError):
            deadline = current_deadline()
            expired = deadline is not None and deadline.remaining() <= 0
            return expired and get_running_loop().time() - began >= self.hang_seconds
        if not isinstance(error, Exception) or not classify(error, self._classifier).counts_against_target:
            return False
        if isinstance(error, PrimitiveTimeoutError) and error.deadline_source == "inherited":
            return get_running_loop().time() - began >= self.hang_seconds
        return True
