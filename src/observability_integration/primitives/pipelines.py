"""pipeline: the primitives around a few targets, in the order that works, with defaults that are safe.

::

    cache                     a hit touches nothing further in
    total deadline            nobody waits longer, whatever is tried
    fallback                  the next target when one cannot serve
      retry                   per target, with a budget; outside of the breaker, so that every attempt feeds it
        circuit breaker       refuses at once what would fail
          rate limit          requests and tokens a minute; waits before a place is taken
            concurrency       calls at once
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
_SHARE = 0.5  # of the total, that a target may spend in silence while there is another one
_MOST = 0.9


@dataclass(frozen=True, slots=True, kw_only=True)
class PipelineDefaults:
    """What `pipeline` does where nothing else is said.

    Attributes:
        timeout_seconds: for the whole call, > 0. A minute is as long as somebody looks at an empty screen.
        first_chunk_seconds: until the first content of an attempt that streams, > 0; not more than half of
            `timeout_seconds`, unless the target is the only one. Reasoning models that send nothing while they think
            need more.
        idle_seconds: between two chunks with content, > 0; with the same bound.
        attempt_timeout_seconds: for one attempt, > 0; None is half of `timeout_seconds` for a call that does not
            stream, unless the target is the only one, and no limit of its own for one that does.
        grace_period_seconds: how long a cancelled attempt may clean up while the next target waits, >= 0.
        max_attempts: at each target, >= 1.
        backoff: the waits between them. A provider that asks for more than 10 s is not waited for.
        breaker: when a target's circuit opens.
        max_concurrency: calls at once at each target, >= 1; None for any number.
        requests_per_minute: at each target, >= 1; None for any number.
        tokens_per_minute: at each target, >= 1; None for any number.
        max_wait_seconds: for a turn at a target that has such a limit, >= 0; if the target is the only one, as long as
            the deadline allows.
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
    """Puts the primitives around `targets` in the recommended order (see the module), and returns the outermost.

    Args:
        targets: `LLMTarget`, primitives or async callables, in order of preference.
        cache: puts a cache around the whole: ``lambda inner: CachePrimitive(inner, ...)``.
        classifier: asked first what kind of fault an exception is (see `resilience.faults.classify`).
        operation_name: label of the metrics of what is around the targets.
        defaults: other defaults than `PipelineDefaults()`.
        **knobs: single ones of them: the attributes of `PipelineDefaults`.

    Raises:
        ConfigurationError: no targets, two of one name, an unknown knob, or a value out of range.
    """
    chosen = _chosen(defaults or PipelineDefaults(), knobs)
    check_at_least("max_wait_seconds", chosen.max_wait_seconds, 0)
    listed = [target if isinstance(target, LLMTarget) else LLMTarget(call=target) for target in targets]
    if not listed:
        raise ConfigurationError("a pipeline needs at least one target")
    steps: dict[str, WorkflowPrimitive[Any, Any]] = {}
    for target in listed:
        label = target.label()
        if label in steps:
            raise ConfigurationError(f"two targets are called {label!r}; give them names: LLMTarget(name=...)")
        steps[label] = _around(target, label, chosen, classifier, alone=len(listed) == 1)
    fallback = FallbackPrimitive(
        steps,
        context_windows={
            target.label(): target.context_window for target in listed if target.context_window is not None
        },
        restart_streams=chosen.restart_streams,
        classifier=classifier,
        operation_name=operation_name,
    )
    whole: WorkflowPrimitive[Any, Any] = TimeoutPrimitive(
        fallback, chosen.timeout_seconds, chosen.grace_period_seconds, operation_name
    )
    return whole if cache is None else cache(whole)


def _chosen(defaults: PipelineDefaults, knobs: dict[str, Any]) -> PipelineDefaults:
    try:
        return replace(defaults, **knobs)
    except TypeError:
        unknown = [knob for knob in knobs if knob not in PipelineDefaults.__dataclass_fields__]
        raise ConfigurationError(
            f"pipeline has no knob {', '.join(map(repr, unknown))}; it has "
            f"{', '.join(PipelineDefaults.__dataclass_fields__)}"
        ) from None


def _around(
    target: LLMTarget, label: str, chosen: PipelineDefaults, classifier: Classifier | None, *, alone: bool
) -> WorkflowPrimitive[Any, Any]:
    step = target.step()
    limit = _given(target.attempt_timeout_seconds, chosen.attempt_timeout_seconds)
    patience = chosen.timeout_seconds * (1.0 if alone else _SHARE)
    if limit is None:
        limit = chosen.timeout_seconds if step.collects else patience
    first_chunk = idle = None
    if step.collects:  # of what does not stream, the first chunk is the whole answer
        idle = min(patience, _given(target.idle_seconds, chosen.idle_seconds))
        patience = first_chunk = min(patience, _given(target.first_chunk_seconds, chosen.first_chunk_seconds))
    step = TimeoutPrimitive(
        step, limit, chosen.grace_period_seconds, label, first_chunk_seconds=first_chunk, idle_seconds=idle
    )
    waits = None if alone else chosen.max_wait_seconds
    width: int | Aimd | ConcurrencyLimit | None = _given(target.max_concurrency, chosen.max_concurrency)
    if isinstance(width, ConcurrencyLimit):
        step = ConcurrencyLimitPrimitive(
            step, limiter=width, max_wait_seconds=waits, classifier=classifier, operation_name=label
        )
    elif width is not None:
        step = ConcurrencyLimitPrimitive(
            step, width, max_wait_seconds=waits, classifier=classifier, operation_name=label
        )
    requests = _given(target.requests_per_minute, chosen.requests_per_minute)
    tokens = _given(target.tokens_per_minute, chosen.tokens_per_minute)
    if requests is not None or tokens is not None:
        step = RateLimitPrimitive(
            step,
            requests_per_minute=requests,
            tokens_per_minute=tokens,
            max_wait_seconds=waits,
            operation_name=label,
        )
    breaker: BreakerPolicy | Breaker = _given(target.breaker, chosen.breaker)
    step = CircuitBreakerPrimitive(
        step,
        breaker if isinstance(breaker, BreakerPolicy) else None,
        classifier=classifier,
        target=label,
        # The deadline of a lone target ends the attempt first, or an instant before the attempt would end itself.
        hang_seconds=patience * _MOST,
        breaker=breaker if isinstance(breaker, Breaker) else None,
    )
    budget = {} if target.retry_budget is None else {"budget": target.retry_budget}
    return RetryPrimitive(
        step,
        _given(target.max_attempts, chosen.max_attempts),
        backoff=_given(target.backoff, chosen.backoff),
        classifier=classifier,
        operation_name=label,
        **budget,
    )


def _given(own: Any, common: Any) -> Any:
    return common if own is None else own
