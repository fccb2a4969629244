"""`pipeline`: the primitives around one or more targets, in the recommended order, with safe defaults.

::

    cache                     a hit reaches no primitive below
    total deadline            bounds the caller's wait, over all attempts and targets
    fallback                  moves to the next target when one cannot serve
      retry                   per target, with a budget; outside the breaker, so that the breaker counts each attempt
        circuit breaker       refuses at once calls that would fail
          rate limit          requests and tokens a minute; waits before it takes a concurrency permit
            concurrency       limits calls in flight
              attempt timeout first chunk, idle, the whole attempt
                the call      one CLIENT span for each attempt
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from observability_integration.checks import check_at_least
from observability_integration.errors import ConfigurationError
from observability_integration.resilience.aimd import Aimd
from observability_integration.resilience.backoff import Backoff
from observability_integration.resilience.faults import Classifier

from .base import WorkflowPrimitive
from .circuit_breaker import CircuitBreakerPrimitive
from .circuit_breaker.breaker import Breaker, BreakerPolicy
from .concurrency import ConcurrencyLimitPrimitive
from .concurrency.limit import ConcurrencyLimit
from .fallback import FallbackPrimitive
from .rate_limit import RateLimitPrimitive
from .retry import RetryPrimitive
from .target import LLMTarget
from .timeout import TimeoutPrimitive

_BACKOFF = Backoff(max_retry_after_seconds=10.0)
_BREAKER = BreakerPolicy()
# Share of the total time that a target may spend in silence while there is another target.
_FIRST_TARGET_SHARE = 0.5
# Share of that time after which the breaker blames the target for a call that its caller cut short.
_HANG_SHARE = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineDefaults:
    """The defaults of `pipeline`.

    Attributes:
        timeout_seconds: limit of the whole call, > 0. A user looks at an empty screen for no longer than a minute.
        first_chunk_seconds: limit until the first content of an attempt that streams, > 0. At most half of
            `timeout_seconds`, unless the target is the only one. Reasoning models that send nothing while they think
            need more.
        idle_seconds: limit between two chunks with content, > 0; with the same bound.
        attempt_timeout_seconds: limit of one attempt, > 0. None means no limit for a call that streams, and half of
            `timeout_seconds` for one that does not, unless the target is the only one.
        grace_period_seconds: time for a cancelled attempt to clean up while the next target waits, >= 0.
        max_attempts: attempts at each target, >= 1, the retries included that its client makes by itself.
        backoff: the waits between them. If a provider asks for more than 10 s, the call does not wait for it.
        breaker: when a target's circuit opens. If the target is the only one, the attempts at one question count once.
        max_concurrency: calls in flight at each target, >= 1; None means no limit.
        requests_per_minute: at each target, >= 1; None means no limit.
        tokens_per_minute: at each target, >= 1; None means no limit.
        max_wait_seconds: longest wait in the queue of a target with such a limit, >= 0. If the target is the only one,
            a call waits as long as the deadline allows.
        restart_streams: whether live readers get a `StreamRestart` instead of an error when an answer is cut.
    """

    timeout_seconds: float = 60.0
    first_chunk_seconds: float = 20.0
    idle_seconds: float = 15.0
    attempt_timeout_seconds: float | None = None
    grace_period_seconds: float = 2.0
    max_attempts: int = 3
    backoff: Backoff = _BACKOFF
    breaker: BreakerPolicy = _BREAKER
    max_concurrency: int | None = None
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    max_wait_seconds: float = 5.0
    restart_streams: bool = False


def pipeline(
    targets: Sequence[Any],
    *,
    cache: Callable[[WorkflowPrimitive[Any, Any]], WorkflowPrimitive[Any, Any]] | None = None,
    classifier: Classifier | None = None,
    operation_name: str = "pipeline",
    defaults: PipelineDefaults | None = None,
    **knobs: Any,
) -> WorkflowPrimitive[Any, Any]:
    """Wraps `targets` in the primitives, in the recommended order (see the module), and returns the outermost.

    Args:
        targets: `LLMTarget`, primitives or async callables, in order of preference.
        cache: wraps the whole in a cache: ``lambda inner: CachePrimitive(inner, ...)``.
        classifier: classifies an exception before the built-in rules (see `resilience.faults.classify`).
        operation_name: label of the metrics of the primitives around the targets.
        defaults: replaces `PipelineDefaults()`.
        **knobs: replace single attributes of `PipelineDefaults`.

    Raises:
        ConfigurationError: no targets, two of one name, an unknown knob, or a value out of range.
    """
    chosen = _with_knobs(defaults or PipelineDefaults(), knobs)
    check_at_least("max_wait_seconds", chosen.max_wait_seconds, 0)
    llm_targets = [target if isinstance(target, LLMTarget) else LLMTarget(call=target) for target in targets]
    if not llm_targets:
        raise ConfigurationError("a pipeline needs at least one target")
    steps: dict[str, WorkflowPrimitive[Any, Any]] = {}
    for target in llm_targets:
        label = target.label()
        if label in steps:
            raise ConfigurationError(f"two targets are called {label!r}; give them names: LLMTarget(name=...)")
        steps[label] = _guarded(target, label, chosen, classifier, alone=len(llm_targets) == 1)
    fallback = FallbackPrimitive(
        steps,
        context_windows={
            target.label(): target.context_window for target in llm_targets if target.context_window is not None
        },
        restart_streams=chosen.restart_streams,
        classifier=classifier,
        operation_name=operation_name,
    )
    whole: WorkflowPrimitive[Any, Any] = TimeoutPrimitive(
        fallback, chosen.timeout_seconds, chosen.grace_period_seconds, operation_name
    )
    return whole if cache is None else cache(whole)


def _with_knobs(defaults: PipelineDefaults, knobs: dict[str, Any]) -> PipelineDefaults:
    try:
        return replace(defaults, **knobs)
    except TypeError:
        unknown = [knob for knob in knobs if knob not in PipelineDefaults.__dataclass_fields__]
        raise ConfigurationError(
            f"pipeline has no knob {', '.join(map(repr, unknown))}; it has "
            f"{', '.join(PipelineDefaults.__dataclass_fields__)}"
        ) from None


def _guarded(
    target: LLMTarget, label: str, chosen: PipelineDefaults, classifier: Classifier | None, *, alone: bool
) -> WorkflowPrimitive[Any, Any]:
    step = target.step()
    limit = _own_or(target.attempt_timeout_seconds, chosen.attempt_timeout_seconds)
    silence_seconds = chosen.timeout_seconds * (1.0 if alone else _FIRST_TARGET_SHARE)
    if limit is None:
        limit = chosen.timeout_seconds if step.execute_reads_stream else silence_seconds
    first_chunk = idle = None
    if step.execute_reads_stream:  # else the first chunk is the whole answer
        idle = min(silence_seconds, _own_or(target.idle_seconds, chosen.idle_seconds))
        first_chunk = min(silence_seconds, _own_or(target.first_chunk_seconds, chosen.first_chunk_seconds))
        silence_seconds = first_chunk
    step = TimeoutPrimitive(
        step, limit, chosen.grace_period_seconds, label, first_chunk_seconds=first_chunk, idle_seconds=idle
    )
    max_wait = None if alone else chosen.max_wait_seconds
    concurrency: int | Aimd | ConcurrencyLimit | None = _own_or(target.max_concurrency, chosen.max_concurrency)
    if isinstance(concurrency, ConcurrencyLimit):
        step = ConcurrencyLimitPrimitive(
            step, limiter=concurrency, max_wait_seconds=max_wait, classifier=classifier, operation_name=label
        )
    elif concurrency is not None:
        step = ConcurrencyLimitPrimitive(
            step, concurrency, max_wait_seconds=max_wait, classifier=classifier, operation_name=label
        )
    requests = _own_or(target.requests_per_minute, chosen.requests_per_minute)
    tokens = _own_or(target.tokens_per_minute, chosen.tokens_per_minute)
    if requests is not None or tokens is not None:
        step = RateLimitPrimitive(
            step,
            requests_per_minute=requests,
            tokens_per_minute=tokens,
            max_wait_seconds=max_wait,
            operation_name=label,
        )
    breaker: BreakerPolicy | Breaker = _own_or(target.breaker, chosen.breaker)
    step = CircuitBreakerPrimitive(
        step,
        breaker if isinstance(breaker, BreakerPolicy) else None,
        classifier=classifier,
        target=label,
        # Less than the whole: the total deadline may end an attempt just before the attempt's own limit does.
        hang_seconds=silence_seconds * _HANG_SHARE,
        breaker=breaker if isinstance(breaker, Breaker) else None,
    )
    budget = {} if target.retry_budget is None else {"budget": target.retry_budget}
    return RetryPrimitive(
        step,
        _own_or(target.max_attempts, chosen.max_attempts),
        backoff=_own_or(target.backoff, chosen.backoff),
        classifier=classifier,
        operation_name=label,
        **budget,
    )


def _own_or(own: Any, default: Any) -> Any:
    return default if own is None else own
